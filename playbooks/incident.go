// Package playbooks defines incidents and the playbook language: parse, check, compile and evaluate. Each stage takes
// the result of the previous one and returns every problem that it finds.
//
// It is pure and runs nothing: it uses no Temporal, Kubernetes, kernel or clock, so that playbooks can be checked,
// explained, fuzzed and simulated anywhere. The interpreter (workflows/playbook) walks the checked program and
// evaluates its expressions with this package.
package playbooks

import (
	"fmt"
	"time"

	"stanch/sensors"
)

// IncidentVersion is the version of Incident's JSON shape.
const IncidentVersion = 1

// Incident is the information that people and playbooks need for a decision, without opening another tool.
type Incident struct {
	Version int    `json:"version" expr:"version"`
	ID      string `json:"id" expr:"id"` // INC-…, never reused
	// cluster and workload; several incidents may have the same
	GroupingKey string    `json:"grouping_key" expr:"grouping_key"`
	Cluster     string    `json:"cluster" expr:"cluster"`
	Status      string    `json:"status" expr:"status"` // "open" or "closed"
	Opened      time.Time `json:"opened" expr:"opened"`
	Updated     time.Time `json:"updated" expr:"updated"`
	Closed      time.Time `json:"closed,omitzero" expr:"closed"`
	// Scope is the configured scope of the workload. Phase is the phase in force there.
	Scope string `json:"scope" expr:"scope"`
	Phase int    `json:"phase" expr:"phase"`
	Drill bool   `json:"drill,omitempty" expr:"drill"`
	// Assignee is the person who is assigned to the incident. Disposition is "false-positive", "true-positive" or
	// "benign", set by DispositionBy; "" while the incident is not resolved.
	Assignee      string `json:"assignee,omitempty" expr:"assignee"`
	Disposition   string `json:"disposition,omitempty" expr:"disposition"`
	DispositionBy string `json:"disposition_by,omitempty" expr:"disposition_by"`
	// Actors are the people who caused the incident, as sources name them ("kubernetes:alice@example.com"). They may
	// not answer its approval requests.
	Actors []string `json:"actors,omitempty" expr:"actors"`
	// ActorsTruncated means that there are more actors than Actors names.
	ActorsTruncated bool `json:"actors_truncated,omitempty" expr:"actors_truncated"`

	Summary    string             `json:"summary" expr:"summary"`
	Severity   sensors.Severity   `json:"severity" expr:"severity"`
	Objective  sensors.Objective  `json:"objective" expr:"objective"`
	Confidence float64            `json:"confidence" expr:"confidence"`
	Reasons    []string           `json:"reasons" expr:"reasons"`
	Techniques []string           `json:"techniques,omitempty" expr:"techniques"`
	Workload   WorkloadIdentity   `json:"workload" expr:"workload"`
	Trigger    sensors.Detection  `json:"trigger" expr:"trigger"` // the first detection, complete
	Detections []DetectionSummary `json:"detections" expr:"detections"`
	// TotalDetections counts every detection, including duplicates and those past the limit of Detections.
	TotalDetections int      `json:"total_detections" expr:"total_detections"`
	Targets         []Target `json:"targets" expr:"targets"` // pods or containers with a detection of their own

	Changes     []RecentChange `json:"changes,omitempty" expr:"changes"`
	BlastRadius BlastRadius    `json:"blast_radius,omitzero" expr:"blast_radius"`
	// Context says which parts of the context are missing, and why ("forbidden: list rolebindings").
	Context ContextStatus `json:"context,omitzero" expr:"context"`

	Playbooks []PlaybookRun `json:"playbooks,omitempty" expr:"playbooks"`
	// NotSelected are the playbooks that matched and were not started.
	NotSelected []NotSelectedPlaybook `json:"not_selected,omitempty"`
	Leases      []LeaseReport         `json:"leases,omitempty" expr:"leases"`
	Evidence    []EvidenceRef         `json:"evidence,omitempty" expr:"evidence"`
	Timeline    []TimelineEntry       `json:"timeline,omitempty" expr:"timeline"`
}

// WorkloadIdentity is the affected workload.
type WorkloadIdentity struct {
	Namespace      string            `json:"namespace,omitempty" expr:"namespace"`
	Kind           string            `json:"kind" expr:"kind"`
	Name           string            `json:"name" expr:"name"`
	UID            string            `json:"uid,omitempty" expr:"uid"` // of the owner; "" until it is known
	Image          string            `json:"image,omitempty" expr:"image"`
	ImageDigest    string            `json:"image_digest,omitempty" expr:"image_digest"`
	ServiceAccount string            `json:"service_account,omitempty" expr:"service_account"`
	Node           string            `json:"node,omitempty" expr:"node"`
	Labels         map[string]string `json:"labels,omitempty" expr:"labels"`
}

// String returns the workload as people write it: "shop/Deployment/web".
func (w WorkloadIdentity) String() string {
	if w.Namespace == "" {
		return w.Kind + "/" + w.Name
	}
	return w.Namespace + "/" + w.Kind + "/" + w.Name
}

// DetectionSummary is a detection of an incident. Similar detections are counted, not repeated.
type DetectionSummary struct {
	ID          string            `json:"id" expr:"id"`
	Rule        string            `json:"rule" expr:"rule"`
	Title       string            `json:"title" expr:"title"`
	Severity    sensors.Severity  `json:"severity" expr:"severity"`
	Confidence  float64           `json:"confidence" expr:"confidence"`
	Objective   sensors.Objective `json:"objective" expr:"objective"`
	Technique   string            `json:"technique,omitempty" expr:"technique"`
	Source      string            `json:"source" expr:"source"`
	Target      string            `json:"target" expr:"target"`
	Description string            `json:"description" expr:"description"` // one line: process, file or address
	Reasons     []string          `json:"reasons,omitempty" expr:"reasons"`
	FirstSeen   time.Time         `json:"first" expr:"first"`
	LastSeen    time.Time         `json:"last" expr:"last"`
	Count       int               `json:"count" expr:"count"`
}

// Target is what an action works on.
type Target struct {
	Kind           TargetKind `json:"kind" expr:"kind"`
	Namespace      string     `json:"namespace,omitempty" expr:"namespace"`
	Name           string     `json:"name" expr:"name"`
	UID            string     `json:"uid" expr:"uid"` // pod UID, workload UID, container id or RoleId; never reused
	Node           string     `json:"node,omitempty" expr:"node"`
	WorkloadKind   string     `json:"workload_kind,omitempty" expr:"workload_kind"` // for TargetWorkload
	ContainerID    string     `json:"container_id,omitempty" expr:"container_id"`   // container of the detection
	ContainerName  string     `json:"container_name,omitempty" expr:"container_name"`
	ServiceAccount string     `json:"service_account,omitempty" expr:"service_account"`
	HostNetwork    bool       `json:"host_network,omitempty" expr:"host_network"`
	// Account and ARN are set for a cloud target. Its namespace is that of the pod through which it was found.
	Account string `json:"account,omitempty" expr:"account"`
	ARN     string `json:"arn,omitempty" expr:"arn"`
}

// TargetKind is the kind of a target.
type TargetKind string

// The kinds of targets.
const (
	TargetPod       TargetKind = "pod"
	TargetContainer TargetKind = "container" // a container on a host without Kubernetes
	TargetWorkload  TargetKind = "workload"
	TargetIncident  TargetKind = "incident" // the incident itself, for notify and ticket
	TargetRole      TargetKind = "role"     // an IAM role, by its RoleId
	TargetUser      TargetKind = "user"     // an IAM user, by its UserId
	TargetKey       TargetKind = "key"      // an access key, by its id; Name is its user's name
)

// IsCloud reports whether the target is outside the cluster.
func (k TargetKind) IsCloud() bool { return k == TargetRole || k == TargetUser || k == TargetKey }

// IsDetectable reports whether detections can be about targets of this kind. Other targets have no evidence and no
// attestation of their own: those of the pods through which they were found count.
func (k TargetKind) IsDetectable() bool { return k == TargetPod || k == TargetContainer }

// ID returns the identity KIND:UID that leases and attestations use.
func (t Target) ID() string { return string(t.Kind) + ":" + t.UID }

// String returns the target as people write it.
func (t Target) String() string {
	switch {
	case t.Kind == TargetKey:
		return fmt.Sprintf("key %s of user %s", t.UID, t.Name)
	case t.Namespace == "" || t.Kind.IsCloud():
		return fmt.Sprintf("%s %s", t.Kind, t.Name)
	}
	return fmt.Sprintf("%s %s/%s", t.Kind, t.Namespace, t.Name)
}

// RecentChange is a recent change around the workload.
type RecentChange struct {
	ChangedAt   time.Time `json:"changed_at" expr:"changed_at"`
	Description string    `json:"description" expr:"description"`
}

// BlastRadius is what else may be affected.
type BlastRadius struct {
	Replicas           int `json:"replicas,omitempty" expr:"replicas"`
	SameDigestPodCount int `json:"same_digest_pod_count" expr:"same_digest_pod_count"` // other pods with this digest
	// "namespace/pod on node"; a limited number
	SameDigestPodNames []string `json:"same_digest_pod_names,omitempty" expr:"same_digest_pod_names"`
	SameNodePodCount   int      `json:"same_node_pod_count" expr:"same_node_pod_count"`
	// risky permissions of the service account
	DangerousPermissions []string `json:"dangerous_permissions,omitempty" expr:"dangerous_permissions"`
}

// ContextStatus is the completeness of the context.
type ContextStatus struct {
	Enriched bool     `json:"enriched" expr:"enriched"`
	Missing  []string `json:"missing,omitempty" expr:"missing"`
}

// PlaybookRun is one run of a playbook for an incident.
type PlaybookRun struct {
	Playbook   string       `json:"playbook" expr:"playbook"`
	SourceHash string       `json:"hash" expr:"hash"` // SHA-256 of its source
	WorkflowID string       `json:"run" expr:"run"`   // workflow id
	Started    time.Time    `json:"started" expr:"started"`
	Ended      time.Time    `json:"ended,omitzero" expr:"ended"`
	Steps      []StepReport `json:"steps,omitempty" expr:"steps"`
	Error      string       `json:"error,omitempty" expr:"error"`
	// ResponderGuide is the playbook's guide for the responder.
	ResponderGuide string `json:"responder_guide,omitempty"`
	// Outcome is the outcome of the complete run: that of its `stop` with the reason, otherwise the worst of its steps.
	Outcome Outcome `json:"outcome,omitempty" expr:"outcome"`
	Reason  string  `json:"reason,omitempty" expr:"reason"`
	// RequestID is the id of the manual request that started the run; "" if the playbook matched.
	RequestID string `json:"request_id,omitempty"`
	// RequestedBy is the person whose request started the run. This person may not approve it, but may withdraw it.
	RequestedBy string `json:"requested_by,omitempty"`
}

// NotSelectedPlaybook is a playbook that matched an incident and was not started, with the reason.
type NotSelectedPlaybook struct {
	Playbook string    `json:"playbook"`
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
}

// StepReport is the result of one step on one target.
type StepReport struct {
	Step    string  `json:"step" expr:"step"` // its id or path ("steps[2]")
	Action  string  `json:"action" expr:"action"`
	Target  string  `json:"target,omitempty" expr:"target"`
	Outcome Outcome `json:"outcome" expr:"outcome"`
	Reason  string  `json:"reason,omitempty" expr:"reason"`
	LeaseID string  `json:"lease,omitempty" expr:"lease"`
	// Guard is the guard that refused or proposed the step; "" if no guard did.
	Guard string    `json:"guard,omitempty"`
	At    time.Time `json:"at" expr:"at"`
	// Verb is the verb of the step; observations and containments describe their outcomes differently. It is "" for
	// blocks and in reports of earlier versions.
	Verb Verb `json:"verb,omitempty"`
}

// LeaseReport is the state of a lease, as recorded in the incident.
type LeaseReport struct {
	ID        string    `json:"id" expr:"id"`
	Action    string    `json:"action" expr:"action"`
	Target    string    `json:"target" expr:"target"`
	Facet     string    `json:"facet" expr:"facet"`
	State     string    `json:"state" expr:"state"`
	Outcome   Outcome   `json:"outcome,omitempty" expr:"outcome"`
	Verified  bool      `json:"verified" expr:"verified"`
	Undone    bool      `json:"undone" expr:"undone"`
	ExpiresAt time.Time `json:"until,omitzero" expr:"until"`
	Reason    string    `json:"reason,omitempty" expr:"reason"`
	Guard     string    `json:"guard,omitempty"` // the guard that refused it
	At        time.Time `json:"at" expr:"at"`
	// AppliedAt is when the effect was applied, by the clock of the node, cluster or provider.
	AppliedAt time.Time `json:"applied_at,omitzero" expr:"applied_at"`
	// Warnings are the warnings of the applied plans: what else the lease affects, and what it does not cover.
	Warnings []string `json:"warnings,omitempty"`
}

// EvidenceRef references an artifact. Its bytes are in the evidence store under their hash.
type EvidenceRef struct {
	Name       string    `json:"name" expr:"name"`
	Action     string    `json:"action" expr:"action"`
	Target     string    `json:"target" expr:"target"`
	SHA256     string    `json:"sha256" expr:"sha256"`
	SizeBytes  int64     `json:"bytes" expr:"bytes"`
	CapturedAt time.Time `json:"at" expr:"at"`
	// CapturedFrom is where it was captured ("node a"). Entry is the hash of its line in the incident's manifest.
	CapturedFrom      string `json:"captured_from,omitempty" expr:"captured_from"`
	ManifestEntryHash string `json:"manifest_entry_hash,omitempty" expr:"manifest_entry_hash"`
}

// TimelineEntry is one line of the incident's timeline.
type TimelineEntry struct {
	At   time.Time `json:"at" expr:"at"`
	Text string    `json:"text" expr:"text"`
}
