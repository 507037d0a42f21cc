package audit

import (
	"encoding/json"
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
		r.configHashes[d.ConfigHash] = true
		details["config"] = d.ConfigHash
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

// approvalTracker finds approval requests: a request has no event of its own until votes are counted, but its plan and
// the timer of its deadline do.
type approvalTracker struct {
	*historyReader
	openPlans        []pendingPlan
	deadlineTimers   map[int64]string // by the event that started the timer: what was requested
	reportedRequests map[string]bool
}

type pendingPlan struct {
	event *historypb.HistoryEvent
	plan  activities.PlanResult
}

func (a *approvalTracker) trackPlan(e *historypb.HistoryEvent, got activities.PlanResult) {
	// An approved plan is made again before its effect, without a new request.
	if got.Decision.Verdict == activities.VerdictAskApproval && !a.grantedPlanHashes[got.PlanHash] {
		a.openPlans = append(a.openPlans, pendingPlan{e, got})
	}
}

// addTimedRequest adds a request when the timer of its deadline starts.
func (a *approvalTracker) addTimedRequest(e *historypb.HistoryEvent) {
	limit := e.GetTimerStartedEventAttributes().GetStartToFireTimeout().AsDuration()
	if len(a.openPlans) == 0 {
		return
	}
	var approvers playbooks.Approvers
	title := ""
	var about []pendingPlan
	if approval := a.findApprovalStep(limit); approval != nil {
		approvers = approval.Approvers
		title, about, a.openPlans = approval.Title, a.openPlans, nil
	} else {
		i := slices.IndexFunc(a.openPlans, func(p pendingPlan) bool { return p.plan.Decision.Approvers.Timeout == limit })
		if i < 0 {
			return
		}
		about = a.openPlans[i : i+1]
		approvers, title = about[0].plan.Decision.Approvers, about[0].plan.Plan.Action+" of "+
			a.targetName(about[0].plan.Plan.TargetID)
		a.openPlans = slices.Delete(slices.Clone(a.openPlans), i, i+1)
	}
	var plans []activities.PlanResult
	for _, p := range about {
		plans = append(plans, p.plan)
	}
	if a.deadlineTimers == nil {
		a.deadlineTimers = map[int64]string{}
	}
	a.deadlineTimers[e.GetEventId()] = title
	a.addApprovalRequest(e, title, plans, approvers, e.GetEventTime().AsTime().Add(limit))
}

// findApprovalStep returns the approval step of the playbook with this timeout and one of the waiting actions.
func (a *approvalTracker) findApprovalStep(limit time.Duration) *playbooks.Approval {
	if a.program == nil {
		return nil
	}
	var found *playbooks.Approval
	for _, book := range append([]*playbooks.Program{a.program}, a.program.TransitiveCallees()...) {
		book.WalkSteps(func(s *playbooks.Step) {
			if found != nil || s.Approval == nil || s.Approval.Timeout != limit {
				return
			}
			for _, p := range a.openPlans {
				if containsAction(book, s.Approval.Steps, p.plan.Plan.Action) {
					found = s.Approval
				}
			}
		})
	}
	return found
}

// containsAction reports whether an action is among the steps or in what they call.
func containsAction(book *playbooks.Program, steps []playbooks.Step, action string) bool {
	return slices.ContainsFunc(steps, func(s playbooks.Step) bool {
		if s.Call != nil && book.Callees[s.Call.Playbook] != nil && containsAction(book.Callees[s.Call.Playbook],
			book.Callees[s.Call.Playbook].Steps, action) {
			return true
		}
		return s.Action == action || slices.ContainsFunc(s.Blocks(),
			func(b playbooks.StepBlock) bool { return containsAction(book, b.Steps, action) })
	})
}

// addApprovalRequest adds one request.
func (r *historyReader) addApprovalRequest(e *historypb.HistoryEvent, title string, plans []activities.PlanResult,
	approvers playbooks.Approvers, deadline time.Time,
) {
	var would []string
	for _, p := range plans {
		text := strings.Join(p.Plan.Changes, "; ")
		if p.Plan.Duration > 0 {
			text += ", and undo it after " + duration.FormatApprox(p.Plan.Duration)
			if p.Plan.EndMechanism != "" {
				text += " (" + p.Plan.EndMechanism.String() + ")"
			}
		}
		would = append(would, text)
	}
	of := approvers.Describe()
	r.addEntry(
		e,
		KindApprovalRequest,
		"",
		fmt.Sprintf(
			"Requested approval from %s (quorum %d, deadline %s UTC): %s? It would %s",
			of,
			max(approvers.Quorum, 1),
			deadline.UTC().Format("15:04:05"),
			title,
			strings.Join(would, "; "),
		),
		map[string]any{
			"approvers": of, "quorum": max(approvers.Quorum, 1), "deadline": deadline.UTC().Format(time.RFC3339),
			"changes": would, "plan_hash": activities.ApprovalRequestHash(plans, approvers),
		},
	)
}

// addUntimedRequest adds a request whose timer was not recognized, when its votes are first counted.
func (a *approvalTracker) addUntimedRequest(t *activityTask) {
	var q activities.CountVotesInput
	if !a.decodePayloads(t.scheduled, "the approval request",
		t.scheduled.GetActivityTaskScheduledEventAttributes().GetInput(), &q) {
		return
	}
	a.reverify(q)
	if len(a.deadlineTimers) > 0 || a.reportedRequests[q.RequestID] {
		return
	}
	if a.reportedRequests == nil {
		a.reportedRequests = map[string]bool{}
	}
	a.reportedRequests[q.RequestID] = true
	a.addApprovalRequest(t.scheduled, q.RequestID, q.Plans, q.Approvers, q.Deadline)
}

// addApprovalTimeout adds the timeout of a request.
func (a *approvalTracker) addApprovalTimeout(e *historypb.HistoryEvent) {
	if title, ok := a.deadlineTimers[e.GetTimerFiredEventAttributes().GetStartedEventId()]; ok {
		a.addEntry(e, KindApprovalResult, "", fmt.Sprintf("Denied, because the approvers did not decide in time: %s", title),
			nil)
	}
}
