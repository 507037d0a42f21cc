package playbook

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
)

// frame is where a run is: in which playbook (its own or one that it calls), with which values, under which approval.
type frame struct {
	*playbooks.Program
	env    playbooks.EvalEnv
	under  *approved
	prefix string // of the names of steps: "each[2]/"
	phase  int    // no playbook on the way here goes beyond it
	end    *end
}

// end is how a playbook ended before its last step, if it did. All frames of one playbook share it.
type end struct {
	stopped bool
	outcome playbooks.Outcome
	reason  string
}

// branch is a frame with an environment of its own.
func (f frame) branch() frame {
	f.env = f.env.Clone()
	return f
}

// permitted is a frame under an approval.
func (f frame) permitted(a *approved) frame {
	f.under = a
	return f
}

func (f frame) name(s *playbooks.Step) string { return f.prefix + s.Name() }

// outcome is what became of a step as a whole.
type outcome struct {
	playbooks.Outcome
	reason  string
	outputs []byte
	targets int
	failed  []playbooks.Target
}

// worse takes over the other outcome if it is the worse.
func (o *outcome) worse(other outcome) {
	if w := o.WorseOf(other.Outcome); w != o.Outcome {
		o.Outcome, o.reason = w, other.reason
	}
}

// main runs the playbook of the run and, whatever happened, what it does at its end.
func (r *run) main(ctx workflow.Context, program *playbooks.Program) {
	env, err := program.NewEvalEnv(r.in.Incident, nil)
	if err != nil {
		r.report.Error, r.report.Outcome = err.Error(), playbooks.OutcomeFailed
		return
	}
	if r.in.Language < 2 {
		env = env.AllowMissing()
	}
	out := r.whole(ctx, frame{Program: program, env: env, end: &end{}, phase: program.MaxPhase})
	r.report.Outcome, r.report.Reason = out.Outcome, clip(out.reason)
	if r.unreported > 0 {
		r.report.Reason = clip(fmt.Sprintf("%d further lines are only in the history. %s", r.unreported, out.reason))
	}
}

// whole runs a playbook in a frame of its own: its steps, and its `finally`.
func (r *run) whole(ctx workflow.Context, f frame) outcome {
	out := r.steps(ctx, f, f.Steps)
	if len(f.Finally) > 0 {
		last, cancel := workflow.NewDisconnectedContext(ctx)
		defer cancel()
		at := f
		at.end = &end{}
		r.steps(last, at, f.Finally)
	}
	if f.end.stopped {
		return outcome{Outcome: f.end.outcome, reason: f.end.reason}
	}
	return outcome{Outcome: cmp.Or(out.Outcome, playbooks.OutcomeChanged), reason: out.reason}
}

// steps runs a sequence and gives the worst of its outcomes.
func (r *run) steps(ctx workflow.Context, f frame, steps []playbooks.Step) outcome {
	var all outcome
	for i := range steps {
		if ctx.Err() != nil || f.end.stopped {
			return all
		}
		all.worse(r.step(ctx, f, &steps[i]))
	}
	return all
}

// step runs one step and what it does about its outcome. What was mended counts as what mended it.
func (r *run) step(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	out := r.guarded(ctx, f, s)
	if err := f.RecordOutcome(f.env, s, out.Outcome, out.outputs, out.targets, out.failed...); err != nil {
		r.note(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeFailed, Reason: err.Error()})
		out.Outcome, out.reason = playbooks.OutcomeFailed, err.Error()
	}
	switch {
	case out.RunsOnFailure() && len(s.OnFailure) > 0:
		return r.steps(ctx, f, s.OnFailure)
	case out.RunsOnDenied() && len(s.OnDenied) > 0:
		return r.steps(ctx, f, s.OnDenied)
	}
	return out
}

// ended notes what became of a step that has no targets, and gives it.
func (r *run) ended(ctx workflow.Context, f frame, s *playbooks.Step, o playbooks.Outcome, reason string) outcome {
	r.note(ctx, f, s, playbooks.StepReport{Outcome: o, Reason: reason})
	return outcome{Outcome: o, reason: reason}
}

func (r *run) guarded(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	run, err := f.EvalCondition(s.If, f.env)
	if err != nil {
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, "`if`: "+err.Error())
	}
	if !run {
		return r.ended(ctx, f, s, playbooks.OutcomeSkipped, "`if` is false")
	}
	if s.Approval != nil {
		return r.approval(ctx, f, s)
	}
	if block := r.block(s); block != nil {
		return r.within(ctx, f, s, block)
	}
	return r.tried(ctx, f, s)
}

// tried runs an action as often as its `retry` says.
func (r *run) tried(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	attempts, wait := 1, time.Duration(0)
	if s.Retry != nil {
		attempts, wait = s.Retry.Attempts, s.Retry.Backoff
	}
	var out outcome
	for try := range attempts {
		if try > 0 {
			if workflow.Sleep(ctx, wait) != nil {
				break
			}
			wait *= 2
		}
		if out = r.action(ctx, f, s); out.Outcome != playbooks.OutcomeFailed {
			break
		}
	}
	return out
}

// note enters what became of a step on one target into the report.
func (r *run) note(ctx workflow.Context, f frame, s *playbooks.Step, report playbooks.StepReport) {
	report.Reason = clip(report.Reason)
	if r.reported += len(report.Reason) + len(f.prefix) + len(report.Target) + 200; r.reported > maxReported {
		r.unreported++
		return
	}
	report.Step, report.Action, report.Verb, report.At = f.name(s), cmp.Or(s.Action, s.Kind()), s.Verb, workflow.Now(ctx)
	r.report.Steps = append(r.report.Steps, report)
}

// maxReported bounds what loops can put into a report, in bytes: it travels in a signal. maxEvidence bounds the pieces
// of evidence that are named in it; the manifest names all.
const (
	maxReported = 128 << 10
	maxEvidence = 300
)

// clip bounds a reason: it may hold what an attacker wrote.
func clip(s string) string {
	if r := []rune(s); len(r) > 500 {
		return string(r[:500]) + "…"
	}
	return s
}

// action runs a step that calls an action, on each of its targets at once.
func (r *run) action(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	params, err := f.EvalArguments(s, f.env)
	if err != nil && s.Verb == playbooks.VerbEvidence && r.in.Language >= 2 {
		// Who makes a step fail from which evidence takes its parameters does not keep it from being taken.
		plain := *s
		plain.Arguments = nil
		params, err = f.EvalArguments(&plain, f.env)
	}
	if err != nil {
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	targets, err := r.targets(f, s)
	if err != nil && s.Verb == playbooks.VerbEvidence && r.in.Language >= 2 {
		plain := *s
		plain.Target = nil
		targets, err = r.targets(f, &plain)
	}
	if err != nil {
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	if len(targets) == 0 {
		return r.ended(ctx, f, s, playbooks.OutcomeSkipped, "there is no target")
	}
	results := make([]outcome, len(targets))
	joined := workflow.NewWaitGroup(ctx)
	for i, target := range targets {
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			request := r.request(f, s, params, target)
			if r.Catalogue[s.Action].Verb == playbooks.VerbContain {
				results[i] = r.contain(ctx, f, s, request)
			} else {
				results[i] = r.observe(ctx, f, s, request)
			}
		})
	}
	joined.Wait(ctx)
	all := outcome{outputs: results[0].outputs, targets: len(targets)}
	for i, one := range results {
		all.worse(one)
		if one.RunsOnFailure() {
			all.failed = append(all.failed, targets[i])
		}
	}
	return all
}

// request asks an action to do something for a step, under the lowest ceiling on the way there.
func (r *run) request(f frame, s *playbooks.Step, params json.RawMessage, target playbooks.Target) activities.Request {
	brief := r.brief
	brief.MaxPhase = f.phase
	return activities.Request{Action: s.Action, Params: params, Target: target, IncidentRef: brief}
}

// targets are the step's own, or the action's kind of the incident's.
func (r *run) targets(f frame, s *playbooks.Step) ([]playbooks.Target, error) {
	targets, err := f.EvalTargets(s, f.env)
	// An incident about the telemetry has no targets, and people are told of it all the same.
	bare := len(r.in.Incident.Targets) == 0
	if err != nil || s.Target != nil || len(targets) == 0 && !bare {
		return targets, err //nolint:wrapcheck // it names the step
	}
	switch kinds := r.Catalogue[s.Action].Targets; {
	case len(kinds) > 0 && kinds[0] == playbooks.TargetIncident:
		return []playbooks.Target{{Kind: playbooks.TargetIncident, Name: r.brief.ID, UID: r.brief.ID}}, nil
	case bare:
		return nil, nil
	case len(kinds) > 0 && kinds[0] == playbooks.TargetWorkload:
		w := r.in.Incident.Workload
		return []playbooks.Target{{Kind: playbooks.TargetWorkload, Namespace: w.Namespace, WorkloadKind: w.Kind, Name: w.Name, UID: w.UID, Node: w.Node}}, nil
	}
	return targets, nil
}

func (r *run) activityOptions(s *playbooks.Step) workflow.ActivityOptions {
	spec := r.Catalogue[s.Action]
	limit := spec.AttemptTimeout
	if limit == 0 {
		limit = 30 * time.Second
		if spec.Verb == playbooks.VerbEvidence {
			limit = 10 * time.Second
		}
	}
	if s.Timeout > 0 {
		limit = s.Timeout
	}
	o := workflow.ActivityOptions{
		StartToCloseTimeout: limit, ScheduleToCloseTimeout: limit + 5*time.Second, HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 5 * time.Second, MaximumAttempts: 3},
	}
	return o
}
