package activities

import "stanch/playbooks"

// WorkloadContext is the output of `enrich: workload`. Playbooks read its fields as the step's outputs.
type WorkloadContext struct {
	Owner    Owner `json:"owner"`
	Replicas int   `json:"replicas"`
	// other pods with the same image digest
	SameDigestPodCount int      `json:"same_digest_pod_count"`
	SameDigestPodNames []string `json:"same_digest_pod_names"`
	SameNodePodCount   int      `json:"same_node_pod_count"`
	ServiceAccount     string   `json:"service_account"`
	// risky permissions of the service account
	DangerousPermissions []string                 `json:"dangerous_permissions"`
	Image                string                   `json:"image"`
	ImageDigest          string                   `json:"image_digest"`
	Labels               map[string]string        `json:"labels"`
	Changes              []playbooks.RecentChange `json:"changes"`
	Missing              []string                 `json:"missing"` // what could not be determined, and why
}

// Owner is the topmost owner of a pod.
type Owner struct {
	Kind string `json:"kind" expr:"kind"`
	Name string `json:"name" expr:"name"`
	UID  string `json:"uid" expr:"uid"`
}

// ApplyToIncident copies the context into an incident. Empty values do not overwrite the workload's fields.
func (w WorkloadContext) ApplyToIncident(in *playbooks.Incident) {
	if w.Owner.Name != "" {
		in.Workload.Kind, in.Workload.Name, in.Workload.UID = w.Owner.Kind, w.Owner.Name, w.Owner.UID
	}
	if w.Image != "" {
		in.Workload.Image = w.Image
	}
	if w.ImageDigest != "" {
		in.Workload.ImageDigest = w.ImageDigest
	}
	if w.ServiceAccount != "" {
		in.Workload.ServiceAccount = w.ServiceAccount
	}
	if len(w.Labels) > 0 {
		in.Workload.Labels = w.Labels
	}
	in.Changes = w.Changes
	in.BlastRadius = playbooks.BlastRadius{
		Replicas: w.Replicas, SameDigestPodCount: w.SameDigestPodCount,
		SameDigestPodNames: w.SameDigestPodNames, SameNodePodCount: w.SameNodePodCount,
		DangerousPermissions: w.DangerousPermissions,
	}
}
