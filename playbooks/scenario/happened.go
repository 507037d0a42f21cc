package scenario

import (
	"encoding/json"
	"time"

	"stanch/playbooks"
)

// Happened is what became of a test, as whoever ran it tells.
type Happened struct {
	Playbooks []string // those that ran
	Steps     []Ran    // in the order in which they came to their end
	Asked     []Asked
	Effects   []Held
	Leases    []playbooks.LeaseReport
	Final     playbooks.Incident
	// Names are targets as people call them, by their ids.
	Names map[string]playbooks.Target
	// Error says why it could not be run to its end.
	Error string
}

// Ran is what became of one step on one target.
type Ran struct {
	Playbook string            `json:"playbook"`
	Step     string            `json:"step"`
	Action   string            `json:"action"`
	Target   string            `json:"target,omitempty"` // its id
	Outcome  playbooks.Outcome `json:"outcome"`
	Reason   string            `json:"reason,omitempty"`
	With     json.RawMessage   `json:"with,omitempty"`
	At       time.Duration     `json:"-"`
	AtMS     int64             `json:"at_ms"`
}

// Asked is a question.
type Asked struct {
	Title   string        `json:"title"`
	Text    string        `json:"text,omitempty"`
	Would   []string      `json:"would"`
	Of      string        `json:"of"` // names, with commas between
	Quorum  int           `json:"quorum"`
	Answers []string      `json:"answers"`
	At      time.Duration `json:"-"`
	AtMS    int64         `json:"at_ms"`
}

// Held is a containment that took hold.
type Held struct {
	Action  string            `json:"action"`
	Target  string            `json:"target"`
	Outcome playbooks.Outcome `json:"outcome"`
	With    json.RawMessage   `json:"with,omitempty"`
	From    time.Duration     `json:"-"`
	To      time.Duration     `json:"-"` // 0 while it is in force, or for what has no end
	FromMS  int64             `json:"from_ms"`
	ToMS    int64             `json:"to_ms,omitempty"`
}

// Failure is one expectation that was not met.
type Failure struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Step   string `json:"step,omitempty"` // the nearest
	What   string `json:"what"`
	// Expects: it is one of `expect`, which can be rewritten with what happened.
	Expects bool `json:"-"`
	// Gone: the step that is expected did not come, or not in its place. To rewrite it would be to expect less.
	Gone bool `json:"-"`
}
