package audit

import (
	"encoding/json"
	"fmt"
	"strings"

	commonpb "go.temporal.io/api/common/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// addMatchFailure reads the local activity that selects playbooks. Only failures are reported.
func (r *historyReader) addMatchFailure(e *historypb.HistoryEvent) {
	name, _ := r.readLocalActivityMarker(e)
	if f := e.GetMarkerRecordedEventAttributes().GetFailure(); f != nil {
		r.addEntry(e, KindFailure, "", name+" failed: "+r.failureText(f), nil)
	}
}

// addActivityEnd adds the end of any activity. It returns false for other events.
func (r *historyReader) addActivityEnd(e *historypb.HistoryEvent) bool {
	scheduled, result, failed, ended := r.activityEnd(e)
	if !ended {
		return false
	}
	t := r.scheduledActivities[scheduled]
	if t == nil {
		r.addProblem(e, "an activity ended that was never scheduled")
		return true
	}
	delete(r.scheduledActivities, scheduled)
	if failed != "" {
		if t.name == "Verify" {
			r.flushStreak()
		}
		r.addEntry(e, KindFailure, "", fmt.Sprintf("%s failed: %s", r.activityLabel(t), failed),
			map[string]any{"reason": failed, "attempt": t.attempt})
		r.addFailedEffect(e, t, failed)
		return true
	}
	r.addActivityResult(e, t, result)
	return true
}

// activityEnd returns the scheduling event, the result and the failure of an activity that ended with this event; ended
// is false for other events.
func (r *historyReader) activityEnd(e *historypb.HistoryEvent) (scheduled int64, result *commonpb.Payloads,
	failed string, ended bool,
) {
	switch {
	case e.GetActivityTaskCompletedEventAttributes() != nil:
		a := e.GetActivityTaskCompletedEventAttributes()
		return a.GetScheduledEventId(), a.GetResult(), "", true
	case e.GetActivityTaskFailedEventAttributes() != nil:
		a := e.GetActivityTaskFailedEventAttributes()
		return a.GetScheduledEventId(), nil, r.failureText(a.GetFailure()), true
	case e.GetActivityTaskTimedOutEventAttributes() != nil:
		a := e.GetActivityTaskTimedOutEventAttributes()
		return a.GetScheduledEventId(), nil, r.failureText(a.GetFailure()), true
	case e.GetActivityTaskCanceledEventAttributes() != nil:
		return e.GetActivityTaskCanceledEventAttributes().GetScheduledEventId(), nil, "canceled", true
	}
	return 0, nil, "", false
}

// addActivityResult adds what an activity returned.
func (r *historyReader) addActivityResult(e *historypb.HistoryEvent, t *activityTask, result *commonpb.Payloads) {
	in := t.scheduled.GetActivityTaskScheduledEventAttributes().GetInput()
	switch t.name {
	case activities.TypeObserve:
		var q activities.ObserveInput
		var got activities.Result
		if r.decodePayloads(t.scheduled, "the input of the observation", in, &q) &&
			r.decodePayloads(e, "the result of the observation", result, &got) {
			r.addObservation(e, q.Request, got)
		}
	case activities.TypePlan:
		var q activities.PlanInput
		var got activities.PlanResult
		if r.decodePayloads(t.scheduled, "the input of the plan", in, &q) && r.decodePayloads(e, "the plan", result, &got) {
			r.rememberTarget(q.Request.Target)
			r.addDecision(e, got)
		}
	case activities.TypeCountVotes:
		var q activities.CountVotesInput
		var got activities.VoteCount
		if r.decodePayloads(t.scheduled, "the approval request", in, &q) && r.decodePayloads(e, "the count of the votes",
			result, &got) {
			r.addVoteCount(e, q, got)
			r.addManifestRecord(e, "the decision on "+r.approvalRequestName(q.RequestID), q.IncidentID, got.ManifestEntryHash,
				got.UnrecordedReason)
		}
	case activities.TypeApply:
		var q activities.ApplyInput
		var got activities.ApplyResult
		if r.decodePayloads(t.scheduled, "the input of the effect", in, &q) && r.decodePayloads(e, "the result of the effect",
			result, &got) {
			r.addApplied(e, q, got)
			r.addManifestRecord(e, r.activityLabel(t), q.Request.IncidentRef.ID, got.ManifestEntryHash, got.UnrecordedReason)
		}
	case activities.TypeVerify:
		var got activities.VerifyResult
		if r.decodePayloads(e, "the result of the verification", result, &got) {
			r.addVerification(e, got)
		}
	case activities.TypeUndo:
		var q activities.UndoInput
		var got activities.UndoResult
		if r.decodePayloads(t.scheduled, "the input of the undo", in, &q) && r.decodePayloads(e, "the result of the undo",
			result, &got) {
			r.addUndo(e, q, got)
			r.addManifestRecord(e, r.activityLabel(t), q.Request.IncidentRef.ID, got.ManifestEntryHash, got.UnrecordedReason)
		}
	case activities.TypeRecordAttempt:
		r.addEntry(e, KindEvidence, "",
			"A receipt was signed for evidence that timed out: the attempt counts, so that an attacker cannot block "+
				"containment by making it hang", nil)
	default:
		r.addEntry(e, KindNotification, "", t.name+" completed", nil)
	}
}

// addManifestRecord records an activity's result about the manifest. An empty result means that there was nothing to
// append.
func (r *historyReader) addManifestRecord(e *historypb.HistoryEvent, what, incident, entry, unrecorded string) {
	if entry == "" && unrecorded == "" {
		return
	}
	if incident == "" {
		incident = r.options.IncidentID
	}
	r.timeline.ManifestRecords = append(r.timeline.ManifestRecords, ManifestRecord{
		Description: what, IncidentID: incident,
		EntryHash: entry, UnrecordedReason: unrecorded, SourceEvent: r.eventRef(e),
	})
}

// addObservation adds the result of an action without side effects.
func (r *historyReader) addObservation(e *historypb.HistoryEvent, q activities.Request, got activities.Result) {
	r.rememberTarget(q.Target)
	spec, known := r.options.Catalog[q.Action]
	kind := KindContext
	switch {
	case known && spec.Verb == playbooks.VerbEvidence || got.Receipt != nil:
		kind = KindEvidence
	case known && (spec.Verb == playbooks.VerbNotify || spec.Verb == playbooks.VerbTicket):
		kind = KindNotification
	}
	details := map[string]any{"action": q.Action, "target": q.Target.ID(), "outcome": string(got.Outcome)}
	if len(q.Params) > 0 {
		details["params"] = string(q.Params)
	}
	if got.Receipt != nil {
		var receipt attestation.EvidenceReceipt
		details["receipt_valid"] = r.verifyEnvelope(e, "the receipt of "+q.Action, *got.Receipt,
			attestation.PayloadTypeEvidenceReceipt, &receipt)
	}
	on := r.targetName(q.Target.ID())
	switch {
	case got.Outcome == playbooks.OutcomeRefused:
		r.addEntry(e, KindRefusal, "", fmt.Sprintf("%s on %s was refused: %s", q.Action, on, got.Reason), details)
		return
	case !got.Outcome.HasOutputs():
		r.addEntry(e, KindFailure, "", fmt.Sprintf("%s on %s %s: %s", q.Action, on, got.Outcome, got.Reason), details)
		return
	}
	for _, ref := range got.Evidence {
		r.timeline.Evidence = append(r.timeline.Evidence, EvidenceRecord{EvidenceRef: ref, SourceEvent: r.eventRef(e)})
		r.addEntry(e, KindEvidence, "", fmt.Sprintf("Evidence was stored: %s of %s, %d bytes, SHA-256 %s", ref.Name, on,
			ref.SizeBytes, ref.SHA256),
			map[string]any{
				"name": ref.Name, "action": ref.Action, "target": ref.Target, "sha256": ref.SHA256,
				"bytes": ref.SizeBytes,
			})
	}
	note := ""
	if got.Reason != "" {
		note = " (" + got.Reason + ")"
	}
	switch {
	case kind == KindNotification:
		r.addEntry(e, kind, "", fmt.Sprintf("Notified through %s%s", q.Action, notificationText(q.Params)), details)
	case len(got.Evidence) == 0 && q.Action == "workload":
		r.addEntry(e, kind, "", describeWorkload(on, got.Outputs, details)+note, details)
	case len(got.Evidence) == 0:
		r.addEntry(e, kind, "", fmt.Sprintf("%s inspected %s%s", q.Action, on, note), details)
	case note != "":
		r.addEntry(e, kind, "", fmt.Sprintf("%s on %s is incomplete%s", q.Action, on, note), details)
	}
}

// describeWorkload describes the workload by the output of its enrichment.
func describeWorkload(on string, outputs json.RawMessage, details map[string]any) string {
	var w activities.WorkloadContext
	if json.Unmarshal(outputs, &w) != nil {
		return "Looked up the workload of " + on
	}
	var what strings.Builder
	what.WriteString("Looked up the workload of " + on)
	if w.Owner.Name != "" {
		fmt.Fprintf(&what, ": it belongs to %s %s", w.Owner.Kind, w.Owner.Name)
	}
	fmt.Fprintf(&what, "; its image runs in %s", pluralize(w.SameDigestPodCount, "other pod", "other pods"))
	if len(w.DangerousPermissions) > 0 {
		what.WriteString("; its service account can " + strings.Join(w.DangerousPermissions, ", "))
		details["dangerous_permissions"] = w.DangerousPermissions
	}
	for _, c := range w.Changes {
		what.WriteString("; changed recently: " + c.Description)
	}
	if len(w.Missing) > 0 {
		what.WriteString("; unknown: " + strings.Join(w.Missing, ", "))
		details["missing"] = w.Missing
	}
	return what.String()
}
