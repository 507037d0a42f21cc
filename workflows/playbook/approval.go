package playbook

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/workflows"
)

// ApprovalRequest is a pending request for approval.
type ApprovalRequest = activities.ApprovalRequest

// openRequest is a pending request with the channel that wakes the branch that waits for it.
type openRequest struct {
	ApprovalRequest
	wakeUp       workflow.Channel
	countedVotes int // number of its votes that are counted
}

// maxAnsweredRequests is the maximum number of closed requests that a run remembers for late answers.
const maxAnsweredRequests = 50

// maxVotesPerRequest limits the votes that a flood can put into the workflow's state.
const maxVotesPerRequest = 100

// receiveVote adds a vote to its request, once for each statement of a person, so that nobody can use up the limit of
// others. Whose vote it is and whether it counts is decided by its signature, when votes are counted.
func (r *playbookRun) receiveVote(v attestation.Envelope) {
	says := voteContentOf(v)
	p := r.openRequests[says.Step]
	if p == nil || len(p.Votes) >= maxVotesPerRequest ||
		slices.ContainsFunc(p.Votes, func(o attestation.Envelope) bool { return voteContentOf(o) == says }) {
		return
	}
	p.Votes = append(p.Votes, v)
	p.wakeUp.SendAsync(true)
}

// voteContent is the content of a vote; two votes with equal content are one.
type voteContent struct {
	Step, PlanHash, Person, Refused string
	Approve, BreakGlass             bool
}

func voteContentOf(v attestation.Envelope) voteContent {
	var b attestation.Vote
	if json.Unmarshal(v.Payload, &b) != nil {
		return voteContent{}
	}
	return voteContent{b.Step, b.PlanHash, b.Person, b.RejectionReason, b.Approved, b.BreakGlass}
}

// yieldToVoteReceiver lets the branch that receives votes run first: if one task brings votes and the deadline, the
// asking branch may otherwise see the deadline first.
func (r *playbookRun) yieldToVoteReceiver(ctx workflow.Context) {
	turn := workflow.NewChannel(ctx)
	workflow.Go(ctx, func(ctx workflow.Context) { turn.Send(ctx, true) })
	turn.Receive(ctx, nil)
}

// requestMessageSync notifies the message workflow of a change. It does not wait: the message also syncs regularly.
func (r *playbookRun) requestMessageSync(ctx workflow.Context) {
	if r.input.ChatEnabled {
		workflow.SignalExternalWorkflow(ctx, workflows.ChatMessageWorkflowID(r.incidentRef.ID), "",
			workflows.SignalSyncMessage, nil)
	}
}

type approvalResult struct {
	granted bool
	reason  string
	grants  map[string]attestation.Envelope // by plan hash
}

const (
	// recountInterval is the delay after votes could not be counted, and recountWindow how long after the deadline
	// counting is retried.
	recountInterval = 5 * time.Second
	recountWindow   = 10 * time.Minute
)

// waitForApproval waits until the votes approve or deny, or until the deadline, which denies.
func (r *playbookRun) waitForApproval(ctx workflow.Context, q ApprovalRequest) (got approvalResult) {
	r.requestCount++
	p := &openRequest{ApprovalRequest: q, wakeUp: workflow.NewBufferedChannel(ctx, maxVotesPerRequest)}
	p.ID, p.WorkflowID, p.IncidentID = fmt.Sprintf("%s#%d", p.Step, r.requestCount), r.workflowID, r.incidentRef.ID
	p.PlansHash, p.AskedAt = activities.ApprovalRequestHash(p.Plans, p.Approvers), workflow.Now(ctx)
	p.Deadline = p.AskedAt.Add(p.Approvers.Timeout)
	if p.Approvers.IsEmpty() {
		return approvalResult{reason: "the scope has no approvers"}
	}
	r.openRequests[p.ID] = p
	r.requestMessageSync(ctx)
	defer func() { r.closeRequest(ctx, p, got) }()
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	deadline := workflow.NewTimer(timerCtx, p.Approvers.Timeout)
	for {
		late := false
		workflow.NewSelector(ctx).
			AddReceive(p.wakeUp, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil) }).
			AddFuture(deadline, func(workflow.Future) { late = true }).
			Select(ctx)
		if r.suspendedReason != "" && !late && len(p.Votes) == p.countedVotes {
			return approvalResult{reason: r.suspendedReason}
		}
		nobody := approvalResult{reason: fmt.Sprintf("no approver voted within %s", duration.Format(p.Approvers.Timeout))}
		if n := len(p.ApprovedBy); n > 0 {
			nobody.reason = fmt.Sprintf("%d of %d required approvals within %s", n, max(p.Approvers.Quorum, 1),
				duration.Format(p.Approvers.Timeout))
		}
		// Votes that arrived in time count, even if no worker was available to count them before.
		if r.yieldToVoteReceiver(ctx); ctx.Err() != nil || late && len(p.Votes) == p.countedVotes {
			return nobody
		}
		t, err := r.countVotes(ctx, p)
		for err != nil && workflow.Now(ctx).Before(p.Deadline.Add(recountWindow)) &&
			workflow.Sleep(ctx, recountInterval) == nil {
			t, err = r.countVotes(ctx, p)
		}
		if err == nil {
			p.ApprovedBy, p.IgnoredVotes = t.ApprovedBy, t.IgnoredVotes
		}
		switch {
		case err != nil:
			return approvalResult{reason: "the votes could not be counted: " + activityErrorText(err)}
		case t.Denied:
			return approvalResult{reason: t.Reason}
		case t.Granted:
			return approvalResult{granted: true, reason: t.Reason, grants: t.GrantsByPlanHash}
		case late:
			return nobody
		}
		r.requestMessageSync(ctx)
	}
}

// closeRequest records the result of an approval request.
func (r *playbookRun) closeRequest(ctx workflow.Context, p *openRequest, got approvalResult) {
	delete(r.openRequests, p.ID)
	r.answeredRequests = lastN(append(r.answeredRequests, activities.ApprovalOutcome{
		ID: p.ID, Step: p.Step, Title: p.Title, Granted: got.granted, Reason: got.reason, ApprovedBy: p.ApprovedBy,
		DecidedAt: workflow.Now(ctx),
	}), maxAnsweredRequests)
	r.requestMessageSync(ctx)
}

func (r *playbookRun) countVotes(ctx workflow.Context, p *openRequest) (activities.VoteCount, error) {
	p.countedVotes = len(p.Votes)
	var set *activities.Activities
	var t activities.VoteCount
	o := workflow.ActivityOptions{
		TaskQueue:           r.input.LeaseTiming.Route.DefaultQueue(),
		StartToCloseTimeout: 10 * time.Second, ScheduleToCloseTimeout: time.Minute,
	}
	in := activities.CountVotesInput{
		IncidentID: r.incidentRef.ID, WorkflowID: r.workflowID, RequestID: p.ID, PlansHash: p.PlansHash, Plans: p.Plans,
		Targets: p.Targets, Approvers: p.Approvers,
		Votes: p.Votes, AskedAt: p.AskedAt, Deadline: p.Deadline, PlaybookAuthorization: r.input.PlaybookAuthorization,
	}
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.CountVotes, in).Get(ctx, &t)
	if err != nil {
		workflow.GetLogger(ctx).Error("count the votes", "error", err)
	}
	return t, err //nolint:wrapcheck // it is logged
}

// runApproval plans every containment inside the approval, requests approval for all of them together, and runs those
// that were approved.
func (r *playbookRun) runApproval(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	a := s.Approval
	planning := f
	if r.input.LanguageVersion >= 2 {
		planning = f.branchFrame() // values that are set during planning are set again during the run
	}
	w := &planner{playbookRun: r, plannedKeys: map[string]bool{}}
	plans, reasons := w.planSteps(ctx, planning, a.Steps)
	if w.limitExceeded {
		plans, reasons = plannedActions{}, []string{
			fmt.Sprintf("it would request approval of more than %d changes at once; split the step", maxPlansPerApproval),
		}
	}
	runnable := plans.runnableIfApproved()
	if len(plans.plans) > 0 && len(runnable.plans) == 0 {
		reason := plans.plans[0].Decision.Reason
		r.recordStepReport(ctx, f, s, playbooks.StepReport{
			Outcome: playbooks.OutcomeProposed,
			Reason:  "would request approval: " + reason,
		})
		r.runSteps(ctx, f.withApproval(&approvedGrants{approval: a, proposeOnly: true, title: a.Title}), a.Steps)
		return stepOutcome{Outcome: playbooks.OutcomeProposed, reason: reason}
	}
	text, err := f.RenderTemplate(a.Question, f.env)
	if err != nil {
		reasons = append(reasons, "`ask`: "+err.Error())
	}
	if len(reasons) > 0 {
		r.recordStepReport(ctx, f, s, playbooks.StepReport{
			Outcome: playbooks.OutcomeFailed,
			Reason:  strings.Join(reasons, "; "),
		})
		return stepOutcome{Outcome: playbooks.OutcomeFailed, reason: reasons[0]}
	}
	got := r.waitForApproval(ctx, ApprovalRequest{
		Step: f.stepName(s), Title: a.Title, Question: text, Plans: runnable.plans, Targets: runnable.targets,
		Approvers: a.Approvers,
	})
	if r.suspendedReason != "" {
		got = approvalResult{reason: r.suspendedReason}
	}
	if !got.granted {
		r.recordStepReport(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeDenied, Reason: got.reason})
		return stepOutcome{Outcome: playbooks.OutcomeDenied, reason: got.reason}
	}
	r.recordStepReport(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeSucceeded, Reason: got.reason})
	r.runSteps(ctx, f.withApproval(&approvedGrants{
		approval: a, grants: got.grants, title: a.Title,
		approvedPlans: runnable,
	}), a.Steps)
	return stepOutcome{Outcome: playbooks.OutcomeSucceeded, reason: got.reason}
}

// plannedActions are plans with their targets.
type plannedActions struct {
	plans   []activities.PlanResult
	targets []playbooks.Target
}

func (p *plannedActions) addPlan(r activities.PlanResult, target playbooks.Target) {
	p.plans, p.targets = append(p.plans, r), append(p.targets, target)
}

// runnableIfApproved returns the plans that an approval would let run.
func (p plannedActions) runnableIfApproved() plannedActions {
	var out plannedActions
	for i, r := range p.plans {
		if r.Decision.Verdict != activities.VerdictPropose && r.Decision.Verdict != activities.VerdictRefuse {
			out.addPlan(r, p.targets[i])
		}
	}
	return out
}

// findPlan returns the plan for a target and an action.
func (p plannedActions) findPlan(target, action string) (activities.PlanResult, bool) {
	for _, r := range p.plans {
		if r.Plan.TargetID == target && r.Plan.Action == action {
			return r, true
		}
	}
	return activities.PlanResult{}, false
}

// maxPlansPerApproval is the maximum number of plans in one request.
const maxPlansPerApproval = 200

// planner plans the containments inside an approval.
type planner struct {
	*playbookRun
	plannedKeys   map[string]bool
	limitExceeded bool // there are too many plans
}

// planSteps plans the containments inside an approval, through loops and calls. Steps under `on_failure` or an `if` are
// planned too: approvers see everything that their approval may cause.
func (w *planner) planSteps(ctx workflow.Context, f executionFrame, steps []playbooks.Step) (plans plannedActions,
	problems []string,
) {
	r := w.playbookRun
	inner := func(f executionFrame) executionFrame {
		if r.input.LanguageVersion < 2 {
			return f
		}
		return f.branchFrame() // values set inside are not visible outside
	}
	take := func(p plannedActions, q []string) {
		plans.plans, plans.targets, problems = append(plans.plans, p.plans...), append(plans.targets, p.targets...),
			append(problems, q...)
	}
	for i := range steps {
		s := &steps[i]
		switch {
		case s.Verb == playbooks.VerbContain:
			take(w.planAction(ctx, f, s))
		case s.Assignments != nil:
			if run, err := f.EvalCondition(s.If, f.env); err != nil || !run {
				break
			}
			_ = f.EvalAssignments(s, f.env) // unknown values are planned, and requested, again when they are known
		case s.ForEach != nil:
			items, err := f.EvalLoopItems(s.ForEach, f.env)
			if err != nil || len(items) > s.ForEach.MaxItems {
				break // it is refused when it runs
			}
			for n, item := range items {
				take(w.planSteps(ctx, f.loopFrame(s, n, item), s.ForEach.Steps))
			}
		case s.Call != nil:
			callee, err := f.calleeFrame(s)
			if err != nil {
				problems = append(problems, err.Error())
				break
			}
			take(w.planSteps(ctx, callee, callee.Steps))
		}
		for i := range s.Parallel {
			branch := inner(f)
			take(w.planSteps(ctx, branch, s.Parallel[i:i+1]))
			if r.input.LanguageVersion >= 2 {
				f.env.Merge(branch.env, &s.Parallel[i])
			}
		}
		take(w.planSteps(ctx, inner(f), s.OnFailure))
		take(w.planSteps(ctx, inner(f), s.OnDenied))
	}
	return plans, problems
}

// planAction plans one containment on each of its targets. It skips what is already planned.
func (w *planner) planAction(ctx workflow.Context, f executionFrame, s *playbooks.Step) (plans plannedActions,
	problems []string,
) {
	r := w.playbookRun
	params, err := f.EvalArguments(s, f.env)
	if err != nil {
		return plans, []string{err.Error()}
	}
	targets, err := r.resolveTargets(f, s)
	if err != nil {
		return plans, []string{err.Error()}
	}
	for _, target := range targets {
		key := strings.Join([]string{s.Action, target.ID(), string(params), s.LeaseDuration.String()}, "\x00")
		if r.input.LanguageVersion >= 2 && w.plannedKeys[key] {
			continue
		}
		if w.plannedKeys[key] = true; len(w.plannedKeys) > maxPlansPerApproval {
			w.limitExceeded = true
			return plans, problems
		}
		request := r.newRequest(f, s, params, target)
		request.Duration, request.ExpiresAt = s.LeaseDuration, workflow.Now(ctx).Add(s.LeaseDuration)
		result, err := r.planContainment(ctx, s, request, activities.Authorization{
			RequiresGrant: true,
			Receipts:      r.allEvidenceReceipts(), Attestations: r.attestationsFor(target),
		})
		if err != nil {
			problems = append(problems, activityErrorText(err))
			continue
		}
		plans.addPlan(result, target)
	}
	return plans, problems
}

// attestationsFor returns the attestations of a target. A workload has none of its own; those of its pods show which
// drill registered it.
func (r *playbookRun) attestationsFor(t playbooks.Target) []attestation.Envelope {
	if t.Kind != playbooks.TargetWorkload {
		return lastN(r.input.Attestations[t.ID()], 8)
	}
	var all []attestation.Envelope
	for _, pod := range r.input.Incident.Targets {
		all = append(all, lastN(r.input.Attestations[pod.ID()], 1)...)
	}
	return lastN(all, 8)
}

func (r *playbookRun) allEvidenceReceipts() []attestation.Envelope {
	var all []attestation.Envelope
	for _, t := range r.input.Incident.Targets {
		all = append(all, lastN(r.receipts[t.ID()], 1)...)
	}
	return all
}
