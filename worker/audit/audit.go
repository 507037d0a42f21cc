// Package audit tells the story of one incident from the histories of its workflows: what was seen, decided, asked,
// answered, done, observed and taken back, each with the event of history that says so.
//
// It is pure over histories and a data converter. It refuses to trust a stored summary: what the incident itself wrote
// down as its state is never read for the story, only compared with it (Verify).
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

// FormatVersion is the version of Story's JSON shape.
const FormatVersion = 1

// The types of the workflows of an incident.
const (
	TypeIncident    = "Incident"
	TypePlaybook    = "Playbook"
	TypeLease       = "Lease"
	TypeChatMessage = "ChatMessage" // only shows what the others do
)

// WorkflowRun is the history of one run of one workflow.
type WorkflowRun struct {
	WorkflowID   string
	RunID        string // the run's
	WorkflowType string
	// IsOpen: it had not closed when the history was read.
	IsOpen bool
	Events []*historypb.HistoryEvent
}

// EntryKind says what a line is about.
type EntryKind string

// The kinds of line.
const (
	KindOpened          EntryKind = "opened"
	KindDetection       EntryKind = "detection"
	KindPlaybook        EntryKind = "playbook" // started
	KindContext         EntryKind = "context"
	KindEvidence        EntryKind = "evidence"
	KindDecision        EntryKind = "decision"
	KindApprovalRequest EntryKind = "question"
	KindVote            EntryKind = "vote"
	KindApprovalResult  EntryKind = "answer" // what the votes came to
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
	KindTriage          EntryKind = "mark"  // a person took the incident over, or resolved it
	KindPlaybookEnded   EntryKind = "ended" // a playbook's run
	KindClosed          EntryKind = "closed"
)

// EventRef names one event of one history.
type EventRef struct {
	WorkflowID string `json:"workflow_id"`
	RunID      string `json:"run_id"`
	EventID    int64  `json:"event_id"`
	EventType  string `json:"event_type"`
}

// TimelineEntry is one sentence of the story, and the event that says so.
type TimelineEntry struct {
	At    time.Time `json:"at"`
	Kind  EntryKind `json:"kind"`
	Text  string    `json:"text"`
	Actor string    `json:"actor,omitempty"`
	EventRef
	Details map[string]any `json:"details,omitempty"`
}

// Timeline is one incident told from its histories.
type Timeline struct {
	Version     int    `json:"version"`
	IncidentID  string `json:"incident"`
	GroupingKey string `json:"grouping_key"`
	Cluster     string `json:"cluster"`
	Scope       string `json:"scope"`
	Phase       int    `json:"phase"`
	Drill       bool   `json:"drill,omitempty"`
	Status      string `json:"status"` // "open" or "closed"
	// Assignee took it over; Judged is what JudgedBy said that it is.
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
	DetectionCount int               `json:"detection_count"` // with those that were counted and not repeated
	// ConfigHashes are the short hashes of the configurations under which something was decided.
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

// StatusText is how the incident stands, in the words of all other views.
func (s Timeline) StatusText() string {
	return display.DescribeStatus(playbooks.Incident{Status: s.Status, Assignee: s.Assignee, Disposition: s.Disposition, DispositionBy: s.DispositionBy})
}

// PlaybookRecord is one run of a playbook and what ran.
type PlaybookRecord struct {
	Name               string `json:"name"`
	File               string `json:"file"`
	SourceHash         string `json:"hash"` // SHA-256 of the source that ran
	PlaybookWorkflowID string `json:"run"`  // workflow id
	EventRef
	Steps []playbooks.StepReport `json:"steps"`
	Error string                 `json:"error,omitempty"`
}

// Person is somebody who answered, released or extended.
type Person struct {
	Name            string   `json:"name"`
	AuthenticatedBy []string `json:"authenticated_by"`
	Actions         []string `json:"actions"`
}

// ContainmentEffect is one containment from its application to its undoing.
type ContainmentEffect struct {
	LeaseID           string            `json:"lease"`
	IncidentID        string            `json:"incident"` // whose lease it is: it may have been joined
	Action            string            `json:"action"`
	Target            string            `json:"target"`
	Params            string            `json:"params,omitempty"`
	Outcome           playbooks.Outcome `json:"outcome"`
	Reason            string            `json:"reason,omitempty"`
	AuthorizedBy      string            `json:"authorized_by"`
	AppliedAt         time.Time         `json:"applied_at,omitzero"`
	ExpiresAt         time.Time         `json:"until,omitzero"`
	AppliedEvent      EventRef          `json:"applied_event"`
	State             string            `json:"state"` // "in force", "undone", "stuck", "refused", "failed"
	UndoneAt          time.Time         `json:"undone_at,omitzero"`
	UndoneEvent       *EventRef         `json:"undone_event,omitempty"`
	UndoReason        string            `json:"undo_reason,omitempty"`
	VerificationCount int               `json:"verification_count"` // how many times it was observed to be in force
}

// EvidenceRecord is one piece of evidence, and the event that names it.
type EvidenceRecord struct {
	playbooks.EvidenceRef
	SourceEvent EventRef `json:"source_event"`
}

// ManifestRecord is an act that was to be entered into a manifest, and what its activity says of that.
type ManifestRecord struct {
	Description string `json:"description"`
	IncidentID  string `json:"incident"` // whose manifest: a lease may have been joined
	EntryHash   string `json:"entry_hash,omitempty"`
	// UnrecordedReason says why it was not entered.
	UnrecordedReason string   `json:"unrecorded_reason,omitempty"`
	SourceEvent      EventRef `json:"source_event"`
}

// HistoryRecord is one history that the story was told from.
type HistoryRecord struct {
	WorkflowID   string `json:"workflow_id"`
	RunID        string `json:"run_id"`
	WorkflowType string `json:"type"`
	EventCount   int    `json:"events"`
	IsOpen       bool   `json:"is_open,omitempty"`
}

// Difference is something that is not as it should be, and where.
type Difference struct {
	Description string `json:"description"`
	EventRef
}

// VerificationReport is the outcome of a verification.
type VerificationReport struct {
	OK          bool         `json:"ok"`
	Checked     []string     `json:"checked"` // sentences: what was compared with what
	Differences []Difference `json:"differences"`
}

// Options are what a story is told with.
type Options struct {
	IncidentID    string
	DataConverter converter.DataConverter
	Keyring       attestation.Keyring
	Catalog       playbooks.Catalog
	HistorySource string
}
