package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// verificationStreak counts successive verifications with the same result.
type verificationStreak struct {
	started    bool
	inForce    bool
	targetGone bool
	eventIDs   []int64
	lastEvent  *historypb.HistoryEvent
}

// leaseState is the lease of a run that is being read.
type leaseState struct {
	leaseID    string
	input      lease.Input
	streak     verificationStreak
	undoReason string // undoReason is why the lease ends: its end, or who released it
	effect     *ContainmentEffect
}

// readLease reads one run of a lease.
func (r *historyReader) readLease() {
	r.leaseState = &leaseState{}
	for _, e := range r.run.Events {
		switch {
		case startedAttributes(e) != nil:
			r.addLeaseStarted(e)
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			r.trackScheduled(e)
		case e.GetActivityTaskStartedEventAttributes() != nil:
			r.trackStarted(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.addLeaseSignal(e)
		case r.addActivityEnd(e):
		// a report to a workflow that has ended
		case e.GetSignalExternalWorkflowExecutionFailedEventAttributes() != nil:
		default:
			r.addFailureEvents(e)
		}
	}
	r.flushStreak()
}

func (r *historyReader) addLeaseStarted(e *historypb.HistoryEvent) {
	a := startedAttributes(e)
	if !r.decodePayloads(e, "the lease's input", a.GetInput(), &r.leaseState.input) {
		return
	}
	in := r.leaseState.input
	r.rememberTarget(in.Target)
	r.leaseState.leaseID = "LSE-" + strings.ToUpper(strings.ReplaceAll(a.GetFirstExecutionRunId(), "-", ""))[:min(20,
		len(strings.ReplaceAll(a.GetFirstExecutionRunId(), "-", "")))]
	first := in.FirstHolder
	if in.Resume != nil {
		r.leaseState.leaseID = in.Resume.LeaseID
		r.leaseState.streak.started, r.leaseState.streak.inForce = true, in.Resume.Verified
		for _, h := range in.Resume.Holders {
			first = *h
			break
		}
	}
	effect := r.effectsByLease[r.leaseState.leaseID]
	if effect == nil {
		effect = &ContainmentEffect{
			LeaseID: r.leaseState.leaseID, IncidentID: first.IncidentRef.ID, Action: first.Action,
			Target: r.targetName(in.Target.ID()), Params: string(first.Params), State: "requested",
		}
		r.effectsByLease[r.leaseState.leaseID] = effect
	}
	r.leaseState.effect = effect
}

func (r *historyReader) addLeaseSignal(e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionSignaledEventAttributes()
	switch a.GetSignalName() {
	case workflows.SignalJoinLease:
		var h lease.Holder
		if r.decodePayloads(e, "an additional holder", a.GetInput(), &h) {
			r.flushStreak()
			r.addEntry(e, KindLeaseJoin, "", fmt.Sprintf("Incident %s requested to join lease %s: %s for %s", h.IncidentRef.ID,
				r.leaseState.leaseID, h.Action, duration.FormatApprox(h.Duration)),
				map[string]any{
					"holder": h.ID, "incident": h.IncidentRef.ID, "lease": r.leaseState.leaseID,
					"params": string(h.Params),
				})
		}
	case workflows.SignalReleaseLease:
		var s lease.ReleaseSignal
		if r.decodePayloads(e, "a release", a.GetInput(), &s) {
			r.flushStreak()
			r.addRelease(e, s)
		}
	case workflows.SignalExtendLease:
		var s lease.ExtendSignal
		if r.decodePayloads(e, "an extension", a.GetInput(), &s) {
			r.flushStreak()
			var g attestation.Grant
			holds := r.verifyEnvelope(e, "the grant of the extension", s.Grant, attestation.PayloadTypeGrant, &g)
			who := r.addGrantees(g.GrantedBy, "extended "+r.leaseState.leaseID)
			what := fmt.Sprintf("%s extended lease %s until %s UTC", who, r.leaseState.leaseID,
				s.ExpiresAt.UTC().Format(time.DateTime))
			if !holds || g.Operation != attestation.OperationExtend || g.LeaseID != r.leaseState.leaseID {
				what = fmt.Sprintf("An extension of lease %s was received without a grant that permits it", r.leaseState.leaseID)
				if holds {
					r.addProblem(e, "the grant is to %s %s, not to extend %s", g.Operation, g.LeaseID, r.leaseState.leaseID)
				}
			}
			r.addEntry(e, KindExtension, who, what, map[string]any{
				"lease": r.leaseState.leaseID, "until": s.ExpiresAt.UTC(),
				"valid": holds,
			})
			if holds && r.leaseState.effect != nil {
				r.leaseState.effect.ExpiresAt = s.ExpiresAt
			}
		}
	default:
		r.addEntry(e, KindFailure, a.GetIdentity(), fmt.Sprintf("Received the unknown signal %q from %s", a.GetSignalName(),
			a.GetIdentity()), nil)
	}
}

func (r *historyReader) addRelease(e *historypb.HistoryEvent, s lease.ReleaseSignal) {
	var g attestation.Grant
	holds := r.verifyEnvelope(e, "the grant of the release", s.Grant, attestation.PayloadTypeGrant, &g)
	permits := holds && g.Operation == attestation.OperationRelease && g.LeaseID == r.leaseState.leaseID
	who := r.addGrantees(g.GrantedBy, "released "+r.leaseState.leaseID)
	what := fmt.Sprintf("%s released lease %s early", who, r.leaseState.leaseID)
	if !permits {
		what = fmt.Sprintf("A release of lease %s was received without a grant that permits it", r.leaseState.leaseID)
		if holds {
			r.addProblem(e, "the grant is to %s %s, not to release %s", g.Operation, g.LeaseID, r.leaseState.leaseID)
		}
	} else {
		r.leaseState.undoReason = "released by " + who
	}
	r.addEntry(e, KindRelease, who, what, map[string]any{
		"lease": r.leaseState.leaseID, "holder": s.HolderID,
		"nonce": g.Nonce, "people": g.GrantedBy, "valid": permits,
	})
}

// addApplied adds an effect and its authorization.
func (r *historyReader) addApplied(e *historypb.HistoryEvent, q activities.ApplyInput, got activities.ApplyResult) {
	r.rememberTarget(q.Request.Target)
	d, what := got.Decision, q.Request.Action+" on "+r.targetName(q.Request.Target.ID())
	details := map[string]any{
		"action": q.Request.Action, "target": q.Request.Target.ID(), "lease": q.Request.LeaseID, "verdict": string(d.Verdict),
		"guard": d.Guard, "reason": d.Reason, "phase": d.Phase,
		"outcome": string(got.Effect.Outcome), "until": q.Request.ExpiresAt.UTC(), "params": string(q.Request.Params),
	}
	if d.ConfigHash != "" {
		r.configHashes[d.ConfigHash] = true
		details["config"] = d.ConfigHash
	}
	effect := r.findOrAddEffect(q.Request)
	if d.Verdict != activities.VerdictRun {
		why := fmt.Sprintf("%s was not applied: immediately before the effect the guards decided %s: %s (%s)", what,
			d.Verdict, d.Reason, guardName(d.Guard))
		r.addEntry(e, KindRefusal, "", why, details)
		if effect.AppliedEvent.EventID == 0 {
			effect.State, effect.Outcome, effect.Reason, effect.AppliedEvent = "refused", playbooks.OutcomeRefused, d.Reason,
				r.eventRef(e)
		}
		return
	}
	basis := strings.TrimPrefix(d.Reason, "granted by ")
	if basis != d.Reason {
		basis = "the grant of " + basis
	}
	if got.LeaseToken != nil {
		var token attestation.LeaseToken
		details["token_valid"] = r.verifyEnvelope(e, "the lease's token", *got.LeaseToken, attestation.PayloadTypeLeaseToken,
			&token)
		if token.LeaseID != q.Request.LeaseID || token.TargetID != q.Request.Target.ID() {
			r.addProblem(e, "the token is for %s on %s, not for %s", token.LeaseID, token.TargetID, q.Request.LeaseID)
		}
		details["on"] = token.AuthorizationID
		basis += r.describeAuthorization(e, q, token.AuthorizationID)
	}
	again := effect.AppliedEvent.EventID != 0
	effect.ExpiresAt = q.Request.ExpiresAt
	if !again {
		effect.AppliedEvent, effect.AppliedAt, effect.Outcome, effect.Reason, effect.AuthorizedBy = r.eventRef(e),
			got.Effect.AppliedAt, got.Effect.Outcome, got.Effect.Reason, basis
		if effect.AppliedAt.IsZero() {
			effect.AppliedAt = e.GetEventTime().AsTime()
		}
		effect.State = "in force"
		r.startStreak(got.Effect.Outcome != playbooks.OutcomeUnverified)
	}
	if !got.Effect.AppliedAt.IsZero() {
		details["applied_at"] = got.Effect.AppliedAt.UTC().Format(time.RFC3339Nano)
	}
	text := describeEffect(what, again, got.Effect) + ". Authorized by " + basis
	if r.run.WorkflowType == TypeLease {
		text += ". It expires at " + q.Request.ExpiresAt.UTC().Format(time.DateTime) + " UTC"
	}
	r.addEntry(e, KindEffect, "", text, details)
}

// describeEffect says what was applied, when, and whether it was verified.
func describeEffect(what string, again bool, effect activities.Effect) string {
	text := what + " was applied and verified,"
	switch {
	case again:
		text = what + " was applied again"
	case effect.Outcome == playbooks.OutcomeUnchanged:
		text = what + " was already in force"
	case effect.Outcome == playbooks.OutcomeUnverified:
		text = what + " was applied, but not verified because its effect cannot be observed,"
	}
	if !effect.AppliedAt.IsZero() {
		text += " at " + effect.AppliedAt.UTC().Format("15:04:05.000") + " UTC"
	}
	if effect.Reason != "" {
		text += " (" + effect.Reason + ")"
	}
	return text
}

// describeAuthorization returns the detection or the people that permitted an effect, from the request.
func (r *historyReader) describeAuthorization(e *historypb.HistoryEvent, q activities.ApplyInput, on string) string {
	if q.Authorization.Grant != nil {
		var g attestation.Grant
		if r.verifyEnvelope(e, "the grant that authorized the effect", *q.Authorization.Grant, attestation.PayloadTypeGrant,
			&g) {
			return ""
		}
		return ", whose grant is invalid"
	}
	for _, s := range q.Authorization.Attestations {
		var a attestation.Attestation
		if r.verifyEnvelope(e, "an attestation that authorized the effect", s, attestation.PayloadTypeAttestation, &a) &&
			a.DetectionID == on {
			return fmt.Sprintf(" (the newest of rule %s)", a.Rule)
		}
	}
	return ""
}

// findOrAddEffect returns the effect of a request's lease. An irreversible action has an effect of its own.
func (r *historyReader) findOrAddEffect(q activities.Request) *ContainmentEffect {
	if effect := r.effectsByLease[q.LeaseID]; effect != nil {
		return effect
	}
	effect := &ContainmentEffect{
		LeaseID: q.LeaseID, IncidentID: q.IncidentRef.ID, Action: q.Action,
		Target: r.targetName(q.Target.ID()), Params: string(q.Params),
	}
	r.effectsByLease[q.LeaseID] = effect
	return effect
}

func (r *historyReader) addFailedEffect(e *historypb.HistoryEvent, t *activityTask, why string) {
	if r.leaseState == nil || r.leaseState.effect == nil || t.name != "Apply" {
		return
	}
	if effect := r.leaseState.effect; effect.AppliedEvent.EventID == 0 {
		effect.State, effect.Outcome, effect.Reason, effect.AppliedEvent = "failed", playbooks.OutcomeFailed, why,
			r.eventRef(e)
	}
}

func (r *historyReader) startStreak(inForce bool) {
	if r.leaseState != nil {
		r.leaseState.streak = verificationStreak{started: true, inForce: inForce}
	}
}

// addVerification adds a verification with a new result, and counts the others.
func (r *historyReader) addVerification(e *historypb.HistoryEvent, got activities.VerifyResult) {
	w := &r.leaseState.streak
	if got.InForce && r.leaseState.effect != nil {
		r.leaseState.effect.VerificationCount++
	}
	if w.started && w.inForce == got.InForce && w.targetGone == got.TargetGone {
		w.eventIDs, w.lastEvent = append(w.eventIDs, e.GetEventId()), e
		return
	}
	r.flushStreak()
	what := "The verification found that the containment is no longer in force"
	switch {
	case got.TargetGone:
		what = "The target no longer exists: the rest of the containment is removed"
	case got.InForce:
		what = "The verification found that the containment is in force"
	}
	if got.Detail != "" {
		what += ": " + got.Detail
	}
	r.addEntry(e, KindVerification, "", what, map[string]any{
		"in_force": got.InForce, "gone": got.TargetGone,
		"lease": r.leaseState.leaseID,
	})
	w.started, w.inForce, w.targetGone = true, got.InForce, got.TargetGone
}

// flushStreak adds the number of verifications with the same result.
func (r *historyReader) flushStreak() {
	if r.leaseState == nil || len(r.leaseState.streak.eventIDs) == 0 {
		return
	}
	w := &r.leaseState.streak
	what := "still in force"
	if !w.inForce {
		what = "still not in force"
	}
	r.addEntry(w.lastEvent, KindVerification, "", fmt.Sprintf("Lease %s was verified %s: %s", r.leaseState.leaseID,
		pluralize(len(w.eventIDs), "time", "times"), what), map[string]any{
		"events": slices.Clone(w.eventIDs),
		"count":  len(w.eventIDs),
	})
	w.eventIDs = nil
}

// addUndo adds the result of an undo.
func (r *historyReader) addUndo(e *historypb.HistoryEvent, q activities.UndoInput, got activities.UndoResult) {
	r.flushStreak()
	what := q.Request.Action + " on " + r.targetName(q.Request.Target.ID())
	effect := r.findOrAddEffect(q.Request)
	why := "it expired"
	if r.leaseState != nil && r.leaseState.undoReason != "" {
		why = r.leaseState.undoReason
	} else if e.GetEventTime().AsTime().Before(effect.ExpiresAt.Add(-time.Second)) && effect.State == "in force" {
		why = "the target no longer exists"
	} else if effect.State == "failed" {
		why = "it failed after it was partly applied"
	}
	details := map[string]any{"lease": q.Request.LeaseID, "undone": got.Undone, "reason": why}
	switch {
	case got.Undone:
		ref := r.eventRef(e)
		if effect.State != "failed" {
			effect.State = "undone"
		}
		effect.UndoneEvent, effect.UndoneAt, effect.UndoReason = &ref, e.GetEventTime().AsTime(), why
		r.addEntry(e, KindUndo, "", fmt.Sprintf("%s was undone and verified: %s", what, why), details)
	case got.Drift != nil:
		effect.State = "stuck"
		details["drift"] = got.Drift.Detail
		r.addEntry(e, KindUndo, "", fmt.Sprintf("%s was NOT undone: another writer changed it: %s", what, got.Drift.Detail),
			details)
	default:
		details["reason"] = got.RefusalReason
		r.addEntry(e, KindRefusal, "", fmt.Sprintf("Undoing %s was refused: %s", what, got.RefusalReason), details)
	}
}
