package guards

import (
	"slices"
	"time"

	"stanch/activities"
	"stanch/activities/aws"
)

func protected(f Facts) *activities.Decision {
	t := f.Request.Target
	switch p := f.protection(); {
	case p.Namespace != "":
		return refuse("the namespace %s is protected", p.Namespace)
	case p.Self:
		return refuse("%s is Stanch itself", t)
	case p.Workload != "":
		return refuse("the workload %s is protected", p.Workload)
	case p.Role != "":
		return refuse("%s is protected (%s)", t, p.Role)
	}
	return nil
}

// protection is why the target is protected; the zero value if it is not.
func (f Facts) protection() activities.Protected {
	t := f.Request.Target
	if t.Namespace != "" && slices.Contains(f.Config.Protected.Namespaces, t.Namespace) {
		return activities.Protected{Namespace: t.Namespace}
	}
	if slices.Contains(f.Self, t.UID) {
		return activities.Protected{Self: true}
	}
	for _, owner := range f.owners() {
		if slices.Contains(f.Config.Protected.Workloads, owner) {
			return activities.Protected{Workload: owner}
		}
	}
	for _, pattern := range f.Config.Protected.Roles {
		if t.Kind.IsCloud() && aws.Matches(pattern, t.Name, t.ARN) {
			return activities.Protected{Role: pattern}
		}
	}
	return activities.Protected{}
}

// inputs are what was judged by, for whoever judges again.
func (f Facts) inputs() *activities.DecisionInputs {
	in := &activities.DecisionInputs{
		Threshold: f.Scope.Confidence, MaxDuration: time.Duration(f.Config.Budget.Longest), Approvers: ApproversOf(f.Scope), Stopped: f.Stopped,
		PerHour: f.Config.Budget.PerHour, Share: f.Config.Budget.Share, Protected: f.protection(), Target: f.Known,
	}
	in.Spent, in.Held = f.Budget.Used(f)
	return in
}
