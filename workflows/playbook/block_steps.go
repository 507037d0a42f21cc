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

// blockRunner returns the function that runs a step with nested steps, a call, or a step without outside effects; nil
// for an action.
func (r *playbookRun) blockRunner(s *playbooks.Step) func(workflow.Context, executionFrame,
	*playbooks.Step) stepOutcome {
	switch {
	case s.Parallel != nil:
		return r.runParallel
	case s.ForEach != nil:
		return r.runForEach
	case s.Call != nil:
		return r.runCall
	case s.Wait != nil:
		return r.runWait
	case s.Assignments != nil:
		return r.runSet
	case s.Stop != nil:
		return r.runStop
	}
	return nil
}

// runWithTimeout runs a block, and cancels it when its timeout is over. It always waits for the block to end.
func (r *playbookRun) runWithTimeout(ctx workflow.Context, f executionFrame, s *playbooks.Step,
	block func(workflow.Context, executionFrame, *playbooks.Step) stepOutcome,
) stepOutcome {
	if s.Timeout == 0 || r.input.LanguageVersion < 2 {
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
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed,
			fmt.Sprintf("timed out after %s; its leases continue and end automatically", duration.Format(s.Timeout)))
	}
	return out
}

func (r *playbookRun) runParallel(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	branches, results := make([]executionFrame, len(s.Parallel)), make([]stepOutcome, len(s.Parallel))
	joined := workflow.NewWaitGroup(ctx)
	for i := range s.Parallel {
		branches[i] = f.branchFrame()
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			results[i] = r.runStep(ctx, branches[i], &s.Parallel[i])
		})
	}
	joined.Wait(ctx)
	all := stepOutcome{Outcome: playbooks.OutcomeSucceeded, targets: len(branches)}
	for i := range s.Parallel {
		f.env.Merge(branches[i].env, &s.Parallel[i])
		if r.input.LanguageVersion >= 2 {
			all.mergeWorse(results[i])
		}
	}
	return all
}

// runForEach runs the steps for each element, Concurrency at a time, and waits for all.
func (r *playbookRun) runForEach(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	loop := s.ForEach
	items, err := f.EvalLoopItems(loop, f.env)
	switch {
	case err != nil:
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	case len(items) > loop.MaxItems:
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeRefused,
			fmt.Sprintf("the list has %d elements; the maximum is %d", len(items), loop.MaxItems))
	case len(items) == 0:
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeSkipped, "the list is empty")
	}
	results := make([]stepOutcome, len(items))
	free := workflow.NewSemaphore(ctx, int64(loop.Concurrency))
	joined := workflow.NewWaitGroup(ctx)
	for i, item := range items {
		if free.Acquire(ctx, 1) != nil {
			break // the timeout is over
		}
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			defer free.Release(1)
			results[i] = r.runSteps(ctx, f.loopFrame(s, i, item), loop.Steps)
		})
	}
	joined.Wait(ctx)
	all := stepOutcome{Outcome: playbooks.OutcomeSucceeded, targets: len(items)}
	for _, one := range results {
		all.mergeWorse(one)
	}
	return all
}

// loopFrame returns the frame of one iteration of a loop.
func (f executionFrame) loopFrame(s *playbooks.Step, i int, item any) executionFrame {
	at := f.branchFrame()
	at.stepPrefix = fmt.Sprintf("%s[%d]/", f.stepName(s), i)
	at.env.BindLoopElement(s.ForEach, item)
	return at
}

// calleeFrame returns the frame of a called playbook.
func (f executionFrame) calleeFrame(s *playbooks.Step) (executionFrame, error) {
	program := f.Callees[s.Call.Playbook]
	given, err := f.EvalInputs(s, f.env)
	if err != nil {
		return executionFrame{}, err //nolint:wrapcheck // the error names the input
	}
	env, err := program.NewEvalEnv(f.env.Incident(), given)
	return executionFrame{
		Program:      program,
		env:          env,
		approvedBy:   f.approvedBy,
		stepPrefix:   f.stepName(s) + "/",
		ending:       &playbookEnd{},
		phaseCeiling: min(f.phaseCeiling, program.MaxPhase),
	}, err //nolint:wrapcheck // the error names the input
}

func (r *playbookRun) runCall(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	inner, err := f.calleeFrame(s)
	if err != nil {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	out := r.runPlaybook(ctx, inner)
	out.targets = 1
	outputs, err := inner.EvalOutputs(inner.env)
	if err != nil && out.HasOutputs() {
		out.Outcome, out.reason = playbooks.OutcomeFailed, err.Error()
	}
	out.outputs = outputs
	r.recordStepReport(ctx, f, s, playbooks.StepReport{Outcome: out.Outcome, Reason: out.reason})
	return out
}

func (r *playbookRun) runSet(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	if err := f.EvalAssignments(s, f.env); err != nil {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	var names []string
	for _, a := range s.Assignments {
		names = append(names, a.Name)
	}
	return r.recordStepEnd(ctx, f, s, playbooks.OutcomeSucceeded, strings.Join(names, ", "))
}

func (r *playbookRun) runStop(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	reason, err := f.RenderTemplate(s.Stop.Reason, f.env)
	if err != nil {
		reason = err.Error()
	}
	if !f.ending.stopped {
		*f.ending = playbookEnd{stopped: true, outcome: s.Stop.Outcome, reason: reason}
	}
	return r.recordStepEnd(ctx, f, s, s.Stop.Outcome, reason)
}

// runWait waits for a duration, or until an expression is true for the incident's current state.
func (r *playbookRun) runWait(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	w := s.Wait
	if w.Until == nil {
		if err := workflow.Sleep(ctx, w.Duration); err != nil {
			return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, "interrupted")
		}
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeSucceeded, "waited for "+duration.Format(w.Duration))
	}
	r.watchIncident(ctx)
	defer r.unwatchIncident(ctx)
	began := workflow.Now(ctx)
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimer(timerCtx, w.Timeout)
	for {
		// The current state is unknown until the incident sends it the first time.
		if r.currentIncident != nil {
			holds, err := f.EvalWait(w, f.env, *r.currentIncident)
			if err != nil {
				return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, "`until`: "+err.Error())
			}
			if holds {
				return r.recordStepEnd(ctx, f, s, playbooks.OutcomeSucceeded, "the condition became true after "+
					duration.Format(workflow.Now(ctx).Sub(began).Round(time.Second)))
			}
		}
		over := false
		news := workflow.NewBufferedChannel(ctx, 1)
		r.incidentWaiters = append(r.incidentWaiters, news)
		workflow.NewSelector(ctx).
			AddReceive(news, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, nil) }).
			AddFuture(timer, func(workflow.Future) { over = true }).
			Select(ctx)
		if over {
			return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, fmt.Sprintf("the condition was not true within %s",
				duration.Format(w.Timeout)))
		}
	}
}

// watchIncident asks the incident to send its state, now and whenever it changes.
func (r *playbookRun) watchIncident(ctx workflow.Context) {
	r.activeWaits++
	if r.activeWaits > 1 {
		return
	}
	defer r.signalIncident(ctx, workflows.SignalWatchIncident)
	if r.watchRunning {
		return
	}
	r.watchRunning = true
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var live playbooks.Incident
			workflow.GetSignalChannel(ctx, workflows.SignalIncidentState).Receive(ctx, &live)
			r.currentIncident = &live
			waiting := r.incidentWaiters
			r.incidentWaiters = nil
			for _, w := range waiting {
				w.SendAsync(true)
			}
		}
	})
}

// unwatchIncident tells the incident to stop sending its state, because unneeded signals fill the history.
func (r *playbookRun) unwatchIncident(ctx workflow.Context) {
	if r.activeWaits--; r.activeWaits > 0 {
		return
	}
	r.currentIncident = nil
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	r.signalIncident(ctx, workflows.SignalUnwatchIncident)
}

func (r *playbookRun) signalIncident(ctx workflow.Context, signal string) {
	err := workflow.SignalExternalWorkflow(ctx, workflows.IncidentWorkflowID(r.input.IncidentRef.GroupingKey), "", signal,
		r.workflowID).Get(ctx, nil)
	if err != nil {
		workflow.GetLogger(ctx).Info("the incident's state cannot be watched", "error", err)
	}
}
