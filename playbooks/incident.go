// Package playbooks holds the incident as people and playbooks see it, and the language of playbooks: parse,
// check, compile, evaluate. Each stage takes the one before and returns every problem it found.
//
// It is pure. It refuses to run anything: it knows no Temporal, no Kubernetes, no kernel and no clock, so that a
// playbook can be checked, explained, fuzzed and simulated anywhere. Whoever runs a playbook
// (workflows/playbook) walks the checked program and evaluates its expressions here.
package playbooks

import (
	"fmt"
	"time"

	"stanch/sensors"
)

// IncidentVersion is the version of Incident's JSON shape.
const IncidentVersion = 1

// Incident is the minimum incident package: enough to decide without opening another tool.
type Incident struct {
	Version     int       `json:"version" expr:"version"`
	ID          string    `json:"id" expr:"id"`                     // INC-…, never used twice
	GroupingKey string    `json:"grouping_key" expr:"grouping_key"` // the grouping key: cluster and workload; may recur
	Cluster     string    `json:"cluster" expr:"cluster"`
	Status      string    `json:"status" expr:"status"` // "open" or "closed"
	Opened      time.Time `json:"opened" expr:"opened"`
	Updated     time.Time `json:"updated" expr:"updated"`
	Closed      time.Time `json:"closed,omitzero" expr:"closed"`
	// Scope is the configured scope that holds the workload; Phase the phase in force there.
	Scope string `json:"scope" expr:"scope"`
	Phase int    `json:"phase" expr:"phase"`
	Drill bool   `json:"drill,omitempty" expr:"drill"`
	// Assignee is the person who took the incident over. Disposition is as what DispositionBy resolved it: "false-positive",
	// "true-positive" or "benign"; "" while it is not resolved.
	Assignee      string `json:"assignee,omitempty" expr:"assignee"`
	Disposition   string `json:"disposition,omitempty" expr:"disposition"`
	DispositionBy string `json:"disposition_by,omitempty" expr:"disposition_by"`
	// Actors are who did it, as sources name them ("kubernetes:alice@example.com"): they answer no question about it.
	Actors []string `json:"actors,omitempty" expr:"actors"`
	// ActorsTruncated: there were more than are named.
	ActorsTruncated bool `json:"actors_truncated,omitempty" expr:"actors_truncated"`

	Summary    string             `json:"summary" expr:"summary"`
	Severity   sensors.Severity   `json:"severity" expr:"severity"`
	Objective  sensors.Objective  `json:"objective" expr:"objective"`
	Confidence float64            `json:"confidence" expr:"confidence"`
	Reasons    []string           `json:"reasons" expr:"reasons"`
	Techniques []string           `json:"techniques,omitempty" expr:"techniques"`
	Workload   WorkloadIdentity   `json:"workload" expr:"workload"`
	Trigger    sensors.Detection  `json:"trigger" expr:"trigger"` // the first detection, whole
	Detections []DetectionSummary `json:"detections" expr:"detections"`
	// TotalDetections counts every detection, also those folded together or past the bound of Detections.
	TotalDetections int      `json:"total_detections" expr:"total_detections"`
	Targets         []Target `json:"targets" expr:"targets"` // pods or containers with a detection of their own

	Changes     []RecentChange `json:"changes,omitempty" expr:"changes"`
	BlastRadius BlastRadius    `json:"blast_radius,omitzero" expr:"blast_radius"`
	// Context says what of the context is missing, and why ("forbidden: list rolebindings").
	Context ContextStatus `json:"context,omitzero" expr:"context"`

	Playbooks []PlaybookRun `json:"playbooks,omitempty" expr:"playbooks"`
	// NotSelectedPlaybook are the playbooks that matched and were not started.
	NotSelected []NotSelectedPlaybook `json:"not_selected,omitempty"`
	Leases      []LeaseReport         `json:"leases,omitempty" expr:"leases"`
	Evidence    []EvidenceRef         `json:"evidence,omitempty" expr:"evidence"`
	Timeline    []TimelineEntry       `json:"timeline,omitempty" expr:"timeline"`
}

// WorkloadIdentity says what is affected.
type WorkloadIdentity struct {
	Namespace      string            `json:"namespace,omitempty" expr:"namespace"`
	Kind           string            `json:"kind" expr:"kind"`
	Name           string            `json:"name" expr:"name"`
	UID            string            `json:"uid,omitempty" expr:"uid"` // of the owner, once it is known
	Image          string            `json:"image,omitempty" expr:"image"`
	ImageDigest    string            `json:"image_digest,omitempty" expr:"image_digest"`
	ServiceAccount string            `json:"service_account,omitempty" expr:"service_account"`
	Node           string            `json:"node,omitempty" expr:"node"`
	Labels         map[string]string `json:"labels,omitempty" expr:"labels"`
}

// String is the workload as people say it: "shop/Deployment/web".
func (w WorkloadIdentity) String() string {
	if w.Namespace == "" {
		return w.Kind + "/" + w.Name
	}
	return w.Namespace + "/" + w.Kind + "/" + w.Name
}

// DetectionSummary is a detection inside an incident; alike ones are counted and not repeated.
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
	Description string            `json:"description" expr:"description"` // one line: the process, file or address
	Reasons     []string          `json:"reasons,omitempty" expr:"reasons"`
	FirstSeen   time.Time         `json:"first" expr:"first"`
	LastSeen    time.Time         `json:"last" expr:"last"`
	Count       int               `json:"count" expr:"count"`
}

// Target is what one action works on.
type Target struct {
	Kind           TargetKind `json:"kind" expr:"kind"`
	Namespace      string     `json:"namespace,omitempty" expr:"namespace"`
	Name           string     `json:"name" expr:"name"`
	UID            string     `json:"uid" expr:"uid"` // pod UID, workload UID, container id, RoleId: never reused
	Node           string     `json:"node,omitempty" expr:"node"`
	WorkloadKind   string     `json:"workload_kind,omitempty" expr:"workload_kind"` // TargetWorkload
	ContainerID    string     `json:"container_id,omitempty" expr:"container_id"`   // where the detection was
	ContainerName  string     `json:"container_name,omitempty" expr:"container_name"`
	ServiceAccount string     `json:"service_account,omitempty" expr:"service_account"`
	HostNetwork    bool       `json:"host_network,omitempty" expr:"host_network"`
	// Account and ARN are those of a cloud target. Its namespace is that of the pod through which it was found.
	Account string `json:"account,omitempty" expr:"account"`
	ARN     string `json:"arn,omitempty" expr:"arn"`
}

// TargetKind says what kind of thing a target is.
type TargetKind string

// The kinds of target.
const (
	TargetPod       TargetKind = "pod"
	TargetContainer TargetKind = "container" // a container of a host without Kubernetes
	TargetWorkload  TargetKind = "workload"
	TargetIncident  TargetKind = "incident" // notify, ticket: the incident itself
	TargetRole      TargetKind = "role"     // an IAM role, by its RoleId
	TargetUser      TargetKind = "user"     // an IAM user, by its UserId
	TargetKey       TargetKind = "key"      // an access key, by its id; its name is its user's
)

// IsCloud tells whether the target lies outside of the cluster.
func (k TargetKind) IsCloud() bool { return k == TargetRole || k == TargetUser || k == TargetKey }

// IsDetectable tells whether detections are about targets of this kind. What is not detected has no evidence and no
// attestation of its own: that of the pods through which it was found counts.
func (k TargetKind) IsDetectable() bool { return k == TargetPod || k == TargetContainer }

// ID is the identity as leases and proofs use it.
func (t Target) ID() string { return string(t.Kind) + ":" + t.UID }

// String is the target as people say it.
func (t Target) String() string {
	switch {
	case t.Kind == TargetKey:
		return fmt.Sprintf("key %s of user %s", t.UID, t.Name)
	case t.Namespace == "" || t.Kind.IsCloud():
		return fmt.Sprintf("%s %s", t.Kind, t.Name)
	}
	return fmt.Sprintf("%s %s/%s", t.Kind, t.Namespace, t.Name)
}

// RecentChange is something that changed recently around the workload.
type RecentChange struct {
	ChangedAt   time.Time `json:"changed_at" expr:"changed_at"`
	Description string    `json:"description" expr:"description"`
}

// BlastRadius is what else may be hit.
type BlastRadius struct {
	Replicas             int      `json:"replicas,omitempty" expr:"replicas"`
	SameDigestPodCount   int      `json:"same_digest_pod_count" expr:"same_digest_pod_count"`           // other pods with this image digest
	SameDigestPodNames   []string `json:"same_digest_pod_names,omitempty" expr:"same_digest_pod_names"` // "namespace/pod on node", bounded
	SameNodePodCount     int      `json:"same_node_pod_count" expr:"same_node_pod_count"`
	DangerousPermissions []string `json:"dangerous_permissions,omitempty" expr:"dangerous_permissions"` // what the service account may do that is dangerous
}

// ContextStatus says how complete the context is.
type ContextStatus struct {
	Enriched bool     `json:"enriched" expr:"enriched"`
	Missing  []string `json:"missing,omitempty" expr:"missing"`
}

// PlaybookRun is one playbook of an incident.
type PlaybookRun struct {
	Playbook   string       `json:"playbook" expr:"playbook"`
	SourceHash string       `json:"hash" expr:"hash"` // of its source
	WorkflowID string       `json:"run" expr:"run"`   // workflow id
	Started    time.Time    `json:"started" expr:"started"`
	Ended      time.Time    `json:"ended,omitzero" expr:"ended"`
	Steps      []StepReport `json:"steps,omitempty" expr:"steps"`
	Error      string       `json:"error,omitempty" expr:"error"`
	// ResponderGuide is the playbook's paragraph for the responder.
	ResponderGuide string `json:"responder_guide,omitempty"`
	// Outcome is the run's as a whole: what it stopped with and why, else the worst of its steps.
	Outcome Outcome `json:"outcome,omitempty" expr:"outcome"`
	Reason  string  `json:"reason,omitempty" expr:"reason"`
	// RequestID is the id of a person's request that started it; "" if it matched by itself.
	RequestID string `json:"request_id,omitempty"`
	// RequestedBy is the person whose request started it: they do not approve what it asks, and may withdraw it.
	RequestedBy string `json:"requested_by,omitempty"`
}

// NotSelectedPlaybook is a playbook that matched an incident and was not started, with the reason.
type NotSelectedPlaybook struct {
	Playbook string    `json:"playbook"`
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
}

// StepReport is what became of one step on one target.
type StepReport struct {
	Step    string  `json:"step" expr:"step"` // its id, or its place ("steps[2]")
	Action  string  `json:"action" expr:"action"`
	Target  string  `json:"target,omitempty" expr:"target"`
	Outcome Outcome `json:"outcome" expr:"outcome"`
	Reason  string  `json:"reason,omitempty" expr:"reason"`
	LeaseID string  `json:"lease,omitempty" expr:"lease"`
	// Guard is the guard that refused or proposed; "" where none did.
	Guard string    `json:"guard,omitempty"`
	At    time.Time `json:"at" expr:"at"`
	// Verb is the step's: what only observes has another outcome in prose than what contains. "" for blocks and in reports
	// from before it was noted.
	Verb Verb `json:"verb,omitempty"`
}

// LeaseReport is the state of a lease as the incident knows it.
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
	Guard     string    `json:"guard,omitempty"` // that did not permit it
	At        time.Time `json:"at" expr:"at"`
	// AppliedAt is when the effect took hold, by the clock of where it did.
	AppliedAt time.Time `json:"applied_at,omitzero" expr:"applied_at"`
	// Warnings are those of the plans under which it is held: what else it affects, and what it does not reach.
	Warnings []string `json:"warnings,omitempty"`
}

// EvidenceRef names a piece of evidence; the bytes lie in the store under their hash.
type EvidenceRef struct {
	Name       string    `json:"name" expr:"name"`
	Action     string    `json:"action" expr:"action"`
	Target     string    `json:"target" expr:"target"`
	SHA256     string    `json:"sha256" expr:"sha256"`
	SizeBytes  int64     `json:"bytes" expr:"bytes"`
	CapturedAt time.Time `json:"at" expr:"at"`
	// CapturedFrom is where it was captured ("node a"), Entry the hash of its line in the incident's manifest.
	CapturedFrom      string `json:"captured_from,omitempty" expr:"captured_from"`
	ManifestEntryHash string `json:"manifest_entry_hash,omitempty" expr:"manifest_entry_hash"`
}

// TimelineEntry is one line of the incident's story.
type TimelineEntry struct {
	At   time.Time `json:"at" expr:"at"`
	Text string    `json:"text" expr:"text"`
}
