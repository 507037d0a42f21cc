// Package recording defines the file format of a recorded incident: what was detected and when, the results of every
// action, every decision and who made it, and the outcome of each step. Simulation replays recordings.
//
// It is pure. A recording contains no signatures or tokens, and Redact removes text that looks like a secret. Decode
// refuses a file that is damaged, truncated, of another version, or that has an unknown key.
package recording

import (
	"encoding/json"
	"time"

	"stanch/playbooks"
	"stanch/sensors"
)

// FormatVersion is the only version of the format that Decode accepts.
const FormatVersion = 2

// Recording is one incident. Fields that end in AfterMS, and OffsetMS, are milliseconds since the incident was opened.
type Recording struct {
	Version int `json:"version" jsonschema:"const=2"`
	// SHA256 is the hex digest of the file's bytes, computed with these 64 digits as zeros.
	SHA256     string      `json:"sha256" jsonschema:"pattern=^[0-9a-f]{64}$"`
	Anonymized bool        `json:"anonymized,omitempty"`
	Incident   Incident    `json:"incident"`
	Detections []Detection `json:"detections"`
	Playbooks  []Playbook  `json:"playbooks"`
	// NotSelected are the playbooks that matched and were not started. It is set for closed incidents only.
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

// Incident is the initial state of the incident.
type Incident struct {
	ID          string `json:"id"`
	GroupingKey string `json:"grouping_key"`
	Cluster     string `json:"cluster"`
	Scope       string `json:"scope"`
	Phase       int    `json:"phase"`
	Drill       bool   `json:"drill,omitempty"`
	// DrillTargets are the ids of the targets that a drill registered.
	DrillTargets  []string  `json:"drill_targets,omitempty"`
	Opened        time.Time `json:"opened"`
	IdleTimeoutMS int64     `json:"idle_timeout_ms,omitempty"`
	// VerifyIntervalMS is the interval in which leases are verified.
	VerifyIntervalMS int64  `json:"verify_interval_ms,omitempty"`
	ClosedAfterMS    int64  `json:"closed_after_ms,omitempty"` // 0 if it was still open
	ConfigHash       string `json:"config_hash,omitempty"`     // short hash of the configuration in force
}

// Detection is one detection and the time at which the incident received it.
type Detection struct {
	OffsetMS    int64             `json:"after_ms"`
	BatchNumber int               `json:"batch"` // detections with the same number were received together
	Detection   sensors.Detection `json:"detection"`
}

// Playbook identifies a playbook that ran.
type Playbook struct {
	Name       string `json:"name"`
	File       string `json:"file"`
	SourceHash string `json:"hash"` // SHA-256 of its source
	WorkflowID string `json:"run"`
	OffsetMS   int64  `json:"after_ms"`
}

// Operation is the operation of an action.
type Operation string

// The operations.
const (
	OperationObserve Operation = "observe"
	OperationPlan    Operation = "plan"
	OperationApply   Operation = "apply"
	OperationVerify  Operation = "verify"
	OperationUndo    Operation = "undo"
)

// ActionResult is the result of one attempt of an action's operation on one target.
type ActionResult struct {
	Operation     Operation       `json:"operation" jsonschema:"enum=observe,enum=plan,enum=apply,enum=verify,enum=undo"`
	Action        string          `json:"action"`
	Target        string          `json:"target"`
	AttemptNumber int             `json:"attempt"` // from 1; counted per operation, action and target
	OffsetMS      int64           `json:"after_ms"`
	DurationMS    int64           `json:"duration_ms,omitempty"`
	Params        json.RawMessage `json:"params,omitempty"`
	// FailureReason is set if the attempt failed, RefusalReason if the action refused it.
	FailureReason string `json:"failure_reason,omitempty"`
	RefusalReason string `json:"refusal_reason,omitempty"`

	Outcome   playbooks.Outcome `json:"outcome,omitempty"` // observe, apply
	Reason    string            `json:"reason,omitempty"`
	Outputs   json.RawMessage   `json:"outputs,omitempty"`   // observe
	Artifacts []Artifact        `json:"artifacts,omitempty"` // observe: evidence
	Changes   []string          `json:"changes,omitempty"`   // plan
	// Warnings, PriorState, NothingToDo and AlreadyHeld are set by plan.
	Warnings        []string        `json:"warnings,omitempty"`
	PriorState      json.RawMessage `json:"prior,omitempty"`
	NothingToDo     bool            `json:"nothing_to_do,omitempty"`
	AlreadyHeld     bool            `json:"already_held,omitempty"`
	LeaseDurationMS int64           `json:"lease_duration_ms,omitempty"`
	// GuardDecision is the guards' decision: for a plan, and immediately before an effect.
	GuardDecision *GuardDecision `json:"guard_decision,omitempty"`
	// AppliedAfterMS is when the effect was applied.
	AppliedAfterMS int64  `json:"applied_after_ms,omitempty"`
	InForce        bool   `json:"in_force,omitempty"`      // verify
	TargetGone     bool   `json:"target_gone,omitempty"`   // verify
	VerifyDetail   string `json:"verify_detail,omitempty"` // verify
	Undone         bool   `json:"undone,omitempty"`        // undo
	Drift          string `json:"drift,omitempty"`         // undo: changes by others since the effect was applied
}

// Artifact describes an evidence artifact without its content.
type Artifact struct {
	Name      string `json:"name"`
	SHA256    string `json:"sha256"`
	SizeBytes int64  `json:"bytes"`
}

// EvidenceArtifact is an artifact with the action and target that it is from.
type EvidenceArtifact struct {
	Artifact
	Action string `json:"action"`
	Target string `json:"target"`
}

// GuardDecision is a decision of the guards.
type GuardDecision struct {
	Verdict    string    `json:"verdict"`
	Guard      string    `json:"guard,omitempty"`
	Reason     string    `json:"reason"`
	Phase      int       `json:"phase"`
	ConfigHash string    `json:"config_hash,omitempty"`
	Approvers  Approvers `json:"approvers,omitzero"`
	// of the workload, as used by the budget; -1 unknown, 0 not used
	BudgetReplicas int `json:"replicas,omitempty"`
	// GuardInputs are the inputs of the decision; nil in recordings of earlier versions.
	GuardInputs *GuardInputs `json:"guard_inputs,omitempty"`
}

// GuardInputs are the inputs of a guard decision besides the request: configuration, kill switch, budget and the facts
// about the target.
type GuardInputs struct {
	// minimum confidence for automatic actions in the scope
	ConfidenceThreshold float64   `json:"confidence_threshold"`
	MaxDurationMS       int64     `json:"max_duration_ms"`
	Approvers           Approvers `json:"approvers,omitzero"`           // of the scope
	PausedBy            string    `json:"paused_by,omitempty"`          // who paused new containments; "" if not paused
	MaxPerHour          int       `json:"per_hour"`                     // budget: containments per hour
	MaxFraction         float64   `json:"max_fraction"`                 // budget: fraction of a workload's pods
	UsedLastHour        int       `json:"used_last_hour,omitempty"`     // budget used in the hour before
	ContainedSiblings   int       `json:"contained_siblings,omitempty"` // other contained pods of the workload
	// the configuration entry that protects the target
	ProtectedBy *ProtectionRule `json:"protected_by,omitempty"`
	TargetFacts *TargetFacts    `json:"target,omitempty"` // nil for targets that are not objects of a cluster
}

// ProtectionRule is the reason why a target is protected. At most one field is set.
type ProtectionRule struct {
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Role      string `json:"role,omitempty"`
	IsStanch  bool   `json:"is_stanch,omitempty"`
}

// TargetFacts are the API server's data about a target.
type TargetFacts struct {
	// why no data is available; "" if it is
	UnresolvedReason string                       `json:"unresolved_reason,omitempty"`
	OutsideCluster   bool                         `json:"outside_cluster,omitempty"`
	Namespace        string                       `json:"namespace,omitempty"`
	Pod              string                       `json:"pod,omitempty"`
	Node             string                       `json:"node,omitempty"`
	HostNetwork      bool                         `json:"host_network,omitempty"`
	Owners           []playbooks.WorkloadIdentity `json:"owners,omitempty"`
	IncompleteReason string                       `json:"incomplete_reason,omitempty"`
	Replicas         int                          `json:"replicas,omitempty"`
}

// Approvers are the people who may approve, with the quorum and timeout.
type Approvers struct {
	Groups    []string `json:"groups,omitempty"`
	Users     []string `json:"users,omitempty"`
	Quorum    int      `json:"quorum,omitempty"`
	TimeoutMS int64    `json:"timeout_ms,omitempty"`
	// Escalate adds approvers after some time; nil means no escalation.
	Escalate *Escalation `json:"escalate,omitempty"`
}

// Escalation adds approvers EscalateAfterMS after the request.
type Escalation struct {
	EscalateAfterMS int64    `json:"after_ms"`
	Groups          []string `json:"groups,omitempty"`
	Users           []string `json:"users,omitempty"`
}

// ApprovalRequest is a request for approval.
type ApprovalRequest struct {
	OffsetMS        int64     `json:"after_ms"`
	WorkflowID      string    `json:"run"`
	Step            string    `json:"step"`
	Approvers       Approvers `json:"approvers"`
	DeadlineAfterMS int64     `json:"deadline_after_ms"`
	Actions         []string  `json:"actions"` // "ACTION on TARGET"
}

// Vote is one person's answer to an approval request. It is not a proof: the signature is not recorded.
type Vote struct {
	OffsetMS        int64    `json:"after_ms"`
	WorkflowID      string   `json:"run"`
	Step            string   `json:"step"`
	Person          string   `json:"person"`
	AuthenticatedBy string   `json:"authenticated_by"` // authentication method
	Groups          []string `json:"groups,omitempty"`
	Approved        bool     `json:"approved"`
	Reason          string   `json:"reason,omitempty"`
	// BreakGlass means that this person approved alone, in place of the quorum.
	BreakGlass bool `json:"break_glass,omitempty"`
	// WithdrawsRequest means that the person who made the request withdrew it; such a denial counts although the person
	// is no approver.
	WithdrawsRequest bool `json:"withdraws_request,omitempty"`
	// RejectionReason says why the vote was not counted; "" if it was accepted.
	RejectionReason string `json:"rejection_reason,omitempty"`
}

// TriageDecision is a person's decision about the incident: an assignment or a resolution.
type TriageDecision struct {
	OffsetMS int64  `json:"after_ms"`
	Kind     string `json:"kind"`
	Person   string `json:"person"`
	Reason   string `json:"reason,omitempty"`
}

// LeaseChange is the end or the extension of a lease by people.
type LeaseChange struct {
	OffsetMS        int64    `json:"after_ms"`
	LeaseID         string   `json:"lease"`
	GrantedBy       []string `json:"people"`
	ExtendedUntilMS int64    `json:"extended_until_ms,omitempty"` // for an extension
}

// LeaseReport is a report that a lease sent to its incident.
type LeaseReport struct {
	OffsetMS int64                 `json:"after_ms"`
	Report   playbooks.LeaseReport `json:"report"`
}

// StepResult is the result of one step on one target.
type StepResult struct {
	Playbook string            `json:"playbook"`
	Step     string            `json:"step"`
	Action   string            `json:"action"`
	Target   string            `json:"target,omitempty"`
	Outcome  playbooks.Outcome `json:"outcome"`
	Reason   string            `json:"reason,omitempty"`
	OffsetMS int64             `json:"after_ms"`
}
