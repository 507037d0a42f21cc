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
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/workflows"
)

// Pending is one question that waits for people.
type Pending = activities.ApprovalRequest

// open is a question with what wakes who waits for its answer.
type open struct {
	Pending
	changed workflow.Channel
	counted int // so many of its votes
}

// maxAnswered bounds how many closed questions a run remembers for those who answer late.
const maxAnswered = 50

// maxVotes bounds what a flood of votes can put into the workflow's state.
const maxVotes = 100

// vote puts a vote to its question, once for each thing that a person says: nobody can fill the place of the others.
// Whose vote it really is, and whether it counts, is judged by its signature when it is counted.
func (r *run) vote(v attestation.Envelope) {
	says := said(v)
	p := r.pending[says.Step]
	if p == nil || len(p.Votes) >= maxVotes || slices.ContainsFunc(p.Votes, func(o attestation.Envelope) bool { return said(o) == says }) {
		return
	}
	p.Votes = append(p.Votes, v)
	p.changed.SendAsync(true)
}

// saying is what a vote says, as far as two that say the same are one.
type saying struct {
	Step, PlanHash, Person, Refused string
	Approve, BreakGlass             bool
}

func said(v attestation.Envelope) saying {
	var b attestation.Vote
	if json.Unmarshal(v.Payload, &b) != nil {
		return saying{}
	}
	return saying{b.Step, b.PlanHash, b.Person, b.RejectionReason, b.Approved, b.BreakGlass}
}

// drain lets the branch that takes votes in have its turn: where a task brings votes and the deadline at once, the
// branch that asks may come first.
func (r *run) drain(ctx workflow.Context) {
	turn := workflow.NewChannel(ctx)
	workflow.Go(ctx, func(ctx workflow.Context) { turn.Send(ctx, true) })
	turn.Receive(ctx, nil)
}

// look tells the thread that there is something to show. Nobody waits for it: the thread looks by itself too.
func (r *run) look(ctx workflow.Context) {
	if r.in.Thread {
		workflow.SignalExternalWorkflow(ctx, workflows.ThreadID(r.brief.ID), "", workflows.SignalLook, nil)
	}
}

type answer struct {
	granted bool
	reason  string
	grants  map[string]attestation.Envelope // by plan hash
}

// ApproversOf is whom an approval asks.
func ApproversOf(a *playbooks.Approval) activities.Approvers {
	out := activities.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, Timeout: a.Timeout}
	if e := a.Escalate; e != nil {
		out.Escalate = &activities.Escalation{After: e.After, Groups: e.Groups, Users: e.Users}
	}
	return out
}

const (
	// recount is how long to wait when votes could not be counted, recountFor how long after the deadline it is tried.
	recount    = 5 * time.Second
	recountFor = 10 * time.Minute
)

// ask waits until the votes permit or deny, or until nobody answered in time, which denies.
func (r *run) ask(ctx workflow.Context, q Pending) (got answer) {
	r.asked++
	p := &open{Pending: q, changed: workflow.NewBufferedChannel(ctx, maxVotes)}
	p.ID, p.WorkflowID, p.IncidentID = fmt.Sprintf("%s#%d", p.Step, r.asked), r.id, r.brief.ID
	p.PlansHash, p.AskedAt = activities.ApprovalRequestHash(p.Plans, p.Approvers), workflow.Now(ctx)
	p.Deadline = p.AskedAt.Add(p.Approvers.Timeout)
	if p.Approvers.IsEmpty() {
		return answer{reason: "nobody may approve: the scope names no approvers"}
	}
	r.pending[p.ID] = p
	r.look(ctx)
	defer func() {
		delete(r.pending, p.ID)
		r.answered = last(append(r.answered, activities.ApprovalOutcome{ID: p.ID, Step: p.Step, Title: p.Title, Granted: got.granted, Reason: got.reason, ApprovedBy: p.ApprovedBy, DecidedAt: workflow.Now(ctx)}), maxAnswered)
		r.look(ctx)
	}()
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	deadline := workflow.NewTimer(timerCtx, p.Approvers.Timeout)
	for {
		late := false
		workflow.NewSelector(ctx).
			AddReceive(p.changed, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil) }).
			AddFuture(deadline, func(workflow.Future) { late = true }).
			Select(ctx)
		if r.haltEnds && !late && len(p.Votes) == p.counted {
			return answer{reason: r.halted}
		}
		nobody := answer{reason: fmt.Sprintf("nobody with the right answered within %s", duration.Format(p.Approvers.Timeout))}
		if n := len(p.ApprovedBy); n > 0 {
			nobody.reason = fmt.Sprintf("%d of the %d who must agree did within %s", n, max(p.Approvers.Quorum, 1), duration.Format(p.Approvers.Timeout))
		}
		// What was given in time counts, also where no worker was there to count it until now.
		if r.drain(ctx); ctx.Err() != nil || late && len(p.Votes) == p.counted {
			return nobody
		}
		t, err := r.tally(ctx, p)
		for err != nil && workflow.Now(ctx).Before(p.Deadline.Add(recountFor)) && workflow.Sleep(ctx, recount) == nil {
			t, err = r.tally(ctx, p)
		}
		if err == nil {
			p.ApprovedBy, p.IgnoredVotes = t.ApprovedBy, t.IgnoredVotes
		}
		switch {
		case err != nil:
			return answer{reason: "the votes could not be counted: " + activityError(err)}
		case t.Denied:
			return answer{reason: t.Reason}
		case t.Granted:
			return answer{granted: true, reason: t.Reason, grants: t.GrantsByPlanHash}
		case late:
			return nobody
		}
		r.look(ctx)
	}
}

func (r *run) tally(ctx workflow.Context, p *open) (activities.VoteCount, error) {
	p.counted = len(p.Votes)
	var set *activities.Activities
	var t activities.VoteCount
	o := workflow.ActivityOptions{TaskQueue: r.in.Timing.Route.Anywhere(), StartToCloseTimeout: 10 * time.Second, ScheduleToCloseTimeout: time.Minute}
	in := activities.CountVotesInput{
		IncidentID: r.brief.ID, WorkflowID: r.id, RequestID: p.ID, PlansHash: p.PlansHash, Plans: p.Plans, Targets: p.Targets, Approvers: p.Approvers,
		Votes: p.Votes, AskedAt: p.AskedAt, Deadline: p.Deadline, PlaybookAuthorization: r.in.Selection,
	}
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.CountVotes, in).Get(ctx, &t)
	if err != nil {
		workflow.GetLogger(ctx).Error("count the votes", "error", err)
	}
	return t, err //nolint:wrapcheck // it is logged
}

// approval plans every containment that it wraps, asks for all of them at once, and runs what was permitted.
func (r *run) approval(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	a := s.Approval
	planning := f
	if r.in.Language >= 2 {
		planning = f.branch() // what is set while it is planned is set again when it runs
	}
	w := &wrapping{run: r, seen: map[string]bool{}}
	plans, reasons := w.steps(ctx, planning, a.Steps)
	if w.over {
		plans, reasons = planned{}, []string{fmt.Sprintf("it would ask about more than %d things at once: nobody can judge that", maxPlans)}
	}
	runnable := plans.runnable()
	if len(plans.results) > 0 && len(runnable.results) == 0 {
		reason := plans.results[0].Decision.Reason
		r.note(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeProposed, Reason: "would ask: " + reason})
		r.steps(ctx, f.permitted(&approved{approval: a, propose: true, title: a.Title}), a.Steps)
		return outcome{Outcome: playbooks.OutcomeProposed, reason: reason}
	}
	text, err := f.RenderTemplate(a.Question, f.env)
	if err != nil {
		reasons = append(reasons, "`ask`: "+err.Error())
	}
	if len(reasons) > 0 {
		r.note(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeFailed, Reason: strings.Join(reasons, "; ")})
		return outcome{Outcome: playbooks.OutcomeFailed, reason: reasons[0]}
	}
	got := r.ask(ctx, Pending{
		Step: f.name(s), Title: a.Title, Question: text, Plans: runnable.results, Targets: runnable.targets, Approvers: ApproversOf(a),
	})
	if r.halted != "" {
		got = answer{reason: r.halted}
	}
	if !got.granted {
		r.note(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeDenied, Reason: got.reason})
		return outcome{Outcome: playbooks.OutcomeDenied, reason: got.reason}
	}
	r.note(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeChanged, Reason: got.reason})
	r.steps(ctx, f.permitted(&approved{approval: a, grants: got.grants, title: a.Title, plans: runnable}), a.Steps)
	return outcome{Outcome: playbooks.OutcomeChanged, reason: got.reason}
}

// planned are plans with their targets.
type planned struct {
	results []activities.PlanResult
	targets []playbooks.Target
}

func (p *planned) add(r activities.PlanResult, target playbooks.Target) {
	p.results, p.targets = append(p.results, r), append(p.targets, target)
}

// runnable are those that a yes would let run.
func (p planned) runnable() planned {
	var out planned
	for i, r := range p.results {
		if r.Decision.Verdict != activities.VerdictPropose && r.Decision.Verdict != activities.VerdictRefuse {
			out.add(r, p.targets[i])
		}
	}
	return out
}

// of is the plan for a target.
func (p planned) of(target, action string) (activities.PlanResult, bool) {
	for _, r := range p.results {
		if r.Plan.TargetID == target && r.Plan.Action == action {
			return r, true
		}
	}
	return activities.PlanResult{}, false
}

// maxPlans bounds what people are asked about at once.
const maxPlans = 200

// wrapping plans what an approval wraps.
type wrapping struct {
	*run
	seen map[string]bool
	over bool // it is too much
}

// steps plans the containments inside of an approval, through loops and calls. What stands under `on_failure` or an
// `if` is planned too: people see all that their yes may lead to.
func (w *wrapping) steps(ctx workflow.Context, f frame, steps []playbooks.Step) (plans planned, problems []string) {
	r := w.run
	inner := func(f frame) frame {
		if r.in.Language < 2 {
			return f
		}
		return f.branch() // what is set there is not set here
	}
	take := func(p planned, q []string) {
		plans.results, plans.targets, problems = append(plans.results, p.results...), append(plans.targets, p.targets...), append(problems, q...)
	}
	for i := range steps {
		s := &steps[i]
		switch {
		case s.Verb == playbooks.VerbContain:
			take(w.action(ctx, f, s))
		case s.Assignments != nil:
			if run, err := f.EvalCondition(s.If, f.env); err != nil || !run {
				break
			}
			_ = f.EvalAssignments(s, f.env) // what cannot be known yet is planned again, and asked again, when it is
		case s.ForEach != nil:
			items, err := f.EvalLoopItems(s.ForEach, f.env)
			if err != nil || len(items) > s.ForEach.MaxItems {
				break // it is refused when it runs
			}
			for n, item := range items {
				take(w.steps(ctx, f.element(s, n, item), s.ForEach.Steps))
			}
		case s.Call != nil:
			callee, err := f.callee(s)
			if err != nil {
				problems = append(problems, err.Error())
				break
			}
			take(w.steps(ctx, callee, callee.Steps))
		}
		for i := range s.Parallel {
			branch := inner(f)
			take(w.steps(ctx, branch, s.Parallel[i:i+1]))
			if r.in.Language >= 2 {
				f.env.Merge(branch.env, &s.Parallel[i])
			}
		}
		take(w.steps(ctx, inner(f), s.OnFailure))
		take(w.steps(ctx, inner(f), s.OnDenied))
	}
	return plans, problems
}

// action plans one containment on each of its targets. What is planned already is not planned twice.
func (w *wrapping) action(ctx workflow.Context, f frame, s *playbooks.Step) (plans planned, problems []string) {
	r := w.run
	params, err := f.EvalArguments(s, f.env)
	if err != nil {
		return plans, []string{err.Error()}
	}
	targets, err := r.targets(f, s)
	if err != nil {
		return plans, []string{err.Error()}
	}
	for _, target := range targets {
		key := strings.Join([]string{s.Action, target.ID(), string(params), s.LeaseDuration.String()}, "\x00")
		if r.in.Language >= 2 && w.seen[key] {
			continue
		}
		if w.seen[key] = true; len(w.seen) > maxPlans {
			w.over = true
			return plans, problems
		}
		request := r.request(f, s, params, target)
		request.Duration, request.ExpiresAt = s.LeaseDuration, workflow.Now(ctx).Add(s.LeaseDuration)
		result, err := r.plan(ctx, s, request, activities.Authorization{RequiresGrant: true, Receipts: r.allReceipts(), Attestations: r.attestations(target)})
		if err != nil {
			problems = append(problems, activityError(err))
			continue
		}
		plans.add(result, target)
	}
	return plans, problems
}

// attestations are those of a target. A workload has none of its own: those of its pods show which drill registered it.
func (r *run) attestations(t playbooks.Target) []attestation.Envelope {
	if t.Kind != playbooks.TargetWorkload {
		return last(r.in.Attestations[t.ID()], 8)
	}
	var all []attestation.Envelope
	for _, pod := range r.in.Incident.Targets {
		all = append(all, last(r.in.Attestations[pod.ID()], 1)...)
	}
	return last(all, 8)
}

func (r *run) allReceipts() []attestation.Envelope {
	var all []attestation.Envelope
	for _, t := range r.in.Incident.Targets {
		all = append(all, last(r.receipts[t.ID()], 1)...)
	}
	return all
}
