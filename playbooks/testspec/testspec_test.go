package testspec_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"stanch/playbooks"
	"stanch/playbooks/testspec"
)

func newTestCatalog() playbooks.Catalog {
	type tail struct {
		Tail int `json:"tail,omitempty"`
	}
	type found struct {
		SameDigestPods int `json:"same_digest_pod_count"`
	}
	pod := []playbooks.TargetKind{playbooks.TargetPod}
	c := playbooks.Catalog{}
	for _, s := range []playbooks.ActionSpec{
		{Name: "workload", Verb: playbooks.VerbEnrich, Class: playbooks.ClassObserve, Targets: pod, Outputs: found{}},
		{Name: "pod.logs", Verb: playbooks.VerbEvidence, Class: playbooks.ClassObserve, Targets: pod, Params: tail{}},
		{Name: "pod.isolate", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Targets: pod, Reversible: true},
		{Name: "pod.freeze", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Targets: pod, Reversible: true},
		{Name: "workload.scale", Verb: playbooks.VerbContain, Class: playbooks.ClassDisrupt, Targets: pod, Reversible: true},
	} {
		c[s.Name] = s
	}
	return c
}

const testPlaybookYAML = `playbook: book
match: { objective: crypto-mining }
steps:
  - evidence: pod.logs
  - contain: pod.isolate
    id: isolate
    for: 1h
    on_failure:
      - contain: pod.freeze
        for: 60s
  - approval: stop the workload
    if: incident.total_detections > 1
    from: { groups: [responders] }
    timeout: 15m
    on_timeout: deny
    steps:
      - contain: workload.scale
        for: 4h
`

func loadTestPlaybook(t testing.TB) *playbooks.Program {
	t.Helper()
	p, problems := playbooks.LoadPlaybook("book.yaml", []byte(testPlaybookYAML), newTestCatalog())
	require.NotNil(t, p, "%v", problems)
	return p
}

// Each file of testdata/cases has a file with the exact text of its diagnostics.
func TestDiagnosticsHavePositionAndHint(t *testing.T) {
	cases, err := filepath.Glob("testdata/cases/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, cases)
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			f, problems := testspec.ParseTestFile(filepath.Base(file), source)
			if !problems.HasErrors() || strings.HasSuffix(file, "unchecked.yaml") {
				problems = append(problems, testspec.CheckTestFile(f, []*playbooks.Program{loadTestPlaybook(t)},
					newTestCatalog())...).Sorted()
			}
			var got strings.Builder
			for _, p := range problems {
				got.WriteString(p.Render(source) + "\n")
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if os.Getenv("UPDATE") != "" {
				require.NoError(t, os.WriteFile(golden, []byte(got.String()), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

func mustParseTests(t testing.TB, text string) *testspec.TestFile {
	t.Helper()
	f, problems := testspec.ParseTestFile("book_test.yaml", []byte(text))
	require.NoError(t, problems.Err())
	return f
}

// newTestResult returns a run in which the pod could not be isolated and was frozen, and the approval was denied.
func newTestResult() testspec.Result {
	ran := func(step, action, target string, o playbooks.Outcome, reason string, at time.Duration) testspec.StepRun {
		return testspec.StepRun{
			Playbook: "book", Step: step, Action: action, Target: target, Outcome: o, Reason: reason,
			EndedAt: at,
		}
	}
	const pod = "pod:u1"
	logs := ran("steps[0]", "pod.logs", pod, playbooks.OutcomeChanged, "", 0)
	logs.Params = json.RawMessage(`{"tail":500,"previous":true}`)
	return testspec.Result{
		Playbooks: []string{"book"},
		Steps: []testspec.StepRun{
			logs,
			ran("isolate", "pod.isolate", pod, playbooks.OutcomeRefused, "host network", 0),
			ran("steps[1].on_failure[0]", "pod.freeze", pod, playbooks.OutcomeChanged, "", 2*time.Second),
			ran("steps[2]", "approval", "", playbooks.OutcomeDenied, "alice said no", 2*time.Minute),
		},
		ApprovalRequests: []testspec.ApprovalRequest{{
			Title: "stop the workload", Text: "Scale web to zero?",
			Approvers: "responders, bob", Quorum: 2, AskedAt: 2 * time.Second,
		}},
		Containments: []testspec.ContainmentRecord{{
			Action: "pod.freeze", Target: pod, Outcome: playbooks.OutcomeChanged,
			AppliedAt: 2 * time.Second, UndoneAt: 62 * time.Second,
		}},
		Leases: []playbooks.LeaseReport{{Action: "pod.freeze", Target: pod, State: "ended", Undone: true}},
		FinalIncident: playbooks.Incident{
			Status: "closed", Objective: "crypto-mining", Severity: "high", Confidence: 0.9,
			Summary: "a miner in web",
		},
		TargetsByID: map[string]playbooks.Target{pod: {
			Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1",
			UID: "u1",
		}},
	}
}

func TestCompareReportsDifferences(t *testing.T) {
	for _, c := range []struct{ expects, want string }{
		{"matched: true", ""},
		{"matched: false", "the incident is handled by book, but no playbook was expected"},
		{"expect: [{ step: isolate, outcome: refused, reason: host }, { action: pod.freeze, target: web-1, within: 2s }, { action: approval, at: 2m }]", ""},
		{
			"expect: [{ step: isolate, outcome: changed }]",
			"step isolate on pod shop/web-1: the outcome is refused, expected changed: host network",
		},
		{
			"expect: [{ step: isolate, reason: foreign }]",
			`step isolate on pod shop/web-1: the reason is "host network", expected it to contain "foreign"`,
		},
		{
			"expect: [{ action: pod.freeze }, { step: isolate }]",
			"step isolate on pod shop/web-1 ran before steps[1].on_failure[0], not after it (refused at 0s)",
		},
		{
			"expect: [{ action: pod.freeze, within: 1s }]",
			"step steps[1].on_failure[0] on pod shop/web-1: it ended with changed at 2s, expected within 1s",
		},
		{"expect: [{ action: approval, at: 15m }]", "step steps[2]: it ended with denied at 2m, expected at 15m"},
		{"expect: [{ action: pod.logs, with: { tail: 500 } }]", ""},
		{
			"expect: [{ action: pod.logs, with: { tail: 2000 } }]",
			"step steps[0] on pod shop/web-1: `tail` is 500, expected 2000",
		},
		{"expect: [{ step: isolate, target: web-2 }]", "step isolate of web-2 did not run; it ran on pod shop/web-1"},
		{
			"expect: [{ action: workload.scale }]",
			"step workload.scale did not run; steps that ran: steps[0] changed, isolate refused, steps[1].on_failure[0] changed, steps[2] denied",
		},
		{"asks: [{ title: stop, text: Scale, of: [responders, bob], quorum: 2, within: 2s }]", ""},
		{"asks: []", `unexpected approval request "stop the workload" at 2s`},
		{"asks: [{ of: alice }]", "the approvers are responders, bob, without alice"},
		{"asks: [{ quorum: 1 }]", "the quorum is 2, expected 1"},
		{"asks: [{}, { title: more }]", `the approval "more" was not requested; requested: "stop the workload"`},
		{"never: [workload.scale, isolate]", ""},
		{"never: [pod.freeze]", "pod.freeze was applied to pod shop/web-1 at 2s, which `never` forbids"},
		{"never: [pod.logs]", "pod.logs ended with changed at 0s, which `never` forbids"},
		{"effects: [{ action: pod.freeze, target: shop/web-1, for: 60s }]", ""},
		{
			"effects: [{ action: pod.freeze, for: 2h }]",
			"pod.freeze on pod shop/web-1: it is active for 1m, but should be active for 2h",
		},
		{"effects: []", "pod.freeze was unexpectedly applied to pod shop/web-1 at 2s"},
		{
			"effects: [{ action: pod.freeze }, { action: pod.isolate }]",
			"pod.isolate was not applied; step isolate is refused: host network",
		},
		{"leases: [{ action: pod.freeze, state: ended, undone: true }]", ""},
		{
			"leases: [{ action: pod.freeze, undone: false }]",
			"the lease of pod.freeze on pod shop/web-1: undone is true, expected false",
		},
		{
			"leases: [{ action: pod.isolate }, { action: pod.freeze }]",
			"missing lease of pod.isolate; step isolate is refused: host network",
		},
		{"leases: []", "unexpected lease of pod.freeze on pod shop/web-1: ended"},
		{"outcome: { status: closed, objective: crypto-mining, severity: high, confidence: 0.9, summary: miner }", ""},
		{"outcome: { severity: low }", "the incident's severity is high, expected low"},
		{"outcome: { confidence: 0.8 }", "the incident's confidence is 0.90, expected 0.80"},
		{"time_to_contain: <= 2s", ""},
		{"time_to_contain: < 2s", "the first containment is in force after 2s, expected < 2s"},
	} {
		f := mustParseTests(t, "tests:\n  - name: one\n    detections: [{ objective: escape }]\n    "+c.expects+"\n")
		var got []string
		for _, x := range testspec.CompareWithResult(f.Tests[0], newTestResult()) {
			require.Equal(t, 4, x.Line, c.expects)
			require.Greater(t, x.Column, 4, c.expects)
			got = append(got, x.Message)
		}
		require.Equal(t, c.want, strings.Join(got, "\n"), c.expects)
	}
}

func TestCoverageListsUncoveredBranches(t *testing.T) {
	p := loadTestPlaybook(t)
	c := testspec.MeasureCoverage(p, []*playbooks.Program{p}, []testspec.Result{newTestResult()})
	var missing []string
	for _, m := range c.Uncovered {
		missing = append(missing, m.Step+": "+m.Description)
	}
	require.Equal(t,
		[]string{
			"steps[2]: `if` is never false", "steps[2]: the approval is never granted",
			"steps[2].steps[0]: the step never runs",
		}, missing)
	require.Equal(t, 9, c.TotalPoints)
	require.Equal(t, 6, c.CoveredPoints)
	require.Equal(t, 11, c.Uncovered[0].Line)
}

const callerPlaybookYAML = `playbook: caller
match: { objective: crypto-mining }
steps:
  - foreach: incident.targets
    id: each
    steps:
      - evidence: pod.logs
        id: logs
      - call: callee
        id: sub
finally:
  - evidence: pod.logs
    id: last
`

const calleePlaybookYAML = `playbook: callee
inputs: { why: { type: string, default: none } }
steps:
  - evidence: pod.logs
  - contain: pod.isolate
    for: 1h
`

func TestResolveStepFindsStepsInLoopsAndCalls(t *testing.T) {
	programs, problems := playbooks.LoadPlaybooks([]playbooks.SourceFile{{
		File:    "caller.yaml",
		Content: []byte(callerPlaybookYAML),
	}, {File: "callee.yaml", Content: []byte(calleePlaybookYAML)}}, newTestCatalog())
	require.NoError(t, problems.Err())
	for name, want := range map[string]string{
		"each": "caller.yaml each", "each[1]/logs": "caller.yaml logs", "each[1]/sub": "caller.yaml sub",
		"each[1]/sub/steps[1]": "callee.yaml steps[1]", "last": "caller.yaml last",
		"each[1]/sub/steps[9]": "", "other/steps[0]": "", "": "",
	} {
		in, s := testspec.ResolveStep(programs[0], name)
		got := ""
		if s != nil {
			got = in.File + " " + s.Name()
		}
		require.Equal(t, want, got, name)
	}
	require.Negative(t, slices.Compare(testspec.StepOrder(programs[0], "each[2]/sub/steps[1]"),
		testspec.StepOrder(programs[0], "each[10]/logs")))

	h := testspec.Result{Steps: []testspec.StepRun{{
		Playbook: "caller", Step: "each[0]/logs",
		Outcome: playbooks.OutcomeChanged,
	}, {
		Playbook: "caller", Step: "each[0]/sub/steps[1]",
		Outcome: playbooks.OutcomeChanged,
	}}}
	cover := func(p *playbooks.Program) (missing []string) {
		for _, m := range testspec.MeasureCoverage(p, programs, []testspec.Result{h}).Uncovered {
			missing = append(missing, m.Step)
		}
		return missing
	}
	require.Equal(t, []string{"sub", "last"}, cover(programs[0]))
	require.Equal(t, []string{"steps[0]"}, cover(programs[1]))
}

func TestSchemaHasAllKeys(t *testing.T) {
	raw, err := json.Marshal(testspec.Schema())
	require.NoError(t, err)
	for _, key := range []string{
		"playbook", "detections", "blast_radius", "ancestors", "fails", "time_to_contain",
		"undone", "additionalProperties",
	} {
		require.Contains(t, string(raw), `"`+key+`"`)
	}
	again, err := json.Marshal(testspec.Schema())
	require.NoError(t, err)
	require.Equal(t, string(raw), string(again))
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/cases/*.yaml", "../library/*_test.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(f, err)
			f.Add(source)
		}
	}
	f.Add([]byte(rewriteInput))
	p := loadTestPlaybook(f)
	f.Fuzz(func(t *testing.T, source []byte) {
		file, problems := testspec.ParseTestFile("fuzz_test.yaml", source)
		for _, one := range problems {
			_ = one.Render(source)
		}
		if problems.HasErrors() {
			return
		}
		testspec.CheckTestFile(file, []*playbooks.Program{p}, newTestCatalog())
		rewrites := map[*testspec.TestCase]testspec.Result{}
		for _, one := range file.Tests {
			testspec.CompareWithResult(one, newTestResult())
			rewrites[one] = newTestResult()
		}
		if text, err := testspec.RewriteExpectations(file, rewrites); err == nil {
			again, problems := testspec.ParseTestFile("fuzz_test.yaml", text)
			require.NoError(t, problems.Err(), "the rewritten file is valid: %q", source)
			require.Len(t, again.Tests, len(file.Tests))
			require.Equal(t, withoutExpectations(t, source), withoutExpectations(t, text), "only expect is changed: %q", source)
		}
	})
}

// withoutExpectations returns a file without the `expect` of its tests, as any YAML parser reads it.
func withoutExpectations(t *testing.T, text []byte) string {
	var all map[string]any
	require.NoError(t, yaml.Unmarshal(text, &all))
	tests, _ := all["tests"].([]any)
	for _, one := range tests {
		delete(one.(map[string]any), "expect")
	}
	return fmt.Sprintf("%#v", all)
}
