package playbook

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/proof"
)

// Pending is one question that waits for people.
type Pending struct {
	ID        string                  `json:"id"` // within the run
	Run       string                  `json:"run"`
	Incident  string                  `json:"incident"`
	Step      string                  `json:"step"`
	Title     string                  `json:"title"`
	Ask       string                  `json:"ask,omitempty"`
	Plans     []activities.PlanResult `json:"plans"`
	Hash      string                  `json:"hash"` // of all plans: what a vote is bound to
	Approvers activities.Approvers    `json:"approvers"`
	Asked     time.Time               `json:"asked"`
	Deadline  time.Time               `json:"deadline"`
	Votes     []proof.Signed          `json:"votes,omitempty"`

	changed workflow.Channel
}

// maxVotes bounds what a flood of votes can put into the history's state.
const maxVotes = 100

func (r *run) vote(v proof.Signed) {
	for _, id := range slices.Sorted(maps.Keys(r.pending)) {
		p := r.pending[id]
		if len(p.Votes) < maxVotes {
			p.Votes = append(p.Votes, v)
			p.changed.SendAsync(true)
		}
	}
}

type answer struct {
	granted bool
	reason  string
	grants  map[string]proof.Signed // by plan hash
}

// ask waits until the votes permit or deny, or until nobody answered in time, which denies.
func (r *run) ask(ctx workflow.Context, p Pending) answer {
	r.asked++
	p.ID, p.Run, p.Incident = fmt.Sprintf("%s#%d", p.Step, r.asked), r.id, r.brief.ID
	p.Hash, p.Asked = activities.QuestionHash(p.Plans, p.Approvers), workflow.Now(ctx)
	p.Deadline = p.Asked.Add(p.Approvers.Timeout)
	p.changed = workflow.NewBufferedChannel(ctx, maxVotes)
	if len(p.Approvers.Groups)+len(p.Approvers.Users) == 0 {
		return answer{reason: "nobody may approve: the scope names no approvers"}
	}
	r.pending[p.ID] = &p
	defer delete(r.pending, p.ID)
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	deadline := workflow.NewTimer(timerCtx, p.Approvers.Timeout)
	for {
		late := false
		workflow.NewSelector(ctx).
			AddReceive(p.changed, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil) }).
			AddFuture(deadline, func(workflow.Future) { late = true }).
			Select(ctx)
		if late || ctx.Err() != nil {
			return answer{reason: fmt.Sprintf("nobody with the right answered within %s", p.Approvers.Timeout)}
		}
		var set *activities.Set
		var t activities.Tally
		o := workflow.ActivityOptions{TaskQueue: r.in.Timing.Route.Anywhere(), StartToCloseTimeout: 10 * time.Second, ScheduleToCloseTimeout: time.Minute}
		in := activities.TallyInput{Incident: r.brief.ID, Run: r.id, Step: p.ID, Hash: p.Hash, Plans: p.Plans, Approvers: p.Approvers, Votes: p.Votes, Deadline: p.Deadline}
		if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.CountVotes, in).Get(ctx, &t); err != nil {
			workflow.GetLogger(ctx).Error("count the votes", "error", err)
			continue
		}
		switch {
		case t.Denied:
			return answer{reason: t.Reason}
		case t.Granted:
			return answer{granted: true, reason: t.Reason, grants: t.Grants}
		}
	}
}

// approval plans every containment that it wraps, asks for all of them at once, and runs what was permitted.
func (r *run) approval(ctx workflow.Context, s *playbooks.Step, env playbooks.Env) outcome {
	a := s.Approval
	plans, reasons := r.wrapped(ctx, a.Steps, env)
	runnable := slices.DeleteFunc(slices.Clone(plans), func(p activities.PlanResult) bool {
		return p.Decision.Verdict == activities.VerdictPropose || p.Decision.Verdict == activities.VerdictRefuse
	})
	if len(plans) > 0 && len(runnable) == 0 {
		reason := plans[0].Decision.Reason
		r.note(ctx, s, "", playbooks.OutcomeProposed, "would ask: "+reason, "")
		r.steps(ctx, a.Steps, env, &approved{approval: a, propose: true, title: a.Title})
		return outcome{Outcome: playbooks.OutcomeProposed, reason: reason}
	}
	text, err := r.Text(a.Ask, env)
	if err != nil {
		reasons = append(reasons, "`ask`: "+err.Error())
	}
	if len(reasons) > 0 {
		r.note(ctx, s, "", playbooks.OutcomeFailed, strings.Join(reasons, "; "), "")
		return outcome{Outcome: playbooks.OutcomeFailed, reason: reasons[0]}
	}
	got := r.ask(ctx, Pending{
		Step: s.Name(), Title: a.Title, Ask: text, Plans: runnable,
		Approvers: activities.Approvers{Groups: a.Groups, Users: a.Users, Quorum: a.Quorum, Timeout: a.Timeout},
	})
	if !got.granted {
		r.note(ctx, s, "", playbooks.OutcomeDenied, got.reason, "")
		return outcome{Outcome: playbooks.OutcomeDenied, reason: got.reason}
	}
	r.note(ctx, s, "", playbooks.OutcomeChanged, got.reason, "")
	r.steps(ctx, a.Steps, env, &approved{approval: a, grants: got.grants, title: a.Title})
	return outcome{Outcome: playbooks.OutcomeChanged, reason: got.reason}
}

// wrapped plans the containments inside of an approval. What stands under `on_failure` or an `if` is planned too:
// people see all that their yes may lead to.
func (r *run) wrapped(ctx workflow.Context, steps []playbooks.Step, env playbooks.Env) (plans []activities.PlanResult, problems []string) {
	for i := range steps {
		s := &steps[i]
		if s.Verb == playbooks.VerbContain {
			params, err := r.Arguments(s, env)
			if err != nil {
				problems = append(problems, err.Error())
				continue
			}
			targets, err := r.targets(s, env)
			if err != nil {
				problems = append(problems, err.Error())
				continue
			}
			for _, target := range targets {
				request := activities.Request{Action: s.Action, Params: params, Target: target, Incident: r.brief, For: s.For, Until: workflow.Now(ctx).Add(s.For)}
				planned, err := r.plan(ctx, s, request, activities.Basis{Asked: true, Receipts: r.allReceipts(), Attestations: last(r.in.Attestations[target.ID()], 8)})
				if err != nil {
					problems = append(problems, activityError(err))
					continue
				}
				plans = append(plans, planned)
			}
		}
		for _, inner := range [][]playbooks.Step{s.Parallel, s.OnFailure, s.OnDenied} {
			p, q := r.wrapped(ctx, inner, env)
			plans, problems = append(plans, p...), append(problems, q...)
		}
	}
	return plans, problems
}

func (r *run) allReceipts() []proof.Signed {
	var all []proof.Signed
	for _, t := range r.in.Incident.Targets {
		all = append(all, last(r.receipts[t.ID()], 1)...)
	}
	return all
}
