package activities

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
)

// Authorization is on whose word a containment happens: attested detections, or a grant of people; and the receipts of the
// evidence that was attempted before.
type Authorization struct {
	Attestations []attestation.Envelope `json:"attestations,omitempty"`
	Receipts     []attestation.Envelope `json:"receipts,omitempty"`
	Grant        *attestation.Envelope  `json:"grant,omitempty"`
	// RequiresGrant: the step stands inside of an approval, so only a grant lets it run.
	RequiresGrant bool `json:"requires_grant,omitempty"`
}

// Verdict is what the guards say.
type Verdict string

// The verdicts.
const (
	VerdictRun         Verdict = "run"
	VerdictPropose     Verdict = "propose" // phase or budget does not allow it
	VerdictAskApproval Verdict = "ask"     // the approvers named must agree
	VerdictRefuse      Verdict = "refuse"
)

// GuardDecision is a verdict with its reason.
type GuardDecision struct {
	Verdict   Verdict   `json:"verdict"`
	Guard     string    `json:"guard,omitempty"` // which one decided
	Reason    string    `json:"reason"`
	Phase     int       `json:"phase"`
	Approvers Approvers `json:"approvers,omitzero"`
	// BasisID is the id of the detection or the nonce of the grant that it rests on.
	BasisID string `json:"basis_id,omitempty"`
	// AuthorizedAt is when the newest detection that it rests on was accepted, or the last of the people agreed who granted it.
	AuthorizedAt time.Time `json:"authorized_at,omitzero"`
	// ConfigHash is the short hash of the configuration in force.
	ConfigHash string `json:"config_hash,omitempty"`
	Drill      bool   `json:"drill,omitempty"` // the target is a drill's own
	// BudgetReplicas is by how many pods of the workload its share of the budget was judged; -1 means that nobody knew.
	BudgetReplicas int `json:"replicas,omitempty"`
	// DrillTarget is the registered target of a drill; nil outside of drills.
	DrillTarget *attestation.DrillTarget `json:"drill_target,omitempty"`
	// TargetConfirmed: the API server said that the target is what the request says, on the node that it says.
	TargetConfirmed bool `json:"target_confirmed,omitempty"`
	// DecisionInputs is what the guards judged by; nil in decisions of an older version. A simulation judges by the same.
	DecisionInputs *DecisionInputs `json:"decision_inputs,omitempty"`
}

// DecisionInputs is what the guards judged by beyond the request and the signed statements with it.
type DecisionInputs struct {
	// ConfidenceThreshold is the confidence from which the scope lets an action run by itself; MaxDuration for how long.
	ConfidenceThreshold float64       `json:"confidence_threshold"`
	MaxDuration         time.Duration `json:"max_duration"`
	// Approvers are the scope's.
	Approvers Approvers `json:"approvers,omitzero"`
	// PausedBy says who set the kill switch; "" while it is not set.
	PausedBy string `json:"paused_by,omitempty"`
	// MaxPerHour and Share are the budget; Spent is how much of it was spent in the last hour, and Held how many other pods
	// of the workload were contained.
	MaxPerHour        int     `json:"per_hour"`
	MaxFraction       float64 `json:"max_fraction"`
	UsedLastHour      int     `json:"used_last_hour"`
	ContainedSiblings int     `json:"contained_siblings"`
	// ProtectedBy is the entry of the configuration that protects the target: a namespace, a workload or a pattern of roles.
	ProtectedBy ProtectionRule `json:"protected_by,omitzero"`
	// TargetFacts is what the API server said of it; nil for a target that is no object of a cluster.
	TargetFacts *TargetFacts `json:"target,omitempty"`
}

// ProtectionRule is why a target is protected. At most one field is set.
type ProtectionRule struct {
	Namespace string `json:"namespace,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Role      string `json:"role,omitempty"`
	IsStanch  bool   `json:"is_stanch,omitempty"` // it is Stanch's own pod
}

// Approvers says who may agree.
type Approvers struct {
	Groups  []string      `json:"groups,omitempty"`
	Users   []string      `json:"users,omitempty"`
	Quorum  int           `json:"quorum"`
	Timeout time.Duration `json:"timeout"`
	// Escalate widens the circle when nobody has decided for a while.
	Escalate *Escalation `json:"escalate,omitempty"`
}

// Escalation says who may agree too, from when on.
type Escalation struct {
	After  time.Duration `json:"after"`
	Groups []string      `json:"groups,omitempty"`
	Users  []string      `json:"users,omitempty"`
}

// CanApprove tells whether a person of these groups may answer, so long after the question was asked.
func (a Approvers) CanApprove(person string, groups []string, after time.Duration) bool {
	if isListed(person, groups, a.Users, a.Groups) {
		return true
	}
	return a.Escalate != nil && after >= a.Escalate.After && isListed(person, groups, a.Escalate.Users, a.Escalate.Groups)
}

func isListed(person string, mine, users, groups []string) bool {
	return slices.Contains(users, person) || slices.ContainsFunc(mine, func(g string) bool { return slices.Contains(groups, g) })
}

// IsEmpty tells whether there is nobody who may agree.
func (a Approvers) IsEmpty() bool { return len(a.Groups)+len(a.Users) == 0 }

// Describe names them for a person.
func (a Approvers) Describe() string {
	who := strings.Join(slices.Concat(a.Groups, a.Users), ", ")
	if a.Escalate != nil {
		who += fmt.Sprintf("; after %s also %s", duration.Format(a.Escalate.After), strings.Join(slices.Concat(a.Escalate.Groups, a.Escalate.Users), ", "))
	}
	return who
}

// ScopeApprovers tells who may approve where, by the configuration and by no workflow's word.
type ScopeApprovers interface {
	// ApproversForNamespace are those of the scope that holds a namespace, or of drills.
	ApproversForNamespace(namespace string, drill bool) Approvers
}

// GuardInput is what the guards are asked, when planning and again immediately before the effect.
type GuardInput struct {
	Spec          playbooks.ActionSpec
	Request       Request
	Authorization Authorization
	PlanHash      string
	// ApprovalReason is the plan's reason to ask people in any case; "" is none.
	ApprovalReason string
	// HeldUntil is until when the same lease holds already, by its token; zero if it does not.
	HeldUntil time.Time
	Now       time.Time
	// Enforce is true immediately before the effect: the budget is then spent.
	Enforce bool
}

// Guards decide.
type Guards interface {
	Decide(ctx context.Context, q GuardInput) (GuardDecision, error)
}

// Authority signs what guards let through.
type Authority interface {
	Keyring() attestation.Keyring
	Sign(purpose attestation.PayloadType, body any) (attestation.Envelope, error)
}
