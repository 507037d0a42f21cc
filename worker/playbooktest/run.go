package playbooktest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/testspec"
	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
	"stanch/workflows/incident"
)

// Report is the output of `stanch test -o json`.
type Report struct {
	Version  int                 `json:"version"`
	Files    []FileResult        `json:"files"`
	Coverage []testspec.Coverage `json:"coverage"`
	Passed   int                 `json:"passed"`
	Failed   int                 `json:"failed"`
	Invalid  int                 `json:"invalid"` // files that were not run
}

// FileResult is the result of one file.
type FileResult struct {
	File     string                 `json:"file"`
	Problems diagnostic.Diagnostics `json:"problems"`
	Tests    []TestResult           `json:"tests"`
	Suite    *Suite                 `json:"-"`
}

// TestResult is the result of one test.
type TestResult struct {
	Name             string                       `json:"name"`
	Line             int                          `json:"line"`
	Passed           bool                         `json:"passed"`
	Failures         []testspec.Failure           `json:"failures"`
	Playbooks        []string                     `json:"playbooks"`
	Steps            []testspec.StepRun           `json:"steps"`
	ApprovalRequests []testspec.ApprovalRequest   `json:"approval_requests"`
	Containments     []testspec.ContainmentRecord `json:"containments"`
	ClosesAtMS       int64                        `json:"closes_at_ms"`

	Test         *testspec.TestCase       `json:"-"`
	ActualResult testspec.Result          `json:"-"`
	Events       []simulate.TimelineEvent `json:"-"`
	WallTime     time.Duration            `json:"-"` // real time
}

// RunSuites runs the tests of every suite without problems, in parallel on all CPUs. The results are in the order of
// the files.
func RunSuites(ctx context.Context, suites []*Suite, catalog playbooks.Catalog) (Report, error) {
	set, err := rules.LoadShipped()
	if err != nil {
		return Report{}, fmt.Errorf("load the shipped rules: %w", err)
	}
	known := map[string]*rules.Rule{}
	for _, r := range set.Rules() {
		known[r.Name] = r
	}
	report := Report{Version: 1, Files: make([]FileResult, len(suites)), Coverage: []testspec.Coverage{}}
	var jobs []func()
	for i, s := range suites {
		s.Problems = sortProblems(append(s.Problems, unknownRules(s, known)...))
		report.Files[i] = FileResult{
			File: s.File, Problems: append(diagnostic.Diagnostics{}, s.Problems...),
			Tests: []TestResult{}, Suite: s,
		}
		if s.Problems.HasErrors() {
			continue
		}
		results := make([]TestResult, len(s.Tests.Tests))
		report.Files[i].Tests = results
		for k, t := range s.Tests.Tests {
			jobs = append(jobs, func() { results[k] = runTest(ctx, s, t, known, catalog) })
		}
	}
	runConcurrently(jobs)
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("run the tests: %w", err)
	}
	report.summarize()
	return report, nil
}

func runConcurrently(jobs []func()) {
	next := make(chan func())
	var working sync.WaitGroup
	for range max(1, min(runtime.GOMAXPROCS(0), len(jobs))) {
		working.Go(func() {
			for job := range next {
				job()
			}
		})
	}
	for _, job := range jobs {
		next <- job
	}
	close(next)
	working.Wait()
}

// unknownRules reports rules that are unknown and have no other data, whose name may be misspelled.
func unknownRules(s *Suite, known map[string]*rules.Rule) diagnostic.Diagnostics {
	var names []string
	for name := range known {
		names = append(names, name)
	}
	var out diagnostic.Diagnostics
	for _, t := range s.Tests.Tests {
		for _, d := range t.Detections {
			if known[d.Rule] == nil && d.Objective == "" {
				at := d.PositionOf("rule")
				message, hint := fmt.Sprintf("unknown shipped rule `%s`, and `objective` is missing", d.Rule),
					diagnostic.DidYouMean(d.Rule, names)
				if d.Rule == "" {
					message, hint = "the detection has no `rule` and no `objective`",
						"add an objective such as `objective: crypto-mining`"
				}
				out = append(out, diagnostic.Diagnostic{
					File: s.File, Line: at.Line, Column: at.Column, Severity: "error",
					Code: "unknown-rule", Message: message, Hint: hint,
				})
			}
		}
	}
	return out
}

// runTest runs one test.
func runTest(ctx context.Context, s *Suite, t *testspec.TestCase, known map[string]*rules.Rule,
	catalog playbooks.Catalog,
) TestResult {
	begun := time.Now()
	rec, recorded := s.recordings[t.RecordingFile.Name]
	if !recorded {
		rec = buildRecording(t, known)
	}
	p := newFakeActions(t, catalog)
	o := simulate.Options{Catalog: catalog, FakeResults: p.actionResult, Phase: t.Phase}
	o.NewMatchFunc = func(a activities.Authority) simulate.MatchFunc {
		return playbookstore.NewFixed(a, s.Playbooks...).MatchPlaybooks
	}
	o.NewRequestMatcher = func(a activities.Authority) simulate.ManualRequestMatcher {
		return playbookstore.NewFixed(a, s.Playbooks...)
	}
	o.Config, o.ApprovalAnswers = guardConfigAndAnswers(t, rec, s.Playbooks)
	for _, d := range rec.Detections {
		target := incident.TargetOfDetection(d.Detection)
		p.targetsByID[target.ID()] = target
	}
	r := simulate.Run(ctx, s.File, rec, o)
	h := toTestspecResult(r, p, s.Playbooks)
	out := TestResult{
		Name: t.Name, Line: t.Pos.Line, Failures: testspec.CompareWithResult(t, h), Playbooks: h.Playbooks, Steps: h.Steps,
		ApprovalRequests: h.ApprovalRequests, Containments: h.Containments, ClosesAtMS: r.ClosesAtMS,
		Test: t, ActualResult: h, Events: r.Events, WallTime: time.Since(begun),
	}
	out.Passed = len(out.Failures) == 0
	if out.Failures == nil {
		out.Failures = []testspec.Failure{}
	}
	return out
}

// toTestspecResult converts a simulation's result to a test's result.
func toTestspecResult(r simulate.Result, p *fakeActions, programs []*playbooks.Program) testspec.Result {
	ran := []string{}
	for _, name := range r.Playbooks {
		ran = append(ran, testspec.LastStepName(name))
	}
	h := testspec.Result{
		Playbooks: ran, Steps: []testspec.StepRun{}, ApprovalRequests: []testspec.ApprovalRequest{},
		Containments: []testspec.ContainmentRecord{}, Leases: r.FinalIncident.Leases, FinalIncident: r.FinalIncident,
		TargetsByID: p.targetsByID, Error: r.Error,
	}
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	sortSteps(r.Steps, programs)
	paramsOf := p.paramsByStep()
	for _, s := range r.Steps {
		ran := testspec.StepRun{
			Playbook: s.Playbook, Step: s.Step, Action: s.Action, Target: s.Target, Outcome: s.Outcome,
			Reason: s.Reason, EndedAt: ms(s.AtMS), EndedAtMS: s.AtMS,
		}
		if s.Target != "" {
			ran.Params = paramsOf(s.Action, s.Target)
		}
		h.Steps = append(h.Steps, ran)
	}
	for _, q := range r.ApprovalRequests {
		h.ApprovalRequests = append(h.ApprovalRequests, testspec.ApprovalRequest{
			Title: q.Title, Text: q.Question,
			ProposedActions: q.ProposedActions, Approvers: q.Approvers, Quorum: q.Quorum, ApprovalAnswers: q.Answers,
			AskedAt: ms(q.AskedAtMS), AskedAtMS: q.AskedAtMS,
		})
	}
	slices.SortStableFunc(r.Effects, func(a, b simulate.ContainmentEffect) int {
		return cmp.Or(cmp.Compare(a.AppliedAtMS, b.AppliedAtMS), cmp.Compare(a.Action, b.Action),
			cmp.Compare(a.Target, b.Target))
	})
	for _, e := range r.Effects {
		held := testspec.ContainmentRecord{
			Action: e.Action, Target: e.Target, Outcome: e.Outcome,
			AppliedAt: ms(e.AppliedAtMS), UndoneAt: ms(e.UndoneAtMS), AppliedAtMS: e.AppliedAtMS, UndoneAtMS: e.UndoneAtMS,
		}
		if json.Valid([]byte(e.Params)) {
			held.Params = json.RawMessage(e.Params)
		}
		h.Containments = append(h.Containments, held)
	}
	return h
}

// sortSteps sorts steps by time, and simultaneous ones in file order, so that the result is deterministic.
func sortSteps(steps []simulate.StepResult, programs []*playbooks.Program) {
	order := map[string][]int{}
	for _, step := range steps {
		for _, program := range programs {
			if program.Name == step.Playbook {
				order[callKey(step.Playbook, step.Step)] = testspec.StepOrder(program, step.Step)
			}
		}
	}
	slices.SortStableFunc(steps, func(a, b simulate.StepResult) int {
		return cmp.Or(
			cmp.Compare(a.AtMS, b.AtMS), cmp.Compare(a.Playbook, b.Playbook),
			slices.Compare(order[callKey(a.Playbook, a.Step)], order[callKey(b.Playbook, b.Step)]),
			cmp.Compare(a.Target, b.Target),
		)
	})
}

// summarize computes the totals and the coverage of the playbooks.
func (r *Report) summarize() {
	r.Passed, r.Failed, r.Invalid = 0, 0, 0
	var programs []*playbooks.Program
	peers, runs := map[string][]*playbooks.Program{}, map[string][]testspec.Result{}
	for _, f := range r.Files {
		if f.Problems.HasErrors() {
			r.Invalid++
			continue
		}
		for _, p := range f.Suite.Playbooks {
			if !slices.ContainsFunc(programs, func(o *playbooks.Program) bool { return o.File == p.File }) {
				programs = append(programs, p)
			}
			peers[p.File] = append(peers[p.File], f.Suite.Playbooks...)
			for _, t := range f.Tests {
				runs[p.File] = append(runs[p.File], t.ActualResult)
			}
		}
		for _, t := range f.Tests {
			if t.Passed {
				r.Passed++
			} else {
				r.Failed++
			}
		}
	}
	slices.SortFunc(programs, func(a, b *playbooks.Program) int { return cmp.Compare(a.File, b.File) })
	r.Coverage = []testspec.Coverage{}
	for _, p := range programs {
		r.Coverage = append(r.Coverage, testspec.MeasureCoverage(p, peers[p.File], runs[p.File]))
	}
}

// AllPassed reports whether every test ran and passed.
func (r Report) AllPassed() bool { return r.Failed == 0 && r.Invalid == 0 }
