// Package audit reconstructs the timeline of one incident from its Temporal workflow histories: detections, decisions,
// approval requests, votes, effects, verifications and undos, each with the history event that proves it.
//
// It is pure: it reads only histories and uses a data converter. It never uses the stored summary of the incident for
// the timeline; it only compares the two (VerifyTimeline).
package audit

import (
	"time"

	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
)

// FormatVersion is the version of Timeline's JSON shape.
const FormatVersion = 1

// The workflow types of an incident.
const (
	TypeIncident    = "Incident"
	TypePlaybook    = "Playbook"
	TypeLease       = "Lease"
	TypeChatMessage = "ChatMessage" // only displays what the others do
)

// WorkflowRun is the history of one run of one workflow.
type WorkflowRun struct {
	WorkflowID   string
	RunID        string // id of the run
	WorkflowType string
	// IsOpen means that the run had not closed when the history was read.
	IsOpen bool
	Events []*historypb.HistoryEvent
}

// EntryKind is the kind of a timeline entry.
type EntryKind string

// The kinds of entries.
const (
	KindOpened          EntryKind = "opened"
	KindDetection       EntryKind = "detection"
	KindPlaybook        EntryKind = "playbook" // a playbook started
	KindContext         EntryKind = "context"
	KindEvidence        EntryKind = "evidence"
	KindDecision        EntryKind = "decision"
	KindApprovalRequest EntryKind = "approval-request"
	KindVote            EntryKind = "vote"
	KindApprovalResult  EntryKind = "approval-result" // the result of the votes
	KindGrant           EntryKind = "grant"
	KindEffect          EntryKind = "effect"
	KindLeaseJoin       EntryKind = "join"
	KindVerification    EntryKind = "verification"
	KindRelease         EntryKind = "release"
	KindExtension       EntryKind = "extension"
	KindUndo            EntryKind = "undo"
	KindRefusal         EntryKind = "refusal"
	KindFailure         EntryKind = "failure"
	KindRetry           EntryKind = "retry"
	KindNotification    EntryKind = "notification"
	KindTriage          EntryKind = "triage" // a person assigned or resolved the incident
	KindPlaybookEnded   EntryKind = "ended"  // a playbook run ended
	KindClosed          EntryKind = "closed"
)

// EventRef identifies one event of one history.
type EventRef struct {
	WorkflowID string `json:"workflow_id"`
	RunID      string `json:"run_id"`
	EventID    int64  `json:"event_id"`
	EventType  string `json:"event_type"`
}

// TimelineEntry is one sentence of the timeline, and the event that proves it.
type TimelineEntry struct {
	At    time.Time `json:"at"`
	Kind  EntryKind `json:"kind"`
	Text  string    `json:"text"`
	Actor string    `json:"actor,omitempty"`
	EventRef
	Details map[string]any `json:"details,omitempty"`
}

// Timeline is one incident, reconstructed from its histories.
type Timeline struct {
	Version     int    `json:"version"`
	IncidentID  string `json:"incident"`
	GroupingKey string `json:"grouping_key"`
	Cluster     string `json:"cluster"`
	Scope       string `json:"scope"`
	Phase       int    `json:"phase"`
	Drill       bool   `json:"drill,omitempty"`
	Status      string `json:"status"` // "open" or "closed"
	// Assignee is the person who is assigned. Disposition is the resolution that DispositionBy chose.
	Assignee       string            `json:"assignee,omitempty"`
	Disposition    string            `json:"disposition,omitempty"`
	DispositionBy  string            `json:"disposition_by,omitempty"`
	Opened         time.Time         `json:"opened"`
	Closed         time.Time         `json:"closed,omitzero"`
	Workload       string            `json:"workload"`
	Image          string            `json:"image,omitempty"`
	ImageDigest    string            `json:"image_digest,omitempty"`
	Node           string            `json:"node,omitempty"`
	Objective      sensors.Objective `json:"objective"`
	Severity       sensors.Severity  `json:"severity"`
	Confidence     float64           `json:"confidence"`
	Reasons        []string          `json:"reasons"`
	DetectionCount int               `json:"detection_count"` // including those that were only counted
	// ConfigHashes are the short hashes of the configurations of all decisions.
	ConfigHashes    []string            `json:"config_hashes"`
	Playbooks       []PlaybookRecord    `json:"playbooks"`
	People          []Person            `json:"people"`
	Effects         []ContainmentEffect `json:"effects"`
	Evidence        []EvidenceRecord    `json:"evidence"`
	ManifestRecords []ManifestRecord    `json:"manifest_records"`
	Entries         []TimelineEntry     `json:"lines"`
	Histories       []HistoryRecord     `json:"histories"`
	Source          string              `json:"source"` // "temporal" or "archive"
	Problems        []Difference        `json:"problems"`
	Verification    *VerificationReport `json:"verification,omitempty"`
}

// StatusText returns the status of the incident, in the same words as all other views.
func (s Timeline) StatusText() string {
	return display.DescribeStatus(playbooks.Incident{
		Status: s.Status, Assignee: s.Assignee, Disposition: s.Disposition,
		DispositionBy: s.DispositionBy,
	})
}

// PlaybookRecord is one run of a playbook.
type PlaybookRecord struct {
	Name               string `json:"name"`
	File               string `json:"file"`
	SourceHash         string `json:"hash"` // SHA-256 of its source
	PlaybookWorkflowID string `json:"run"`  // workflow id
	EventRef
	Steps []playbooks.StepReport `json:"steps"`
	Error string                 `json:"error,omitempty"`
}

// Person is someone who voted, released or extended.
type Person struct {
	Name            string   `json:"name"`
	AuthenticatedBy []string `json:"authenticated_by"`
	Actions         []string `json:"actions"`
}

// ContainmentEffect is one containment, from apply to undo.
type ContainmentEffect struct {
	LeaseID           string            `json:"lease"`
	IncidentID        string            `json:"incident"` // of the lease: another incident may have joined it
	Action            string            `json:"action"`
	Target            string            `json:"target"`
	Params            string            `json:"params,omitempty"`
	Outcome           playbooks.Outcome `json:"outcome"`
	Reason            string            `json:"reason,omitempty"`
	AuthorizedBy      string            `json:"authorized_by"`
	AppliedAt         time.Time         `json:"applied_at,omitzero"`
	ExpiresAt         time.Time         `json:"until,omitzero"`
	AppliedEvent      EventRef          `json:"applied_event"`
	State             string            `json:"state"` // "requested", "in force", "undone", "stuck", "refused", "failed"
	UndoneAt          time.Time         `json:"undone_at,omitzero"`
	UndoneEvent       *EventRef         `json:"undone_event,omitempty"`
	UndoReason        string            `json:"undo_reason,omitempty"`
	VerificationCount int               `json:"verification_count"` // how often it was verified
}

// EvidenceRecord is one artifact, and the event that names it.
type EvidenceRecord struct {
	playbooks.EvidenceRef
	SourceEvent EventRef `json:"source_event"`
}

// ManifestRecord is an action that belongs into a manifest, and its activity's result about that.
type ManifestRecord struct {
	Description string `json:"description"`
	IncidentID  string `json:"incident"` // incident of the manifest: another incident may have joined the lease
	EntryHash   string `json:"entry_hash,omitempty"`
	// UnrecordedReason says why there is no entry; "" if there is one.
	UnrecordedReason string   `json:"unrecorded_reason,omitempty"`
	SourceEvent      EventRef `json:"source_event"`
}

// HistoryRecord is one history that the timeline was reconstructed from.
type HistoryRecord struct {
	WorkflowID   string `json:"workflow_id"`
	RunID        string `json:"run_id"`
	WorkflowType string `json:"type"`
	EventCount   int    `json:"events"`
	IsOpen       bool   `json:"is_open,omitempty"`
}

// Difference is one difference that verification found, and its location.
type Difference struct {
	Description string `json:"description"`
	EventRef
}

// VerificationReport is the result of a verification.
type VerificationReport struct {
	OK          bool         `json:"ok"`
	Checked     []string     `json:"checked"` // sentences about what was compared
	Differences []Difference `json:"differences"`
}

// Options configures the reconstruction of a timeline.
type Options struct {
	IncidentID    string
	DataConverter converter.DataConverter
	Keyring       attestation.Keyring
	Catalog       playbooks.Catalog
	HistorySource string
}
