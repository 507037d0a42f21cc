package attestation

import (
	"fmt"
	"slices"
	"time"

	"stanch/sensors/duration"
)

// Attestation is the gateway's word that it accepted a detection: without one for its target, nothing is
// contained unless a person granted it.
type Attestation struct {
	DetectionID   string             `json:"detection_id"` // DetectionID.ID
	DetectionHash string             `json:"hash"`         // of the whole detection
	TargetID      string             `json:"target"`       // "pod:<uid>" or "container:<id>"
	Rule          string             `json:"rule"`
	Objective     string             `json:"objective"`
	Severity      string             `json:"severity"`
	Confidence    float64            `json:"confidence"`
	Node          string             `json:"node"`
	Namespace     string             `json:"namespace,omitempty"` // of the pod, as the gateway knows it
	Workload      string             `json:"workload,omitempty"`  // "namespace/Kind/name", as the gateway knows it
	Scope         string             `json:"scope,omitempty"`     // "drill" for a drill's own target
	Drill         *DrillRegistration `json:"drill,omitempty"`     // the registration that covers the target; nil outside of drills
	// TargetConfirmed: the API server said so of the pod, its node, namespace and workload. Without it they are the sender's words.
	TargetConfirmed bool      `json:"target_confirmed,omitempty"`
	AcceptedAt      time.Time `json:"accepted_at"`
	// ManualRequest: nothing was detected, a person asked. It permits what they asked for and nothing else.
	ManualRequest *ManualRequest `json:"manual_request,omitempty"`
}

// ManualRequest is what a person asked for, and what it takes.
type ManualRequest struct {
	Person          string `json:"person"`
	AuthenticatedBy string `json:"authenticated_by"` // how: "uid 1000 on the local socket"
	Reason          string `json:"reason"`
	// Actions are the containments that the request is for, and For is how long the longest of them holds.
	Actions     []string      `json:"actions"`
	MaxDuration time.Duration `json:"for"`
}

// Permits reports whether an attestation speaks for a containment that holds so long: a detection for every one, a request
// for those that were asked for.
func (a Attestation) Permits(action string, holds time.Duration) bool {
	r := a.ManualRequest
	return r == nil || slices.Contains(r.Actions, action) && holds <= r.MaxDuration
}

// VerifyAttestation verifies s and that it is about target and was accepted within maxAge before now.
func (r Keyring) VerifyAttestation(s Envelope, target string, now time.Time, maxAge time.Duration) (Attestation, error) {
	var a Attestation
	if err := r.Verify(s, PayloadTypeAttestation, &a); err != nil {
		return Attestation{}, err
	}
	if a.TargetID != target {
		return Attestation{}, fmt.Errorf("%w: the attested detection %s is about %s, not %s", ErrUnverified, a.DetectionID, a.TargetID, target)
	}
	if age := now.Sub(a.AcceptedAt); age > maxAge || age < -maxClockSkew {
		return Attestation{}, fmt.Errorf("%w: the attested detection %s is %s old, at most %s is fresh", ErrUnverified, a.DetectionID, duration.FormatApprox(age), duration.Format(maxAge))
	}
	return a, nil
}

// Operation is what a grant permits.
type Operation string

// The operations.
const (
	OperationApply   Operation = "apply"
	OperationRelease Operation = "release"
	OperationExtend  Operation = "extend"
	// OperationRollback takes back what an apply of Stanch's own did before it failed. People gave no word.
	OperationRollback Operation = "rollback"
	// OperationTriage assigns an incident to a person, or resolves it with a disposition.
	OperationTriage Operation = "mark"
)

// Grant is a permission that people gave for exactly one thing.
type Grant struct {
	Nonce     string    `json:"nonce"`
	Operation Operation `json:"operation"`
	// PlanHash and Targets bind OperationApply to the plan that was shown; Lease binds the others.
	PlanHash   string    `json:"plan_hash,omitempty"`
	Targets    []string  `json:"targets,omitempty"`
	LeaseID    string    `json:"lease,omitempty"`
	Holder     string    `json:"holder,omitempty"` // "" means every holder
	NewEnd     time.Time `json:"until,omitzero"`   // OperationExtend: the new end
	IncidentID string    `json:"incident,omitempty"`
	Step       string    `json:"step,omitempty"`
	// Namespace is the target's, in whose scope the people have the right. Of a host's container it is "".
	Namespace string `json:"namespace,omitempty"`
	// DrillOnly: it was given with a drill's key and permits nothing outside of a drill.
	DrillOnly bool `json:"drill,omitempty"`
	// BreakGlass: one person took the right of the quorum, and answers for it.
	BreakGlass bool      `json:"break_glass,omitempty"`
	Reason     string    `json:"reason,omitempty"` // a reason in a person's words
	GrantedBy  []string  `json:"people"`           // who, and how it was proved: "uid:0 (local socket)"
	IssuedAt   time.Time `json:"issued"`
	ExpiresAt  time.Time `json:"expires"`
}

// VerifyGrant verifies s, its operation and its expiry. The caller compares plan, targets and lease.
func (r Keyring) VerifyGrant(s Envelope, operation Operation, now time.Time) (Grant, error) {
	var g Grant
	if err := r.Verify(s, PayloadTypeGrant, &g); err != nil {
		return Grant{}, err
	}
	if g.Operation != operation {
		return Grant{}, fmt.Errorf("%w: the grant permits %q, not %q", ErrUnverified, g.Operation, operation)
	}
	if now.After(g.ExpiresAt) || now.Before(g.IssuedAt.Add(-maxClockSkew)) {
		return Grant{}, fmt.Errorf("%w: the grant was valid from %s to %s", ErrUnverified, g.IssuedAt.Format(time.RFC3339), g.ExpiresAt.Format(time.RFC3339))
	}
	return g, nil
}

// Permits tells whether the grant covers this plan on this target.
func (g Grant) Permits(planHash, target string) error {
	if g.PlanHash != planHash {
		return fmt.Errorf("%w: the plan changed since it was approved", ErrUnverified)
	}
	if !slices.Contains(g.Targets, target) {
		return fmt.Errorf("%w: %s is not among the approved targets", ErrUnverified, target)
	}
	return nil
}

// LeaseToken is what the authority issues once every guard let a containment through: re-applying it while the lease
// holds, and the node itself, need nothing else. It ends with the lease.
type LeaseToken struct {
	Nonce           string `json:"nonce"`
	LeaseID         string `json:"lease"`
	Action          string `json:"action"`
	TargetID        string `json:"target"`
	ParamsHash      string `json:"params_hash"` // hash of the parameters
	IncidentID      string `json:"incident"`
	AuthorizationID string `json:"authorization_id"` // what it rests on: an attestation's detection id or a grant's nonce
	// Namespace is the target's as it was verified when the effect was permitted: in whose scope a release is given.
	Namespace string `json:"namespace,omitempty"`
	DrillOnly bool   `json:"drill,omitempty"`
	// DrillTarget is what the drill registered; the node compares it with what it finds. Nil outside of drills.
	DrillTarget *DrillTarget `json:"drill_target,omitempty"`
	// DetectedAt is when the newest detection that it rests on was accepted, or when the last of the people whose grant it rests
	// on agreed. What people released later is not contained on older grounds.
	DetectedAt time.Time `json:"detected_at,omitzero"`
	IssuedAt   time.Time `json:"issued"`
	ExpiresAt  time.Time `json:"until"`
}

// VerifyLeaseToken verifies s for one action on one target.
func (r Keyring) VerifyLeaseToken(s Envelope, action, target string, now time.Time) (LeaseToken, error) {
	var t LeaseToken
	if err := r.Verify(s, PayloadTypeLeaseToken, &t); err != nil {
		return LeaseToken{}, err
	}
	if t.Action != action || t.TargetID != target {
		return LeaseToken{}, fmt.Errorf("%w: the lease token is for %s on %s, not %s on %s", ErrUnverified, t.Action, t.TargetID, action, target)
	}
	if now.After(t.ExpiresAt) {
		return LeaseToken{}, fmt.Errorf("%w: the lease token ended at %s", ErrUnverified, t.ExpiresAt.Format(time.RFC3339))
	}
	return t, nil
}

// EvidenceReceipt says that evidence of a target was attempted for an incident, well or badly: no containment comes before.
type EvidenceReceipt struct {
	IncidentID  string    `json:"incident"`
	TargetID    string    `json:"target"`
	Action      string    `json:"action"`
	Succeeded   bool      `json:"succeeded"`
	AttemptedAt time.Time `json:"at"`
}

// Vote is one person's answer to one question, as the gateway proved it.
type Vote struct {
	IncidentID      string    `json:"incident"`
	WorkflowID      string    `json:"run"` // the playbook's workflow id
	Step            string    `json:"step"`
	PlanHash        string    `json:"plan_hash"`
	Person          string    `json:"person"`
	AuthenticatedBy string    `json:"authenticated_by"` // how: "uid 0 on the local socket"
	Approved        bool      `json:"approved"`
	Reason          string    `json:"reason,omitempty"`
	Groups          []string  `json:"groups"` // of the person, when they voted
	DecidedAt       time.Time `json:"at"`
	// DrillOnly: it was given with a drill's key. BreakGlass: it counts as the whole quorum.
	DrillOnly  bool `json:"drill,omitempty"`
	BreakGlass bool `json:"break_glass,omitempty"`
	// WithdrawsRequest: the person asked for what the question is about. Their no counts, whoever is asked.
	WithdrawsRequest bool `json:"withdraws_request,omitempty"`
	// RejectionReason says why it does not count: it is kept for the record.
	RejectionReason string `json:"rejection_reason,omitempty"`
}

// PlaybookAuthorization is the worker's word that a playbook is one of this installation's: whom it asks is then not for a workflow
// to claim.
type PlaybookAuthorization struct {
	Playbook       string    `json:"playbook"`
	SourceHash     string    `json:"hash"`                      // of its source
	ApproverHashes []string  `json:"approver_hashes,omitempty"` // hashes of whom its approvals ask
	AuthorizedAt   time.Time `json:"at"`
}

// KillSwitchState is the state of the kill switch. The highest Seq is the one in force.
type KillSwitchState struct {
	Sequence  int64     `json:"seq"`
	Paused    bool      `json:"paused"`
	ChangedBy string    `json:"changed_by"` // who, and how it was proved
	ChangedAt time.Time `json:"at"`
	Reason    string    `json:"reason,omitempty"`
}
