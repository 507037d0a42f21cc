package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// watch gathers observations that say nothing new, until one does.
type watch struct {
	known   bool
	inForce bool
	gone    bool
	alike   []int64
	last    *historypb.HistoryEvent
}

// held is the lease that a reader is in.
type held struct {
	id     string
	in     lease.Input
	watch  watch
	why    string // why it is taken back: its end, or whose word
	effect *Effect
}

// lease tells one run of a lease.
func (r *reader) lease() {
	r.held = &held{}
	for _, e := range r.run.Events {
		switch {
		case input(e) != nil:
			r.leaseStarted(e)
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			r.schedule(e)
		case e.GetActivityTaskStartedEventAttributes() != nil:
			r.start(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.leaseSignal(e)
		case r.activityEnded(e):
		case e.GetSignalExternalWorkflowExecutionFailedEventAttributes() != nil: // a report to a workflow that has ended
		default:
			r.common(e)
		}
	}
	r.breakWatch()
}

func (r *reader) leaseStarted(e *historypb.HistoryEvent) {
	a := input(e)
	if !r.decode(e, "the lease's input", a.GetInput(), &r.held.in) {
		return
	}
	in := r.held.in
	r.learn(in.Target)
	r.held.id = "LSE-" + strings.ToUpper(strings.ReplaceAll(a.GetFirstExecutionRunId(), "-", ""))[:min(20, len(strings.ReplaceAll(a.GetFirstExecutionRunId(), "-", "")))]
	first := in.FirstHolder
	if in.Resume != nil {
		r.held.id = in.Resume.LeaseID
		r.held.watch.known, r.held.watch.inForce = true, in.Resume.Verified
		for _, h := range in.Resume.Holders {
			first = *h
			break
		}
	}
	effect := r.effects[r.held.id]
	if effect == nil {
		effect = &Effect{Lease: r.held.id, Incident: first.IncidentRef.ID, Action: first.Action, Target: r.targetName(in.Target.ID()), Params: string(first.Params), State: "asked for"}
		r.effects[r.held.id] = effect
	}
	r.held.effect = effect
}

func (r *reader) leaseSignal(e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionSignaledEventAttributes()
	switch a.GetSignalName() {
	case workflows.SignalJoinLease:
		var h lease.Holder
		if r.decode(e, "a further holder", a.GetInput(), &h) {
			r.breakWatch()
			r.line(e, KindJoin, "", fmt.Sprintf("Incident %s asked to join lease %s: %s for %s", h.IncidentRef.ID, r.held.id, h.Action, duration.FormatApprox(h.Duration)),
				map[string]any{"holder": h.ID, "incident": h.IncidentRef.ID, "lease": r.held.id, "params": string(h.Params)})
		}
	case workflows.SignalReleaseLease:
		var s lease.ReleaseSignal
		if r.decode(e, "a release", a.GetInput(), &s) {
			r.breakWatch()
			r.released(e, s)
		}
	case workflows.SignalExtendLease:
		var s lease.ExtendSignal
		if r.decode(e, "an extension", a.GetInput(), &s) {
			r.breakWatch()
			var g attestation.Grant
			holds := r.open(e, "the grant of the extension", s.Grant, attestation.PayloadTypeGrant, &g)
			who := r.grantees(g.GrantedBy, "extended "+r.held.id)
			what := fmt.Sprintf("%s let lease %s hold until %s UTC", who, r.held.id, s.ExpiresAt.UTC().Format(time.DateTime))
			if !holds || g.Operation != attestation.OperationExtend || g.LeaseID != r.held.id {
				what = fmt.Sprintf("An extension of lease %s came without a grant that permits it", r.held.id)
				if holds {
					r.problem(e, "the grant is for %s of %s, not for extending %s", g.Operation, g.LeaseID, r.held.id)
				}
			}
			r.line(e, KindExtension, who, what, map[string]any{"lease": r.held.id, "until": s.ExpiresAt.UTC(), "holds": holds})
			if holds && r.held.effect != nil {
				r.held.effect.Until = s.ExpiresAt
			}
		}
	default:
		r.line(e, KindFailure, a.GetIdentity(), fmt.Sprintf("An unknown signal %q came from %s", a.GetSignalName(), a.GetIdentity()), nil)
	}
}

func (r *reader) released(e *historypb.HistoryEvent, s lease.ReleaseSignal) {
	var g attestation.Grant
	holds := r.open(e, "the grant of the release", s.Grant, attestation.PayloadTypeGrant, &g)
	permits := holds && g.Operation == attestation.OperationRelease && g.LeaseID == r.held.id
	who := r.grantees(g.GrantedBy, "released "+r.held.id)
	what := fmt.Sprintf("%s released lease %s before its end", who, r.held.id)
	if !permits {
		what = fmt.Sprintf("A release of lease %s came without a grant that permits it", r.held.id)
		if holds {
			r.problem(e, "the grant is for %s of %s, not for releasing %s", g.Operation, g.LeaseID, r.held.id)
		}
	} else {
		r.held.why = "released by " + who
	}
	r.line(e, KindRelease, who, what, map[string]any{"lease": r.held.id, "holder": s.HolderID, "nonce": g.Nonce, "people": g.GrantedBy, "holds": permits})
}

// applied tells an effect, and on whose word it happened.
func (r *reader) applied(e *historypb.HistoryEvent, q activities.ApplyInput, got activities.ApplyResult) {
	r.learn(q.Request.Target)
	d, what := got.Decision, q.Request.Action+" on "+r.targetName(q.Request.Target.ID())
	details := map[string]any{
		"action": q.Request.Action, "target": q.Request.Target.ID(), "lease": q.Request.LeaseID, "verdict": string(d.Verdict), "guard": d.Guard, "reason": d.Reason, "phase": d.Phase,
		"outcome": string(got.Effect.Outcome), "until": q.Request.ExpiresAt.UTC(), "params": string(q.Request.Params),
	}
	if d.ConfigHash != "" {
		r.configs[d.ConfigHash] = true
		details["config"] = d.ConfigHash
	}
	effect := r.effectOf(q.Request)
	if d.Verdict != activities.VerdictRun {
		why := fmt.Sprintf("%s was not done: immediately before the effect the guards said %s: %s (%s)", what, d.Verdict, d.Reason, guardName(d.Guard))
		r.line(e, KindRefusal, "", why, details)
		if effect.Applied.Event == 0 {
			effect.State, effect.Outcome, effect.Reason, effect.Applied = "refused", playbooks.OutcomeRefused, d.Reason, r.ref(e)
		}
		return
	}
	word := strings.TrimPrefix(d.Reason, "granted by ")
	if word != d.Reason {
		word = "the grant of " + word
	}
	if got.LeaseToken != nil {
		var token attestation.LeaseToken
		details["token_holds"] = r.open(e, "the lease's token", *got.LeaseToken, attestation.PayloadTypeLeaseToken, &token)
		if token.LeaseID != q.Request.LeaseID || token.TargetID != q.Request.Target.ID() {
			r.problem(e, "the token is for %s on %s, not for %s", token.LeaseID, token.TargetID, q.Request.LeaseID)
		}
		details["on"] = token.AuthorizationID
		word += r.basis(e, q, token.AuthorizationID)
	}
	again := effect.Applied.Event != 0
	effect.Until = q.Request.ExpiresAt
	if !again {
		effect.Applied, effect.AppliedAt, effect.Outcome, effect.Reason, effect.Word = r.ref(e), got.Effect.AppliedAt, got.Effect.Outcome, got.Effect.Reason, word
		if effect.AppliedAt.IsZero() {
			effect.AppliedAt = e.GetEventTime().AsTime()
		}
		effect.State = "in force"
		r.watching(got.Effect.Outcome != playbooks.OutcomeUnverified)
	}
	text := what + " was applied and verified,"
	switch {
	case again:
		text = what + " was applied again"
	case got.Effect.Outcome == playbooks.OutcomeUnchanged:
		text = what + " was in force already"
	case got.Effect.Outcome == playbooks.OutcomeUnverified:
		text = what + " was applied, not verified: its effect cannot be observed,"
	}
	if !got.Effect.AppliedAt.IsZero() {
		text += " at " + got.Effect.AppliedAt.UTC().Format("15:04:05.000") + " UTC"
		details["applied_at"] = got.Effect.AppliedAt.UTC().Format(time.RFC3339Nano)
	}
	if got.Effect.Reason != "" {
		text += " (" + got.Effect.Reason + ")"
	}
	text += ". It rests on " + word
	if r.run.Type == TypeLease {
		text += ". It ends by itself at " + q.Request.ExpiresAt.UTC().Format(time.DateTime) + " UTC"
	}
	r.line(e, KindEffect, "", text, details)
}

// basis names the detection or the people that an effect rests on, from what came with the request.
func (r *reader) basis(e *historypb.HistoryEvent, q activities.ApplyInput, on string) string {
	if q.Authorization.Grant != nil {
		var g attestation.Grant
		if r.open(e, "the grant that the effect rests on", *q.Authorization.Grant, attestation.PayloadTypeGrant, &g) {
			return ""
		}
		return ", whose grant does not hold"
	}
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if r.open(e, "an attestation that the effect rests on", s, attestation.PayloadTypeAttestation, &a) && a.DetectionID == on {
			return fmt.Sprintf(" (the newest of rule %s)", a.Rule)
		}
	}
	return ""
}

// effectOf is the effect of a request's lease; an act without a lease has one of its own.
func (r *reader) effectOf(q activities.Request) *Effect {
	if effect := r.effects[q.LeaseID]; effect != nil {
		return effect
	}
	effect := &Effect{Lease: q.LeaseID, Incident: q.IncidentRef.ID, Action: q.Action, Target: r.targetName(q.Target.ID()), Params: string(q.Params)}
	r.effects[q.LeaseID] = effect
	return effect
}

func (r *reader) failedEffect(e *historypb.HistoryEvent, t *task, why string) {
	if r.held == nil || r.held.effect == nil || t.name != "Apply" {
		return
	}
	if effect := r.held.effect; effect.Applied.Event == 0 {
		effect.State, effect.Outcome, effect.Reason, effect.Applied = "failed", playbooks.OutcomeFailed, why, r.ref(e)
	}
}

func (r *reader) watching(inForce bool) {
	if r.held != nil {
		r.held.watch = watch{known: true, inForce: inForce}
	}
}

// verified tells an observation that says something new, and counts the others.
func (r *reader) verified(e *historypb.HistoryEvent, got activities.VerifyResult) {
	w := &r.held.watch
	if got.InForce && r.held.effect != nil {
		r.held.effect.Observed++
	}
	if w.known && w.inForce == got.InForce && w.gone == got.TargetGone {
		w.alike, w.last = append(w.alike, e.GetEventId()), e
		return
	}
	r.breakWatch()
	what := "It was observed that the containment is no longer in force"
	switch {
	case got.TargetGone:
		what = "The target is gone: what is left of the containment is taken away"
	case got.InForce:
		what = "It was observed that the containment is in force"
	}
	if got.Detail != "" {
		what += ": " + got.Detail
	}
	r.line(e, KindVerification, "", what, map[string]any{"in_force": got.InForce, "gone": got.TargetGone, "lease": r.held.id})
	w.known, w.inForce, w.gone = true, got.InForce, got.TargetGone
}

// breakWatch tells how many observations said nothing new.
func (r *reader) breakWatch() {
	if r.held == nil || len(r.held.watch.alike) == 0 {
		return
	}
	w := &r.held.watch
	what := "in force, as before"
	if !w.inForce {
		what = "not in force, as before"
	}
	r.line(w.last, KindVerification, "", fmt.Sprintf("Lease %s was observed %s: %s", r.held.id, plural(len(w.alike), "time", "times"), what), map[string]any{"events": slices.Clone(w.alike), "count": len(w.alike)})
	w.alike = nil
}

// undone tells what taking back did.
func (r *reader) undone(e *historypb.HistoryEvent, q activities.UndoInput, got activities.UndoResult) {
	r.breakWatch()
	what := q.Request.Action + " on " + r.targetName(q.Request.Target.ID())
	effect := r.effectOf(q.Request)
	why := "its time was over"
	if r.held != nil && r.held.why != "" {
		why = r.held.why
	} else if e.GetEventTime().AsTime().Before(effect.Until.Add(-time.Second)) && effect.State == "in force" {
		why = "the target is gone"
	} else if effect.State == "failed" {
		why = "it failed half-way"
	}
	details := map[string]any{"lease": q.Request.LeaseID, "undone": got.Undone, "why": why}
	switch {
	case got.Undone:
		ref := r.ref(e)
		if effect.State != "failed" {
			effect.State = "undone"
		}
		effect.Undone, effect.UndoneAt, effect.Why = &ref, e.GetEventTime().AsTime(), why
		r.line(e, KindUndo, "", fmt.Sprintf("%s was undone and verified: %s", what, why), details)
	case got.Drift != nil:
		effect.State = "stuck"
		details["drift"] = got.Drift.Detail
		r.line(e, KindUndo, "", fmt.Sprintf("%s was NOT undone: somebody else changed it since: %s", what, got.Drift.Detail), details)
	default:
		details["reason"] = got.RefusalReason
		r.line(e, KindRefusal, "", fmt.Sprintf("Undoing %s was refused: %s", what, got.RefusalReason), details)
	}
}
