package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
)

// Set is the actions with what they and the activities around them need. Its exported methods with a context are
// the Temporal activities.
type Set struct {
	actions   map[string]Action
	Guards    Guards
	Scopes    Scopes
	Desk      Desk    // nil: people are told nothing by chat
	Endings   Endings // nil: a message is kept until the desk says that it is done
	Authority Authority
	Evidence  *EvidenceStore
	Log       *slog.Logger
	// Now is the clock; nil is the machine's. Simulation gives the skipped time.
	Now func() time.Time
	// At is called at named points, so that tests can kill the process there. Nil does nothing.
	At func(point string)
}

// NewSet makes a set of actions. Two of one name are a mistake of the program.
func NewSet(actions ...Action) *Set {
	s := &Set{actions: map[string]Action{}, Log: slog.Default()}
	for _, a := range actions {
		name := a.Spec().Name
		if _, twice := s.actions[name]; twice {
			panic("two actions are called " + name)
		}
		s.actions[name] = a
	}
	return s
}

// Catalogue is the specs of the set's actions.
func (s *Set) Catalogue() playbooks.Catalog {
	c := playbooks.Catalog{}
	for name, a := range s.actions {
		c[name] = a.Spec()
	}
	return c
}

// Actions lists the actions by name.
func (s *Set) Actions() []Action {
	var out []Action
	for _, a := range s.actions {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Action) int {
		if a.Spec().Name < b.Spec().Name {
			return -1
		}
		return 1
	})
	return out
}

func (s *Set) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Set) at(point string) {
	if s.At != nil {
		s.At(point)
	}
}

// Result is what became of one action on one target.
type Result struct {
	Outcome  playbooks.Outcome       `json:"outcome"`
	Reason   string                  `json:"reason,omitempty"`
	Outputs  json.RawMessage         `json:"outputs,omitempty"`
	Evidence []playbooks.EvidenceRef `json:"evidence,omitempty"`
	Receipt  *attestation.Envelope           `json:"receipt,omitempty"`
}

// errorTypeRetryable marks failures that may pass; refusals are values and never errors here.
const errorTypeRetryable = "stanch.failed"

func failed(err error) error {
	return temporal.NewApplicationErrorWithCause(err.Error(), errorTypeRetryable, err)
}

// ObserveInput is the input of Observe.
type ObserveInput struct {
	Request Request        `json:"request"`
	Proofs  []attestation.Envelope `json:"proofs,omitempty"` // attested detections of the target
}

type proofsKey struct{}

// Proofs gives the attested detections that came with the observation.
func Proofs(ctx context.Context) []attestation.Envelope {
	p, _ := ctx.Value(proofsKey{}).([]attestation.Envelope)
	return p
}

// Observe runs an action that changes nothing. Evidence always gets a receipt, also when it failed: an attacker who
// makes evidence fail must not prevent containment.
func (s *Set) Observe(ctx context.Context, in ObserveInput) (Result, error) {
	action, ok := s.actions[in.Request.Action].(Observer)
	if !ok {
		return Result{Outcome: playbooks.OutcomeRefused, Reason: fmt.Sprintf("there is no observing action %q", in.Request.Action)}, nil
	}
	spec := action.Spec()
	defer beat(ctx)()
	s.at("observe/" + spec.Name)
	result, err := s.observe(context.WithValue(ctx, proofsKey{}, in.Proofs), action, in.Request)
	s.at("observed/" + spec.Name)
	// An action that does not work on such targets has attempted nothing.
	fits := len(spec.Targets) == 0 || slices.Contains(spec.Targets, in.Request.Target.Kind)
	if spec.Verb == playbooks.VerbEvidence && fits {
		receipt, signErr := s.Authority.Sign(attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{
			IncidentID: in.Request.Incident.ID, TargetID: in.Request.Target.ID(), Action: spec.Name, Succeeded: err == nil && result.Outcome.HasOutputs(), AttemptedAt: s.now(),
		})
		if signErr != nil {
			return Result{}, fmt.Errorf("sign the receipt: %w", signErr)
		}
		result.Receipt = &receipt
		if err != nil {
			return Result{Outcome: playbooks.OutcomeFailed, Reason: err.Error(), Receipt: &receipt}, nil //nolint:nilerr // a failure that is recorded, and stops nothing
		}
	}
	if err != nil {
		return Result{}, Later(err)
	}
	return result, nil
}

func (s *Set) observe(ctx context.Context, action Observer, r Request) (Result, error) {
	seen, err := action.Observe(ctx, r)
	if refusal, ok := AsRefusal(err); ok {
		return Result{Outcome: playbooks.OutcomeRefused, Reason: refusal.Reason}, nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s of %s: %w", r.Action, r.Target, err)
	}
	result := Result{Outcome: playbooks.OutcomeChanged, Reason: seen.Note}
	if seen.Unchanged {
		result.Outcome = playbooks.OutcomeUnchanged
	}
	for _, piece := range seen.Pieces {
		ref, err := s.Evidence.Put(ctx, r.Incident.ID, r.Action, r.Target.ID(), piece, s.now())
		if refusal, ok := AsRefusal(err); ok { // the pieces that fit are kept
			result.Reason = strings.TrimPrefix(result.Reason+"; "+piece.Name+" was not stored: "+refusal.Reason, "; ")
			continue
		}
		if err != nil {
			return Result{}, err
		}
		result.Evidence = append(result.Evidence, ref)
	}
	if len(seen.Pieces) > 0 && len(result.Evidence) == 0 {
		return Result{Outcome: playbooks.OutcomeRefused, Reason: result.Reason}, nil
	}
	if seen.Outputs != nil {
		if result.Outputs, err = json.Marshal(seen.Outputs); err != nil {
			return Result{}, fmt.Errorf("outputs of %s: %w", r.Action, err)
		}
	}
	return result, nil
}

// PlanInput is the input of Plan.
type PlanInput struct {
	Request Request `json:"request"`
	Basis   Basis   `json:"basis"`
}

// PlanResult is a plan and what the guards say of it.
type PlanResult struct {
	Plan     Plan     `json:"plan"`
	Hash     string   `json:"hash"`
	Decision Decision `json:"decision"`
}

// Plan says what a containment would change and whether it may. It changes nothing.
func (s *Set) Plan(ctx context.Context, in PlanInput) (PlanResult, error) {
	action, ok := s.actions[in.Request.Action].(Containment)
	if !ok {
		return PlanResult{Decision: Decision{Verdict: VerdictRefuse, Reason: fmt.Sprintf("there is no containment %q", in.Request.Action)}}, nil
	}
	plan, err := action.Plan(ctx, in.Request)
	if refusal, ok := AsRefusal(err); ok {
		refused := PlanResult{Decision: Decision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason}}
		refused.Plan.bind(in.Request) // the record says what was refused
		return refused, nil
	}
	if err != nil {
		return PlanResult{}, failed(fmt.Errorf("plan %s of %s: %w", in.Request.Action, in.Request.Target, err))
	}
	plan.bind(in.Request)
	plan.Ends = action.Spec().EndMechanism
	if most := action.Spec().MaxDuration; most > 0 && in.Request.For > most {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s is meant for at most %s: %s", in.Request.Action, duration.Format(most), strings.TrimSuffix(action.Spec().Doc, ".")))
	}
	out := PlanResult{Plan: plan, Hash: plan.Hash()}
	s.at("planned/" + in.Request.Action)
	out.Decision, err = s.Guards.Decide(ctx, Question{Spec: action.Spec(), Request: in.Request, Basis: in.Basis, PlanHash: out.Hash, Ask: plan.Ask, Now: s.now()})
	if err != nil {
		return PlanResult{}, failed(fmt.Errorf("guards: %w", err))
	}
	return out, nil
}

// Heartbeat is how long an activity may be silent: one whose process died is tried again after that, and not when its
// whole time is up.
const Heartbeat = 3 * time.Second

// beat tells Temporal that the activity lives until what it returns is called.
func beat(ctx context.Context) (stop func()) {
	if !activity.IsActivity(ctx) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(Heartbeat / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				activity.RecordHeartbeat(ctx)
			}
		}
	}()
	return cancel
}

// VerifyInput is the input of Verify.
type VerifyInput struct {
	Request Request         `json:"request"`
	Prior   json.RawMessage `json:"prior,omitempty"`
}

// VerifyResult is what is observed of a containment.
type VerifyResult struct {
	InForce bool   `json:"in_force"`
	Detail  string `json:"detail,omitempty"`
	Gone    bool   `json:"gone,omitempty"` // the target no longer exists
	// Unverified says why something that is in force is not wholly observed.
	Unverified string `json:"unverified,omitempty"`
}

// Verify observes whether a containment is in force.
func (s *Set) Verify(ctx context.Context, in VerifyInput) (VerifyResult, error) {
	action, ok := s.actions[in.Request.Action].(Containment)
	if !ok {
		return VerifyResult{}, failed(fmt.Errorf("there is no containment %q", in.Request.Action))
	}
	defer beat(ctx)()
	inForce, detail, err := action.Verify(ctx, in.Request, in.Prior)
	if errors.Is(err, ErrGone) {
		return VerifyResult{Gone: true, Detail: err.Error()}, nil
	}
	var unverified *UnverifiedError
	if inForce && errors.As(err, &unverified) {
		return VerifyResult{InForce: true, Detail: detail, Unverified: unverified.Reason}, nil
	}
	if err != nil {
		return VerifyResult{}, failed(fmt.Errorf("verify %s of %s: %w", in.Request.Action, in.Request.Target, err))
	}
	return VerifyResult{InForce: inForce, Detail: detail}, nil
}

// UndoInput is the input of Undo.
type UndoInput struct {
	Request Request         `json:"request"`
	Prior   json.RawMessage `json:"prior,omitempty"`
	// Grant is needed before the end that is stamped on the contained object.
	Grant *attestation.Envelope `json:"grant,omitempty"`
}

// UndoResult is what Undo did.
type UndoResult struct {
	Undone bool   `json:"undone"`
	Drift  *Drift `json:"drift,omitempty"`
	Reason string `json:"reason,omitempty"` // why it was refused
	// Entry is the hash of its line in the incident's manifest; Unrecorded says why there is none.
	Entry      string `json:"entry,omitempty"`
	Unrecorded string `json:"unrecorded,omitempty"`
}

// Undo takes a containment back, and observes that it is gone.
func (s *Set) Undo(ctx context.Context, in UndoInput) (UndoResult, error) {
	r := in.Request
	action, ok := s.actions[r.Action].(Containment)
	if !ok {
		return UndoResult{}, failed(fmt.Errorf("there is no containment %q", r.Action))
	}
	if in.Grant != nil {
		g, err := s.Authority.Keys().VerifyGrant(*in.Grant, attestation.OperationRelease, s.now())
		if err == nil && g.LeaseID != r.Lease {
			err = fmt.Errorf("%w: the grant releases lease %s", attestation.ErrUnverified, g.LeaseID)
		}
		if err != nil {
			return UndoResult{Reason: err.Error()}, nil
		}
	}
	defer beat(ctx)()
	s.at("undo/before/" + r.Action)
	drift, err := action.Undo(ctx, r, in.Prior, in.Grant)
	s.at("undo/after/" + r.Action)
	if refusal, ok := AsRefusal(err); ok {
		return UndoResult{Reason: refusal.Reason}, nil
	}
	if err != nil {
		return UndoResult{}, failed(fmt.Errorf("undo %s of %s: %w", r.Action, r.Target, err))
	}
	if drift != nil {
		return UndoResult{Drift: drift}, nil
	}
	inForce, detail, err := action.Verify(ctx, r, in.Prior)
	if errors.Is(err, ErrGone) {
		return s.undone(in, "the target is gone"), nil // nothing is left that could be in force
	}
	if err != nil {
		return UndoResult{}, failed(fmt.Errorf("observe that %s of %s is undone: %w", r.Action, r.Target, err))
	}
	if inForce {
		return UndoResult{}, failed(fmt.Errorf("undo %s of %s: it is still in force: %s", r.Action, r.Target, detail))
	}
	return s.undone(in, ""), nil
}

// undone records that a containment was taken back, and on whose word if it was early.
func (s *Set) undone(in UndoInput, note string) UndoResult {
	act := Act{Action: in.Request.Action, Target: in.Request.Target.ID(), Lease: in.Request.Lease, Note: note}
	if in.Grant != nil {
		var g attestation.Grant
		if s.Authority.Keys().Verify(*in.Grant, attestation.PayloadTypeGrant, &g) == nil {
			act.On, act.Who = g.Nonce, g.GrantedBy
		}
	}
	result := UndoResult{Undone: true}
	result.Entry, result.Unrecorded = s.record(in.Request.Incident.ID, EntryUndo, act)
	return result
}
