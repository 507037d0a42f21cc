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
	"stanch/sensors/truncate"
)

// executionFrame is the position of a run: its playbook (the run's own or a called one), values and approval.
type executionFrame struct {
	*playbooks.Program
	env          playbooks.EvalEnv
	approvedBy   *approvedGrants
	stepPrefix   string // prefix of step names: "each[2]/"
	phaseCeiling int    // lowest maximum phase of the playbooks on the call path
	ending       *playbookEnd
}

// playbookEnd records that a playbook ended before its last step. All frames of one playbook share it.
type playbookEnd struct {
	stopped bool
	outcome playbooks.Outcome
	reason  string
}

// branchFrame returns a frame with an environment of its own.
func (f executionFrame) branchFrame() executionFrame {
	f.env = f.env.Clone()
	return f
}

// withApproval returns a frame inside an approval.
func (f executionFrame) withApproval(a *approvedGrants) executionFrame {
	f.approvedBy = a
	return f
}

func (f executionFrame) stepName(s *playbooks.Step) string { return f.stepPrefix + s.Name() }

// stepOutcome is the combined result of a step.
type stepOutcome struct {
	playbooks.Outcome
	reason        string
	outputs       []byte
	targets       int
	failedTargets []playbooks.Target
}

// mergeWorse replaces the outcome with the other one if that is worse.
func (o *stepOutcome) mergeWorse(other stepOutcome) {
	if w := o.WorseOf(other.Outcome); w != o.Outcome {
		o.Outcome, o.reason = w, other.reason
	}
}

// runMainPlaybook runs the run's playbook including its `finally`, whatever happens.
func (r *playbookRun) runMainPlaybook(ctx workflow.Context, program *playbooks.Program) {
	env, err := program.NewEvalEnv(r.input.Incident, nil)
	if err != nil {
		r.report.Error, r.report.Outcome = err.Error(), playbooks.OutcomeFailed
		return
	}
	if r.input.LanguageVersion < 2 {
		env = env.AllowMissing()
	}
	out := r.runPlaybook(ctx, executionFrame{
		Program: program, env: env, ending: &playbookEnd{},
		phaseCeiling: program.MaxPhase,
	})
	r.report.Outcome, r.report.Reason = out.Outcome, truncate.Text(out.reason, maxReportReason)
	if r.unreportedLines > 0 {
		r.report.Reason = truncate.Text(fmt.Sprintf("%d more lines are only in the workflow history. %s", r.unreportedLines,
			out.reason), maxReportReason)
	}
}

// runPlaybook runs a playbook in its own frame: its steps and its `finally`.
func (r *playbookRun) runPlaybook(ctx workflow.Context, f executionFrame) stepOutcome {
	out := r.runSteps(ctx, f, f.Steps)
	if len(f.Finally) > 0 {
		last, cancel := workflow.NewDisconnectedContext(ctx)
		defer cancel()
		at := f
		at.ending = &playbookEnd{}
		r.runSteps(last, at, f.Finally)
	}
	if f.ending.stopped {
		return stepOutcome{Outcome: f.ending.outcome, reason: f.ending.reason}
	}
	return stepOutcome{Outcome: cmp.Or(out.Outcome, playbooks.OutcomeSucceeded), reason: out.reason}
}

// runSteps runs a sequence and returns the worst of its outcomes.
func (r *playbookRun) runSteps(ctx workflow.Context, f executionFrame, steps []playbooks.Step) stepOutcome {
	var all stepOutcome
	for i := range steps {
		if ctx.Err() != nil || f.ending.stopped {
			return all
		}
		all.mergeWorse(r.runStep(ctx, f, &steps[i]))
	}
	return all
}

// runStep runs one step with its `on_failure` or `on_denied`. If such a block runs, its outcome replaces the step's.
func (r *playbookRun) runStep(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	out := r.runIfConditionHolds(ctx, f, s)
	if err := f.RecordOutcome(f.env, s, playbooks.StepEnd{
		Outcome: out.Outcome, Outputs: out.outputs, Targets: out.targets, Failed: out.failedTargets,
	}); err != nil {
		r.recordStepReport(ctx, f, s, playbooks.StepReport{Outcome: playbooks.OutcomeFailed, Reason: err.Error()})
		out.Outcome, out.reason = playbooks.OutcomeFailed, err.Error()
	}
	switch {
	case out.RunsOnFailure() && len(s.OnFailure) > 0:
		return r.runSteps(ctx, f, s.OnFailure)
	case out.RunsOnDenied() && len(s.OnDenied) > 0:
		return r.runSteps(ctx, f, s.OnDenied)
	}
	return out
}

// recordStepEnd records and returns the outcome of a step without targets.
func (r *playbookRun) recordStepEnd(ctx workflow.Context, f executionFrame, s *playbooks.Step, o playbooks.Outcome,
	reason string,
) stepOutcome {
	r.recordStepReport(ctx, f, s, playbooks.StepReport{Outcome: o, Reason: reason})
	return stepOutcome{Outcome: o, reason: reason}
}

func (r *playbookRun) runIfConditionHolds(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	run, err := f.EvalCondition(s.If, f.env)
	if err != nil {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, "`if`: "+err.Error())
	}
	if !run {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeSkipped, "`if` is false")
	}
	if s.Approval != nil {
		return r.runApproval(ctx, f, s)
	}
	if block := r.blockRunner(s); block != nil {
		return r.runWithTimeout(ctx, f, s, block)
	}
	return r.runWithRetry(ctx, f, s)
}

// runWithRetry runs an action with its `retry`.
func (r *playbookRun) runWithRetry(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	attempts, wait := 1, time.Duration(0)
	if s.Retry != nil {
		attempts, wait = s.Retry.Attempts, s.Retry.Backoff
	}
	var out stepOutcome
	for try := range attempts {
		if try > 0 {
			if workflow.Sleep(ctx, wait) != nil {
				break
			}
			wait *= 2
		}
		if out = r.runAction(ctx, f, s); out.Outcome != playbooks.OutcomeFailed {
			break
		}
	}
	return out
}

// recordStepReport adds the result of a step on one target to the report.
func (r *playbookRun) recordStepReport(ctx workflow.Context, f executionFrame, s *playbooks.Step,
	report playbooks.StepReport,
) {
	report.Reason = truncate.Text(report.Reason, maxReportReason)
	if r.reportedBytes += len(report.Reason) + len(f.stepPrefix) + len(report.Target) +
		200; r.reportedBytes > maxReportBytes {
		r.unreportedLines++
		return
	}
	report.Step, report.Action, report.Verb, report.At = f.stepName(s), cmp.Or(s.Action, s.Kind()), s.Verb,
		workflow.Now(ctx)
	r.report.Steps = append(r.report.Steps, report)
}

// maxReportBytes limits what loops can add to a report, which is sent by signal. maxEvidenceRefs limits the artifacts
// that it names; the manifest names all.
const (
	maxReportBytes  = 128 << 10
	maxEvidenceRefs = 300
	maxReportReason = 500 // characters; a reason may be attacker-controlled
)

// runAction runs an action on all targets of a step in parallel.
func (r *playbookRun) runAction(ctx workflow.Context, f executionFrame, s *playbooks.Step) stepOutcome {
	params, err := f.EvalArguments(s, f.env)
	if err != nil && s.Verb == playbooks.VerbEvidence && r.input.LanguageVersion >= 2 {
		// If an attacker makes the step fail whose outputs are parameters of evidence, the evidence is captured without
		// them.
		plain := *s
		plain.Arguments = nil
		params, err = f.EvalArguments(&plain, f.env)
	}
	if err != nil {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	targets, err := r.resolveTargets(f, s)
	if err != nil && s.Verb == playbooks.VerbEvidence && r.input.LanguageVersion >= 2 {
		plain := *s
		plain.Target = nil
		targets, err = r.resolveTargets(f, &plain)
	}
	if err != nil {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeFailed, err.Error())
	}
	if len(targets) == 0 {
		return r.recordStepEnd(ctx, f, s, playbooks.OutcomeSkipped, "no target")
	}
	results := make([]stepOutcome, len(targets))
	joined := workflow.NewWaitGroup(ctx)
	for i, target := range targets {
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			request := r.newRequest(f, s, params, target)
			if r.Catalog[s.Action].Verb == playbooks.VerbContain {
				results[i] = r.runContain(ctx, f, s, request)
			} else {
				results[i] = r.runObserve(ctx, f, s, request)
			}
		})
	}
	joined.Wait(ctx)
	all := stepOutcome{outputs: results[0].outputs, targets: len(targets)}
	for i, one := range results {
		all.mergeWorse(one)
		if one.RunsOnFailure() {
			all.failedTargets = append(all.failedTargets, targets[i])
		}
	}
	return all
}

// newRequest returns an action's request for a step, with the lowest maximum phase of the call path.
func (r *playbookRun) newRequest(f executionFrame, s *playbooks.Step, params json.RawMessage,
	target playbooks.Target,
) activities.Request {
	brief := r.incidentRef
	brief.MaxPhase = f.phaseCeiling
	return activities.Request{Action: s.Action, Params: params, Target: target, IncidentRef: brief}
}

// resolveTargets returns the step's targets, or the incident's targets of the action's kind.
func (r *playbookRun) resolveTargets(f executionFrame, s *playbooks.Step) ([]playbooks.Target, error) {
	targets, err := f.EvalTargets(s, f.env)
	// An incident about the telemetry has no targets, but people are notified of it.
	bare := len(r.input.Incident.Targets) == 0
	if err != nil || s.Target != nil || len(targets) == 0 && !bare {
		return targets, err //nolint:wrapcheck // the error names the step
	}
	switch kinds := r.Catalog[s.Action].Targets; {
	case len(kinds) > 0 && kinds[0] == playbooks.TargetIncident:
		return []playbooks.Target{{Kind: playbooks.TargetIncident, Name: r.incidentRef.ID, UID: r.incidentRef.ID}}, nil
	case bare:
		return nil, nil
	case len(kinds) > 0 && kinds[0] == playbooks.TargetWorkload:
		w := r.input.Incident.Workload
		return []playbooks.Target{{
			Kind: playbooks.TargetWorkload, Namespace: w.Namespace, WorkloadKind: w.Kind, Name: w.Name,
			UID: w.UID, Node: w.Node,
		}}, nil
	}
	return targets, nil
}

func (r *playbookRun) activityOptions(s *playbooks.Step) workflow.ActivityOptions {
	spec := r.Catalog[s.Action]
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
		StartToCloseTimeout: limit, ScheduleToCloseTimeout: limit + 5*time.Second,
		HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2,
			MaximumInterval: 5 * time.Second, MaximumAttempts: 3,
		},
	}
	return o
}
