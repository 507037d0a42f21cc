package attestation

import (
	"fmt"
	"slices"
	"time"

	"stanch/sensors/duration"
)

// Attestation is the gateway's statement that it accepted a detection. Without an attestation for its target, a
// containment requires a person's grant.
type Attestation struct {
	DetectionID   string             `json:"detection_id"` // Detection.ID
	DetectionHash string             `json:"hash"`         // HashJSON of the complete detection
	TargetID      string             `json:"target"`       // "pod:<uid>" or "container:<id>"
	Rule          string             `json:"rule"`
	Objective     string             `json:"objective"`
	Severity      string             `json:"severity"`
	Confidence    float64            `json:"confidence"`
	Node          string             `json:"node"`
	Namespace     string             `json:"namespace,omitempty"` // of the pod, as the gateway knows it
	Workload      string             `json:"workload,omitempty"`  // "namespace/Kind/name", as the gateway knows it
	Scope         string             `json:"scope,omitempty"`     // "drill" for a target of a drill
	Drill         *DrillRegistration `json:"drill,omitempty"`     // contains the target; nil outside of drills
	// TargetConfirmed reports whether the API server confirmed the pod, its node, namespace and workload. Otherwise
	// they are the sender's unverified claims.
	TargetConfirmed bool      `json:"target_confirmed,omitempty"`
	AcceptedAt      time.Time `json:"accepted_at"`
	// ManualRequest is set if a person made a request and nothing was detected. The attestation then permits only that
	// request.
	ManualRequest *ManualRequest `json:"manual_request,omitempty"`
}

// ManualRequest is a person's request and the containments that it needs.
type ManualRequest struct {
	Person          string `json:"person"`
	AuthenticatedBy string `json:"authenticated_by"` // the method: "uid 1000 on the local socket"
	Reason          string `json:"reason"`
	// Actions are the requested containments. MaxDuration is the duration of the longest one.
	Actions     []string      `json:"actions"`
	MaxDuration time.Duration `json:"for"`
}

// Permits reports whether the attestation covers a containment of this duration. An attestation of a detection covers
// every containment; one of a manual request covers the requested actions up to the requested duration.
func (a Attestation) Permits(action string, holds time.Duration) bool {
	r := a.ManualRequest
	return r == nil || slices.Contains(r.Actions, action) && holds <= r.MaxDuration
}

// VerifyAttestation verifies s, and that it is about the target and was accepted at most maxAge before now. It
// tolerates a clock skew of 30 seconds into the future. Every error wraps ErrUnverified.
func (r Keyring) VerifyAttestation(s Envelope, target string, now time.Time, maxAge time.Duration) (Attestation,
	error,
) {
	var a Attestation
	if err := r.Verify(s, PayloadTypeAttestation, &a); err != nil {
		return Attestation{}, err
	}
	if a.TargetID != target {
		return Attestation{}, fmt.Errorf("%w: the attested detection %s is about %s, not %s", ErrUnverified, a.DetectionID,
			a.TargetID, target)
	}
	if age := now.Sub(a.AcceptedAt); age > maxAge || age < -maxClockSkew {
		return Attestation{},
			fmt.Errorf("%w: the attested detection %s is %s old, more than the maximum of %s", ErrUnverified, a.DetectionID,
				duration.FormatApprox(age), duration.Format(maxAge))
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
	// OperationRollback undoes the effects of an apply that failed halfway. Stanch itself issues it; no person
	// approves it.
	OperationRollback Operation = "rollback"
	// OperationTriage assigns an incident to a person, or resolves it with a disposition.
	OperationTriage Operation = "triage"
)

// Grant is a permission that people gave for exactly one operation.
type Grant struct {
	Nonce     string    `json:"nonce"`
	Operation Operation `json:"operation"`
	// PlanHash and Targets bind OperationApply to the plan that people saw. LeaseID binds the other operations.
	PlanHash   string    `json:"plan_hash,omitempty"`
	Targets    []string  `json:"targets,omitempty"`
	LeaseID    string    `json:"lease,omitempty"`
	Holder     string    `json:"holder,omitempty"` // "" means every holder
	NewEnd     time.Time `json:"until,omitzero"`   // OperationExtend: the new end of the lease
	IncidentID string    `json:"incident,omitempty"`
	Step       string    `json:"step,omitempty"`
	// Namespace is the namespace of the target, in whose scope the people have the permission. It is "" for a
	// container of a host.
	Namespace string `json:"namespace,omitempty"`
	// DrillOnly reports whether the grant was given with a drill's key. It then permits nothing outside of a drill.
	DrillOnly bool `json:"drill,omitempty"`
	// BreakGlass reports whether one person approved without the quorum, under their own responsibility.
	BreakGlass bool      `json:"break_glass,omitempty"`
	Reason     string    `json:"reason,omitempty"` // the reason that a person gave
	GrantedBy  []string  `json:"people"`           // the people and how they were authenticated: "uid:0 (local socket)"
	IssuedAt   time.Time `json:"issued"`
	ExpiresAt  time.Time `json:"expires"`
}

// VerifyGrant verifies s, its operation and its validity period. The caller must compare plan, targets and lease.
// Every error wraps ErrUnverified.
func (r Keyring) VerifyGrant(s Envelope, operation Operation, now time.Time) (Grant, error) {
	var g Grant
	if err := r.Verify(s, PayloadTypeGrant, &g); err != nil {
		return Grant{}, err
	}
	if g.Operation != operation {
		return Grant{}, fmt.Errorf("%w: the grant permits %q, not %q", ErrUnverified, g.Operation, operation)
	}
	if now.After(g.ExpiresAt) || now.Before(g.IssuedAt.Add(-maxClockSkew)) {
		return Grant{}, fmt.Errorf("%w: the grant was valid from %s to %s", ErrUnverified, g.IssuedAt.Format(time.RFC3339),
			g.ExpiresAt.Format(time.RFC3339))
	}
	return g, nil
}

// Permits returns nil if the grant covers this plan on this target, otherwise an error that wraps ErrUnverified.
func (g Grant) Permits(planHash, target string) error {
	if g.PlanHash != planHash {
		return fmt.Errorf("%w: the plan changed since it was approved", ErrUnverified)
	}
	if !slices.Contains(g.Targets, target) {
		return fmt.Errorf("%w: %s is not among the approved targets", ErrUnverified, target)
	}
	return nil
}

// LeaseToken is issued by the authority after every guard permitted a containment. Reapplying the containment during
// the lease requires only this token, and the node verifies it itself. It expires with the lease.
type LeaseToken struct {
	Nonce           string `json:"nonce"`
	LeaseID         string `json:"lease"`
	Action          string `json:"action"`
	TargetID        string `json:"target"`
	ParamsHash      string `json:"params_hash"` // HashJSON of the parameters
	IncidentID      string `json:"incident"`
	AuthorizationID string `json:"authorization_id"` // the detection ID of an attestation, or the nonce of a grant
	// Namespace is the verified namespace of the target when the effect was permitted. A release is authorized in the
	// scope of this namespace.
	Namespace string `json:"namespace,omitempty"`
	DrillOnly bool   `json:"drill,omitempty"`
	// DrillTarget is the target that the drill registered. The node compares it with the target that it finds. It is
	// nil outside of drills.
	DrillTarget *DrillTarget `json:"drill_target,omitempty"`
	// DetectedAt is when the newest detection behind the token was accepted, or when the last person agreed to the
	// grant behind it. After people release a target, older detections and grants cannot contain it again.
	DetectedAt time.Time `json:"detected_at,omitzero"`
	IssuedAt   time.Time `json:"issued"`
	ExpiresAt  time.Time `json:"until"`
}

// VerifyLeaseToken verifies s, and that it is valid at now for one action on one target. Every error wraps
// ErrUnverified.
func (r Keyring) VerifyLeaseToken(s Envelope, action, target string, now time.Time) (LeaseToken, error) {
	var t LeaseToken
	if err := r.Verify(s, PayloadTypeLeaseToken, &t); err != nil {
		return LeaseToken{}, err
	}
	if t.Action != action || t.TargetID != target {
		return LeaseToken{}, fmt.Errorf("%w: the lease token is for %s on %s, not %s on %s", ErrUnverified, t.Action,
			t.TargetID, action, target)
	}
	if now.After(t.ExpiresAt) {
		return LeaseToken{}, fmt.Errorf("%w: the lease token expired at %s", ErrUnverified, t.ExpiresAt.Format(time.RFC3339))
	}
	return t, nil
}

// EvidenceReceipt states that evidence of a target was attempted for an incident, successfully or not. No containment
// is applied before it exists.
type EvidenceReceipt struct {
	IncidentID  string    `json:"incident"`
	TargetID    string    `json:"target"`
	Action      string    `json:"action"`
	Succeeded   bool      `json:"succeeded"`
	AttemptedAt time.Time `json:"at"`
}

// Vote is one person's decision about one approval request, as the gateway authenticated it.
type Vote struct {
	IncidentID      string    `json:"incident"`
	WorkflowID      string    `json:"run"` // the workflow ID of the playbook
	Step            string    `json:"step"`
	PlanHash        string    `json:"plan_hash"`
	Person          string    `json:"person"`
	AuthenticatedBy string    `json:"authenticated_by"` // the method: "uid 0 on the local socket"
	Approved        bool      `json:"approved"`
	Reason          string    `json:"reason,omitempty"`
	Groups          []string  `json:"groups"` // the person's groups at the time of the vote
	DecidedAt       time.Time `json:"at"`
	// DrillOnly reports whether the vote was given with a drill's key. BreakGlass reports whether the vote counts as
	// the full quorum.
	DrillOnly  bool `json:"drill,omitempty"`
	BreakGlass bool `json:"break_glass,omitempty"`
	// WithdrawsRequest reports whether the person made the manual request that the vote is about. Their rejection
	// always counts, even if they are not an approver.
	WithdrawsRequest bool `json:"withdraws_request,omitempty"`
	// RejectionReason says why the vote does not count. Such a vote is kept for the record.
	RejectionReason string `json:"rejection_reason,omitempty"`
}

// PlaybookAuthorization is the worker's statement that a playbook belongs to this installation. It fixes the
// approvers, so that a workflow cannot choose them itself.
type PlaybookAuthorization struct {
	Playbook       string    `json:"playbook"`
	SourceHash     string    `json:"hash"`                      // of the playbook's source
	ApproverHashes []string  `json:"approver_hashes,omitempty"` // hashes of the approvers that its approval steps name
	AuthorizedAt   time.Time `json:"at"`
}

// KillSwitchState is the state of the kill switch. The state with the highest Sequence is in force.
type KillSwitchState struct {
	Sequence  int64     `json:"seq"`
	Paused    bool      `json:"paused"`
	ChangedBy string    `json:"changed_by"` // the person and how they were authenticated
	ChangedAt time.Time `json:"at"`
	Reason    string    `json:"reason,omitempty"`
}
