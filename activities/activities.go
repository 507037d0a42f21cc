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
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
)

// Activities contains the actions and their dependencies. Its exported methods with a context are the Temporal
// activities. They are safe for concurrent use once the fields are set.
type Activities struct {
	actions        map[string]Action
	Guards         Guards
	ScopeApprovers ScopeApprovers
	Messenger      Messenger     // nil: no chat is configured
	ClosureReader  ClosureReader // nil: a message is updated until the messenger reports Done
	Authority      Authority
	Evidence       *EvidenceStore
	Log            *slog.Logger
	// Now returns the current time; nil means time.Now. Simulation returns simulated time.
	Now func() time.Time
	// Failpoint is called at named points, so that tests can kill the process there. Nil does nothing.
	Failpoint func(point string)
}

// NewActivities returns the activities for a set of actions. It panics if two actions have the same name.
func NewActivities(actions ...Action) *Activities {
	s := &Activities{actions: map[string]Action{}, Log: slog.Default()}
	for _, a := range actions {
		name := a.Spec().Name
		if _, twice := s.actions[name]; twice {
			panic("two actions have the name " + name)
		}
		s.actions[name] = a
	}
	return s
}

// Catalog returns the specs of the actions.
func (s *Activities) Catalog() playbooks.Catalog {
	c := playbooks.Catalog{}
	for name, a := range s.actions {
		c[name] = a.Spec()
	}
	return c
}

// Actions returns the actions, sorted by name.
func (s *Activities) Actions() []Action {
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

func (s *Activities) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Activities) hitFailpoint(point string) {
	if s.Failpoint != nil {
		s.Failpoint(point)
	}
}

// Result is the result of an action on one target.
type Result struct {
	Outcome  playbooks.Outcome       `json:"outcome"`
	Reason   string                  `json:"reason,omitempty"`
	Outputs  json.RawMessage         `json:"outputs,omitempty"`
	Evidence []playbooks.EvidenceRef `json:"evidence,omitempty"`
	Receipt  *attestation.Envelope   `json:"receipt,omitempty"`
}

// errorTypeRetryable is the type of errors that Temporal retries. Refusals are values, never errors.
const errorTypeRetryable = "stanch.failed"

func retryableError(err error) error {
	return temporal.NewApplicationErrorWithCause(err.Error(), errorTypeRetryable, err)
}

// ObserveInput is the input of Observe.
type ObserveInput struct {
	Request      Request                `json:"request"`
	Attestations []attestation.Envelope `json:"attestations,omitempty"` // attested detections of the target
}

type attestationsContextKey struct{}

// AttestationsFromContext returns the attested detections of the observation that runs with ctx.
func AttestationsFromContext(ctx context.Context) []attestation.Envelope {
	p, _ := ctx.Value(attestationsContextKey{}).([]attestation.Envelope)
	return p
}

// Observe runs an action without side effects. Evidence always gets a signed receipt, even if capturing it failed: an
// attacker who makes evidence fail must not be able to prevent containment.
func (s *Activities) Observe(ctx context.Context, in ObserveInput) (Result, error) {
	action, ok := s.actions[in.Request.Action].(Observer)
	if !ok {
		return Result{Outcome: playbooks.OutcomeRefused, Reason: fmt.Sprintf("unknown observe action %q", in.Request.Action)},
			nil
	}
	spec := action.Spec()
	defer startHeartbeat(ctx)()
	s.hitFailpoint("observe/" + spec.Name)
	result, err := s.runObserver(context.WithValue(ctx, attestationsContextKey{}, in.Attestations), action, in.Request)
	s.hitFailpoint("observed/" + spec.Name)
	// An action that does not support this kind of target has attempted nothing.
	fits := len(spec.Targets) == 0 || slices.Contains(spec.Targets, in.Request.Target.Kind)
	if spec.Verb == playbooks.VerbEvidence && fits {
		receipt, signErr := s.Authority.Sign(attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{
			IncidentID: in.Request.IncidentRef.ID, TargetID: in.Request.Target.ID(), Action: spec.Name, Succeeded: err == nil &&
				result.Outcome.HasOutputs(), AttemptedAt: s.now(),
		})
		if signErr != nil {
			return Result{}, fmt.Errorf("sign the receipt: %w", signErr)
		}
		result.Receipt = &receipt
		if err != nil {
			failed := Result{Outcome: playbooks.OutcomeFailed, Reason: err.Error(), Receipt: &receipt}
			return failed, nil // a recorded failure stops nothing
		}
	}
	if err != nil {
		return Result{}, RetryAfter(err)
	}
	return result, nil
}

func (s *Activities) runObserver(ctx context.Context, action Observer, r Request) (Result, error) {
	seen, err := action.Observe(ctx, r)
	if refusal, ok := AsRefusal(err); ok {
		return Result{Outcome: playbooks.OutcomeRefused, Reason: refusal.Reason}, nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("run %s on %s: %w", r.Action, r.Target, err)
	}
	result := Result{Outcome: playbooks.OutcomeSucceeded, Reason: seen.MissingNote}
	if seen.Unchanged {
		result.Outcome = playbooks.OutcomeUnchanged
	}
	for _, piece := range seen.Artifacts {
		ref, err := s.Evidence.StoreArtifact(r.IncidentRef.ID, r.Action, r.Target.ID(), piece, s.now())
		if refusal, ok := AsRefusal(err); ok { // artifacts within the quota are kept
			result.Reason = strings.TrimPrefix(result.Reason+"; "+piece.Name+" was not stored: "+refusal.Reason, "; ")
			continue
		}
		if err != nil {
			return Result{}, err
		}
		result.Evidence = append(result.Evidence, ref)
	}
	if len(seen.Artifacts) > 0 && len(result.Evidence) == 0 {
		return Result{Outcome: playbooks.OutcomeRefused, Reason: result.Reason}, nil
	}
	if seen.Outputs != nil {
		if result.Outputs, err = json.Marshal(seen.Outputs); err != nil {
			return Result{}, fmt.Errorf("read the outputs of %s: %w", r.Action, err)
		}
	}
	return result, nil
}

// PlanInput is the input of Plan.
type PlanInput struct {
	Request       Request       `json:"request"`
	Authorization Authorization `json:"authorization"`
}

// PlanResult is a plan and the guards' decision about it.
type PlanResult struct {
	Plan     Plan          `json:"plan"`
	PlanHash string        `json:"hash"`
	Decision GuardDecision `json:"decision"`
}

// Plan returns what a containment would change, and whether the guards permit it. It changes nothing.
func (s *Activities) Plan(ctx context.Context, in PlanInput) (PlanResult, error) {
	action, ok := s.actions[in.Request.Action].(Containment)
	if !ok {
		return PlanResult{Decision: GuardDecision{Verdict: VerdictRefuse, Reason: fmt.Sprintf("unknown contain action %q",
			in.Request.Action)}}, nil
	}
	plan, err := action.Plan(ctx, in.Request)
	if refusal, ok := AsRefusal(err); ok {
		refused := PlanResult{Decision: GuardDecision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason}}
		refused.Plan.bindToRequest(in.Request) // identifies what was refused
		return refused, nil
	}
	if err != nil {
		return PlanResult{}, retryableError(fmt.Errorf("plan %s on %s: %w", in.Request.Action, in.Request.Target, err))
	}
	plan.bindToRequest(in.Request)
	plan.EndMechanism = action.Spec().EndMechanism
	if most := action.Spec().MaxDuration; most > 0 && in.Request.Duration > most {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("%s is limited to %s: %s", in.Request.Action, duration.Format(most),
			strings.TrimSuffix(action.Spec().Doc, ".")))
	}
	out := PlanResult{Plan: plan, PlanHash: plan.Hash()}
	s.hitFailpoint("planned/" + in.Request.Action)
	out.Decision, err = s.Guards.Decide(ctx, GuardInput{
		Spec: action.Spec(), Request: in.Request,
		Authorization: in.Authorization, PlanHash: out.PlanHash, ApprovalReason: plan.ApprovalReason, Now: s.now(),
	})
	if err != nil {
		return PlanResult{}, retryableError(fmt.Errorf("check the guards: %w", err))
	}
	return out, nil
}

// HeartbeatTimeout is the maximum time between heartbeats of an activity. Temporal retries an activity of a process
// that died after this time, and not only after the activity's full timeout.
const HeartbeatTimeout = 3 * time.Second

// startHeartbeat sends heartbeats to Temporal until stop is called.
func startHeartbeat(ctx context.Context) (stop func()) {
	if !activity.IsActivity(ctx) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(HeartbeatTimeout / 3)
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
	Request    Request         `json:"request"`
	PriorState json.RawMessage `json:"prior,omitempty"`
}

// VerifyResult is the observed state of a containment.
type VerifyResult struct {
	InForce    bool   `json:"in_force"`
	Detail     string `json:"detail,omitempty"`
	TargetGone bool   `json:"target_gone,omitempty"` // the target no longer exists
	// UnverifiedReason says which part of an effect in force could not be observed; "" if all was.
	UnverifiedReason string `json:"unverified_reason,omitempty"`
}

// Verify reports whether a containment is in force.
func (s *Activities) Verify(ctx context.Context, in VerifyInput) (VerifyResult, error) {
	action, ok := s.actions[in.Request.Action].(Containment)
	if !ok {
		return VerifyResult{}, retryableError(fmt.Errorf("unknown contain action %q", in.Request.Action))
	}
	defer startHeartbeat(ctx)()
	inForce, detail, err := action.Verify(ctx, in.Request, in.PriorState)
	if errors.Is(err, ErrTargetGone) {
		return VerifyResult{TargetGone: true, Detail: err.Error()}, nil
	}
	var unverified *PartlyVerifiedError
	if inForce && errors.As(err, &unverified) {
		return VerifyResult{InForce: true, Detail: detail, UnverifiedReason: unverified.Reason}, nil
	}
	if err != nil {
		return VerifyResult{}, retryableError(fmt.Errorf("verify %s on %s: %w", in.Request.Action, in.Request.Target, err))
	}
	return VerifyResult{InForce: inForce, Detail: detail}, nil
}

// UndoInput is the input of Undo.
type UndoInput struct {
	Request    Request         `json:"request"`
	PriorState json.RawMessage `json:"prior,omitempty"`
	// ReleaseGrant is required before the end that is stamped on the contained object.
	ReleaseGrant *attestation.Envelope `json:"grant,omitempty"`
}

// UndoResult is the result of Undo.
type UndoResult struct {
	Undone        bool   `json:"undone"`
	Drift         *Drift `json:"drift,omitempty"`
	RefusalReason string `json:"refusal_reason,omitempty"` // "" unless refused
	// ManifestEntryHash is the hash of the undo's line in the incident's manifest. Unrecorded says why there is no
	// line.
	ManifestEntryHash string `json:"manifest_entry_hash,omitempty"`
	UnrecordedReason  string `json:"unrecorded_reason,omitempty"`
}

// Undo undoes a containment and verifies that it is no longer in force.
func (s *Activities) Undo(ctx context.Context, in UndoInput) (UndoResult, error) {
	r := in.Request
	action, ok := s.actions[r.Action].(Containment)
	if !ok {
		return UndoResult{}, retryableError(fmt.Errorf("unknown contain action %q", r.Action))
	}
	if in.ReleaseGrant != nil {
		g, err := s.Authority.Keyring().VerifyGrant(*in.ReleaseGrant, attestation.OperationRelease, s.now())
		if err == nil && g.LeaseID != r.LeaseID {
			err = fmt.Errorf("%w: the grant releases lease %s", attestation.ErrUnverified, g.LeaseID)
		}
		if err != nil {
			return UndoResult{RefusalReason: err.Error()}, nil
		}
	}
	defer startHeartbeat(ctx)()
	s.hitFailpoint("undo/before/" + r.Action)
	drift, err := action.Undo(ctx, r, in.PriorState, in.ReleaseGrant)
	s.hitFailpoint("undo/after/" + r.Action)
	if refusal, ok := AsRefusal(err); ok {
		return UndoResult{RefusalReason: refusal.Reason}, nil
	}
	if err != nil {
		return UndoResult{}, retryableError(fmt.Errorf("undo %s on %s: %w", r.Action, r.Target, err))
	}
	if drift != nil {
		return UndoResult{Drift: drift}, nil
	}
	inForce, detail, err := action.Verify(ctx, r, in.PriorState)
	if errors.Is(err, ErrTargetGone) {
		return s.recordUndo(in, "the target is gone"), nil // the target is gone, so nothing can be in force
	}
	if err != nil {
		return UndoResult{}, retryableError(fmt.Errorf("verify that %s on %s is undone: %w", r.Action, r.Target, err))
	}
	if inForce {
		return UndoResult{}, retryableError(fmt.Errorf("undo %s on %s: it is still active: %s", r.Action, r.Target, detail))
	}
	return s.recordUndo(in, ""), nil
}

// recordUndo records the undo in the manifest, with the people who granted an early release.
func (s *Activities) recordUndo(in UndoInput, note string) UndoResult {
	act := AuditRecord{Action: in.Request.Action, Target: in.Request.Target.ID(), LeaseID: in.Request.LeaseID, Note: note}
	if in.ReleaseGrant != nil {
		var g attestation.Grant
		if s.Authority.Keyring().Verify(*in.ReleaseGrant, attestation.PayloadTypeGrant, &g) == nil {
			act.BasisID, act.People = g.Nonce, g.GrantedBy
		}
	}
	result := UndoResult{Undone: true}
	result.ManifestEntryHash, result.UnrecordedReason = s.recordInManifest(in.Request.IncidentRef.ID, EntryKindUndo, act)
	return result
}
