package guards

import (
	"slices"
	"time"

	"stanch/activities"
	"stanch/activities/aws"
)

func checkProtected(f Input) *activities.GuardDecision {
	t := f.Request.Target
	switch p := f.protectionRule(); {
	case p.Namespace != "":
		return newRefusal("the namespace %s is protected", p.Namespace)
	case p.IsStanch:
		return newRefusal("%s belongs to Stanch itself", t)
	case p.Workload != "":
		return newRefusal("the workload %s is protected", p.Workload)
	case p.Role != "":
		return newRefusal("%s is protected (%s)", t, p.Role)
	}
	return nil
}

// protectionRule returns why the target is protected; the zero value if it is not.
func (f Input) protectionRule() activities.ProtectionRule {
	t := f.Request.Target
	if t.Namespace != "" && slices.Contains(f.Config.ProtectedTargets.Namespaces, t.Namespace) {
		return activities.ProtectionRule{Namespace: t.Namespace}
	}
	if slices.Contains(f.OwnPodUIDs, t.UID) {
		return activities.ProtectionRule{IsStanch: true}
	}
	for _, owner := range f.targetOwners() {
		if slices.Contains(f.Config.ProtectedTargets.Workloads, owner) {
			return activities.ProtectionRule{Workload: owner}
		}
	}
	for _, pattern := range f.Config.ProtectedTargets.Roles {
		if t.Kind.IsCloud() && aws.MatchesRolePattern(pattern, t.Name, t.ARN) {
			return activities.ProtectionRule{Role: pattern}
		}
	}
	return activities.ProtectionRule{}
}

// decisionInputs returns the inputs of the decision, so that a simulation can use the same.
func (f Input) decisionInputs() *activities.DecisionInputs {
	in := &activities.DecisionInputs{
		ConfidenceThreshold: f.Scope.ConfidenceThreshold, MaxDuration: time.Duration(f.Config.Budget.MaxDuration),
		Approvers: ApproversOfScope(f.Scope), PausedBy: f.PausedBy,
		MaxPerHour: f.Config.Budget.MaxPerHour, MaxFraction: f.Config.Budget.MaxFraction, ProtectedBy: f.protectionRule(),
		TargetFacts: f.ResolvedTarget,
	}
	in.UsedLastHour, in.ContainedSiblings = f.Budget.UsedCounts(f)
	return in
}
