package playbook

import (
	"fmt"
	"strings"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/workflows"
)

// block gives what runs a step that holds or calls others, or does nothing outside of the run; nil for an action.
func (r *run) block(s *playbooks.Step) func(workflow.Context, frame, *playbooks.Step) outcome {
	switch {
	case s.Parallel != nil:
		return r.parallel
	case s.ForEach != nil:
		return r.foreach
	case s.Call != nil:
		return r.call
	case s.Wait != nil:
		return r.wait
	case s.Assignments != nil:
		return r.set
	case s.Stop != nil:
		return r.stop
	}
	return nil
}

// within runs a block, and cancels what of it is still under way when its time is over. It is always waited for.
func (r *run) within(ctx workflow.Context, f frame, s *playbooks.Step, block func(workflow.Context, frame, *playbooks.Step) outcome) outcome {
	if s.Timeout == 0 || r.in.Language < 2 {
		return block(ctx, f, s)
	}
	inner, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer, stopTimer := workflow.WithCancel(ctx)
	defer stopTimer()
	over, done := false, workflow.NewChannel(ctx)
	workflow.Go(timer, func(ctx workflow.Context) {
		if workflow.Sleep(ctx, s.Timeout) == nil {
			over = true
			cancel()
		}
		done.Close()
	})
	out := block(inner, f, s)
	stopTimer()
	done.Receive(ctx, nil)
	if over {
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, fmt.Sprintf("not done within %s; what it holds goes on and ends by itself", duration.Format(s.Timeout)))
	}
	return out
}

func (r *run) parallel(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	branches, results := make([]frame, len(s.Parallel)), make([]outcome, len(s.Parallel))
	joined := workflow.NewWaitGroup(ctx)
	for i := range s.Parallel {
		branches[i] = f.branch()
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			results[i] = r.step(ctx, branches[i], &s.Parallel[i])
		})
	}
	joined.Wait(ctx)
	all := outcome{Outcome: playbooks.OutcomeChanged, targets: len(branches)}
	for i := range s.Parallel {
		f.env.Merge(branches[i].env, &s.Parallel[i])
		if r.in.Language >= 2 {
			all.worse(results[i])
		}
	}
	return all
}

// foreach runs the steps for each element, so many at once, and waits for all.
func (r *run) foreach(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	loop := s.ForEach
	items, err := f.EvalLoopItems(loop, f.env)
	switch {
	case err != nil:
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	case len(items) > loop.MaxItems:
		return r.ended(ctx, f, s, playbooks.OutcomeRefused, fmt.Sprintf("the list has %d elements, at most %d are allowed", len(items), loop.MaxItems))
	case len(items) == 0:
		return r.ended(ctx, f, s, playbooks.OutcomeSkipped, "the list is empty")
	}
	results := make([]outcome, len(items))
	free := workflow.NewSemaphore(ctx, int64(loop.Concurrency))
	joined := workflow.NewWaitGroup(ctx)
	for i, item := range items {
		if free.Acquire(ctx, 1) != nil {
			break // its time is over
		}
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			defer free.Release(1)
			results[i] = r.steps(ctx, f.element(s, i, item), loop.Steps)
		})
	}
	joined.Wait(ctx)
	all := outcome{Outcome: playbooks.OutcomeChanged, targets: len(items)}
	for _, one := range results {
		all.worse(one)
	}
	return all
}

// element is the frame of one round of a loop.
func (f frame) element(s *playbooks.Step, i int, item any) frame {
	at := f.branch()
	at.prefix = fmt.Sprintf("%s[%d]/", f.name(s), i)
	at.env.BindLoopElement(s.ForEach, item)
	return at
}

// callee is the frame of a playbook that is called.
func (f frame) callee(s *playbooks.Step) (frame, error) {
	program := f.Callees[s.Call.Playbook]
	given, err := f.EvalInputs(s, f.env)
	if err != nil {
		return frame{}, err //nolint:wrapcheck // it names the input
	}
	env, err := program.NewEvalEnv(f.env.Incident(), given)
	return frame{Program: program, env: env, under: f.under, prefix: f.name(s) + "/", end: &end{}, phase: min(f.phase, program.MaxPhase)}, err //nolint:wrapcheck // it names the input
}

func (r *run) call(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	inner, err := f.callee(s)
	if err != nil {
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	out := r.whole(ctx, inner)
	out.targets = 1
	outputs, err := inner.EvalOutputs(inner.env)
	if err != nil && out.HasOutputs() {
		out.Outcome, out.reason = playbooks.OutcomeFailed, err.Error()
	}
	out.outputs = outputs
	r.note(ctx, f, s, playbooks.StepReport{Outcome: out.Outcome, Reason: out.reason})
	return out
}

func (r *run) set(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	if err := f.EvalAssignments(s, f.env); err != nil {
		return r.ended(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	var names []string
	for _, a := range s.Assignments {
		names = append(names, a.Name)
	}
	return r.ended(ctx, f, s, playbooks.OutcomeChanged, strings.Join(names, ", "))
}

func (r *run) stop(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	reason, err := f.RenderTemplate(s.Stop.Reason, f.env)
	if err != nil {
		reason = err.Error()
	}
	if !f.end.stopped {
		*f.end = end{stopped: true, outcome: s.Stop.Outcome, reason: reason}
	}
	return r.ended(ctx, f, s, s.Stop.Outcome, reason)
}

// wait waits for a time, or until an expression holds of the incident as it is now.
func (r *run) wait(ctx workflow.Context, f frame, s *playbooks.Step) outcome {
	w := s.Wait
	if w.Until == nil {
		if err := workflow.Sleep(ctx, w.Duration); err != nil {
			return r.ended(ctx, f, s, playbooks.OutcomeFailed, "it was cut off")
		}
		return r.ended(ctx, f, s, playbooks.OutcomeChanged, "waited for "+duration.Format(w.Duration))
	}
	r.watch(ctx)
	defer r.unwatch(ctx)
	began := workflow.Now(ctx)
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimer(timerCtx, w.Timeout)
	for {
		// Before the first word of the incident nothing is known of how it is now.
		if r.live != nil {
			holds, err := f.EvalWait(w, f.env, *r.live)
			if err != nil {
				return r.ended(ctx, f, s, playbooks.OutcomeFailed, "`until`: "+err.Error())
			}
			if holds {
				return r.ended(ctx, f, s, playbooks.OutcomeChanged, "it holds after "+duration.Format(workflow.Now(ctx).Sub(began).Round(time.Second)))
			}
		}
		over := false
		news := workflow.NewBufferedChannel(ctx, 1)
		r.waiters = append(r.waiters, news)
		workflow.NewSelector(ctx).
			AddReceive(news, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil) }).
			AddFuture(timer, func(workflow.Future) { over = true }).
			Select(ctx)
		if over {
			return r.ended(ctx, f, s, playbooks.OutcomeFailed, fmt.Sprintf("it did not hold within %s", duration.Format(w.Timeout)))
		}
	}
}

// watch asks the incident to say how it is, now and whenever it changes.
func (r *run) watch(ctx workflow.Context) {
	r.openWaits++
	if r.openWaits > 1 {
		return
	}
	defer r.askWatched(ctx, workflows.SignalWatch)
	if r.watching {
		return
	}
	r.watching = true
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var live playbooks.Incident
			workflow.GetSignalChannel(ctx, workflows.SignalLive).Receive(ctx, &live)
			r.live = &live
			waiting := r.waiters
			r.waiters = nil
			for _, w := range waiting {
				w.SendAsync(true)
			}
		}
	})
}

// unwatch tells the incident that nobody waits any more: what is told to nobody fills a history.
func (r *run) unwatch(ctx workflow.Context) {
	if r.openWaits--; r.openWaits > 0 {
		return
	}
	r.live = nil
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	r.askWatched(ctx, workflows.SignalUnwatch)
}

func (r *run) askWatched(ctx workflow.Context, signal string) {
	err := workflow.SignalExternalWorkflow(ctx, workflows.IncidentID(r.in.Brief.GroupingKey), "", signal, r.id).Get(ctx, nil)
	if err != nil {
		workflow.GetLogger(ctx).Info("the incident cannot be watched", "error", err)
	}
}
