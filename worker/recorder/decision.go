package recorder

import (
	"stanch/activities"
	"stanch/playbooks/recording"
)

func decision(d activities.Decision) *recording.GuardDecision {
	return &recording.GuardDecision{
		Verdict: string(d.Verdict), Guard: d.Guard, Reason: d.Reason, Phase: d.Phase, ConfigHash: d.Config, Approvers: approvers(d.Approvers), BudgetReplicas: d.Replicas, GuardInputs: inputs(d.Inputs),
	}
}

func inputs(in *activities.DecisionInputs) *recording.GuardInputs {
	if in == nil {
		return nil
	}
	out := &recording.GuardInputs{
		ConfidenceThreshold: in.Threshold, MaxDurationMS: in.MaxDuration.Milliseconds(), Approvers: approvers(in.Approvers), PausedBy: in.Stopped,
		MaxPerHour: in.PerHour, MaxFraction: in.Share, UsedLastHour: in.Spent, ContainedSiblings: in.Held,
	}
	if p := in.Protected; p != (activities.Protected{}) {
		out.ProtectedBy = &recording.ProtectionRule{Namespace: p.Namespace, Workload: p.Workload, Role: p.Role, IsStanch: p.Self}
	}
	if t := in.Target; t != nil {
		out.TargetFacts = &recording.TargetFacts{
			UnresolvedReason: t.Unresolved, OutsideCluster: t.OutsideCluster, Namespace: t.Namespace, Pod: t.Pod, Node: t.Node, HostNetwork: t.HostNetwork,
			Owners: t.Owners, IncompleteReason: t.Incomplete, Replicas: t.Replicas,
		}
	}
	return out
}

func approvers(a activities.Approvers) recording.Approvers {
	out := recording.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, TimeoutMS: a.Timeout.Milliseconds()}
	if e := a.Escalate; e != nil {
		out.Escalate = &recording.Escalation{EscalateAfterMS: e.After.Milliseconds(), Groups: e.Groups, Users: e.Users}
	}
	return out
}
