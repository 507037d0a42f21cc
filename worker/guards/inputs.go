package guards

import (
	"slices"
	"time"

	"stanch/activities"
	"stanch/activities/aws"
)

func protected(f Facts) *activities.GuardDecision {
	t := f.Request.Target
	switch p := f.protection(); {
	case p.Namespace != "":
		return refuse("the namespace %s is protected", p.Namespace)
	case p.IsStanch:
		return refuse("%s is Stanch itself", t)
	case p.Workload != "":
		return refuse("the workload %s is protected", p.Workload)
	case p.Role != "":
		return refuse("%s is protected (%s)", t, p.Role)
	}
	return nil
}

// protection is why the target is protected; the zero value if it is not.
func (f Facts) protection() activities.ProtectionRule {
	t := f.Request.Target
	if t.Namespace != "" && slices.Contains(f.Config.Protected.Namespaces, t.Namespace) {
		return activities.ProtectionRule{Namespace: t.Namespace}
	}
	if slices.Contains(f.Self, t.UID) {
		return activities.ProtectionRule{IsStanch: true}
	}
	for _, owner := range f.owners() {
		if slices.Contains(f.Config.Protected.Workloads, owner) {
			return activities.ProtectionRule{Workload: owner}
		}
	}
	for _, pattern := range f.Config.Protected.Roles {
		if t.Kind.IsCloud() && aws.MatchesRolePattern(pattern, t.Name, t.ARN) {
			return activities.ProtectionRule{Role: pattern}
		}
	}
	return activities.ProtectionRule{}
}

// inputs are what was judged by, for whoever judges again.
func (f Facts) inputs() *activities.DecisionInputs {
	in := &activities.DecisionInputs{
		ConfidenceThreshold: f.Scope.Confidence, MaxDuration: time.Duration(f.Config.Budget.Longest), Approvers: ApproversOf(f.Scope), PausedBy: f.Stopped,
		MaxPerHour: f.Config.Budget.PerHour, MaxFraction: f.Config.Budget.Share, ProtectedBy: f.protection(), TargetFacts: f.Known,
	}
	in.UsedLastHour, in.ContainedSiblings = f.Budget.Used(f)
	return in
}
