package activities

import (
	"context"
	"time"

	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// Authorization is what permits a containment: attested detections or an approval grant, and the receipts of the
// evidence that was attempted before.
type Authorization struct {
	Attestations []attestation.Envelope `json:"attestations,omitempty"`
	Receipts     []attestation.Envelope `json:"receipts,omitempty"`
	Grant        *attestation.Envelope  `json:"grant,omitempty"`
	// RequiresGrant means that the step is inside an approval step, so it runs only with a grant.
	RequiresGrant bool `json:"requires_grant,omitempty"`
}

// Verdict is the result of the guards.
type Verdict string

// The verdicts.
const (
	VerdictRun         Verdict = "run"
	VerdictPropose     Verdict = "propose" // the phase or the budget does not allow it
	VerdictAskApproval Verdict = "ask"     // the named approvers must approve it
	VerdictRefuse      Verdict = "refuse"
)

// GuardDecision is a verdict with its reason.
type GuardDecision struct {
	Verdict   Verdict             `json:"verdict"`
	Guard     string              `json:"guard,omitempty"` // the guard that decided
	Reason    string              `json:"reason"`
	Phase     int                 `json:"phase"`
	Approvers playbooks.Approvers `json:"approvers,omitzero"`
	// BasisID is the id of the detection or the nonce of the grant that the decision is based on.
	BasisID string `json:"basis_id,omitempty"`
	// AuthorizedAt is when the newest detection of the basis was accepted, or when the last approver of the grant
	// voted.
	AuthorizedAt time.Time `json:"authorized_at,omitzero"`
	// ConfigHash is the short hash of the configuration in force.
	ConfigHash string `json:"config_hash,omitempty"`
	Drill      bool   `json:"drill,omitempty"` // the target belongs to a drill
	// BudgetReplicas is the number of pods of the workload that the budget used; -1 if it is unknown.
	BudgetReplicas int `json:"replicas,omitempty"`
	// DrillTarget is the registered target of a drill; nil outside of drills.
	DrillTarget *attestation.DrillTarget `json:"drill_target,omitempty"`
	// TargetConfirmed means that the API server confirmed the target and its node.
	TargetConfirmed bool `json:"target_confirmed,omitempty"`
	// DecisionInputs are the inputs of the guards; nil in decisions of earlier versions. A simulation uses the same
	// inputs.
	DecisionInputs *DecisionInputs `json:"decision_inputs,omitempty"`
}

// DecisionInputs are the inputs of a guard decision besides the request and its signed statements.
type DecisionInputs struct {
	// ConfidenceThreshold is the minimum confidence for automatic actions in the scope; MaxDuration is their maximum
	// duration.
	ConfidenceThreshold float64       `json:"confidence_threshold"`
	MaxDuration         time.Duration `json:"max_duration"`
	// Approvers are the approvers of the scope.
	Approvers playbooks.Approvers `json:"approvers,omitzero"`
	// PausedBy is who paused new containments; "" if they are not paused.
	PausedBy string `json:"paused_by,omitempty"`
	// MaxPerHour and MaxFraction are the budget. UsedLastHour is how much of it was used in the last hour, and
	// ContainedSiblings the number of other contained pods of the workload.
	MaxPerHour        int     `json:"per_hour"`
	MaxFraction       float64 `json:"max_fraction"`
	UsedLastHour      int     `json:"used_last_hour"`
	ContainedSiblings int     `json:"contained_siblings"`
	// ProtectedBy is the configuration entry that protects the target: a namespace, a workload or a pattern of roles.
	ProtectedBy ProtectionRule `json:"protected_by,omitzero"`
	// TargetFacts is the API server's data about the target; nil for a target that is not an object of a cluster.
	TargetFacts *TargetFacts `json:"target,omitempty"`
}

// ProtectionRule is why a target is protected. At most one field is set.
type ProtectionRule struct {
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Role      string `json:"role,omitempty"`
	IsStanch  bool   `json:"is_stanch,omitempty"` // the target is one of Stanch's own pods
}

// ScopeApprovers returns approvers by the configuration, and never by a workflow's data.
type ScopeApprovers interface {
	// ApproversForNamespace returns the approvers of the scope with a namespace, or those of drills.
	ApproversForNamespace(namespace string, drill bool) playbooks.Approvers
}

// GuardInput is the input of the guards, for a plan and again immediately before the effect.
type GuardInput struct {
	Spec          playbooks.ActionSpec
	Request       Request
	Authorization Authorization
	PlanHash      string
	// ApprovalReason is the plan's reason to require an approval in any case; "" if there is none.
	ApprovalReason string
	// HeldUntil is the end of the same lease by its token; zero if the lease is not active.
	HeldUntil time.Time
	Now       time.Time
	// Enforce is true immediately before the effect. The budget is used only then.
	Enforce bool
}

// Guards decide whether a containment may run. Implementations are safe for concurrent use.
type Guards interface {
	Decide(ctx context.Context, q GuardInput) (GuardDecision, error)
}

// Authority signs what the guards permit.
type Authority interface {
	Keyring() attestation.Keyring
	Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error)
}
