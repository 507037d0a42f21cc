package recorder

import (
	"stanch/activities"
	"stanch/playbooks/recording"
)

func decision(d activities.Decision) *recording.Decision {
	return &recording.Decision{
		Verdict: string(d.Verdict), Guard: d.Guard, Reason: d.Reason, Phase: d.Phase, Config: d.Config, Approvers: approvers(d.Approvers), Replicas: d.Replicas, Inputs: inputs(d.Inputs),
	}
}

func inputs(in *activities.DecisionInputs) *recording.Inputs {
	if in == nil {
		return nil
	}
	out := &recording.Inputs{
		Threshold: in.Threshold, MaxDurationMS: in.MaxDuration.Milliseconds(), Approvers: approvers(in.Approvers), Stopped: in.Stopped,
		PerHour: in.PerHour, Share: in.Share, Spent: in.Spent, Held: in.Held,
	}
	if p := in.Protected; p != (activities.Protected{}) {
		out.Protected = &recording.Protected{Namespace: p.Namespace, Workload: p.Workload, Role: p.Role, Self: p.Self}
	}
	if t := in.Target; t != nil {
		out.Target = &recording.Facts{
			Unresolved: t.Unresolved, OutsideCluster: t.OutsideCluster, Namespace: t.Namespace, Pod: t.Pod, Node: t.Node, HostNetwork: t.HostNetwork,
			Owners: t.Owners, Incomplete: t.Incomplete, Replicas: t.Replicas,
		}
	}
	return out
}

func approvers(a activities.Approvers) recording.Approvers {
	out := recording.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, TimeoutMS: a.Timeout.Milliseconds()}
	if e := a.Escalate; e != nil {
		out.Escalate = &recording.Escalation{AfterMS: e.After.Milliseconds(), Groups: e.Groups, Users: e.Users}
	}
	return out
}
