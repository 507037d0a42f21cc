// Package activities holds the actions: what a step of a playbook calls, each a file with its spec, and the Temporal
// activities through which workflows reach them.
//
// It refuses to decide: guards (worker/guards) say whether an effect may happen, immediately before it does, and
// proofs (sensors/attestation) say on whose word. An action that changes something owns what it makes, saves what was
// there before, observes what it did, and can undo it.
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

// Action is what every action has: its spec. It is an Observer or a Container besides.
type Action interface {
	Spec() playbooks.ActionSpec
}

// Observer is an action that changes nothing.
type Observer interface {
	Action
	// Observe returns outputs (of the spec's type, or nil) and pieces of evidence. It is safe to repeat.
	Observe(ctx context.Context, r Request) (Observation, error)
}

// Containment is an action that changes something, and can take it back if its spec says so.
type Containment interface {
	Action
	// Plan says what would change, from reads alone.
	Plan(ctx context.Context, r Request) (Plan, error)
	// Apply makes the change and observes it. Repeated with the same request it changes nothing more.
	Apply(ctx context.Context, r Request, prior json.RawMessage, token attestation.Envelope) (Effect, error)
	// Verify observes whether the change is in force now. The bool is whether it is.
	Verify(ctx context.Context, r Request, prior json.RawMessage) (bool, string, error)
	// Undo restores what was saved. A Drift says that somebody else changed it since: nothing was restored.
	Undo(ctx context.Context, r Request, prior json.RawMessage, grant *attestation.Envelope) (*Drift, error)
}

// Request is what an action is asked to do.
type Request struct {
	Action      string           `json:"action"`
	Params      json.RawMessage  `json:"params"`
	Target      playbooks.Target `json:"target"`
	IncidentRef IncidentRef      `json:"incident"`
	LeaseID     string           `json:"lease,omitempty"`
	ExpiresAt   time.Time        `json:"until,omitzero"`
	// Duration is how long the step asks it to hold. It is part of the plan: neither a guard nor a person lets more through.
	Duration time.Duration `json:"for,omitempty"`
	// ReleaseGrant is a release grant under which the end may come earlier than was stamped.
	ReleaseGrant *attestation.Envelope `json:"release_grant,omitempty"`
	// ExtensionGrant is a grant under which a lease that holds may end later than its token says.
	ExtensionGrant *attestation.Envelope `json:"extension_grant,omitempty"`
}

// IncidentRef is what an action needs to know of the incident.
type IncidentRef struct {
	ID          string                     `json:"id"`
	GroupingKey string                     `json:"grouping_key"`
	Cluster     string                     `json:"cluster"`
	Summary     string                     `json:"summary"`
	Scope       string                     `json:"scope"`
	Workload    playbooks.WorkloadIdentity `json:"workload"`
	Confidence  float64                    `json:"confidence"`
	MaxPhase    int                        `json:"max_phase,omitempty"` // the playbook's ceiling; 0 is none
	Replicas    int                        `json:"replicas,omitempty"`  // of the workload, once known
	Opened      time.Time                  `json:"opened"`
}

// Observation is what an Observer found.
type Observation struct {
	Outputs     any
	Artifacts   []Artifact
	MissingNote string // what is missing, for the record
	// Unchanged: it was so already.
	Unchanged bool
}

// Artifact is one piece of evidence before it is stored.
type Artifact struct {
	Name string
	Data []byte
	// CapturedFrom is where it was captured; SHA256 its hash there, "" where the source says none.
	CapturedFrom string
	SHA256       string
}

// Plan says what a containment would change.
type Plan struct {
	Action   string          `json:"action"`
	TargetID string          `json:"target"` // its ID
	Params   json.RawMessage `json:"params"`
	Duration time.Duration   `json:"for,omitempty"` // how long it would hold; 0 for what is not reversible
	Changes  []string        `json:"changes"`       // sentences for a person
	// PriorState is the state to restore. It is recorded before anything is applied.
	PriorState json.RawMessage `json:"prior,omitempty"`
	Warnings   []string        `json:"warnings,omitempty"`
	// EndMechanism says what ends the lease by itself; "" for what is no lease.
	EndMechanism playbooks.EndMechanism `json:"end_mechanism,omitempty"`
	// ApprovalReason says why people must agree, whatever the scope lets run by itself: it would affect more than its target.
	ApprovalReason string `json:"approval_reason,omitempty"`
	// NothingToDo: it is so already.
	NothingToDo bool `json:"nothing_to_do,omitempty"`
	// AlreadyHeld: the target is held already, by whatever lease. An apply that fails on it takes nothing back: what is in
	// force was not its own doing.
	AlreadyHeld bool `json:"already_held,omitempty"`
	// HeldByLease is the lease that holds it, and HeldUntil its end, where that is known.
	HeldByLease string    `json:"held_by_lease,omitempty"`
	HeldUntil   time.Time `json:"held_until,omitzero"`
}

// bindToRequest says which request the plan is for.
func (p *Plan) bindToRequest(r Request) {
	p.Action, p.TargetID, p.Params, p.Duration = r.Action, r.Target.ID(), r.Params, r.Duration
}

// Hash is what an approval is bound to: action, target, parameters, how long, and changes.
func (p Plan) Hash() string {
	return attestation.HashJSON(struct {
		Action, Target string
		Params         json.RawMessage
		For            time.Duration
		Changes        []string
	}{p.Action, p.TargetID, p.Params, p.Duration, p.Changes})
}

// Effect is what Apply did and observed.
type Effect struct {
	Outcome playbooks.Outcome `json:"outcome"` // changed, unverified or unchanged
	Reason  string            `json:"reason,omitempty"`
	// AppliedAt is when it took hold, by the clock of where it did.
	AppliedAt time.Time `json:"applied_at,omitzero"`
}

// Drift says what somebody else changed since a containment was applied.
type Drift struct {
	Detail string `json:"detail"`
}

// Refusal is an action's or a guard's "I will not": a value, not a failure. Trying again does not help.
type Refusal struct {
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// Refusef makes a refusal.
func Refusef(format string, args ...any) error { return &Refusal{fmt.Sprintf(format, args...)} }

// AsRefusal gives the refusal in an error's chain. A node's refusal counts as one.
func AsRefusal(err error) (*Refusal, bool) {
	var r *Refusal
	if errors.As(err, &r) {
		return r, true
	}
	if errors.Is(err, gatewayrpc.ErrRefused) || errors.Is(err, attestation.ErrUnverified) {
		return &Refusal{err.Error()}, true
	}
	return nil, false
}

// ErrNodeNotConnected says that no stream to the node is open here.
var ErrNodeNotConnected = errors.New("the node's sensor is not connected")

// ErrTargetGone says that the target no longer exists: nothing is left to contain.
var ErrTargetGone = errors.New("the target is gone")

// PartlyVerifiedError comes with a Verify that says "in force": part of the effect is not observed, and why.
type PartlyVerifiedError struct{ Reason string }

func (e *PartlyVerifiedError) Error() string { return "not verified: " + e.Reason }

// NodeClient calls a command on a node over its stream.
type NodeClient interface {
	// Call returns the result decoded into out, and the blobs. It returns ErrNodeNotConnected if the stream is elsewhere or
	// down, and an error wrapping link.ErrRefused if the node would not.
	Call(ctx context.Context, node string, kind gatewayrpc.CommandKind, body, out any) ([]gatewayrpc.Attachment, error)
}

// ToNodeTarget is a target as a node knows it.
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
		return p, fmt.Errorf("parameters of %s: %w", r.Action, err)
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
		return p, fmt.Errorf("saved prior state: %w", err)
	}
	return p, nil
}
