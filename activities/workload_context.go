package activities

import "stanch/playbooks"

// WorkloadContext is what `enrich: workload` finds out; its fields are what a playbook reads of the step.
type WorkloadContext struct {
	Owner                Owner                    `json:"owner"`
	Replicas             int                      `json:"replicas"`
	SameDigestPodCount   int                      `json:"same_digest_pod_count"` // other pods with the image
	SameDigestPodNames   []string                 `json:"same_digest_pod_names"`
	SameNodePodCount     int                      `json:"same_node_pod_count"`
	ServiceAccount       string                   `json:"service_account"`
	DangerousPermissions []string                 `json:"dangerous_permissions"` // what of it is dangerous
	Image                string                   `json:"image"`
	ImageDigest          string                   `json:"image_digest"`
	Labels               map[string]string        `json:"labels"`
	Changes              []playbooks.RecentChange `json:"changes"`
	Missing              []string                 `json:"missing"` // what could not be found out, and why
}

// Owner is the top of a pod's owner chain.
type Owner struct {
	Kind string `json:"kind" expr:"kind"`
	Name string `json:"name" expr:"name"`
	UID  string `json:"uid" expr:"uid"`
}

// ApplyToIncident enters the context into an incident.
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
	in.BlastRadius = playbooks.BlastRadius{Replicas: w.Replicas, SameDigestPodCount: w.SameDigestPodCount, SameDigestPodNames: w.SameDigestPodNames, SameNodePodCount: w.SameNodePodCount, DangerousPermissions: w.DangerousPermissions}
}
