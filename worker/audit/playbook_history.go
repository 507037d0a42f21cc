package audit

import (
	"encoding/json"
	"fmt"
	"strings"

	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// readPlaybook reads one run of a playbook.
func (r *historyReader) readPlaybook() {
	fact := PlaybookRecord{PlaybookWorkflowID: r.run.WorkflowID, Steps: []playbooks.StepReport{}}
	asks := &approvalTracker{historyReader: r}
	for _, e := range r.run.Events {
		switch {
		case startedAttributes(e) != nil:
			var in playbook.Input
			if r.decodePayloads(e, "the playbook's input", startedAttributes(e).GetInput(), &in) {
				fact.Name, fact.SourceHash, r.program = r.parsePlaybookSource(in)
				fact.File, fact.EventRef = in.File, r.eventRef(e)
			}
		case e.GetMarkerRecordedEventAttributes() != nil:
			if got, ok := r.readPlanResult(e); ok {
				asks.trackPlan(e, got)
			}
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			if t := r.trackScheduled(e); t.name == "CountVotes" {
				asks.addUntimedRequest(t)
			}
		case e.GetActivityTaskStartedEventAttributes() != nil:
			r.trackStarted(e)
		case e.GetTimerStartedEventAttributes() != nil:
			asks.addTimedRequest(e)
		case e.GetTimerFiredEventAttributes() != nil:
			asks.addApprovalTimeout(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.addPlaybookSignal(e)
		case r.addActivityEnd(e):
		case e.GetWorkflowExecutionCompletedEventAttributes() != nil:
			r.addPlaybookEnded(e, &fact)
		case e.GetStartChildWorkflowExecutionFailedEventAttributes() != nil: // the playbook joins the lease instead
		case e.GetSignalExternalWorkflowExecutionFailedEventAttributes() != nil:
			// A report to a workflow that has ended: nothing is lost, its history is closed.
		default:
			r.addFailureEvents(e)
		}
	}
	r.markUnassignedVotes()
	r.timeline.Playbooks = append(r.timeline.Playbooks, fact)
}

func (r *historyReader) readPlanResult(e *historypb.HistoryEvent) (activities.PlanResult, bool) {
	var got activities.PlanResult
	name, attempt := r.readLocalActivityMarker(e)
	if name != "Plan" {
		return got, false
	}
	a := e.GetMarkerRecordedEventAttributes()
	if a.GetFailure() != nil {
		r.addEntry(e, KindFailure, "", "Planning failed: "+r.failureText(a.GetFailure()), map[string]any{"attempt": attempt})
		return got, false
	}
	if !r.decodePayloads(e, "the plan", a.GetDetails()["result"], &got) {
		return got, false
	}
	if attempt > 1 {
		r.addEntry(e, KindRetry, "", fmt.Sprintf("Planning needed %d attempts", attempt), map[string]any{"attempt": attempt})
	}
	r.addDecision(e, got)
	return got, true
}

// addDecision adds the guards' decision about a plan.
func (r *historyReader) addDecision(e *historypb.HistoryEvent, got activities.PlanResult) {
	d, p := got.Decision, got.Plan
	if got.PlanHash != "" && p.Hash() != got.PlanHash {
		r.addProblem(e, "the plan of %s does not match its hash", p.Action)
	}
	details := decisionDetails(got)
	if d.ConfigHash != "" {
		r.configHashes[d.ConfigHash] = true
	}
	what := "a containment"
	if p.Action != "" {
		what = p.Action + " on " + r.targetName(p.TargetID)
	}
	if r.isRepeatedDecision(got) {
		r.addEntry(e, KindDecision, "", fmt.Sprintf("Planned again before %s: the plan is unchanged", what), details)
		return
	}
	would := strings.Join(p.Changes, "; ")
	if p.Duration > 0 {
		would += ", and undo it after " + duration.FormatApprox(p.Duration)
	}
	if len(p.Warnings) > 0 {
		would += ". Warning: " + strings.Join(p.Warnings, "; ")
	}
	switch d.Verdict {
	case activities.VerdictRun:
		r.addEntry(e, KindDecision, "", fmt.Sprintf("Decided to run %s: %s. It will %s", what, d.Reason, would), details)
	case activities.VerdictAskApproval:
		r.addEntry(e, KindDecision, "", fmt.Sprintf("Requires approval before %s: %s. It would %s", what, d.Reason, would),
			details)
	case activities.VerdictPropose:
		r.addEntry(e, KindDecision, "", fmt.Sprintf("Only proposed: %s. %s. It would %s", what, toSentence(d.Reason), would),
			details)
	case activities.VerdictRefuse:
		r.addEntry(e, KindRefusal, "", fmt.Sprintf("Refused %s: %s (%s)", what, d.Reason, guardName(d.Guard)), details)
	default:
		r.addProblem(e, "unknown verdict %q", d.Verdict)
	}
}

// decisionDetails returns the facts of a plan and of the guards' decision about it.
func decisionDetails(got activities.PlanResult) map[string]any {
	d, p := got.Decision, got.Plan
	details := map[string]any{
		"verdict": string(d.Verdict), "guard": d.Guard, "reason": d.Reason, "phase": d.Phase,
		"action": p.Action, "target": p.TargetID,
	}
	if got.PlanHash != "" {
		details["plan_hash"] = got.PlanHash
	}
	if len(p.Changes) > 0 {
		details["changes"] = p.Changes
	}
	if len(p.Warnings) > 0 {
		details["warnings"] = p.Warnings
	}
	if len(p.Params) > 0 {
		details["params"] = string(p.Params)
	}
	if d.BasisID != "" {
		details["on"] = d.BasisID
	}
	if p.Duration > 0 {
		details["for"] = duration.FormatApprox(p.Duration)
	}
	if p.EndMechanism != "" {
		details["ends"] = p.EndMechanism.String()
	}
	if d.ConfigHash != "" {
		details["config"] = d.ConfigHash
	}
	return details
}

// isRepeatedDecision reports whether the same plan had the same verdict in this run before.
func (r *historyReader) isRepeatedDecision(got activities.PlanResult) bool {
	if got.PlanHash == "" {
		return false
	}
	key := got.PlanHash + string(got.Decision.Verdict)
	before := r.decidedPlans[key]
	r.decidedPlans[key] = true
	return before
}

func guardName(guard string) string {
	if guard == "" || guard == "action" {
		return "the action"
	}
	return "guard " + guard
}

func toSentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (r *historyReader) addPlaybookSignal(e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionSignaledEventAttributes()
	switch a.GetSignalName() {
	case workflows.SignalVote:
		var signed attestation.Envelope
		if r.decodePayloads(e, "a vote", a.GetInput(), &signed) {
			r.addVote(e, signed)
		}
	// the histories of the lease and the incident contain it
	case workflows.SignalLeaseReport, workflows.SignalIncidentState:
	case workflows.SignalSuspend:
		var why string
		if r.decodePayloads(e, "the reason of the suspension", a.GetInput(), &why) {
			r.addEntry(e, KindTriage, "", "The playbook run was suspended; it starts no further containments and requests no "+
				"approvals: "+why, nil)
		}
	default:
		r.addEntry(e, KindFailure, a.GetIdentity(), fmt.Sprintf("Received the unknown signal %q from %s", a.GetSignalName(),
			a.GetIdentity()), nil)
	}
}

func (r *historyReader) addPlaybookEnded(e *historypb.HistoryEvent, fact *PlaybookRecord) {
	var report playbook.Report
	if !r.decodePayloads(e, "the playbook's report", e.GetWorkflowExecutionCompletedEventAttributes().GetResult(),
		&report) {
		return
	}
	if report.SourceHash != "" && report.SourceHash != fact.SourceHash {
		r.addProblem(e, "the report has the playbook SHA-256 %s, but the playbook that ran has %s",
			shortHash(report.SourceHash), shortHash(fact.SourceHash))
	}
	fact.Steps, fact.Error = report.Steps, report.Error
	if report.Error != "" {
		r.addEntry(e, KindFailure, "", fmt.Sprintf("Playbook %s failed: %s", fact.Name, report.Error), nil)
		return
	}
	var parts []string
	steps := make([]string, 0, len(report.Steps))
	for _, s := range report.Steps {
		text := s.Action + " " + string(s.Outcome)
		if s.Outcome != playbooks.OutcomeChanged && s.Outcome != playbooks.OutcomeSucceeded && s.Reason != "" {
			text += " (" + s.Reason + ")"
		}
		steps = append(steps, s.Step+": "+text)
		parts = append(parts, s.Action+" "+string(s.Outcome))
	}
	r.addEntry(e, KindPlaybookEnded, "", fmt.Sprintf("Playbook %s ended: %s", fact.Name, strings.Join(parts, ", ")),
		map[string]any{"steps": steps})
}

// approvalRequestName returns the name of an approval request: its step's title or action, from the playbook.
func (r *historyReader) approvalRequestName(id string) string {
	step, _, _ := strings.Cut(id, "#")
	name := ""
	if r.program != nil {
		r.program.WalkSteps(func(s *playbooks.Step) {
			switch {
			case s.Name() != step:
			case s.Approval != nil:
				name = s.Approval.Title
			default:
				name = s.Action
			}
		})
	}
	if name == "" {
		return fmt.Sprintf("%q", id)
	}
	return fmt.Sprintf("%q (request %s)", name, id)
}

// notificationText returns the text of a notification, from its parameters.
func notificationText(params json.RawMessage) string {
	var p struct {
		Text  string `json:"text"`
		Title string `json:"title"`
	}
	if json.Unmarshal(params, &p) != nil || p.Text+p.Title == "" {
		return ""
	}
	return ": " + strings.TrimSpace(p.Title+" "+p.Text)
}
