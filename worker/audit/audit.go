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

// Version is the version of Story's JSON shape.
const Version = 1

// The types of the workflows of an incident.
const (
	TypeIncident = "Incident"
	TypePlaybook = "Playbook"
	TypeLease    = "Lease"
	TypeThread   = "Thread" // only shows what the others do
)

// Run is the history of one run of one workflow.
type Run struct {
	Workflow string
	ID       string // the run's
	Type     string
	// Open: it had not closed when the history was read.
	Open   bool
	Events []*historypb.HistoryEvent
}

// Kind says what a line is about.
type Kind string

// The kinds of line.
const (
	KindOpened       Kind = "opened"
	KindDetection    Kind = "detection"
	KindPlaybook     Kind = "playbook" // started
	KindContext      Kind = "context"
	KindEvidence     Kind = "evidence"
	KindDecision     Kind = "decision"
	KindQuestion     Kind = "question"
	KindVote         Kind = "vote"
	KindAnswer       Kind = "answer" // what the votes came to
	KindGrant        Kind = "grant"
	KindEffect       Kind = "effect"
	KindJoin         Kind = "join"
	KindVerification Kind = "verification"
	KindRelease      Kind = "release"
	KindExtension    Kind = "extension"
	KindUndo         Kind = "undo"
	KindRefusal      Kind = "refusal"
	KindFailure      Kind = "failure"
	KindRetry        Kind = "retry"
	KindNotification Kind = "notification"
	KindMark         Kind = "mark"  // a person took it over, or says that it is none
	KindEnded        Kind = "ended" // a playbook's run
	KindClosed       Kind = "closed"
)

// Ref names one event of one history.
type Ref struct {
	Workflow string `json:"workflow_id"`
	Run      string `json:"run_id"`
	Event    int64  `json:"event_id"`
	Type     string `json:"event_type"`
}

// Line is one sentence of the story, and the event that says so.
type Line struct {
	At   time.Time `json:"at"`
	Kind Kind      `json:"kind"`
	What string    `json:"what"`
	Who  string    `json:"who,omitempty"`
	Ref
	Details map[string]any `json:"details,omitempty"`
}

// Story is one incident told from its histories.
type Story struct {
	Version  int    `json:"version"`
	Incident string `json:"incident"`
	Key      string `json:"key"`
	Cluster  string `json:"cluster"`
	Scope    string `json:"scope"`
	Phase    int    `json:"phase"`
	Drill    bool   `json:"drill,omitempty"`
	Status   string `json:"status"` // "open" or "closed"
	// Owner took it over; Judged is what JudgedBy said that it is.
	Owner      string            `json:"owner,omitempty"`
	Judged     string            `json:"judged,omitempty"`
	JudgedBy   string            `json:"judged_by,omitempty"`
	Opened     time.Time         `json:"opened"`
	Closed     time.Time         `json:"closed,omitzero"`
	Workload   string            `json:"workload"`
	Image      string            `json:"image,omitempty"`
	Digest     string            `json:"image_digest,omitempty"`
	Node       string            `json:"node,omitempty"`
	Objective  sensors.Objective `json:"objective"`
	Severity   sensors.Severity  `json:"severity"`
	Confidence float64           `json:"confidence"`
	Reasons    []string          `json:"reasons"`
	Detections int               `json:"detections"` // with those that were counted and not repeated
	// Configs are the short hashes of the configurations under which something was decided.
	Configs   []string        `json:"configs"`
	Playbooks []PlaybookFact  `json:"playbooks"`
	People    []Person        `json:"people"`
	Effects   []Effect        `json:"effects"`
	Evidence  []EvidenceFact  `json:"evidence"`
	Acts      []ActFact       `json:"acts"`
	Lines     []Line          `json:"lines"`
	Histories []HistoryFact   `json:"histories"`
	Source    string          `json:"source"` // "temporal" or "archive"
	Problems  []Difference    `json:"problems"`
	Verified  *VerifiedReport `json:"verified,omitempty"`
}

// Standing is how the incident stands, in the words of all other views.
func (s Story) Standing() string {
	return display.DescribeStatus(playbooks.Incident{Status: s.Status, Assignee: s.Owner, Disposition: s.Judged, DispositionBy: s.JudgedBy})
}

// PlaybookFact is one run of a playbook and what ran.
type PlaybookFact struct {
	Name string `json:"name"`
	File string `json:"file"`
	Hash string `json:"hash"` // SHA-256 of the source that ran
	Run  string `json:"run"`  // workflow id
	Ref
	Steps []playbooks.StepReport `json:"steps"`
	Error string                 `json:"error,omitempty"`
}

// Person is somebody who answered, released or extended.
type Person struct {
	Name   string   `json:"name"`
	Proved []string `json:"proved"`
	Did    []string `json:"did"`
}

// Effect is one containment from its application to its undoing.
type Effect struct {
	Lease     string            `json:"lease"`
	Incident  string            `json:"incident"` // whose lease it is: it may have been joined
	Action    string            `json:"action"`
	Target    string            `json:"target"`
	Params    string            `json:"params,omitempty"`
	Outcome   playbooks.Outcome `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	Word      string            `json:"on_whose_word"`
	AppliedAt time.Time         `json:"applied_at,omitzero"`
	Until     time.Time         `json:"until,omitzero"`
	Applied   Ref               `json:"applied"`
	State     string            `json:"state"` // "in force", "undone", "stuck", "refused", "failed"
	UndoneAt  time.Time         `json:"undone_at,omitzero"`
	Undone    *Ref              `json:"undone,omitempty"`
	Why       string            `json:"why_undone,omitempty"`
	Observed  int               `json:"observed"` // how many times it was observed to be in force
}

// EvidenceFact is one piece of evidence, and the event that names it.
type EvidenceFact struct {
	playbooks.EvidenceRef
	Ref Ref `json:"ref"`
}

// ActFact is an act that was to be entered into a manifest, and what its activity says of that.
type ActFact struct {
	What     string `json:"what"`
	Incident string `json:"incident"` // whose manifest: a lease may have been joined
	Entry    string `json:"entry,omitempty"`
	// Unrecorded says why it was not entered.
	Unrecorded string `json:"unrecorded,omitempty"`
	Ref        Ref    `json:"ref"`
}

// HistoryFact is one history that the story was told from.
type HistoryFact struct {
	Workflow string `json:"workflow_id"`
	Run      string `json:"run_id"`
	Type     string `json:"type"`
	Events   int    `json:"events"`
	Open     bool   `json:"open,omitempty"`
}

// Difference is something that is not as it should be, and where.
type Difference struct {
	What string `json:"what"`
	Ref
}

// VerifiedReport is the outcome of a verification.
type VerifiedReport struct {
	OK          bool         `json:"ok"`
	Checked     []string     `json:"checked"` // sentences: what was compared with what
	Differences []Difference `json:"differences"`
}

// Options are what a story is told with.
type Options struct {
	Incident  string
	Converter converter.DataConverter
	Keys      attestation.Keyring
	Catalogue playbooks.Catalog
	Source    string
}
