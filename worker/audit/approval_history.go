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
)

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
