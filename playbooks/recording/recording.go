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

// FormatVersion is the version of the format.
const FormatVersion = 2

// Recording is one incident. Times are in milliseconds since it was opened.
type Recording struct {
	Version int `json:"version" jsonschema:"const=1"`
	// SHA256 is of the file's bytes with these 64 digits as zeros.
	SHA256     string      `json:"sha256" jsonschema:"pattern=^[0-9a-f]{64}$"`
	Anonymized bool        `json:"anonymized,omitempty"`
	Incident   Incident    `json:"incident"`
	Detections []Detection `json:"detections"`
	Playbooks  []Playbook  `json:"playbooks"`
	// NotSelected are the playbooks that matched and were not started. It is known of closed incidents only.
	NotSelected      []playbooks.NotSelectedPlaybook `json:"not_selected,omitempty"`
	ActionResults    []ActionResult                  `json:"action_results"`
	ApprovalRequests []ApprovalRequest               `json:"approval_requests,omitempty"`
	Votes            []Vote                          `json:"votes,omitempty"`
	TriageDecisions  []TriageDecision                `json:"triage_decisions,omitempty"`
	LeaseChanges     []LeaseChange                   `json:"lease_changes,omitempty"`
	Leases           []LeaseReport                   `json:"leases,omitempty"`
	Steps            []StepResult                    `json:"steps"`
	Evidence         []EvidenceArtifact              `json:"evidence,omitempty"`
}

// Incident is what the incident began with.
type Incident struct {
	ID          string `json:"id"`
	GroupingKey string `json:"grouping_key"`
	Cluster     string `json:"cluster"`
	Scope       string `json:"scope"`
	Phase       int    `json:"phase"`
	Drill       bool   `json:"drill,omitempty"`
	// DrillTargets are the ids of what the drill registered.
	DrillTargets  []string  `json:"drill_targets,omitempty"`
	Opened        time.Time `json:"opened"`
	IdleTimeoutMS int64     `json:"idle_timeout_ms,omitempty"`
	// VerifyIntervalMS is how often leases observed themselves.
	VerifyIntervalMS int64  `json:"verify_interval_ms,omitempty"`
	ClosedAfterMS    int64  `json:"closed_after_ms,omitempty"` // 0 while it was open
	ConfigHash       string `json:"config_hash,omitempty"`     // short hash of the configuration in force
}

// Detection is one detection and when the incident got it.
type Detection struct {
	OffsetMS    int64             `json:"after_ms"`
	BatchNumber int               `json:"batch"` // those of one number came together
	Detection   sensors.Detection `json:"detection"`
}

// Playbook names a playbook that ran.
type Playbook struct {
	Name       string `json:"name"`
	File       string `json:"file"`
	SourceHash string `json:"hash"` // SHA-256 of its source
	WorkflowID string `json:"run"`
	OffsetMS   int64  `json:"after_ms"`
}

// Operation is what was asked of an action.
type Operation string

// The operations.
const (
	OperationObserve Operation = "observe"
	OperationPlan    Operation = "plan"
	OperationApply   Operation = "apply"
	OperationVerify  Operation = "verify"
	OperationUndo    Operation = "undo"
)

// ActionResult is what one action answered to one attempt on one target.
type ActionResult struct {
	Operation     Operation       `json:"operation" jsonschema:"enum=observe,enum=plan,enum=apply,enum=verify,enum=undo"`
	Action        string          `json:"action"`
	Target        string          `json:"target"`
	AttemptNumber int             `json:"attempt"` // from 1, of this operation of this action on this target
	OffsetMS      int64           `json:"after_ms"`
	DurationMS    int64           `json:"duration_ms,omitempty"`
	Params        json.RawMessage `json:"params,omitempty"`
	// FailureReason says that the attempt failed, Refused that the action would not.
	FailureReason string `json:"failure_reason,omitempty"`
	RefusalReason string `json:"refusal_reason,omitempty"`

	Outcome   playbooks.Outcome `json:"outcome,omitempty"` // observe, apply
	Reason    string            `json:"reason,omitempty"`
	Outputs   json.RawMessage   `json:"outputs,omitempty"`   // observe
	Artifacts []Artifact        `json:"artifacts,omitempty"` // observe: evidence
	Changes   []string          `json:"changes,omitempty"`   // plan
	// Warnings, Prior, Nothing and Held are a plan's.
	Warnings        []string        `json:"warnings,omitempty"`
	PriorState      json.RawMessage `json:"prior,omitempty"`
	NothingToDo     bool            `json:"nothing_to_do,omitempty"`
	AlreadyHeld     bool            `json:"already_held,omitempty"`
	LeaseDurationMS int64           `json:"lease_duration_ms,omitempty"`
	// GuardDecision is what the guards said: of a plan, and immediately before an effect.
	GuardDecision *GuardDecision `json:"guard_decision,omitempty"`
	// AppliedAfterMS is when an effect took hold.
	AppliedAfterMS int64  `json:"applied_after_ms,omitempty"`
	InForce        bool   `json:"in_force,omitempty"`      // verify
	TargetGone     bool   `json:"target_gone,omitempty"`   // verify
	VerifyDetail   string `json:"verify_detail,omitempty"` // verify
	Undone         bool   `json:"undone,omitempty"`        // undo
	Drift          string `json:"drift,omitempty"`         // undo: what somebody else changed
}

// Artifact is a piece of evidence without its bytes.
type Artifact struct {
	Name      string `json:"name"`
	SHA256    string `json:"sha256"`
	SizeBytes int64  `json:"bytes"`
}

// EvidenceArtifact is a piece with where it is from.
type EvidenceArtifact struct {
	Artifact
	Action string `json:"action"`
	Target string `json:"target"`
}

// GuardDecision is what the guards said.
type GuardDecision struct {
	Verdict        string    `json:"verdict"`
	Guard          string    `json:"guard,omitempty"`
	Reason         string    `json:"reason"`
	Phase          int       `json:"phase"`
	ConfigHash     string    `json:"config_hash,omitempty"`
	Approvers      Approvers `json:"approvers,omitzero"`
	BudgetReplicas int       `json:"replicas,omitempty"` // of the workload, as the budget judged it; -1 unknown, 0 not judged
	// GuardInputs is what the guards judged by; nil in recordings of an older version.
	GuardInputs *GuardInputs `json:"guard_inputs,omitempty"`
}

// GuardInputs is what the guards judged by beyond the request: configuration, kill switch, budget and what the target was.
type GuardInputs struct {
	ConfidenceThreshold float64         `json:"confidence_threshold"` // the confidence from which the scope lets an action run by itself
	MaxDurationMS       int64           `json:"max_duration_ms"`
	Approvers           Approvers       `json:"approvers,omitzero"`           // of the scope
	PausedBy            string          `json:"paused_by,omitempty"`          // who had set the kill switch; "" while it was not set
	MaxPerHour          int             `json:"per_hour"`                     // the budget
	MaxFraction         float64         `json:"max_fraction"`                 // the budget of one workload
	UsedLastHour        int             `json:"used_last_hour,omitempty"`     // of the budget, in the hour before
	ContainedSiblings   int             `json:"contained_siblings,omitempty"` // other pods of the workload that were contained
	ProtectedBy         *ProtectionRule `json:"protected_by,omitempty"`       // the entry that protects the target
	TargetFacts         *TargetFacts    `json:"target,omitempty"`             // nil: no object of a cluster
}

// ProtectionRule is why a target was protected. At most one field is set.
type ProtectionRule struct {
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Role      string `json:"role,omitempty"`
	IsStanch  bool   `json:"is_stanch,omitempty"`
}

// TargetFacts is what the API server said of a target.
type TargetFacts struct {
	UnresolvedReason string                       `json:"unresolved_reason,omitempty"` // why nothing was known; "" if it was
	OutsideCluster   bool                         `json:"outside_cluster,omitempty"`
	Namespace        string                       `json:"namespace,omitempty"`
	Pod              string                       `json:"pod,omitempty"`
	Node             string                       `json:"node,omitempty"`
	HostNetwork      bool                         `json:"host_network,omitempty"`
	Owners           []playbooks.WorkloadIdentity `json:"owners,omitempty"`
	IncompleteReason string                       `json:"incomplete_reason,omitempty"`
	Replicas         int                          `json:"replicas,omitempty"`
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
	EscalateAfterMS int64    `json:"after_ms"`
	Groups          []string `json:"groups,omitempty"`
	Users           []string `json:"users,omitempty"`
}

// ApprovalRequest is what people were asked.
type ApprovalRequest struct {
	OffsetMS        int64     `json:"after_ms"`
	WorkflowID      string    `json:"run"`
	Step            string    `json:"step"`
	Approvers       Approvers `json:"approvers"`
	DeadlineAfterMS int64     `json:"deadline_after_ms"`
	Actions         []string  `json:"actions"` // "action on target"
}

// Vote is one person's answer. It is not a proof: no signature is kept.
type Vote struct {
	OffsetMS        int64    `json:"after_ms"`
	WorkflowID      string   `json:"run"`
	Step            string   `json:"step"`
	Person          string   `json:"person"`
	AuthenticatedBy string   `json:"authenticated_by"` // how
	Groups          []string `json:"groups,omitempty"`
	Approved        bool     `json:"approved"`
	Reason          string   `json:"reason,omitempty"`
	// BreakGlass: the person answered alone for the whole quorum.
	BreakGlass bool `json:"break_glass,omitempty"`
	// WithdrawsRequest: the person had asked for it, so that their no counted, whoever was asked.
	WithdrawsRequest bool `json:"withdraws_request,omitempty"`
	// RejectionReason says why the answer did not count when it was given; "" if it was accepted.
	RejectionReason string `json:"rejection_reason,omitempty"`
}

// TriageDecision is what a person decided about the incident: that it is theirs, or how it is resolved.
type TriageDecision struct {
	OffsetMS int64  `json:"after_ms"`
	Kind     string `json:"kind"`
	Person   string `json:"person"`
	Reason   string `json:"reason,omitempty"`
}

// LeaseChange is a lease that people ended, or let hold longer.
type LeaseChange struct {
	OffsetMS        int64    `json:"after_ms"`
	LeaseID         string   `json:"lease"`
	GrantedBy       []string `json:"people"`
	ExtendedUntilMS int64    `json:"extended_until_ms,omitempty"` // of an extension
}

// LeaseReport is what a lease told its incident.
type LeaseReport struct {
	OffsetMS int64                 `json:"after_ms"`
	Report   playbooks.LeaseReport `json:"report"`
}

// StepResult is what became of one step on one target.
type StepResult struct {
	Playbook string            `json:"playbook"`
	Step     string            `json:"step"`
	Action   string            `json:"action"`
	Target   string            `json:"target,omitempty"`
	Outcome  playbooks.Outcome `json:"outcome"`
	Reason   string            `json:"reason,omitempty"`
	OffsetMS int64             `json:"after_ms"`
}
