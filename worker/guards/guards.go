// Package guards decides whether an effect is permitted: a chain of pure functions, each with a reason. It runs when a
// containment is planned, and again in the activity immediately before the effect. Playbooks cannot bypass it.
//
// It never trusts the workflow: phase, scope, confidence and evidence come from the configuration and from signed
// statements, never from claims in the request.
package guards

import (
	"cmp"
	"context"
	"errors"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/worker/drills"
)

// MaxDetectionAge is the maximum age of an attested detection for an automatic effect.
const MaxDetectionAge = 15 * time.Minute

// KillSwitchReader is the kill switch.
type KillSwitchReader interface {
	// IsPaused reports whether new containments are paused, and by whom. An error counts as paused.
	IsPaused(ctx context.Context) (bool, string, error)
}

// ContainmentBudget is the budget that limits automatic containments.
type ContainmentBudget interface {
	// Spend uses the budget for one containment, or returns why it is used up. The same lease counts once.
	Spend(f Input) (reason string)
	// CheckLeft returns the same reason without using the budget.
	CheckLeft(f Input) (reason string)
	// UsedCounts returns how many containments were made in the last hour, and how many other pods of the workload are
	// contained.
	UsedCounts(f Input) (hour, held int)
}

// GuardChain contains the guards and their data sources. It is safe for concurrent use.
type GuardChain struct {
	Config     *config.Config
	Keyring    attestation.Keyring
	KillSwitch KillSwitchReader
	Budget     ContainmentBudget
	// UsedGrants records used grants. With nil, none is recorded: a simulation applies nothing.
	UsedGrants UsedGrants
	// OwnPodUIDs are the UIDs of Stanch's own pods, which are never contained.
	OwnPodUIDs []string
	// DrillPhase is the phase of drills; 0 means 3. Where the cluster's permissions are those of a lower phase, drills
	// must not try more.
	DrillPhase int
	// TargetResolver resolves a target immediately before the effect. With nil, targets are unknown, and no target of a
	// cluster is contained automatically.
	TargetResolver activities.TargetResolver
}

var (
	_ activities.Guards         = (*GuardChain)(nil)
	_ activities.ScopeApprovers = (*GuardChain)(nil)
)

// drillScope returns the scope of drills, with the drill's own approver, for the drill's own targets.
func (c *GuardChain) drillScope() config.Scope {
	return config.Scope{
		Name: config.DrillScope, Phase: cmp.Or(c.DrillPhase, drills.MaxPhase), ConfidenceThreshold: 0.8,
		Approvers: config.Approvers{Groups: []string{config.DrillScope}, Quorum: 1, Timeout: config.Duration(time.Minute)},
	}
}

// ApproversForNamespace returns the approvers of the scope with a namespace, or those of drills.
func (c *GuardChain) ApproversForNamespace(namespace string, drill bool) playbooks.Approvers {
	if drill {
		return ApproversOfScope(c.drillScope())
	}
	return ApproversOfScope(c.Config.ScopeForNamespace(namespace))
}

// ApproversOfScope returns the approvers of a scope.
func ApproversOfScope(s config.Scope) playbooks.Approvers {
	a := s.Approvers
	out := playbooks.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, Timeout: time.Duration(a.Timeout)}
	if e := a.Escalate; e != nil {
		out.Escalate = &playbooks.Escalation{After: time.Duration(e.After), Groups: e.Groups, Users: e.Users}
	}
	return out
}

// Input is the input of a guard. Everything in it was verified.
type Input struct {
	activities.GuardInput
	Config            *config.Config
	Scope             config.Scope
	PausedBy          string // who paused new containments; "" if they are not paused
	CorrelationInputs []playbooks.CorrelationInput
	Correlation       playbooks.Correlation // of the attested detections
	Receipts          []attestation.EvidenceReceipt
	Grant             *attestation.Grant
	GrantError        string   // why the offered grant is invalid
	AttestedWorkloads []string // workloads of the attested detections, as the gateway knows them
	BasisID           string
	NewestDetectionAt time.Time // time of the newest detection
	Budget            ContainmentBudget
	OwnPodUIDs        []string
	// DrillTarget is the registered target of a drill; nil outside of drills.
	DrillTarget *attestation.DrillTarget
	// ManualRequest is a person's request that the authorization includes; nil if there is none.
	ManualRequest *attestation.ManualRequest
	// ResolvedTarget is the API server's data about a pod, a container or a workload; nil for targets of other systems.
	ResolvedTarget *activities.TargetFacts
}

// guard is one guard of the chain. A nil decision means that the next guard decides.
type guard struct {
	name  string
	check func(Input) *activities.GuardDecision
}

// guardChain is the order of the guards.
var guardChain = []guard{
	{playbooks.GuardKillSwitch, checkKillSwitch}, // a person paused new containments
	{"target", checkResolvedTarget},              // the target is what the request claims
	{"protected", checkProtected},                // the target is not protected
	{"evidence", checkEvidence},                  // volatile evidence was attempted before
	{"grant", checkGrantValid},                   // an offered grant is valid
	{"duration", checkMatchesPlan},               // not longer than planned, and thus approved
	{"budget", checkBudget},                      // limit of containments without an approval
	{"phase", checkPhase},                        // what the scope automates, and with what confidence
}

// Decide runs the chain. It is called for a plan, and again with q.Enforce immediately before the effect.
func (c *GuardChain) Decide(ctx context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	f := c.verifyInput(ctx, q)
	for _, g := range guardChain {
		if d := g.check(f); d != nil {
			if d.Verdict == activities.VerdictRun && f.ApprovalReason != "" && f.Grant == nil {
				d = newApprovalDecision(f, "%s", f.ApprovalReason)
			}
			d.Guard, d.Phase, d.Drill, d.DrillTarget, d.ConfigHash = g.name, f.effectivePhase(), f.DrillTarget != nil,
				f.DrillTarget, c.Config.Hash()
			d.TargetConfirmed = f.isTargetVerified()
			d.DecisionInputs = f.decisionInputs()
			if d.BudgetReplicas = f.workloadReplicas(); d.BudgetReplicas == 0 && q.Request.Target.Kind == playbooks.TargetPod {
				d.BudgetReplicas = -1
			}
			d.AuthorizedAt = f.NewestDetectionAt
			if f.Grant != nil {
				// after a later release by people, this grant does not permit the containment again
				d.AuthorizedAt = f.Grant.IssuedAt
			}
			if d.Verdict == activities.VerdictRun && q.Enforce {
				if reason := c.Budget.Spend(f); reason != "" && f.Grant == nil {
					return activities.GuardDecision{
						Verdict: activities.VerdictPropose, Guard: "budget", Reason: reason,
						Phase: f.effectivePhase(), ConfigHash: c.Config.Hash(), DecisionInputs: d.DecisionInputs,
					}, nil
				}
				if err := c.recordGrantUse(ctx, f); errors.Is(err, ErrGrantUsed) {
					return activities.GuardDecision{
						Verdict: activities.VerdictRefuse, Guard: "grant",
						Reason: err.Error() + "; a new approval is required", Phase: f.effectivePhase(), ConfigHash: c.Config.Hash(),
						DecisionInputs: d.DecisionInputs,
					}, nil
				} else if err != nil {
					return activities.GuardDecision{}, err
				}
			}
			return *d, nil
		}
	}
	return activities.GuardDecision{}, errors.New("no guard decided")
}

// recordGrantUse records the use of an effect's grant. If it cannot be recorded, the effect is refused: otherwise one
// approval could permit it twice.
func (c *GuardChain) recordGrantUse(ctx context.Context, f Input) error {
	if f.Grant == nil || c.UsedGrants == nil {
		return nil
	}
	return c.UsedGrants.RecordUse(ctx, f.Grant.Nonce, GrantUse{
		LeaseID:        f.Request.LeaseID,
		LeaseExpiresAt: f.Request.ExpiresAt,
	}, f.Now)
}

func (c *GuardChain) verifyInput(ctx context.Context, q activities.GuardInput) Input {
	f := Input{GuardInput: q, Config: c.Config, Budget: c.Budget, OwnPodUIDs: c.OwnPodUIDs}
	target := q.Request.Target
	f.Scope = c.targetScope(q)
	stopped, who, err := c.KillSwitch.IsPaused(ctx)
	if err != nil {
		stopped, who = true, "the kill switch cannot be read: "+err.Error()
	}
	if stopped {
		f.PausedBy = who
	}
	for _, s := range q.Authorization.Attestations {
		a, err := c.Keyring.VerifyAttestation(s, target.ID(), q.Now, MaxDetectionAge)
		if err != nil || a.Namespace != target.Namespace || a.Node != target.Node {
			continue // expired, for another target, or of a pod whose location is wrong: it is ignored
		}
		if !a.Permits(q.Request.Action, q.Request.Duration) {
			continue // a request for something else
		}
		if a.ManualRequest != nil {
			f.ManualRequest = a.ManualRequest
		}
		if a.AcceptedAt.After(f.NewestDetectionAt) {
			f.NewestDetectionAt = a.AcceptedAt
		}
		f.CorrelationInputs = append(f.CorrelationInputs, playbooks.CorrelationInput{
			Rule:      a.Rule,
			Objective: sensors.Objective(a.Objective), Confidence: a.Confidence, Severity: sensors.Severity(a.Severity),
		})
		f.AttestedWorkloads = append(f.AttestedWorkloads, a.Workload)
		f.BasisID = a.DetectionID
	}
	f.Correlation = playbooks.Correlate(f.CorrelationInputs)
	for _, s := range q.Authorization.Receipts {
		var r attestation.EvidenceReceipt
		if c.Keyring.Verify(s, attestation.PayloadTypeEvidenceReceipt, &r) == nil &&
			r.IncidentID == q.Request.IncidentRef.ID {
			f.Receipts = append(f.Receipts, r)
		}
	}
	if q.Authorization.Grant != nil {
		g, err := c.Keyring.VerifyGrant(*q.Authorization.Grant, attestation.OperationApply, q.Now)
		if err == nil {
			err = g.Permits(q.PlanHash, target.ID())
		}
		if err != nil {
			f.GrantError = err.Error()
		} else {
			f.Grant, f.BasisID = &g, g.Nonce
		}
	}
	if f.DrillTarget = c.registeredDrillTarget(q); f.DrillTarget != nil {
		f.Scope = c.drillScope()
	}
	f.ResolvedTarget = c.resolveTarget(ctx, q)
	return f
}

// registeredDrillTarget returns the target as a drill registered it, or nil. Only the registration in a fresh
// attestation counts: no name, namespace or request can put a target into a drill's scope.
func (c *GuardChain) registeredDrillTarget(q activities.GuardInput) *attestation.DrillTarget {
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if c.Keyring.Verify(s, attestation.PayloadTypeAttestation, &a) != nil || a.Namespace != q.Request.Target.Namespace {
			continue
		}
		age := q.Now.Sub(a.AcceptedAt)
		if age > MaxDetectionAge || age < -maxStartDelay {
			continue
		}
		if t, ok := a.Drill.FindTarget(q.Request.Target.ID()); ok {
			return &t
		}
	}
	return nil
}

// maxLocationAttestationAge is the maximum age of an attestation that is used only for the location from which a cloud
// target was reached.
const maxLocationAttestationAge = 24 * time.Hour

// targetScope returns the scope of the target's namespace. A cloud target has no namespace of its own: that of the pod
// through which it was found counts if the gateway attested a detection there; otherwise it has no scope's phase.
func (c *GuardChain) targetScope(q activities.GuardInput) config.Scope {
	target := q.Request.Target
	own := c.Config.ScopeForNamespace(target.Namespace)
	if !target.Kind.IsCloud() {
		return own
	}
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if c.Keyring.Verify(s, attestation.PayloadTypeAttestation, &a) != nil || a.Namespace != target.Namespace ||
			!a.TargetConfirmed || !a.Permits(q.Request.Action, q.Request.Duration) {
			continue
		}
		if age := q.Now.Sub(a.AcceptedAt); age < maxLocationAttestationAge && age > -maxStartDelay {
			return own
		}
	}
	for _, s := range c.Config.Scopes {
		if s.Phase < own.Phase {
			own.Phase = s.Phase
		}
	}
	own.Name, own.Approvers = "default", config.Approvers{Quorum: 1, Timeout: own.Approvers.Timeout}
	return own
}

func (f Input) effectivePhase() int {
	p := f.Scope.Phase
	if f.Request.IncidentRef.MaxPhase > 0 {
		p = min(p, f.Request.IncidentRef.MaxPhase)
	}
	return p
}
