// Package recording is an incident as a file: what was detected and when, what every action answered, what was decided
// and by whom, and what became of each step. Simulation replays it.
//
// It is pure. It refuses to hold a signature, a token or a secret (Redact takes out what looks like one), and to read a
// file that is damaged, truncated, of another version, or that has a key which it does not know.
package recording

import (
	"encoding/json"
	"time"

	"stanch/playbooks"
	"stanch/sensors"
)

// Version is the version of the format.
const Version = 1

// Recording is one incident. Times are in milliseconds since it was opened.
type Recording struct {
	Version int `json:"version" jsonschema:"const=1"`
	// SHA256 is of the file's bytes with these 64 digits as zeros.
	SHA256     string      `json:"sha256" jsonschema:"pattern=^[0-9a-f]{64}$"`
	Anonymised bool        `json:"anonymised,omitempty"`
	Incident   Incident    `json:"incident"`
	Detections []Detection `json:"detections"`
	Playbooks  []Playbook  `json:"playbooks"`
	// NotSelected are the playbooks that matched and were not started. It is known of closed incidents only.
	NotSelected []playbooks.NotSelected `json:"not_selected,omitempty"`
	Answers     []Answer                `json:"answers"`
	Questions   []Question              `json:"questions,omitempty"`
	Votes       []Vote                  `json:"votes,omitempty"`
	Marks       []Mark                  `json:"marks,omitempty"`
	Releases    []Release               `json:"releases,omitempty"`
	Leases      []LeaseReport           `json:"leases,omitempty"`
	Steps       []Step                  `json:"steps"`
	Evidence    []EvidencePart          `json:"evidence,omitempty"`
}

// Incident is what the incident began with.
type Incident struct {
	ID      string `json:"id"`
	Key     string `json:"key"`
	Cluster string `json:"cluster"`
	Scope   string `json:"scope"`
	Phase   int    `json:"phase"`
	Drill   bool   `json:"drill,omitempty"`
	// DrillTargets are the ids of what the drill registered.
	DrillTargets []string  `json:"drill_targets,omitempty"`
	Opened       time.Time `json:"opened"`
	QuietMS      int64     `json:"quiet_ms,omitempty"`
	// VerifyMS is how often leases observed themselves.
	VerifyMS int64  `json:"verify_ms,omitempty"`
	ClosedMS int64  `json:"closed_ms,omitempty"` // 0 while it was open
	Config   string `json:"config,omitempty"`    // short hash of the configuration in force
}

// Detection is one detection and when the incident got it.
type Detection struct {
	AfterMS   int64             `json:"after_ms"`
	Batch     int               `json:"batch"` // those of one number came together
	Detection sensors.Detection `json:"detection"`
}

// Playbook names a playbook that ran.
type Playbook struct {
	Name    string `json:"name"`
	File    string `json:"file"`
	Hash    string `json:"hash"` // SHA-256 of its source
	Run     string `json:"run"`
	AfterMS int64  `json:"after_ms"`
}

// Operation is what was asked of an action.
type Operation string

// The operations.
const (
	Observe Operation = "observe"
	Plan    Operation = "plan"
	Apply   Operation = "apply"
	Verify  Operation = "verify"
	Undo    Operation = "undo"
)

// Answer is what one action answered to one attempt on one target.
type Answer struct {
	Operation Operation       `json:"operation" jsonschema:"enum=observe,enum=plan,enum=apply,enum=verify,enum=undo"`
	Action    string          `json:"action"`
	Target    string          `json:"target"`
	Attempt   int             `json:"attempt"` // from 1, of this operation of this action on this target
	AfterMS   int64           `json:"after_ms"`
	TookMS    int64           `json:"took_ms,omitempty"`
	Params    json.RawMessage `json:"params,omitempty"`
	// Failure says that the attempt failed, Refused that the action would not.
	Failure string `json:"failure,omitempty"`
	Refused string `json:"refused,omitempty"`

	Outcome playbooks.Outcome `json:"outcome,omitempty"` // observe, apply
	Reason  string            `json:"reason,omitempty"`
	Outputs json.RawMessage   `json:"outputs,omitempty"` // observe
	Pieces  []Piece           `json:"pieces,omitempty"`  // observe: evidence
	Changes []string          `json:"changes,omitempty"` // plan
	// Warnings, Prior, Nothing and Held are a plan's.
	Warnings []string        `json:"warnings,omitempty"`
	Prior    json.RawMessage `json:"prior,omitempty"`
	Nothing  bool            `json:"nothing,omitempty"`
	Held     bool            `json:"held,omitempty"`
	ForMS    int64           `json:"for_ms,omitempty"`
	// Decision is what the guards said: of a plan, and immediately before an effect.
	Decision *Decision `json:"decision,omitempty"`
	// AppliedMS is when an effect took hold.
	AppliedMS int64  `json:"applied_ms,omitempty"`
	InForce   bool   `json:"in_force,omitempty"` // verify
	Gone      bool   `json:"gone,omitempty"`     // verify
	Detail    string `json:"detail,omitempty"`   // verify
	Undone    bool   `json:"undone,omitempty"`   // undo
	Drift     string `json:"drift,omitempty"`    // undo: what somebody else changed
}

// Piece is a piece of evidence without its bytes.
type Piece struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

// EvidencePart is a piece with where it is from.
type EvidencePart struct {
	Piece
	Action string `json:"action"`
	Target string `json:"target"`
}

// Decision is what the guards said.
type Decision struct {
	Verdict   string    `json:"verdict"`
	Guard     string    `json:"guard,omitempty"`
	Reason    string    `json:"reason"`
	Phase     int       `json:"phase"`
	Config    string    `json:"config,omitempty"`
	Approvers Approvers `json:"approvers,omitzero"`
	Replicas  int       `json:"replicas,omitempty"` // of the workload, as the budget judged it; -1 unknown, 0 not judged
	// Inputs is what the guards judged by; nil in recordings of an older version.
	Inputs *Inputs `json:"inputs,omitempty"`
}

// Inputs is what the guards judged by beyond the request: configuration, kill switch, budget and what the target was.
type Inputs struct {
	Threshold     float64    `json:"threshold"` // the confidence from which the scope lets an action run by itself
	MaxDurationMS int64      `json:"max_duration_ms"`
	Approvers     Approvers  `json:"approvers,omitzero"`  // of the scope
	Stopped       string     `json:"stopped,omitempty"`   // who had set the kill switch; "" while it was not set
	PerHour       int        `json:"per_hour"`            // the budget
	Share         float64    `json:"share"`               // the budget of one workload
	Spent         int        `json:"spent,omitempty"`     // of the budget, in the hour before
	Held          int        `json:"held,omitempty"`      // other pods of the workload that were contained
	Protected     *Protected `json:"protected,omitempty"` // the entry that protects the target
	Target        *Facts     `json:"target,omitempty"`    // nil: no object of a cluster
}

// Protected is why a target was protected. At most one field is set.
type Protected struct {
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Role      string `json:"role,omitempty"`
	Self      bool   `json:"self,omitempty"`
}

// Facts is what the API server said of a target.
type Facts struct {
	Unresolved     string                       `json:"unresolved,omitempty"` // why nothing was known; "" if it was
	OutsideCluster bool                         `json:"outside_cluster,omitempty"`
	Namespace      string                       `json:"namespace,omitempty"`
	Pod            string                       `json:"pod,omitempty"`
	Node           string                       `json:"node,omitempty"`
	HostNetwork    bool                         `json:"host_network,omitempty"`
	Owners         []playbooks.WorkloadIdentity `json:"owners,omitempty"`
	Incomplete     string                       `json:"incomplete,omitempty"`
	Replicas       int                          `json:"replicas,omitempty"`
}

// Approvers says who may agree.
type Approvers struct {
	Groups    []string `json:"groups,omitempty"`
	Users     []string `json:"users,omitempty"`
	Quorum    int      `json:"quorum,omitempty"`
	TimeoutMS int64    `json:"timeout_ms,omitempty"`
	// Escalate says who may agree too, from when on; nil is nobody.
	Escalate *Escalation `json:"escalate,omitempty"`
}

// Escalation says who may agree too, so long after the question was asked.
type Escalation struct {
	AfterMS int64    `json:"after_ms"`
	Groups  []string `json:"groups,omitempty"`
	Users   []string `json:"users,omitempty"`
}

// Question is what people were asked.
type Question struct {
	AfterMS    int64     `json:"after_ms"`
	Run        string    `json:"run"`
	Step       string    `json:"step"`
	Approvers  Approvers `json:"approvers"`
	DeadlineMS int64     `json:"deadline_ms"`
	Actions    []string  `json:"actions"` // "action on target"
}

// Vote is one person's answer. It is not a proof: no signature is kept.
type Vote struct {
	AfterMS int64    `json:"after_ms"`
	Run     string   `json:"run"`
	Step    string   `json:"step"`
	Person  string   `json:"person"`
	Proved  string   `json:"proved"` // how
	Groups  []string `json:"groups,omitempty"`
	Approve bool     `json:"approve"`
	Reason  string   `json:"reason,omitempty"`
	// BreakGlass: the person answered alone for the whole quorum.
	BreakGlass bool `json:"break_glass,omitempty"`
	// Withdraws: the person had asked for it, so that their no counted, whoever was asked.
	Withdraws bool `json:"withdraws,omitempty"`
	// Refused says why the answer did not count when it was given; "" if it was accepted.
	Refused string `json:"refused,omitempty"`
}

// Mark is what a person said about the incident: that it is theirs, or a false positive.
type Mark struct {
	AfterMS int64  `json:"after_ms"`
	Kind    string `json:"kind"`
	Person  string `json:"person"`
	Reason  string `json:"reason,omitempty"`
}

// Release is a lease that people ended, or let hold longer.
type Release struct {
	AfterMS int64    `json:"after_ms"`
	Lease   string   `json:"lease"`
	People  []string `json:"people"`
	UntilMS int64    `json:"until_ms,omitempty"` // of an extension
}

// LeaseReport is what a lease told its incident.
type LeaseReport struct {
	AfterMS int64                 `json:"after_ms"`
	Report  playbooks.LeaseReport `json:"report"`
}

// Step is what became of one step on one target.
type Step struct {
	Playbook string            `json:"playbook"`
	Step     string            `json:"step"`
	Action   string            `json:"action"`
	Target   string            `json:"target,omitempty"`
	Outcome  playbooks.Outcome `json:"outcome"`
	Reason   string            `json:"reason,omitempty"`
	AfterMS  int64             `json:"after_ms"`
}
