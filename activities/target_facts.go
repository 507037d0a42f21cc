package activities

import (
	"context"

	"stanch/playbooks"
)

// TargetResolver says what a target is, by the word of the system that owns it.
type TargetResolver interface {
	// ResolveTarget looks the target up now. It never fails: what could not be found out is said in the facts.
	ResolveTarget(ctx context.Context, t playbooks.Target) TargetFacts
}

// TargetFacts is what the API server says of a target. Guards judge by it, and never by what an alert or a name says.
type TargetFacts struct {
	// UnresolvedReason says why the target is not known; "" means that the other fields are facts.
	UnresolvedReason string `json:"unresolved_reason,omitempty"`
	// OutsideCluster: it is a container of a machine that is no node of the cluster. It has no namespace and no owner.
	OutsideCluster bool   `json:"outside_cluster,omitempty"`
	Namespace      string `json:"namespace,omitempty"`
	Pod            string `json:"pod,omitempty"`
	Node           string `json:"node,omitempty"`
	HostNetwork    bool   `json:"host_network,omitempty"`
	// Owners are the workloads that the target belongs to, the nearest first. A pod without a controller is its own owner.
	Owners []playbooks.WorkloadIdentity `json:"owners,omitempty"`
	// IncompleteReason says why it is not known whether anything owns the last of Owners; "" means that nothing does.
	IncompleteReason string `json:"incomplete_reason,omitempty"`
	// Replicas is how many pods the workload wants; 0 where no owner says it.
	Replicas int `json:"replicas,omitempty"`
	// IgnoreReplicas: the share of the workload is not judged where Replicas is 0. A simulation says so of what no recording tells.
	IgnoreReplicas bool `json:"ignore_replicas,omitempty"`
}

// Workload is the topmost owner that is known; the zero value if there is none.
func (f TargetFacts) Workload() playbooks.WorkloadIdentity {
	if len(f.Owners) == 0 {
		return playbooks.WorkloadIdentity{}
	}
	return f.Owners[len(f.Owners)-1]
}
