package testspec

import (
	"encoding/json"
	"time"

	"stanch/playbooks"
)

// Result is the actual result of a test.
type Result struct {
	Playbooks        []string  // names of the playbooks that ran
	Steps            []StepRun // in the order in which they ended
	ApprovalRequests []ApprovalRequest
	Containments     []ContainmentRecord
	Leases           []playbooks.LeaseReport
	FinalIncident    playbooks.Incident
	// TargetsByID contains the targets, with their names, by id.
	TargetsByID map[string]playbooks.Target
	// Error says why the test could not run to its end; "" if it could.
	Error string
}

// StepRun is the result of one step on one target.
type StepRun struct {
	Playbook  string            `json:"playbook"`
	Step      string            `json:"step"`
	Action    string            `json:"action"`
	Target    string            `json:"target,omitempty"` // target id
	Outcome   playbooks.Outcome `json:"outcome"`
	Reason    string            `json:"reason,omitempty"`
	Params    json.RawMessage   `json:"with,omitempty"`
	EndedAt   time.Duration     `json:"-"`
	EndedAtMS int64             `json:"at_ms"`
}

// ApprovalRequest is an approval request of a run.
type ApprovalRequest struct {
	Title           string        `json:"title"`
	Text            string        `json:"text,omitempty"`
	ProposedActions []string      `json:"proposed_actions"`
	Approvers       string        `json:"approvers"` // comma-separated names
	Quorum          int           `json:"quorum"`
	ApprovalAnswers []string      `json:"approval_answers"`
	AskedAt         time.Duration `json:"-"`
	AskedAtMS       int64         `json:"asked_at_ms"`
}

// ContainmentRecord is a containment that was applied.
type ContainmentRecord struct {
	Action      string            `json:"action"`
	Target      string            `json:"target"`
	Outcome     playbooks.Outcome `json:"outcome"`
	Params      json.RawMessage   `json:"params,omitempty"`
	AppliedAt   time.Duration     `json:"-"`
	UndoneAt    time.Duration     `json:"-"` // 0 while in force, and for containments without an end
	AppliedAtMS int64             `json:"applied_at_ms"`
	UndoneAtMS  int64             `json:"undone_at_ms,omitempty"`
}

// Failure is one failed expectation.
type Failure struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Step    string `json:"step,omitempty"` // nearest step
	Message string `json:"message"`
	// IsExpectedStep means that the expectation is a step of `expect`, which can be rewritten with the actual result.
	IsExpectedStep bool `json:"-"`
	// StepMissing means that the expected step did not occur, or not in its position. Rewriting it would weaken the
	// test.
	StepMissing bool `json:"-"`
}
