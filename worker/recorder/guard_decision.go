package recorder

import (
	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
)

func toGuardDecision(d activities.GuardDecision) *recording.GuardDecision {
	return &recording.GuardDecision{
		Verdict: string(d.Verdict), Guard: d.Guard, Reason: d.Reason, Phase: d.Phase, ConfigHash: d.ConfigHash,
		Approvers: toApprovers(d.Approvers), BudgetReplicas: d.BudgetReplicas, GuardInputs: toGuardInputs(d.DecisionInputs),
	}
}

func toGuardInputs(in *activities.DecisionInputs) *recording.GuardInputs {
	if in == nil {
		return nil
	}
	out := &recording.GuardInputs{
		ConfidenceThreshold: in.ConfidenceThreshold, MaxDurationMS: in.MaxDuration.Milliseconds(),
		Approvers: toApprovers(in.Approvers), PausedBy: in.PausedBy,
		MaxPerHour: in.MaxPerHour, MaxFraction: in.MaxFraction, UsedLastHour: in.UsedLastHour,
		ContainedSiblings: in.ContainedSiblings,
	}
	if p := in.ProtectedBy; p != (activities.ProtectionRule{}) {
		out.ProtectedBy = &recording.ProtectionRule{
			Namespace: p.Namespace, Workload: p.Workload, Role: p.Role,
			IsStanch: p.IsStanch,
		}
	}
	if t := in.TargetFacts; t != nil {
		out.TargetFacts = &recording.TargetFacts{
			UnresolvedReason: t.UnresolvedReason, OutsideCluster: t.OutsideCluster, Namespace: t.Namespace, Pod: t.Pod,
			Node: t.Node, HostNetwork: t.HostNetwork,
			Owners: t.Owners, IncompleteReason: t.IncompleteReason, Replicas: t.Replicas,
		}
	}
	return out
}

func toApprovers(a playbooks.Approvers) recording.Approvers {
	out := recording.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, TimeoutMS: a.Timeout.Milliseconds()}
	if e := a.Escalate; e != nil {
		out.Escalate = &recording.Escalation{EscalateAfterMS: e.After.Milliseconds(), Groups: e.Groups, Users: e.Users}
	}
	return out
}
