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
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/worker/config"
)

// Fresh is how old an attested detection may be for an automatic effect.
const Fresh = 15 * time.Minute

// Switch is the kill switch.
type Switch interface {
	// Stopped tells whether new containments are stopped, and by whom. An error counts as stopped.
	Stopped(ctx context.Context) (bool, string, error)
}

// Budget is the blast-radius budget.
type Budget interface {
	// Spend takes one containment out of the budget, or says why there is none left. The same lease costs once.
	Spend(f Facts) (reason string)
	// Left says the same without spending.
	Left(f Facts) (reason string)
	// Used is how much was spent in the last hour, and how many other pods of the workload are contained.
	Used(f Facts) (hour, held int)
}

// Chain is the guards with what they read.
type Chain struct {
	Config *config.Config
	Keys   attestation.Keyring
	Switch Switch
	Budget Budget
	// Grants remembers which grants were used. Nil remembers none: a simulation applies nothing.
	Grants Grants
	// Self are Stanch's own pods, by UID: never contained.
	Self []string
	// Targets says what a target is, immediately before the effect. Nil knows none, so nothing of a cluster runs by itself.
	Targets activities.TargetResolver
}

var (
	_ activities.Guards = (*Chain)(nil)
	_ activities.ScopeApprovers = (*Chain)(nil)
)

// drillScope is phase 3 for the drill's own approver, on the drill's own targets.
func drillScope() config.Scope {
	return config.Scope{Name: config.DrillScope, Phase: 3, Confidence: 0.8, Approvers: config.Approvers{Groups: []string{config.DrillScope}, Quorum: 1, Timeout: config.Duration(time.Minute)}}
}

// ApproversForNamespace are the approvers of the scope that holds a namespace, or of drills.
func (c *Chain) ApproversForNamespace(namespace string, drill bool) activities.Approvers {
	if drill {
		return ApproversOf(drillScope())
	}
	return ApproversOf(c.Config.ScopeOf(namespace))
}

// ApproversOf are the approvers of a scope.
func ApproversOf(s config.Scope) activities.Approvers {
	a := s.Approvers
	out := activities.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, Timeout: time.Duration(a.Timeout)}
	if e := a.Escalate; e != nil {
		out.Escalate = &activities.Escalation{After: time.Duration(e.After), Groups: e.Groups, Users: e.Users}
	}
	return out
}

// Facts is what a guard judges by. Everything in it was verified.
type Facts struct {
	activities.GuardInput
	Config     *config.Config
	Scope      config.Scope
	Stopped    string // who stopped, "" if nobody did
	Signals    []playbooks.CorrelationInput
	Verdict    playbooks.Correlation // of the signals
	Receipts   []attestation.EvidenceReceipt
	Grant      *attestation.Grant
	GrantError string   // why a grant that was offered does not hold
	Workloads  []string // of the attested detections, as the gateway knows them
	On         string
	Since      time.Time // of the newest detection
	Budget     Budget
	Self       []string
	// Drill is the registered target of a drill; nil outside of drills.
	Drill *attestation.DrillTarget
	// Requested is what a person asked for, where that is among what it rests on.
	Requested *attestation.ManualRequest
	// Known is what the API server says of a pod, a container or a workload; nil for targets of other systems.
	Known *activities.TargetFacts
}

// guard is one link of the chain: nil lets it pass.
type guard struct {
	name  string
	judge func(Facts) *activities.GuardDecision
}

// chain is the order in which guards judge.
var chain = []guard{
	{playbooks.GuardKillSwitch, killSwitch}, // a person stopped everything new
	{"target", asResolved},             // it is what the request says it is
	{"protected", protected},           // what must never be contained
	{"evidence", evidence},             // volatile evidence was attempted before
	{"grant", offeredGrant},            // a grant that was offered must hold
	{"duration", asPlanned},            // no longer than was planned, and so shown
	{"budget", withinBudget},           // how much may be contained without a person
	{"phase", phase},                   // how much the scope automates, and on what proof
}

// Decide runs the chain.
func (c *Chain) Decide(ctx context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	f, err := c.facts(ctx, q)
	if err != nil {
		return activities.GuardDecision{}, err
	}
	for _, g := range chain {
		if d := g.judge(f); d != nil {
			if d.Verdict == activities.VerdictRun && f.ApprovalReason != "" && f.Grant == nil {
				d = ask(f, "%s", f.ApprovalReason)
			}
			d.Guard, d.Phase, d.Drill, d.DrillTarget, d.ConfigHash = g.name, f.phase(), f.Drill != nil, f.Drill, c.Config.Hash()
			d.TargetConfirmed = f.confirmed()
			d.DecisionInputs = f.inputs()
			if d.BudgetReplicas = f.replicas(); d.BudgetReplicas == 0 && q.Request.Target.Kind == playbooks.TargetPod {
				d.BudgetReplicas = -1
			}
			d.AuthorizedAt = f.Since
			if f.Grant != nil {
				d.AuthorizedAt = f.Grant.IssuedAt // what people released later is not contained again with it
			}
			if d.Verdict == activities.VerdictRun && q.Enforce {
				if reason := c.Budget.Spend(f); reason != "" && f.Grant == nil {
					return activities.GuardDecision{Verdict: activities.VerdictPropose, Guard: "budget", Reason: reason, Phase: f.phase(), ConfigHash: c.Config.Hash(), DecisionInputs: d.DecisionInputs}, nil
				}
				if err := c.useGrant(ctx, f); errors.Is(err, ErrGrantUsed) {
					return activities.GuardDecision{Verdict: activities.VerdictRefuse, Guard: "grant", Reason: err.Error() + "; people must be asked again", Phase: f.phase(), ConfigHash: c.Config.Hash(), DecisionInputs: d.DecisionInputs}, nil
				} else if err != nil {
					return activities.GuardDecision{}, err
				}
			}
			return *d, nil
		}
	}
	return activities.GuardDecision{}, errors.New("no guard decided")
}

// useGrant records that the grant of an effect is used now. What cannot be recorded is not done: else one approval would
// permit the same twice.
func (c *Chain) useGrant(ctx context.Context, f Facts) error {
	if f.Grant == nil || c.Grants == nil {
		return nil
	}
	return c.Grants.Use(ctx, f.Grant.Nonce, GrantUse{Lease: f.Request.LeaseID, Until: f.Request.ExpiresAt}, f.Now)
}

func (c *Chain) facts(ctx context.Context, q activities.GuardInput) (Facts, error) {
	f := Facts{GuardInput: q, Config: c.Config, Budget: c.Budget, Self: c.Self}
	target := q.Request.Target
	f.Scope = c.scope(q)
	stopped, who, err := c.Switch.Stopped(ctx)
	if err != nil {
		stopped, who = true, "the kill switch cannot be read: "+err.Error()
	}
	if stopped {
		f.Stopped = who
	}
	for _, s := range q.Authorization.Attestations {
		a, err := c.Keys.VerifyAttestation(s, target.ID(), q.Now, Fresh)
		if err != nil || a.Namespace != target.Namespace || a.Node != target.Node {
			continue // old, or another target's, or of a pod whose place is misstated: it counts for nothing
		}
		if !a.Permits(q.Request.Action, q.Request.Duration) {
			continue // a person asked for something else
		}
		if a.ManualRequest != nil {
			f.Requested = a.ManualRequest
		}
		if a.AcceptedAt.After(f.Since) {
			f.Since = a.AcceptedAt
		}
		f.Signals = append(f.Signals, playbooks.CorrelationInput{Rule: a.Rule, Objective: sensors.Objective(a.Objective), Confidence: a.Confidence, Severity: sensors.Severity(a.Severity)})
		f.Workloads = append(f.Workloads, a.Workload)
		f.On = a.DetectionID
	}
	f.Verdict = playbooks.Correlate(f.Signals)
	for _, s := range q.Authorization.Receipts {
		var r attestation.EvidenceReceipt
		if c.Keys.Verify(s, attestation.PayloadTypeEvidenceReceipt, &r) == nil && r.IncidentID == q.Request.IncidentRef.ID {
			f.Receipts = append(f.Receipts, r)
		}
	}
	if q.Authorization.Grant != nil {
		g, err := c.Keys.VerifyGrant(*q.Authorization.Grant, attestation.OperationApply, q.Now)
		if err == nil {
			err = g.Permits(q.PlanHash, target.ID())
		}
		if err != nil {
			f.GrantError = err.Error()
		} else {
			f.Grant, f.On = &g, g.Nonce
		}
	}
	if f.Drill = c.drillTarget(q); f.Drill != nil {
		f.Scope = drillScope()
	}
	f.Known = c.resolve(ctx, q)
	return f, nil
}

// drillTarget returns the target as a drill registered it, or nil. Only the registration in a fresh attestation counts:
// neither a name, a namespace nor the request can put a target into a drill's scope.
func (c *Chain) drillTarget(q activities.GuardInput) *attestation.DrillTarget {
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if c.Keys.Verify(s, attestation.PayloadTypeAttestation, &a) != nil || a.Namespace != q.Request.Target.Namespace {
			continue
		}
		age := q.Now.Sub(a.AcceptedAt)
		if age > Fresh || age < -slack {
			continue
		}
		if t, ok := a.Drill.FindTarget(q.Request.Target.ID()); ok {
			return &t
		}
	}
	return nil
}

// told is how old an attestation may be that says no more than from where a cloud target was reached.
const told = 24 * time.Hour

// scope is that of the target's namespace. A cloud target has none of its own: the namespace of the pod through which it
// was found counts if the gateway attested a detection there, and else no scope's phase is lent to it.
func (c *Chain) scope(q activities.GuardInput) config.Scope {
	target := q.Request.Target
	own := c.Config.ScopeOf(target.Namespace)
	if !target.Kind.IsCloud() {
		return own
	}
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if c.Keys.Verify(s, attestation.PayloadTypeAttestation, &a) != nil || a.Namespace != target.Namespace || !a.TargetConfirmed || !a.Permits(q.Request.Action, q.Request.Duration) {
			continue
		}
		if age := q.Now.Sub(a.AcceptedAt); age < told && age > -slack {
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

func (f Facts) phase() int {
	p := f.Scope.Phase
	if f.Request.IncidentRef.MaxPhase > 0 {
		p = min(p, f.Request.IncidentRef.MaxPhase)
	}
	return p
}

func refuse(format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictRefuse, Reason: fmt.Sprintf(format, args...)}
}

func propose(format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictPropose, Reason: fmt.Sprintf(format, args...)}
}

func ask(f Facts, format string, args ...any) *activities.GuardDecision {
	return &activities.GuardDecision{Verdict: activities.VerdictAskApproval, Reason: fmt.Sprintf(format, args...), Approvers: ApproversOf(f.Scope)}
}

func killSwitch(f Facts) *activities.GuardDecision {
	if f.Stopped == "" {
		return nil
	}
	return refuse("%s (%s); `stanch resume` lets them go on", playbooks.ReasonPaused, f.Stopped)
}

func evidence(f Facts) *activities.GuardDecision {
	if !f.Enforce {
		return nil // plans inside of an approval are made before the evidence may have run
	}
	for _, r := range f.Receipts {
		if r.TargetID == f.Request.Target.ID() || !f.Request.Target.Kind.IsDetectable() {
			return nil
		}
	}
	return refuse("no evidence of %s was attempted before", f.Request.Target)
}

func offeredGrant(f Facts) *activities.GuardDecision {
	if f.Authorization.Grant == nil {
		return nil
	}
	switch target := f.Request.Target; {
	case f.Grant == nil:
		return refuse("the grant does not hold: %s", f.GrantError)
	case f.Grant.Namespace != target.Namespace:
		return refuse("the grant was given for the namespace %q and not for %q", f.Grant.Namespace, target.Namespace)
	case f.Grant.DrillOnly && f.Drill == nil:
		return refuse("what a drill's key granted permits nothing outside of a drill")
	}
	return nil
}

// slack is how much later than planned an effect may begin, and by how much clocks may differ.
const slack = 5 * time.Minute

// asPlanned holds the end to what the plan says: a grant is bound to the plan, and so to how long it holds.
func asPlanned(f Facts) *activities.GuardDecision {
	r := f.Request
	if end := f.Now.Add(r.Duration + slack); r.ExpiresAt.After(end) && r.ExpiresAt.After(f.HeldUntil) {
		return refuse("it asks to hold until %s, which is longer than the %s that was planned", r.ExpiresAt.UTC().Format(time.RFC3339), duration.Format(r.Duration))
	}
	return nil
}

func withinBudget(f Facts) *activities.GuardDecision {
	if f.Grant != nil || f.Authorization.RequiresGrant {
		return nil // people decide; the budget bounds what runs without them
	}
	if reason := f.Budget.Left(f); reason != "" {
		return propose("%s", reason)
	}
	return nil
}

// phase is the table: what a class of action may do in a phase.
func phase(f Facts) *activities.GuardDecision {
	class, p := f.Spec.Class, f.phase()
	switch {
	case class == playbooks.ClassObserve:
		return &activities.GuardDecision{Verdict: activities.VerdictRun, Reason: "it changes nothing"}
	case p < 2 || class == playbooks.ClassDisrupt && p < 3:
		return propose("phase %d of scope %s does not let a %s action run", p, f.Scope.Name, class)
	case f.Grant != nil:
		return &activities.GuardDecision{Verdict: activities.VerdictRun, Reason: "granted by " + strings.Join(f.Grant.GrantedBy, ", "), BasisID: f.On}
	case class == playbooks.ClassDisrupt || f.Authorization.RequiresGrant:
		return ask(f, "it runs only with the grant of its approval")
	case f.unknown() != "":
		return ask(f, "%s", f.unknown())
	case len(f.Signals) == 0:
		return refuse("no attested detection about %s within %s: nothing happens without proof", f.Request.Target, duration.Format(Fresh))
	case f.Verdict.Confidence < f.Scope.Confidence:
		return ask(f, "confidence %.2f is below the %.2f that scope %s lets run by itself", f.Verdict.Confidence, f.Scope.Confidence, f.Scope.Name)
	case f.Request.Duration > time.Duration(f.Config.Budget.Longest):
		return ask(f, "%s is longer than the %s that `budget.longest` lets run by itself", duration.Format(f.Request.Duration), f.Config.Budget.Longest)
	}
	if f.Requested != nil {
		return &activities.GuardDecision{
			Verdict: activities.VerdictRun, BasisID: f.On,
			Reason: fmt.Sprintf("phase %d, requested by %s: %s", p, display.FormatPerson(f.Requested.Person, f.Requested.AuthenticatedBy), f.Requested.Reason),
		}
	}
	return &activities.GuardDecision{
		Verdict: activities.VerdictRun, BasisID: f.On,
		Reason: fmt.Sprintf("phase %d, confidence %.2f from attested detections", p, f.Verdict.Confidence),
	}
}
