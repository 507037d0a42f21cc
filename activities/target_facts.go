package activities

import (
	"context"

	"stanch/playbooks"
)

// TargetResolver returns facts about a target from the system that owns it.
type TargetResolver interface {
	// ResolveTarget looks the target up now. It never fails: the facts say what could not be determined.
	ResolveTarget(ctx context.Context, t playbooks.Target) TargetFacts
}

// TargetFacts is the API server's data about a target. Guards use it, and never data from an alert or a name.
type TargetFacts struct {
	// UnresolvedReason says why the target is unknown; with "", the other fields are facts.
	UnresolvedReason string `json:"unresolved_reason,omitempty"`
	// OutsideCluster means that the target is a container on a machine that is no node of the cluster. It has no
	// namespace and no owner.
	OutsideCluster bool   `json:"outside_cluster,omitempty"`
	Namespace      string `json:"namespace,omitempty"`
	Pod            string `json:"pod,omitempty"`
	Node           string `json:"node,omitempty"`
	HostNetwork    bool   `json:"host_network,omitempty"`
	// Owners are the workloads that own the target, nearest first. A pod without a controller is its own owner.
	Owners []playbooks.WorkloadIdentity `json:"owners,omitempty"`
	// IncompleteReason says why the owner of the last of Owners is unknown; "" means that it has none.
	IncompleteReason string `json:"incomplete_reason,omitempty"`
	// Replicas is the desired number of pods of the workload; 0 if no owner declares it.
	Replicas int `json:"replicas,omitempty"`
	// IgnoreReplicas skips the budget's workload fraction if Replicas is 0. A simulation sets it for targets whose
	// replicas were not recorded.
	IgnoreReplicas bool `json:"ignore_replicas,omitempty"`
}

// Workload returns the topmost known owner; the zero value if there is none.
func (f TargetFacts) Workload() playbooks.WorkloadIdentity {
	if len(f.Owners) == 0 {
		return playbooks.WorkloadIdentity{}
	}
	return f.Owners[len(f.Owners)-1]
}
