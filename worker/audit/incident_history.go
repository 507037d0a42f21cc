package audit

import (
	"fmt"
	"strings"
	"time"

	historypb "go.temporal.io/api/history/v1"

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

func (r *historyReader) addIncidentClosed(e *historypb.HistoryEvent) {
	s := r.timeline
	s.Status, s.Closed = "closed", e.GetEventTime().AsTime()
	var stored playbooks.Incident
	if r.decodePayloads(e, "the closed incident", e.GetWorkflowExecutionCompletedEventAttributes().GetResult(), &stored) {
		r.storedIncident = &stored
	}
	r.addEntry(e, KindClosed, "", "The incident was closed: it was idle and had no active lease", nil)
}
