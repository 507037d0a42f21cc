// Package activities defines actions, which steps of playbooks call, and the Temporal activities through which
// workflows run them.
//
// It makes no decisions: guards (worker/guards) decide whether an effect is permitted, immediately before it, and
// attestations (sensors/attestation) prove who permitted it. An action that changes something owns what it creates,
// saves the prior state, verifies its effect, and can undo it.
package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
)

// Action is an action of a playbook. Every action also implements Observer or Containment.
type Action interface {
	Spec() playbooks.ActionSpec
}

// Observer is an action without side effects on its target.
type Observer interface {
	Action
	// Observe returns outputs (of the type in the spec, or nil) and evidence artifacts. Repeating it is safe.
	Observe(ctx context.Context, r Request) (Observation, error)
}

// Containment is an action that changes its target. It can undo the change if its spec says Reversible.
type Containment interface {
	Action
	// Plan returns what would change. It only reads.
	Plan(ctx context.Context, r Request) (Plan, error)
	// Apply makes the change and verifies it. It is idempotent: the same request changes nothing the second time.
	Apply(ctx context.Context, r Request, prior json.RawMessage, token attestation.Envelope) (Effect, error)
	// Verify reports whether the change is in force now, with details.
	Verify(ctx context.Context, r Request, prior json.RawMessage) (bool, string, error)
	// Undo restores the saved state. If someone else changed the target since, it restores nothing and returns a
	// Drift.
	Undo(ctx context.Context, r Request, prior json.RawMessage, grant *attestation.Envelope) (*Drift, error)
}

// Request is the input of an action.
type Request struct {
	Action      string           `json:"action"`
	Params      json.RawMessage  `json:"params"`
	Target      playbooks.Target `json:"target"`
	IncidentRef IncidentRef      `json:"incident"`
	LeaseID     string           `json:"lease,omitempty"`
	ExpiresAt   time.Time        `json:"until,omitzero"`
	// Duration is the duration in the step. It is part of the plan: guards and approvers may not exceed it.
	Duration time.Duration `json:"for,omitempty"`
	// ReleaseGrant permits an end before the time stamped on the object; nil if there is none.
	ReleaseGrant *attestation.Envelope `json:"release_grant,omitempty"`
	// ExtensionGrant permits an active lease to end later than its token says; nil if there is none.
	ExtensionGrant *attestation.Envelope `json:"extension_grant,omitempty"`
}

// IncidentRef is the part of the incident that actions use.
type IncidentRef struct {
	ID          string                     `json:"id"`
	GroupingKey string                     `json:"grouping_key"`
	Cluster     string                     `json:"cluster"`
	Summary     string                     `json:"summary"`
	Scope       string                     `json:"scope"`
	Workload    playbooks.WorkloadIdentity `json:"workload"`
	Confidence  float64                    `json:"confidence"`
	// maximum phase in the playbook; 0 means no maximum
	MaxPhase int       `json:"max_phase,omitempty"`
	Replicas int       `json:"replicas,omitempty"` // of the workload; 0 until known
	Opened   time.Time `json:"opened"`
}

// Observation is the result of an Observer.
type Observation struct {
	Outputs     any
	Artifacts   []Artifact
	MissingNote string // what is missing, for the report
	// Unchanged means that the target already had the requested state.
	Unchanged bool
}

// Artifact is an evidence artifact that is not stored yet.
type Artifact struct {
	Name string
	Data []byte
	// CapturedFrom is where it was captured. SHA256 is the hash computed there, or "".
	CapturedFrom string
	SHA256       string
}

// Plan is what a containment would change.
type Plan struct {
	Action   string          `json:"action"`
	TargetID string          `json:"target"` // target id, KIND:UID
	Params   json.RawMessage `json:"params"`
	Duration time.Duration   `json:"for,omitempty"` // of the lease; 0 for irreversible actions
	Changes  []string        `json:"changes"`       // sentences for approvers
	// PriorState is the state that Undo restores. It is recorded before anything is applied.
	PriorState json.RawMessage `json:"prior,omitempty"`
	Warnings   []string        `json:"warnings,omitempty"`
	// EndMechanism is what ends the lease by itself; "" for irreversible actions.
	EndMechanism playbooks.EndMechanism `json:"end_mechanism,omitempty"`
	// ApprovalReason says why the containment requires an approval whatever the scope's policy, because it affects more
	// than its target; "" if it does not.
	ApprovalReason string `json:"approval_reason,omitempty"`
	// NothingToDo means that the target already has the requested state.
	NothingToDo bool `json:"nothing_to_do,omitempty"`
	// AlreadyHeld means that some lease already covers the target. If applying fails, nothing is rolled back, because
	// the effect in force belongs to that lease.
	AlreadyHeld bool `json:"already_held,omitempty"`
	// HeldByLease is the lease that covers the target, and HeldUntil its end, if they are known.
	HeldByLease string    `json:"held_by_lease,omitempty"`
	HeldUntil   time.Time `json:"held_until,omitzero"`
}

// bindToRequest records the request that the plan is for.
func (p *Plan) bindToRequest(r Request) {
	p.Action, p.TargetID, p.Params, p.Duration = r.Action, r.Target.ID(), r.Params, r.Duration
}

// Hash returns the hash that an approval is bound to: action, target, parameters, duration and changes.
func (p Plan) Hash() string {
	return attestation.HashJSON(struct {
		Action, Target string
		Params         json.RawMessage
		For            time.Duration
		Changes        []string
	}{p.Action, p.TargetID, p.Params, p.Duration, p.Changes})
}

// Effect is the result of Apply.
type Effect struct {
	Outcome playbooks.Outcome `json:"outcome"` // changed, unverified or unchanged
	Reason  string            `json:"reason,omitempty"`
	// AppliedAt is when the effect was applied, by the clock of the node, cluster or provider.
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// Drift describes a change by someone else since the containment was applied.
type Drift struct {
	Detail string `json:"detail"`
}

// Refusal means that an action or a guard refuses a request. Retrying does not help.
type Refusal struct {
	Reason string
	cause  error // what errors.Is finds: ErrTargetGone, or nil
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason }

// Unwrap returns ErrTargetGone for a refusal because of that, and nil otherwise.
func (r *Refusal) Unwrap() error { return r.cause }

// Refusef returns a *Refusal with a formatted reason.
func Refusef(format string, args ...any) error { return &Refusal{Reason: fmt.Sprintf(format, args...)} }

// RefuseGonef returns a *Refusal with a formatted reason that wraps ErrTargetGone.
func RefuseGonef(format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), cause: ErrTargetGone}
}

// AsRefusal returns the refusal in an error's chain. A node's refusal counts as one.
func AsRefusal(err error) (*Refusal, bool) {
	var r *Refusal
	if errors.As(err, &r) {
		return r, true
	}
	if errors.Is(err, gatewayrpc.ErrRefused) || errors.Is(err, attestation.ErrUnverified) {
		return &Refusal{Reason: err.Error()}, true
	}
	return nil, false
}

// ErrNodeNotConnected means that this process has no stream to the node.
var ErrNodeNotConnected = errors.New("the node's sensor is not connected")

// ErrTargetGone means that the target no longer exists, so nothing is left to contain.
var ErrTargetGone = errors.New("the target is gone")

// PartlyVerifiedError accompanies a Verify result of true: the effect is in force, but part of it cannot be observed.
type PartlyVerifiedError struct{ Reason string }

// Error implements error.
func (e *PartlyVerifiedError) Error() string { return "not verified: " + e.Reason }

// NodeClient sends commands to nodes.
type NodeClient interface {
	// Call runs a command on a node, decodes the result into out and returns the attachments. It returns
	// ErrNodeNotConnected if this process has no stream to the node, and an error that wraps gatewayrpc.ErrRefused if
	// the node refuses.
	Call(ctx context.Context, node string, kind gatewayrpc.CommandKind, body, out any) ([]gatewayrpc.Attachment, error)
}

// ToNodeTarget returns a target in the form that nodes use.
func ToNodeTarget(t playbooks.Target) gatewayrpc.NodeTarget {
	if t.Kind == playbooks.TargetPod {
		return gatewayrpc.NodeTarget{PodUID: t.UID}
	}
	return gatewayrpc.NodeTarget{ContainerID: t.UID}
}

// DecodeParams decodes a request's parameters.
func DecodeParams[T any](r Request) (T, error) {
	var p T
	if len(r.Params) == 0 {
		return p, nil
	}
	if err := json.Unmarshal(r.Params, &p); err != nil {
		return p, fmt.Errorf("read the parameters of %s: %w", r.Action, err)
	}
	return p, nil
}

// DecodePriorState decodes a prior state.
func DecodePriorState[T any](raw json.RawMessage) (T, error) {
	var p T
	if len(raw) == 0 {
		return p, nil
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, fmt.Errorf("read the saved prior state: %w", err)
	}
	return p, nil
}
