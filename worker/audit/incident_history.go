package audit

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// readIncident reads one run of the incident's own workflow.
func (r *historyReader) readIncident() {
	for _, e := range r.run.Events {
		switch {
		case startedAttributes(e) != nil:
			r.addIncidentOpened(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.addIncidentSignal(e)
		case e.GetMarkerRecordedEventAttributes() != nil:
			r.addMatchFailure(e)
		case e.GetStartChildWorkflowExecutionInitiatedEventAttributes() != nil:
			r.addPlaybookStarted(e)
		case e.GetStartChildWorkflowExecutionFailedEventAttributes() != nil:
			a := e.GetStartChildWorkflowExecutionFailedEventAttributes()
			r.addEntry(e, KindFailure, "", fmt.Sprintf("%s failed to start: %s", a.GetWorkflowId(), a.GetCause()), nil)
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			r.trackScheduled(e)
		case e.GetActivityTaskStartedEventAttributes() != nil:
			r.trackStarted(e)
		case r.addActivityEnd(e):
		case e.GetWorkflowExecutionContinuedAsNewEventAttributes() != nil:
			// The chain continues in the next run: nothing to report.
		case e.GetWorkflowExecutionCompletedEventAttributes() != nil:
			r.addIncidentClosed(e)
		default:
			r.addFailureEvents(e)
		}
	}
}

func (r *historyReader) addIncidentOpened(e *historypb.HistoryEvent) {
	var in incident.Input
	if !r.decodePayloads(e, "the incident's input", startedAttributes(e).GetInput(), &in) {
		return
	}
	if in.Resume != nil {
		return // a later run of the chain
	}
	s := r.timeline
	s.IncidentID, s.GroupingKey, s.Cluster, s.Scope, s.Phase, s.Drill, s.Opened = in.ID, in.GroupingKey, in.Cluster,
		in.Scope, in.Phase, in.Drill, e.GetEventTime().AsTime()
	what := fmt.Sprintf("Incident %s was opened for %s: scope %s, phase %d", in.ID, strings.TrimPrefix(in.GroupingKey,
		in.Cluster+"/"), in.Scope, in.Phase)
	if in.Drill {
		what += ", a drill"
	}
	details := map[string]any{
		"key": in.GroupingKey, "scope": in.Scope, "phase": in.Phase,
		"idle_timeout": duration.FormatApprox(in.IdleTimeout),
	}
	if in.ConfigHash != "" {
		r.configHashes[in.ConfigHash] = true
		details["config"] = in.ConfigHash
		what += ", configuration " + in.ConfigHash
	}
	r.addEntry(e, KindOpened, "", what, details)
}

func (r *historyReader) addIncidentSignal(e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionSignaledEventAttributes()
	switch a.GetSignalName() {
	case workflows.SignalDetections:
		var batch []incident.AttestedDetection
		if r.decodePayloads(e, "a batch of detections", a.GetInput(), &batch) {
			for _, one := range batch {
				r.addDetection(e, one)
			}
		}
	case workflows.SignalPlaybookReport:
		var report playbook.Report
		if r.decodePayloads(e, "a playbook's report", a.GetInput(), &report) {
			r.playbookReportRefs[report.WorkflowID] = r.eventRef(e)
		}
	case workflows.SignalLeaseReport: // the lease's own history contains it
	// a playbook waits for the incident; its own history shows that
	case workflows.SignalWatchIncident, workflows.SignalUnwatchIncident:
	case workflows.SignalTriage:
		var m incident.TriageDecision
		if r.decodePayloads(e, "a person's triage decision", a.GetInput(), &m) {
			r.addTriage(e, m)
		}
	default:
		r.addEntry(e, KindFailure, a.GetIdentity(), fmt.Sprintf("Received the unknown signal %q from %s", a.GetSignalName(),
			a.GetIdentity()), nil)
	}
}

// addTriage adds a person's decision about the incident.
func (r *historyReader) addTriage(e *historypb.HistoryEvent, m incident.TriageDecision) {
	var g attestation.Grant
	holds := r.verifyEnvelope(e, "the grant of a triage decision", m.Grant, attestation.PayloadTypeGrant, &g) &&
		g.Operation == attestation.OperationTriage && g.IncidentID == r.timeline.IncidentID
	who := r.addGrantees(g.GrantedBy, string(m.Kind))
	what := "Assigned to " + who + ": no further playbooks will start"
	if m.Kind.IsDisposition() {
		what = who + " resolved the incident as " + m.Kind.Describe() + ": no further playbooks will start"
	}
	if m.Reason != "" {
		what += ". " + m.Reason
	}
	switch s := r.timeline; {
	case !holds:
	case m.Kind.IsDisposition():
		s.Disposition, s.DispositionBy = string(m.Kind), m.Person
	default:
		s.Assignee = m.Person
	}
	if !holds {
		what += ". Its grant is not valid"
		r.addProblem(e, "%s on behalf of %s was received without a grant that permits it", m.Kind, m.Person)
	}
	r.addEntry(e, KindTriage, who, what, map[string]any{"kind": string(m.Kind), "reason": m.Reason, "valid": holds})
}

func (r *historyReader) addDetection(e *historypb.HistoryEvent, one incident.AttestedDetection) {
	d := one.Detection
	target := incident.TargetOfDetection(d)
	r.rememberTarget(target)
	var att attestation.Attestation
	attested := r.verifyEnvelope(e, "the attestation of detection "+d.ID, one.Attestation,
		attestation.PayloadTypeAttestation, &att)
	if attested && (att.DetectionID != d.ID || att.DetectionHash != attestation.HashJSON(d) ||
		att.TargetID != target.ID()) {
		r.addProblem(e, "the attestation is not for detection %s, or the detection was changed", d.ID)
		attested = false
	}
	details := map[string]any{
		"detection": d.ID, "rule": d.Rule, "target": target.ID(), "node": d.Node, "source": d.Source,
		"happened":   d.Time.UTC().Format(time.RFC3339Nano),
		"confidence": d.Confidence, "severity": string(d.Severity), "objective": string(d.Objective),
		"technique": d.Technique, "attested": attested, "reasons": d.Reasons,
	}
	count := max(d.Count, 1)
	if r.seenDetections[d.ID] {
		r.addEntry(e, KindDetection, "", fmt.Sprintf("The duplicate detection %s was not counted", d.ID), details)
		return
	}
	r.seenDetections[d.ID] = true
	s := r.timeline
	s.DetectionCount += count
	if s.Workload == "" {
		w := incident.WorkloadOfDetection(d)
		s.Workload, s.Image, s.ImageDigest, s.Node = w.String(), w.Image, w.ImageDigest, w.Node
	}
	key := d.Rule + "\x00" + target.ID()
	if _, known := r.correlationInputs[key]; !known {
		r.correlationInputs[key] = playbooks.CorrelationInput{
			Rule: d.Rule, Objective: d.Objective, Confidence: d.Confidence,
			Severity: d.Severity, Title: d.Title, DetectedAt: d.Time,
		}
	}
	if d.ManualRequest != nil {
		r.describeManualRequest(e, d, att, attested, details)
		return
	}
	what := fmt.Sprintf("Detected on node %s: %s on %s. %s (rule %s, %s, confidence %.2f)", d.Node, d.Title, target,
		incident.Describe(d), d.Rule, d.Severity, d.Confidence)
	if count > 1 {
		what += fmt.Sprintf(", %d similar", count)
	}
	if !attested {
		what += ". Its attestation is invalid"
	}
	r.addEntry(e, KindDetection, "", what, details)
}

// describeManualRequest describes a manual request, and compares it with the gateway's attestation.
func (r *historyReader) describeManualRequest(e *historypb.HistoryEvent, d sensors.Detection,
	att attestation.Attestation, attested bool, details map[string]any,
) {
	q := *d.ManualRequest
	if attested && (att.ManualRequest == nil || att.ManualRequest.Person != q.Person ||
		att.ManualRequest.AuthenticatedBy != q.AuthenticatedBy || att.ManualRequest.Reason != q.Reason) {
		r.addProblem(e, "the request %s is not the one that the gateway attested", d.ID)
		attested = false
	}
	who := display.FormatPerson(q.Person, q.AuthenticatedBy)
	what := fmt.Sprintf("%s requested %s on %s: %s", who, q.Describe(), incident.TargetOfDetection(d), q.Reason)
	if attested {
		r.addGrantees([]string{who}, fmt.Sprintf("requested %s on %s: %s", q.Describe(), incident.TargetOfDetection(d),
			q.Reason))
	} else {
		what += ". Its attestation is invalid"
	}
	details["person"], details["reason"] = q.Person, q.Reason
	r.addEntry(e, KindDetection, q.Person, what, details)
}

// addMatchFailure reads the local activity that selects playbooks. Only failures are reported.
func (r *historyReader) addMatchFailure(e *historypb.HistoryEvent) {
	name, _ := r.readLocalActivityMarker(e)
	if f := e.GetMarkerRecordedEventAttributes().GetFailure(); f != nil {
		r.addEntry(e, KindFailure, "", name+" failed: "+r.failureText(f), nil)
	}
}

func (r *historyReader) addPlaybookStarted(e *historypb.HistoryEvent) {
	a := e.GetStartChildWorkflowExecutionInitiatedEventAttributes()
	if a.GetWorkflowType().GetName() != TypePlaybook {
		r.addEntry(e, KindNotification, "", fmt.Sprintf("%s was started: %s", a.GetWorkflowType().GetName(),
			a.GetWorkflowId()), nil)
		return
	}
	var in playbook.Input
	if !r.decodePayloads(e, "the playbook's input", a.GetInput(), &in) {
		return
	}
	name, hash, _ := r.parsePlaybookSource(in)
	if in.PlaybookAuthorization != nil {
		var s attestation.PlaybookAuthorization
		if r.verifyEnvelope(e, "the authorization of the playbook", *in.PlaybookAuthorization,
			attestation.PayloadTypePlaybookAuthorization, &s) && (s.SourceHash != hash || s.Playbook != name) {
			r.addProblem(e, "the playbook that was started (%s, SHA-256 %s) is not the one that was selected (%s, %s)", name,
				shortHash(hash), s.Playbook, shortHash(s.SourceHash))
		}
	}
	var targets []string
	for _, t := range in.Incident.Targets {
		r.rememberTarget(t)
		targets = append(targets, t.String())
	}
	r.addEntry(e, KindPlaybook, "", fmt.Sprintf("Playbook %s started on %s (%s, SHA-256 %s)", name,
		strings.Join(targets, ", "), in.File, shortHash(hash)),
		map[string]any{"playbook": name, "file": in.File, "sha256": hash, "run": a.GetWorkflowId(), "targets": targets})
}

// parsePlaybookSource returns the name and the program of a playbook's source. The hash is computed, not read.
func (r *historyReader) parsePlaybookSource(in playbook.Input) (name, hash string, p *playbooks.Program) {
	hash = playbooks.HashWithCallees(in.Source, in.Callees)
	book, _ := playbooks.ParsePlaybook(in.File, in.Source)
	name = book.Name
	if name == "" {
		name = in.File
	}
	if r.options.Catalog != nil {
		p, _ = in.LoadPlaybook(r.options.Catalog)
	}

	return name, hash, p
}

// addActivityEnd adds the end of any activity. It returns false for other events.
func (r *historyReader) addActivityEnd(e *historypb.HistoryEvent) bool {
	var scheduled int64
	var result *commonpb.Payloads
	failed := ""
	switch {
	case e.GetActivityTaskCompletedEventAttributes() != nil:
		a := e.GetActivityTaskCompletedEventAttributes()
		scheduled, result = a.GetScheduledEventId(), a.GetResult()
	case e.GetActivityTaskFailedEventAttributes() != nil:
		a := e.GetActivityTaskFailedEventAttributes()
		scheduled, failed = a.GetScheduledEventId(), r.failureText(a.GetFailure())
	case e.GetActivityTaskTimedOutEventAttributes() != nil:
		a := e.GetActivityTaskTimedOutEventAttributes()
		scheduled, failed = a.GetScheduledEventId(), r.failureText(a.GetFailure())
	case e.GetActivityTaskCanceledEventAttributes() != nil:
		scheduled, failed = e.GetActivityTaskCanceledEventAttributes().GetScheduledEventId(), "canceled"
	default:
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
	return true
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

func (r *historyReader) addIncidentClosed(e *historypb.HistoryEvent) {
	s := r.timeline
	s.Status, s.Closed = "closed", e.GetEventTime().AsTime()
	var stored playbooks.Incident
	if r.decodePayloads(e, "the closed incident", e.GetWorkflowExecutionCompletedEventAttributes().GetResult(), &stored) {
		r.storedIncident = &stored
	}
	r.addEntry(e, KindClosed, "", "The incident was closed: it was idle and had no active lease", nil)
}
