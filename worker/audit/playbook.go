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
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// playbook tells one run of a playbook.
func (r *reader) playbook() {
	fact := PlaybookFact{Run: r.run.Workflow, Steps: []playbooks.StepReport{}}
	asks := &asking{reader: r}
	for _, e := range r.run.Events {
		switch {
		case input(e) != nil:
			var in playbook.Input
			if r.decode(e, "the playbook's input", input(e).GetInput(), &in) {
				fact.Name, fact.Hash, r.program = r.source(in)
				fact.File, fact.Ref = in.File, r.ref(e)
			}
		case e.GetMarkerRecordedEventAttributes() != nil:
			if got, ok := r.plannedHere(e); ok {
				asks.planned(e, got)
			}
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			if t := r.schedule(e); t.name == "CountVotes" {
				asks.counting(t)
			}
		case e.GetActivityTaskStartedEventAttributes() != nil:
			r.start(e)
		case e.GetTimerStartedEventAttributes() != nil:
			asks.timer(e)
		case e.GetTimerFiredEventAttributes() != nil:
			asks.late(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.playbookSignal(e)
		case r.activityEnded(e):
		case e.GetWorkflowExecutionCompletedEventAttributes() != nil:
			r.playbookEnded(e, &fact)
		case e.GetStartChildWorkflowExecutionFailedEventAttributes() != nil: // it is joined instead
		case e.GetSignalExternalWorkflowExecutionFailedEventAttributes() != nil:
			// A report to a workflow that has ended: nothing is lost, its history has closed.
		default:
			r.common(e)
		}
	}
	r.unanswered()
	r.story.Playbooks = append(r.story.Playbooks, fact)
}

func (r *reader) plannedHere(e *historypb.HistoryEvent) (activities.PlanResult, bool) {
	var got activities.PlanResult
	name, attempt := r.marker(e)
	if name != "Plan" {
		return got, false
	}
	a := e.GetMarkerRecordedEventAttributes()
	if a.GetFailure() != nil {
		r.line(e, KindFailure, "", "planning failed: "+r.failure(a.GetFailure()), map[string]any{"attempt": attempt})
		return got, false
	}
	if !r.decode(e, "the plan", a.GetDetails()["result"], &got) {
		return got, false
	}
	if attempt > 1 {
		r.line(e, KindRetry, "", fmt.Sprintf("Planning needed %d attempts", attempt), map[string]any{"attempt": attempt})
	}
	r.decided(e, got)
	return got, true
}

// decided tells what the guards said of a plan.
func (r *reader) decided(e *historypb.HistoryEvent, got activities.PlanResult) {
	d, p := got.Decision, got.Plan
	if got.PlanHash != "" && p.Hash() != got.PlanHash {
		r.problem(e, "the plan of %s is not the one that was hashed", p.Action)
	}
	details := map[string]any{"verdict": string(d.Verdict), "guard": d.Guard, "reason": d.Reason, "phase": d.Phase, "action": p.Action, "target": p.TargetID}
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
		r.configs[d.ConfigHash] = true
		details["config"] = d.ConfigHash
	}
	what := "a containment"
	if p.Action != "" {
		what = p.Action + " on " + r.targetName(p.TargetID)
	}
	if r.decidedBefore(got) {
		r.line(e, KindDecision, "", fmt.Sprintf("Looked once more before %s: the plan is still the same", what), details)
		return
	}
	would := strings.Join(p.Changes, "; ")
	if p.Duration > 0 {
		would += ", and undo it after " + duration.FormatApprox(p.Duration)
	}
	if len(p.Warnings) > 0 {
		would += ". But: " + strings.Join(p.Warnings, "; ")
	}
	switch d.Verdict {
	case activities.VerdictRun:
		r.line(e, KindDecision, "", fmt.Sprintf("Decided to run %s: %s. It will %s", what, d.Reason, would), details)
	case activities.VerdictAskApproval:
		r.line(e, KindDecision, "", fmt.Sprintf("Decided to ask people before %s: %s. It would %s", what, d.Reason, would), details)
	case activities.VerdictPropose:
		r.line(e, KindDecision, "", fmt.Sprintf("Not done, only proposed: %s. %s. It would %s", what, sentence(d.Reason), would), details)
	case activities.VerdictRefuse:
		r.line(e, KindRefusal, "", fmt.Sprintf("Refused %s: %s (%s)", what, d.Reason, guardName(d.Guard)), details)
	default:
		r.problem(e, "the verdict %q is unknown", d.Verdict)
	}
}

// decidedBefore tells whether the same plan got the same verdict in this run already.
func (r *reader) decidedBefore(got activities.PlanResult) bool {
	if got.PlanHash == "" {
		return false
	}
	key := got.PlanHash + string(got.Decision.Verdict)
	before := r.plans[key]
	r.plans[key] = true
	return before
}

func guardName(guard string) string {
	if guard == "" || guard == "action" {
		return "the action itself will not"
	}
	return "guard " + guard
}

func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func (r *reader) playbookSignal(e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionSignaledEventAttributes()
	switch a.GetSignalName() {
	case workflows.SignalVote:
		var signed attestation.Envelope
		if r.decode(e, "a vote", a.GetInput(), &signed) {
			r.voted(e, signed)
		}
	case workflows.SignalLeaseReport, workflows.SignalIncidentState: // the histories of the lease and the incident show it
	case workflows.SignalSuspend:
		var why string
		if r.decode(e, "why nothing further is contained", a.GetInput(), &why) {
			r.line(e, KindMark, "", "The run contains nothing further and asks nobody: "+why, nil)
		}
	default:
		r.line(e, KindFailure, a.GetIdentity(), fmt.Sprintf("An unknown signal %q came from %s", a.GetSignalName(), a.GetIdentity()), nil)
	}
}

func (r *reader) playbookEnded(e *historypb.HistoryEvent, fact *PlaybookFact) {
	var report playbook.Report
	if !r.decode(e, "the playbook's report", e.GetWorkflowExecutionCompletedEventAttributes().GetResult(), &report) {
		return
	}
	if report.SourceHash != "" && report.SourceHash != fact.Hash {
		r.problem(e, "the report names the source %s, what ran has SHA-256 %s", digest(report.SourceHash), digest(fact.Hash))
	}
	fact.Steps, fact.Error = report.Steps, report.Error
	if report.Error != "" {
		r.line(e, KindFailure, "", fmt.Sprintf("Playbook %s failed: %s", fact.Name, report.Error), nil)
		return
	}
	var parts []string
	steps := make([]string, 0, len(report.Steps))
	for _, s := range report.Steps {
		text := s.Action + " " + string(s.Outcome)
		if s.Outcome != playbooks.OutcomeChanged && s.Reason != "" {
			text += " (" + s.Reason + ")"
		}
		steps = append(steps, s.Step+": "+text)
		parts = append(parts, s.Action+" "+string(s.Outcome))
	}
	r.line(e, KindEnded, "", fmt.Sprintf("Playbook %s ended: %s", fact.Name, strings.Join(parts, ", ")), map[string]any{"steps": steps})
}

// questionName is a question as people say it: its step's title or action, from the playbook that ran.
func (r *reader) questionName(id string) string {
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
	return fmt.Sprintf("%q (question %s)", name, id)
}

// said is what a notification says, from its parameters.
func said(params json.RawMessage) string {
	var p struct {
		Text  string `json:"text"`
		Title string `json:"title"`
	}
	if json.Unmarshal(params, &p) != nil || p.Text+p.Title == "" {
		return ""
	}
	return ": " + strings.TrimSpace(p.Title+" "+p.Text)
}

// asking finds questions: a question is no event of its own until votes are counted, but its plan and its deadline's
// timer are.
type asking struct {
	*reader
	open   []pendingPlan
	timers map[int64]string // by the event that started it: what was asked
	told   map[string]bool
}

type pendingPlan struct {
	event *historypb.HistoryEvent
	plan  activities.PlanResult
}

func (a *asking) planned(e *historypb.HistoryEvent, got activities.PlanResult) {
	// What people permitted already is planned again before its effect, and not asked again.
	if got.Decision.Verdict == activities.VerdictAskApproval && !a.granted[got.PlanHash] {
		a.open = append(a.open, pendingPlan{e, got})
	}
}

// timer tells a question when the timer of its deadline begins.
func (a *asking) timer(e *historypb.HistoryEvent) {
	limit := e.GetTimerStartedEventAttributes().GetStartToFireTimeout().AsDuration()
	if len(a.open) == 0 {
		return
	}
	var approvers activities.Approvers
	title := ""
	var about []pendingPlan
	if approval := a.approvalOf(limit); approval != nil {
		approvers = playbook.ApproversOfStep(approval)
		title, about, a.open = approval.Title, a.open, nil
	} else {
		i := slices.IndexFunc(a.open, func(p pendingPlan) bool { return p.plan.Decision.Approvers.Timeout == limit })
		if i < 0 {
			return
		}
		about = a.open[i : i+1]
		approvers, title = about[0].plan.Decision.Approvers, about[0].plan.Plan.Action+" of "+a.targetName(about[0].plan.Plan.TargetID)
		a.open = slices.Delete(slices.Clone(a.open), i, i+1)
	}
	var plans []activities.PlanResult
	for _, p := range about {
		plans = append(plans, p.plan)
	}
	if a.timers == nil {
		a.timers = map[int64]string{}
	}
	a.timers[e.GetEventId()] = title
	a.ask(e, title, plans, approvers, e.GetEventTime().AsTime().Add(limit))
}

// approvalOf is the approval step of the playbook that waits so long and wraps one of the actions that wait.
func (a *asking) approvalOf(limit time.Duration) *playbooks.Approval {
	if a.program == nil {
		return nil
	}
	var found *playbooks.Approval
	for _, book := range append([]*playbooks.Program{a.program}, a.program.TransitiveCallees()...) {
		book.WalkSteps(func(s *playbooks.Step) {
			if found != nil || s.Approval == nil || s.Approval.Timeout != limit {
				return
			}
			for _, p := range a.open {
				if wraps(book, s.Approval.Steps, p.plan.Plan.Action) {
					found = s.Approval
				}
			}
		})
	}
	return found
}

// wraps tells whether an action is among steps, or in what they call.
func wraps(book *playbooks.Program, steps []playbooks.Step, action string) bool {
	return slices.ContainsFunc(steps, func(s playbooks.Step) bool {
		if s.Call != nil && book.Callees[s.Call.Playbook] != nil && wraps(book.Callees[s.Call.Playbook], book.Callees[s.Call.Playbook].Steps, action) {
			return true
		}
		return s.Action == action || slices.ContainsFunc(s.Blocks(), func(b playbooks.StepBlock) bool { return wraps(book, b.Steps, action) })
	})
}

// ask tells one question.
func (r *reader) ask(e *historypb.HistoryEvent, title string, plans []activities.PlanResult, approvers activities.Approvers, deadline time.Time) {
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
	r.line(e, KindQuestion, "", fmt.Sprintf("Asked %s, of whom %d must agree, until %s UTC: %s? It would %s", of, max(approvers.Quorum, 1), deadline.UTC().Format("15:04:05"), title, strings.Join(would, "; ")),
		map[string]any{"approvers": of, "quorum": max(approvers.Quorum, 1), "deadline": deadline.UTC().Format(time.RFC3339), "changes": would, "question_hash": activities.ApprovalRequestHash(plans, approvers)})
}

// counting tells a question whose timer was not recognised, when its votes are first counted.
func (a *asking) counting(t *task) {
	var q activities.CountVotesInput
	if !a.decode(t.scheduled, "the question", t.scheduled.GetActivityTaskScheduledEventAttributes().GetInput(), &q) {
		return
	}
	a.rejudge(q)
	if len(a.timers) > 0 || a.told[q.RequestID] {
		return
	}
	if a.told == nil {
		a.told = map[string]bool{}
	}
	a.told[q.RequestID] = true
	a.ask(t.scheduled, q.RequestID, q.Plans, q.Approvers, q.Deadline)
}

// late tells that the time for an answer ran out.
func (a *asking) late(e *historypb.HistoryEvent) {
	if title, ok := a.timers[e.GetTimerFiredEventAttributes().GetStartedEventId()]; ok {
		a.line(e, KindAnswer, "", fmt.Sprintf("Nobody with the right answered in time, which is a no: %s", title), nil)
	}
}
