// Package playbook is the interpreter: one workflow that walks a checked playbook, step by step. Branches of a
// parallel step are isolated and always joined; leases are children that outlive the run and report by signal.
//
// It refuses to judge: whether an effect may happen is decided by the guards in the activity, and an approval is a
// grant that the authority signs after people voted, never a value of this workflow's own.
package playbook

import (
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/diagnostic"
	"stanch/sensors/proof"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// Input is everything that a run depends on: an edit of the playbook never changes a run that is under way.
type Input struct {
	Language int    `json:"language"`
	File     string `json:"file"`
	Source   []byte `json:"source"`
	// Incident is the snapshot taken when the playbook matched.
	Incident playbooks.Incident `json:"incident"`
	Brief    activities.Brief   `json:"brief"`
	// Attestations are the attested detections of each target, by its ID.
	Attestations map[string][]proof.Signed `json:"attestations"`
	Timing       lease.Timing              `json:"timing"`
	// Selection proves that the playbook is one of the installation's.
	Selection *proof.Signed `json:"selection,omitempty"`
	// Thread: people are told in the incident's thread.
	Thread bool `json:"thread,omitempty"`
}

// Report is what the incident hears of a run.
type Report struct {
	Run      string                  `json:"run"`
	Playbook string                  `json:"playbook"`
	Hash     string                  `json:"hash"`
	Ended    time.Time               `json:"ended,omitzero"` // zero while it runs
	Steps    []playbooks.StepReport  `json:"steps"`
	Evidence []playbooks.EvidenceRef `json:"evidence,omitempty"`
	Error    string                  `json:"error,omitempty"`
}

// Workflows are the playbook workflow with the catalogue that it checks against.
type Workflows struct {
	Catalogue playbooks.Catalogue
	// Leases is the lease workflow that containments start.
	Leases *lease.Workflows
	// Load reads and checks a playbook; nil is playbooks.Load. Simulation remembers what it has checked.
	Load func(file string, source []byte, catalogue playbooks.Catalogue) (*playbooks.Program, diagnostic.Diagnostics)
}

// Playbook runs one playbook on one incident.
func (w *Workflows) Playbook(ctx workflow.Context, in Input) (Report, error) {
	load := w.Load
	if load == nil {
		load = playbooks.Load
	}
	program, problems := load(in.File, in.Source, w.Catalogue)
	info := workflow.GetInfo(ctx)
	report := Report{Run: info.WorkflowExecution.ID}
	if program == nil {
		report.Error, report.Ended = problems.Err().Error(), workflow.Now(ctx)
		return report, tellIncident(ctx, in, report)
	}
	report.Playbook, report.Hash = program.Name, program.Hash
	r := &run{
		Workflows: w, Program: program, in: in, id: info.WorkflowExecution.ID, report: &report,
		waiting: map[string]workflow.Settable{}, early: map[string]playbooks.LeaseReport{}, receipts: map[string][]proof.Signed{}, pending: map[string]*open{},
	}
	r.brief = in.Brief
	r.brief.MaxPhase = program.MaxPhase
	if err := r.handlers(ctx); err != nil {
		return report, err
	}
	r.steps(ctx, program.Steps, program.NewEnv(in.Incident), nil)
	report.Ended = workflow.Now(ctx)
	return report, tellIncident(ctx, in, report)
}

func tellIncident(ctx workflow.Context, in Input, report Report) error {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	err := workflow.SignalExternalWorkflow(ctx, workflows.IncidentID(in.Brief.Key), "", workflows.SignalPlaybookReport, report).Get(ctx, nil)
	if err != nil {
		workflow.GetLogger(ctx).Info("the incident has ended before its playbook", "error", err)
	}
	return nil
}

// run is one run under way.
type run struct {
	*Workflows
	*playbooks.Program
	in       Input
	brief    activities.Brief
	id       string
	report   *Report
	receipts map[string][]proof.Signed // by target
	waiting  map[string]workflow.Settable
	early    map[string]playbooks.LeaseReport
	pending  map[string]*open
	asked    int
	halted   string // why nothing is contained any more: a person decides
	holders  int
}

// handlers serve queries and hand signals to the branch that waits for them.
func (r *run) handlers(ctx workflow.Context) error {
	if err := workflow.SetQueryHandler(ctx, workflows.QuerySteps, func() (Report, error) { return *r.report, nil }); err != nil {
		return err //nolint:wrapcheck // a mistake of the program
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryPending, func() ([]Pending, error) {
		var all []Pending
		for _, id := range slices.Sorted(maps.Keys(r.pending)) {
			all = append(all, r.pending[id].Pending)
		}
		return all, nil
	}); err != nil {
		return err //nolint:wrapcheck // a mistake of the program
	}
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var l lease.Report
			workflow.GetSignalChannel(ctx, workflows.SignalLeaseReport).Receive(ctx, &l)
			if waiting, ok := r.waiting[l.Holder]; ok {
				delete(r.waiting, l.Holder)
				waiting.SetValue(l.Lease)
			} else {
				r.early[l.Holder] = l.Lease
			}
		}
	})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var why string
			workflow.GetSignalChannel(ctx, workflows.SignalHalt).Receive(ctx, &why)
			r.halted = why
		}
	})
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var vote proof.Signed
			workflow.GetSignalChannel(ctx, workflows.SignalVote).Receive(ctx, &vote)
			r.vote(vote)
		}
	})
	return nil
}

// approved are the grants under which the steps of an approval run, by plan hash.
type approved struct {
	approval *playbooks.Approval
	grants   map[string]proof.Signed
	title    string
	plans    planned // as they were approved
	// denied or proposed: the steps inside are recorded and not run.
	propose bool
}

func (r *run) steps(ctx workflow.Context, steps []playbooks.Step, env playbooks.Env, under *approved) {
	for i := range steps {
		if ctx.Err() != nil {
			return
		}
		r.step(ctx, &steps[i], env, under)
	}
}

// outcome is what became of a step as a whole.
type outcome struct {
	playbooks.Outcome
	reason  string
	outputs []byte
	targets int
}

func (r *run) step(ctx workflow.Context, s *playbooks.Step, env playbooks.Env, under *approved) {
	out := r.guarded(ctx, s, env, under)
	if err := r.Record(env, s, out.Outcome, out.outputs, out.targets); err != nil {
		r.note(ctx, s, "", playbooks.OutcomeFailed, err.Error(), "")
		out.Outcome = playbooks.OutcomeFailed
	}
	if out.RunsOnFailure() {
		r.steps(ctx, s.OnFailure, env, under)
	}
	if out.RunsOnDenied() {
		r.steps(ctx, s.OnDenied, env, under)
	}
}

func (r *run) guarded(ctx workflow.Context, s *playbooks.Step, env playbooks.Env, under *approved) outcome {
	run, err := r.Bool(s.If, env)
	if err != nil {
		r.note(ctx, s, "", playbooks.OutcomeFailed, "`if`: "+err.Error(), "")
		return outcome{Outcome: playbooks.OutcomeFailed, reason: err.Error()}
	}
	if !run {
		r.note(ctx, s, "", playbooks.OutcomeSkipped, "`if` is false", "")
		return outcome{Outcome: playbooks.OutcomeSkipped}
	}
	switch {
	case s.Parallel != nil:
		return r.parallel(ctx, s, env, under)
	case s.Approval != nil:
		return r.approval(ctx, s, env)
	}
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
		if out = r.action(ctx, s, env, under); out.Outcome != playbooks.OutcomeFailed {
			break
		}
	}
	return out
}

func (r *run) parallel(ctx workflow.Context, s *playbooks.Step, env playbooks.Env, under *approved) outcome {
	branches := make([]playbooks.Env, len(s.Parallel))
	joined := workflow.NewWaitGroup(ctx)
	for i := range s.Parallel {
		branches[i] = env.Clone()
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			r.step(ctx, &s.Parallel[i], branches[i], under)
		})
	}
	joined.Wait(ctx)
	for i := range s.Parallel {
		env.Merge(branches[i], &s.Parallel[i])
	}
	return outcome{Outcome: playbooks.OutcomeChanged, targets: len(branches)}
}

// note enters what became of a step on one target into the report.
func (r *run) note(ctx workflow.Context, s *playbooks.Step, target string, o playbooks.Outcome, reason, leaseID string) {
	action := s.Action
	switch {
	case s.Parallel != nil:
		action = "parallel"
	case s.Approval != nil:
		action = "approval"
	}
	r.report.Steps = append(r.report.Steps, playbooks.StepReport{
		Step: s.Name(), Action: action, Target: target, Outcome: o, Reason: clip(reason), Lease: leaseID, At: workflow.Now(ctx),
	})
}

// clip bounds a reason: it may hold what an attacker wrote.
func clip(s string) string {
	if r := []rune(s); len(r) > 500 {
		return string(r[:500]) + "…"
	}
	return s
}

// action runs a step that calls an action, on each of its targets at once.
func (r *run) action(ctx workflow.Context, s *playbooks.Step, env playbooks.Env, under *approved) outcome {
	fail := func(err error) outcome {
		r.note(ctx, s, "", playbooks.OutcomeFailed, err.Error(), "")
		return outcome{Outcome: playbooks.OutcomeFailed, reason: err.Error()}
	}
	params, err := r.Arguments(s, env)
	if err != nil {
		return fail(err)
	}
	targets, err := r.targets(s, env)
	if err != nil {
		return fail(err)
	}
	if len(targets) == 0 {
		r.note(ctx, s, "", playbooks.OutcomeSkipped, "there is no target", "")
		return outcome{Outcome: playbooks.OutcomeSkipped, reason: "there is no target"}
	}
	results := make([]outcome, len(targets))
	joined := workflow.NewWaitGroup(ctx)
	for i, target := range targets {
		joined.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer joined.Done()
			request := activities.Request{Action: s.Action, Params: params, Target: target, Incident: r.brief}
			if r.Catalogue[s.Action].Verb == playbooks.VerbContain {
				results[i] = r.contain(ctx, s, request, under)
			} else {
				results[i] = r.observe(ctx, s, request)
			}
		})
	}
	joined.Wait(ctx)
	all := outcome{outputs: results[0].outputs, targets: len(targets)}
	for _, one := range results {
		if worse := all.Worse(one.Outcome); worse != all.Outcome {
			all.Outcome, all.reason = worse, one.reason
		}
	}
	return all
}

// targets are the step's own, or the action's kind of the incident's.
func (r *run) targets(s *playbooks.Step, env playbooks.Env) ([]playbooks.Target, error) {
	targets, err := r.Targets(s, env)
	if err != nil || s.Target != nil || len(targets) == 0 {
		return targets, err //nolint:wrapcheck // it names the step
	}
	switch kinds := r.Catalogue[s.Action].Targets; {
	case len(kinds) > 0 && kinds[0] == playbooks.TargetIncident:
		return []playbooks.Target{{Kind: playbooks.TargetIncident, Name: r.brief.ID, UID: r.brief.ID}}, nil
	case len(kinds) > 0 && kinds[0] == playbooks.TargetWorkload:
		w := r.in.Incident.Workload
		return []playbooks.Target{{Kind: playbooks.TargetWorkload, Namespace: w.Namespace, WorkloadKind: w.Kind, Name: w.Name, UID: w.UID, Node: w.Node}}, nil
	}
	return targets, nil
}

func (r *run) activityOptions(s *playbooks.Step) workflow.ActivityOptions {
	spec := r.Catalogue[s.Action]
	limit := spec.Timeout
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
		StartToCloseTimeout: limit, ScheduleToCloseTimeout: limit + 5*time.Second, HeartbeatTimeout: activities.Heartbeat,
		RetryPolicy: &temporal.RetryPolicy{InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 5 * time.Second, MaximumAttempts: 3},
	}
	return o
}

func last[T any](s []T, n int) []T { return s[max(0, len(s)-n):] }

func activityError(err error) string {
	text := err.Error()
	if i := strings.Index(text, "): "); i > 0 && strings.HasPrefix(text, "activity error") {
		text = text[i+3:]
	}
	return text
}
