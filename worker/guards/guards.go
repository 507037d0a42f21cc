// Package guards decides whether an effect may happen: a chain of pure functions, each with a reason, run when a
// containment is planned and again in the activity immediately before its effect. A playbook cannot get around it.
//
// It refuses to believe the workflow: phase, scope, confidence and evidence are taken from the configuration and
// from signed statements, never from what the request claims.
package guards

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/worker/config"
)

// MaxDetectionAge is how old an attested detection may be for an automatic effect.
const MaxDetectionAge = 15 * time.Minute

// KillSwitchReader is the kill switch.
type KillSwitchReader interface {
	// IsPaused tells whether new containments are stopped, and by whom. An error counts as stopped.
	IsPaused(ctx context.Context) (bool, string, error)
}

// ContainmentBudget is the blast-radius budget.
type ContainmentBudget interface {
	// Spend takes one containment out of the budget, or says why there is none left. The same lease costs once.
	Spend(f Input) (reason string)
	// CheckLeft says the same without spending.
	CheckLeft(f Input) (reason string)
	// UsedCounts is how much was spent in the last hour, and how many other pods of the workload are contained.
	UsedCounts(f Input) (hour, held int)
}

// GuardChain is the guards with what they read.
type GuardChain struct {
	Config     *config.Config
	Keyring    attestation.Keyring
	KillSwitch KillSwitchReader
	Budget     ContainmentBudget
	// UsedGrants remembers which grants were used. Nil remembers none: a simulation applies nothing.
	UsedGrants UsedGrants
	// OwnPodUIDs are Stanch's own pods, by UID: never contained.
	OwnPodUIDs []string
	// TargetResolver says what a target is, immediately before the effect. Nil knows none, so nothing of a cluster runs by itself.
	TargetResolver activities.TargetResolver
}

var (
	_ activities.Guards         = (*GuardChain)(nil)
	_ activities.ScopeApprovers = (*GuardChain)(nil)
)

// drillScope is phase 3 for the drill's own approver, on the drill's own targets.
func drillScope() config.Scope {
	return config.Scope{Name: config.DrillScope, Phase: 3, ConfidenceThreshold: 0.8, Approvers: config.Approvers{Groups: []string{config.DrillScope}, Quorum: 1, Timeout: config.Duration(time.Minute)}}
}

// ApproversForNamespace are the approvers of the scope that holds a namespace, or of drills.
func (c *GuardChain) ApproversForNamespace(namespace string, drill bool) activities.Approvers {
	if drill {
		return ApproversOfScope(drillScope())
	}
	return ApproversOfScope(c.Config.ScopeForNamespace(namespace))
}

// ApproversOfScope are the approvers of a scope.
func ApproversOfScope(s config.Scope) activities.Approvers {
	a := s.Approvers
	out := activities.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, Timeout: time.Duration(a.Timeout)}
	if e := a.Escalate; e != nil {
		out.Escalate = &activities.Escalation{After: time.Duration(e.After), Groups: e.Groups, Users: e.Users}
	}
	return out
}

// Input is what a guard judges by. Everything in it was verified.
type Input struct {
	activities.GuardInput
	Config            *config.Config
	Scope             config.Scope
	PausedBy          string // who stopped, "" if nobody did
	CorrelationInputs []playbooks.CorrelationInput
	Correlation       playbooks.Correlation // of the signals
	Receipts          []attestation.EvidenceReceipt
	Grant             *attestation.Grant
	GrantError        string   // why a grant that was offered does not hold
	AttestedWorkloads []string // of the attested detections, as the gateway knows them
	BasisID           string
	NewestDetectionAt time.Time // of the newest detection
	Budget            ContainmentBudget
	OwnPodUIDs        []string
	// DrillTarget is the registered target of a drill; nil outside of drills.
	DrillTarget *attestation.DrillTarget
	// ManualRequest is what a person asked for, where that is among what it rests on.
	ManualRequest *attestation.ManualRequest
	// ResolvedTarget is what the API server says of a pod, a container or a workload; nil for targets of other systems.
	ResolvedTarget *activities.TargetFacts
}

// guard is one link of the chain: nil lets it pass.
type guard struct {
	name  string
	check func(Input) *activities.GuardDecision
}

// guardChain is the order in which guards judge.
var guardChain = []guard{
	{playbooks.GuardKillSwitch, checkKillSwitch}, // a person stopped everything new
	{"target", checkResolvedTarget},              // it is what the request says it is
	{"protected", checkProtected},                // what must never be contained
	{"evidence", checkEvidence},                  // volatile evidence was attempted before
	{"grant", checkGrantValid},                   // a grant that was offered must hold
	{"duration", checkMatchesPlan},               // no longer than was planned, and so shown
	{"budget", checkBudget},                      // how much may be contained without a person
	{"phase", checkPhase},                        // how much the scope automates, and on what proof
}

// Decide runs the chain.
func (c *GuardChain) Decide(ctx context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	f, err := c.verifyInput(ctx, q)
	if err != nil {
		return activities.GuardDecision{}, err
	}
	for _, g := range guardChain {
		if d := g.check(f); d != nil {
			if d.Verdict == activities.VerdictRun && f.ApprovalReason != "" && f.Grant == nil {
				d = newApprovalDecision(f, "%s", f.ApprovalReason)
			}
			d.Guard, d.Phase, d.Drill, d.DrillTarget, d.ConfigHash = g.name, f.effectivePhase(), f.DrillTarget != nil, f.DrillTarget, c.Config.Hash()
			d.TargetConfirmed = f.isTargetVerified()
			d.DecisionInputs = f.decisionInputs()
			if d.BudgetReplicas = f.workloadReplicas(); d.BudgetReplicas == 0 && q.Request.Target.Kind == playbooks.TargetPod {
				d.BudgetReplicas = -1
			}
			d.AuthorizedAt = f.NewestDetectionAt
			if f.Grant != nil {
				d.AuthorizedAt = f.Grant.IssuedAt // what people released later is not contained again with it
			}
			if d.Verdict == activities.VerdictRun && q.Enforce {
				if reason := c.Budget.Spend(f); reason != "" && f.Grant == nil {
					return activities.GuardDecision{Verdict: activities.VerdictPropose, Guard: "budget", Reason: reason, Phase: f.effectivePhase(), ConfigHash: c.Config.Hash(), DecisionInputs: d.DecisionInputs}, nil
				}
				if err := c.recordGrantUse(ctx, f); errors.Is(err, ErrGrantUsed) {
					return activities.GuardDecision{Verdict: activities.VerdictRefuse, Guard: "grant", Reason: err.Error() + "; people must be asked again", Phase: f.effectivePhase(), ConfigHash: c.Config.Hash(), DecisionInputs: d.DecisionInputs}, nil
				} else if err != nil {
					return activities.GuardDecision{}, err
				}
			}
			return *d, nil
		}
	}
	return activities.GuardDecision{}, errors.New("no guard decided")
}

// recordGrantUse records that the grant of an effect is used now. What cannot be recorded is not done: else one approval would
// permit the same twice.
func (c *GuardChain) recordGrantUse(ctx context.Context, f Input) error {
	if f.Grant == nil || c.UsedGrants == nil {
		return nil
	}
	return c.UsedGrants.RecordUse(ctx, f.Grant.Nonce, GrantUse{LeaseID: f.Request.LeaseID, LeaseExpiresAt: f.Request.ExpiresAt}, f.Now)
}

func (c *GuardChain) verifyInput(ctx context.Context, q activities.GuardInput) (Input, error) {
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
			continue // old, or another target's, or of a pod whose place is misstated: it counts for nothing
		}
		if !a.Permits(q.Request.Action, q.Request.Duration) {
			continue // a person asked for something else
		}
		if a.ManualRequest != nil {
			f.ManualRequest = a.ManualRequest
		}
		if a.AcceptedAt.After(f.NewestDetectionAt) {
			f.NewestDetectionAt = a.AcceptedAt
		}
		f.CorrelationInputs = append(f.CorrelationInputs, playbooks.CorrelationInput{Rule: a.Rule, Objective: sensors.Objective(a.Objective), Confidence: a.Confidence, Severity: sensors.Severity(a.Severity)})
		f.AttestedWorkloads = append(f.AttestedWorkloads, a.Workload)
		f.BasisID = a.DetectionID
	}
	f.Correlation = playbooks.Correlate(f.CorrelationInputs)
	for _, s := range q.Authorization.Receipts {
		var r attestation.EvidenceReceipt
		if c.Keyring.Verify(s, attestation.PayloadTypeEvidenceReceipt, &r) == nil && r.IncidentID == q.Request.IncidentRef.ID {
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
		f.Scope = drillScope()
	}
	f.ResolvedTarget = c.resolveTarget(ctx, q)
	return f, nil
}

// registeredDrillTarget returns the target as a drill registered it, or nil. Only the registration in a fresh attestation counts:
// neither a name, a namespace nor the request can put a target into a drill's scope.
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

// maxLocationAttestationAge is how old an attestation may be that says no more than from where a cloud target was reached.
const maxLocationAttestationAge = 24 * time.Hour

// targetScope is that of the target's namespace. A cloud target has none of its own: the namespace of the pod through which it
// was found counts if the gateway attested a detection there, and else no scope's phase is lent to it.
func (c *GuardChain) targetScope(q activities.GuardInput) config.Scope {
	target := q.Request.Target
	own := c.Config.ScopeForNamespace(target.Namespace)
	if !target.Kind.IsCloud() {
		return own
	}
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if c.Keyring.Verify(s, attestation.PayloadTypeAttestation, &a) != nil || a.Namespace != target.Namespace || !a.TargetConfirmed || !a.Permits(q.Request.Action, q.Request.Duration) {
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

func newRefusal(format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictRefuse, Reason: fmt.Sprintf(format, args...)}
}

func newProposal(format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictPropose, Reason: fmt.Sprintf(format, args...)}
}

func newApprovalDecision(f Input, format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictAskApproval, Reason: fmt.Sprintf(format, args...), Approvers: ApproversOfScope(f.Scope)}
}

func checkKillSwitch(f Input) *activities.GuardDecision {
	if f.PausedBy == "" {
		return nil
	}
	return newRefusal("%s (%s); `stanch resume` lets them go on", playbooks.ReasonPaused, f.PausedBy)
}

func checkEvidence(f Input) *activities.GuardDecision {
	if !f.Enforce {
		return nil // plans inside of an approval are made before the evidence may have run
	}
	for _, r := range f.Receipts {
		if r.TargetID == f.Request.Target.ID() || !f.Request.Target.Kind.IsDetectable() {
			return nil
		}
	}
	return newRefusal("no evidence of %s was attempted before", f.Request.Target)
}

func checkGrantValid(f Input) *activities.GuardDecision {
	if f.Authorization.Grant == nil {
		return nil
	}
	switch target := f.Request.Target; {
	case f.Grant == nil:
		return newRefusal("the grant does not hold: %s", f.GrantError)
	case f.Grant.Namespace != target.Namespace:
		return newRefusal("the grant was given for the namespace %q and not for %q", f.Grant.Namespace, target.Namespace)
	case f.Grant.DrillOnly && f.DrillTarget == nil:
		return newRefusal("what a drill's key granted permits nothing outside of a drill")
	}
	return nil
}

// maxStartDelay is how much later than planned an effect may begin, and by how much clocks may differ.
const maxStartDelay = 5 * time.Minute

// checkMatchesPlan holds the end to what the plan says: a grant is bound to the plan, and so to how long it holds.
func checkMatchesPlan(f Input) *activities.GuardDecision {
	r := f.Request
	if end := f.Now.Add(r.Duration + maxStartDelay); r.ExpiresAt.After(end) && r.ExpiresAt.After(f.HeldUntil) {
		return newRefusal("it asks to hold until %s, which is longer than the %s that was planned", r.ExpiresAt.UTC().Format(time.RFC3339), duration.Format(r.Duration))
	}
	return nil
}

func checkBudget(f Input) *activities.GuardDecision {
	if f.Grant != nil || f.Authorization.RequiresGrant {
		return nil // people decide; the budget bounds what runs without them
	}
	if reason := f.Budget.CheckLeft(f); reason != "" {
		return newProposal("%s", reason)
	}
	return nil
}

// checkPhase is the table: what a class of action may do in a phase.
func checkPhase(f Input) *activities.GuardDecision {
	class, p := f.Spec.Class, f.effectivePhase()
	switch {
	case class == playbooks.ClassObserve:
		return &activities.GuardDecision{Verdict: activities.VerdictRun, Reason: "it changes nothing"}
	case p < 2 || class == playbooks.ClassDisrupt && p < 3:
		return newProposal("phase %d of scope %s does not let a %s action run", p, f.Scope.Name, class)
	case f.Grant != nil:
		return &activities.GuardDecision{Verdict: activities.VerdictRun, Reason: "granted by " + strings.Join(f.Grant.GrantedBy, ", "), BasisID: f.BasisID}
	case class == playbooks.ClassDisrupt || f.Authorization.RequiresGrant:
		return newApprovalDecision(f, "it runs only with the grant of its approval")
	case f.unknownReason() != "":
		return newApprovalDecision(f, "%s", f.unknownReason())
	case len(f.CorrelationInputs) == 0:
		return newRefusal("no attested detection about %s within %s: nothing happens without proof", f.Request.Target, duration.Format(MaxDetectionAge))
	case f.Correlation.Confidence < f.Scope.ConfidenceThreshold:
		return newApprovalDecision(f, "confidence %.2f is below the %.2f that scope %s lets run by itself", f.Correlation.Confidence, f.Scope.ConfidenceThreshold, f.Scope.Name)
	case f.Request.Duration > time.Duration(f.Config.Budget.MaxDuration):
		return newApprovalDecision(f, "%s is longer than the %s that `budget.max_duration` lets run by itself", duration.Format(f.Request.Duration), f.Config.Budget.MaxDuration)
	}
	if f.ManualRequest != nil {
		return &activities.GuardDecision{
			Verdict: activities.VerdictRun, BasisID: f.BasisID,
			Reason: fmt.Sprintf("phase %d, requested by %s: %s", p, display.FormatPerson(f.ManualRequest.Person, f.ManualRequest.AuthenticatedBy), f.ManualRequest.Reason),
		}
	}
	return &activities.GuardDecision{
		Verdict: activities.VerdictRun, BasisID: f.BasisID,
		Reason: fmt.Sprintf("phase %d, confidence %.2f from attested detections", p, f.Correlation.Confidence),
	}
}
