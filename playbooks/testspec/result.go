package testspec

import (
	"encoding/json"
	"time"

	"stanch/playbooks"
)

// Result is what became of a test, as whoever ran it tells.
type Result struct {
	Playbooks        []string  // those that ran
	Steps            []StepRun // in the order in which they came to their end
	ApprovalRequests []ApprovalRequest
	Containments     []ContainmentRecord
	Leases           []playbooks.LeaseReport
	FinalIncident    playbooks.Incident
	// TargetsByID are targets as people call them, by their ids.
	TargetsByID map[string]playbooks.Target
	// Error says why it could not be run to its end.
	Error string
}

// StepRun is what became of one step on one target.
type StepRun struct {
	Playbook  string            `json:"playbook"`
	Step      string            `json:"step"`
	Action    string            `json:"action"`
	Target    string            `json:"target,omitempty"` // its id
	Outcome   playbooks.Outcome `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	Params    json.RawMessage   `json:"with,omitempty"`
	EndedAt   time.Duration     `json:"-"`
	EndedAtMS int64             `json:"at_ms"`
}

// ApprovalRequest is a question.
type ApprovalRequest struct {
	Title           string        `json:"title"`
	Text            string        `json:"text,omitempty"`
	ProposedActions []string      `json:"proposed_actions"`
	Approvers       string        `json:"approvers"` // names, with commas between
	Quorum          int           `json:"quorum"`
	ApprovalAnswers []string      `json:"approval_answers"`
	AskedAt         time.Duration `json:"-"`
	AskedAtMS       int64         `json:"asked_at_ms"`
}

// ContainmentRecord is a containment that took hold.
type ContainmentRecord struct {
	Action      string            `json:"action"`
	Target      string            `json:"target"`
	Outcome     playbooks.Outcome `json:"outcome"`
	Params      json.RawMessage   `json:"params,omitempty"`
	AppliedAt   time.Duration     `json:"-"`
	UndoneAt    time.Duration     `json:"-"` // 0 while it is in force, or for what has no end
	AppliedAtMS int64             `json:"applied_at_ms"`
	UndoneAtMS  int64             `json:"undone_at_ms,omitempty"`
}

// Failure is one expectation that was not met.
type Failure struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Step    string `json:"step,omitempty"` // the nearest
	Message string `json:"message"`
	// IsExpectedStep: it is one of `expect`, which can be rewritten with what happened.
	IsExpectedStep bool `json:"-"`
	// StepMissing: the step that is expected did not come, or not in its place. To rewrite it would be to expect less.
	StepMissing bool `json:"-"`
}
