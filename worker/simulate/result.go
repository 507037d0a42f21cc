package simulate

import (
	"stanch/activities"
	"stanch/playbooks"
)

// Result is what became of one recording.
type Result struct {
	Recording string   `json:"recording"` // the file
	Incident  string   `json:"incident"`
	Workload  string   `json:"workload"`
	Scope     string   `json:"scope"`
	Phase     int      `json:"phase"`
	Drill     bool     `json:"drill,omitempty"`
	Playbooks []string `json:"playbooks"`
	Steps     []Step   `json:"steps"`
	Effects   []Effect `json:"effects"`
	Events    []Event  `json:"events"`
	Questions []Asked  `json:"questions"`
	// FirstContainmentMS is when the first containment would have taken hold; nil if none would.
	FirstContainmentMS *int64 `json:"first_containment_ms,omitempty"`
	// Missing is what the recording has no answer for: it was assumed.
	Missing []string `json:"missing"`
	EndsMS  int64    `json:"ends_ms"` // when the incident would close
	Error   string   `json:"error,omitempty"`
	// Activities is how many activities, local ones too, the workflows ran.
	Activities int `json:"activities"`
	// Decisions are what the guards said of each plan, in order.
	Decisions []Decision `json:"decisions"`
	// Final is the incident as it ended.
	Final playbooks.Incident `json:"-"`
}

// Step is what became of one step on one target.
type Step struct {
	Playbook string            `json:"playbook"`
	Run      int               `json:"run"` // of the incident's playbooks, from 1
	Step     string            `json:"step"`
	Action   string            `json:"action"`
	Target   string            `json:"target,omitempty"`
	Outcome  playbooks.Outcome `json:"outcome"`
	Reason   string            `json:"reason,omitempty"`
	AtMS     int64             `json:"at_ms"`
	Assumed  bool              `json:"assumed,omitempty"` // its answers are not in the recording
}

// Decision is what the guards said of a plan.
type Decision struct {
	Action  string             `json:"action"`
	Target  string             `json:"target"`
	Verdict activities.Verdict `json:"verdict"`
	Guard   string             `json:"guard,omitempty"`
	Reason  string             `json:"reason"`
	Phase   int                `json:"phase"`
	AtMS    int64              `json:"at_ms"`
	// Before: immediately before the effect, and not when it was planned.
	Before bool `json:"before,omitempty"`
}

// Effect is a containment that would have been in force.
type Effect struct {
	Action  string            `json:"action"`
	Target  string            `json:"target"`
	Params  string            `json:"params,omitempty"`
	Outcome playbooks.Outcome `json:"outcome"`
	FromMS  int64             `json:"from_ms"`
	ToMS    int64             `json:"to_ms,omitempty"`
	Assumed bool              `json:"assumed,omitempty"` // the recording has no such effect
}

// Event is one line of what would have happened.
type Event struct {
	AtMS int64  `json:"at_ms"`
	Kind string `json:"kind"`
	What string `json:"what"`
}

// Asked is a question that people would have been asked.
type Asked struct {
	AtMS      int64    `json:"at_ms"`
	Playbook  string   `json:"playbook"`
	Run       int      `json:"run"` // of the incident's playbooks, from 1
	Step      string   `json:"step"`
	Title     string   `json:"title"`
	Ask       string   `json:"ask,omitempty"`
	Would     []string `json:"would"`
	Approvers string   `json:"approvers"`
	Quorum    int      `json:"quorum"`
	TimeoutMS int64    `json:"timeout_ms"`
	// WaitedMS is how long the question stood open.
	WaitedMS int64    `json:"waited_ms"`
	Answers  []string `json:"answers"`
}
