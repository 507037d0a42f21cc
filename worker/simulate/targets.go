package simulate

import (
	"context"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/workflows/incident"
)

// recorded says of targets what the recording's detections say: they were compared with the API server when they came.
type recorded struct{ sim *sim }

var _ activities.TargetResolver = recorded{}

// ResolveTarget gives the facts that the target had in the recording.
func (r recorded) ResolveTarget(_ context.Context, t playbooks.Target) activities.TargetFacts {
	if t.Kind == playbooks.TargetContainer {
		return activities.TargetFacts{OutsideCluster: true, Node: t.Node}
	}
	// Whether the host's network forbids an action is in that action's recorded or faked plan.
	facts := activities.TargetFacts{Namespace: t.Namespace, Pod: t.Name, Node: t.Node, AnyReplicas: true}
	for _, a := range r.sim.rec.Answers {
		if a.Target == t.ID() && a.Decision != nil && a.Decision.Replicas != 0 {
			facts.Replicas, facts.AnyReplicas = max(a.Decision.Replicas, 0), false
		}
	}
	if t.Kind == playbooks.TargetWorkload {
		facts.Owners = []playbooks.WorkloadIdentity{{Namespace: t.Namespace, Kind: t.WorkloadKind, Name: t.Name, UID: t.UID}}
		return facts
	}
	for _, d := range r.sim.rec.Detections {
		if incident.Contained(d.Detection) && incident.TargetOf(d.Detection).ID() == t.ID() {
			w := incident.WorkloadOf(d.Detection)
			facts.Owners = []playbooks.WorkloadIdentity{{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name}}
			break
		}
	}
	return facts
}
