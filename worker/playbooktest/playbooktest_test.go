package playbooktest_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/worker/actions"
	"stanch/worker/playbooktest"
)

// runPlaybookTests runs tests of a playbook in a separate directory.
func runPlaybookTests(t *testing.T, playbook, tests string) playbooktest.Report {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "book.yaml"), []byte(playbook), 0o600))
	file := filepath.Join(dir, "book_test.yaml")
	require.NoError(t, os.WriteFile(file, []byte(tests), 0o600))
	return runFiles(t, file)
}

func runFiles(t *testing.T, paths ...string) playbooktest.Report {
	t.Helper()
	files, err := playbooktest.FindTestFiles(paths)
	require.NoError(t, err)
	catalog := actions.Catalog()
	var suites []*playbooktest.Suite
	for _, file := range files {
		s, err := playbooktest.LoadSuite(file, catalog)
		require.NoError(t, err)
		suites = append(suites, s)
	}
	report, err := playbooktest.RunSuites(t.Context(), suites, catalog)
	require.NoError(t, err)
	for _, f := range report.Files {
		require.Empty(t, f.Problems)
	}
	return report
}

func requireAllPassed(t *testing.T, r playbooktest.Report) {
	t.Helper()
	for _, f := range r.Files {
		for _, one := range f.Tests {
			for _, fail := range one.Failures {
				t.Errorf("%s:%d:%d: %s: %s", f.File, fail.Line, fail.Column, one.Name, fail.Message)
			}
		}
	}
	require.True(t, r.AllPassed())
}

// Every shipped playbook has tests that cover it completely.
func TestShippedPlaybooksPassTheirTests(t *testing.T) {
	r := runFiles(t, "../../playbooks/library")
	requireAllPassed(t, r)
	files, err := filepath.Glob("../../playbooks/library/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	covered := map[string]bool{}
	for _, c := range r.Coverage {
		covered[c.File] = true
		for _, m := range c.Uncovered {
			t.Errorf("%s:%d:%d: %s: %s", c.File, m.Line, m.Column, m.Step, m.Description)
		}
	}
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.yaml") {
			require.True(t, covered[file], "%s has no tests", file)
		}
	}
}

const minerPlaybook = `playbook: book
match: { objective: crypto-mining }
steps:
  - evidence: process.snapshot
  - contain: pod.isolate
    id: isolate
    for: 1h
    retry: { attempts: 2, backoff: 30s }
  - enrich: workload
    id: ctx
  - notify: log
    with: { text: "${incident.workload.image} in ${ctx.same_digest_pod_count} pods, changed: ${len(ctx.changes)}" }
  - notify: log
    with: { text: second }
  - approval: stop it
    from: { groups: [responders], quorum: 2, escalate: { after: 5m, groups: [leads] } }
    timeout: 15m
    on_timeout: deny
    steps:
      - contain: workload.scale
        with: { replicas: 0 }
        for: 4h
`

func TestFakeActionsReturnConfiguredResults(t *testing.T) {
	requireAllPassed(t, runPlaybookTests(t, minerPlaybook, `
tests:
  - name: attempts that fail are made again
    detections: [{ objective: crypto-mining }]
    actions: { pod.isolate: { fails: 2 } }
    expect: [{ step: isolate, outcome: changed, within: 2s }]
  - name: when all attempts failed the step is tried once more
    detections: [{ objective: crypto-mining }]
    actions: { pod.isolate: { fails: 4, reason: the API server is away } }
    expect:
      - { step: isolate, outcome: failed, reason: the API server is away }
      - { step: isolate, outcome: changed, within: 50s }
  - name: each target has its answer
    detections:
      - { objective: crypto-mining, pod: web-1 }
      - { objective: crypto-mining, pod: web-2 }
    incident: { blast_radius: { replicas: 8 } }
    actions:
      pod.isolate: [{ target: shop/web-2, outcome: refused, reason: host network }, { outcome: unverified, reason: the node is away }]
    expect:
      - { step: isolate, target: web-1, outcome: unverified, reason: the node is away }
      - { step: isolate, target: web-2, outcome: refused }
  - name: each call has its answer
    detections: [{ objective: crypto-mining }]
    actions: { log: [{ call: 2, outcome: failed, reason: the receiver is away }] }
    expect:
      - { action: log, outcome: succeeded, with: { text: " in 0 pods, changed: 0" } }
      - { action: log, outcome: failed, reason: the receiver is away }
  - name: what takes time takes it
    detections: [{ objective: crypto-mining }]
    actions: { process.snapshot: { takes: 4s }, pod.isolate: { takes: 3s } }
    expect:
      - { action: process.snapshot, outcome: succeeded, at: 4s }
      - { step: isolate, outcome: changed, at: 7s }
    time_to_contain: <= 7s
  - name: parameters are compared as they were rendered
    detections: [{ objective: crypto-mining }]
    incident: { image: shop/web:1, changes: [a rollout, a new digest], blast_radius: { same_digest_pod_count: 3 } }
    actions: { workload: { outputs: { same_digest_pod_count: 5 } } }
    expect:
      - { action: log, with: { text: "shop/web:1 in 5 pods, changed: 2" } }
      - { action: log, with: { text: second } }
`))
}

// A test file can reference only files in or below its directory: nothing else is opened or shown.
func TestRecordingOutsideOfTestFolderIsNotRead(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	require.NoError(t, os.Mkdir(in, 0o700))
	secret := filepath.Join(dir, "secret.json")
	raw, err := os.ReadFile("../../testenv/recordings/cryptominer.json")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(secret, raw, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(in, "own.json"), raw, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(in, "book.yaml"), []byte(minerPlaybook), 0o600))
	require.NoError(t, os.Symlink("../secret.json", filepath.Join(in, "link.json")))
	require.NoError(t, os.Symlink("own.json", filepath.Join(in, "near.json")))
	for path, want := range map[string]string{
		"own.json":          "",
		"near.json":         "",
		"none.json":         "no such recording: none.json",
		"../secret.json":    "../secret.json is outside of the test directory",
		"x/../../none.json": "x/../../none.json is outside of the test directory",
		secret:              secret + " is outside of the test directory",
		"link.json":         "link.json cannot be read, or points outside of the test directory",
	} {
		file := filepath.Join(in, "book_test.yaml")
		require.NoError(t, os.WriteFile(file, []byte("tests:\n  - name: one\n    recording: "+path+"\n    matched: true\n"),
			0o600))
		s, err := playbooktest.LoadSuite(file, actions.Catalog())
		require.NoError(t, err)
		if want == "" {
			require.Empty(t, s.Problems, path)
			continue
		}
		require.Len(t, s.Problems, 1, path)
		require.Equal(t, want, s.Problems[0].Message)
		require.Equal(t, 3, s.Problems[0].Line)
	}
}

// A fake result for a target that the incident does not have is an error in the test.
func TestFakeResultForUnknownTargetFails(t *testing.T) {
	r := runPlaybookTests(t, minerPlaybook, `tests:
  - name: misspelled
    detections: [{ objective: crypto-mining }]
    actions: { pod.isolate: { target: nopod, outcome: refused } }
    expect: [{ step: isolate, outcome: changed }]
  - name: right
    detections: [{ objective: crypto-mining }]
    actions: { pod.isolate: [{ target: shop/web-1, outcome: refused }, { target: web-1 }] }
    expect: [{ step: isolate, outcome: refused }]
`)
	require.Len(t, r.Files[0].Tests[0].Failures, 1)
	fail := r.Files[0].Tests[0].Failures[0]
	require.Equal(
		t,
		`the result of pod.isolate is for "nopod", which is not a target; the targets were INC-01TESTTESTTESTTESTTESTTEST, web, web-1`,
		fail.Message,
	)
	require.Equal(t, []int{4, 39}, []int{fail.Line, fail.Column})
	require.False(t, fail.IsExpectedStep, "--update cannot fix it")
	require.True(t, r.Files[0].Tests[1].Passed, r.Files[0].Tests[1].Failures)
}

func TestApprovalAnswersFollowTest(t *testing.T) {
	requireAllPassed(t, runPlaybookTests(t, minerPlaybook, `
tests:
  - name: two agree
    detections: [{ objective: crypto-mining }]
    answers:
      - { person: alice, answer: yes, after: 1m }
      - { person: bob, answer: yes, after: 3m }
    expect: [{ action: workload.scale, outcome: changed, at: 3m }]
    asks: [{ title: stop it, of: [responders, leads], quorum: 2, would: workload.scale }]
  - name: one is not enough
    detections: [{ objective: crypto-mining }]
    answers: [{ person: alice, answer: yes }]
    expect: [{ action: approval, outcome: denied, at: 15m }]
    never: [workload.scale]
  - name: a stranger does not count
    detections: [{ objective: crypto-mining }]
    answers:
      - { person: alice, answer: yes }
      - { person: eve, answer: yes, groups: [visitors] }
    expect: [{ action: approval, outcome: denied }]
  - name: who is asked later counts later
    detections: [{ objective: crypto-mining }]
    answers:
      - { person: alice, answer: yes }
      - { person: carol, answer: yes, groups: [leads], after: 6m }
    expect: [{ action: approval, outcome: succeeded, at: 6m }]
  - name: below the scope's confidence its approvers are asked
    confidence: 0.95
    approvers: { users: [dora], timeout: 2m }
    detections: [{ objective: crypto-mining }]
    answers: [{ person: dora, answer: no, to: isolate, reason: a load test }]
    expect: [{ step: isolate, outcome: denied, reason: a load test }]
    asks:
      - { title: pod.isolate, of: dora }
      - { title: stop it }
    effects: []
`))
}

func TestIncidentFollowsTest(t *testing.T) {
	requireAllPassed(t, runPlaybookTests(t, minerPlaybook, `
tests:
  - name: two objectives are surer than one
    detections:
      - { objective: crypto-mining, confidence: 0.6 }
      - { at: 20s, objective: escape, confidence: 0.7, severity: critical, process: { exe: /tmp/x, args: [x, -v], uid: 0 } }
    outcome: { status: closed, objective: escape, severity: critical, confidence: 0.88 }
  - name: a container outside of Kubernetes
    detections: [{ objective: crypto-mining }]
    incident: { workload: Container/miner }
    expect: [{ step: isolate, target: miner, outcome: changed }]
    leases: [{ action: pod.isolate, target: container miner, state: ended, undone: true }]
  - name: a protected namespace
    detections: [{ objective: crypto-mining }]
    incident: { workload: kube-system/DaemonSet/proxy }
    expect: [{ step: isolate, outcome: refused, reason: kube-system is protected }]
  - name: phase 2
    phase: 2
    detections: [{ objective: crypto-mining }]
    expect: [{ step: isolate, outcome: changed }, { action: approval, outcome: proposed }]
    asks: []
`))
}

func TestReportIsReproducible(t *testing.T) {
	report := func() string {
		r := runFiles(t, "../../playbooks/library")
		tests, steps, approvals, containments := 0, 0, 0, 0
		for i := range r.Files {
			// If detections arrive within milliseconds, real time on a busy machine may pass the next one during an
			// action.
			r.Files[i].Tests = slices.DeleteFunc(r.Files[i].Tests,
				func(one playbooktest.TestResult) bool { return one.Test.RecordingFile.Name != "" })
			for _, one := range r.Files[i].Tests {
				tests++
				steps, approvals = steps+len(one.Steps), approvals+len(one.ApprovalRequests)
				containments += len(one.Containments)
			}
		}
		require.Greater(t, min(tests, steps, approvals, containments), 10, "too little is compared")
		raw, err := json.Marshal(r)
		require.NoError(t, err)
		return string(raw)
	}
	first := report()
	for range 4 {
		again := report()
		at := 0
		for at < min(len(first), len(again)) && first[at] == again[at] {
			at++
		}
		require.True(t, first == again, "it was …%s, and is …%s", first[max(0, at-200):min(len(first), at+100)],
			again[max(0, at-200):min(len(again), at+100)])
	}
}

func TestJUnitReportIsValid(t *testing.T) {
	r := runPlaybookTests(t, minerPlaybook,
		"tests:\n  - name: <one> & \"two\"\n    detections: [{ objective: escape }]\n    matched: true\n")
	require.Equal(t, 1, r.Failed)
	var b bytes.Buffer
	require.NoError(t, playbooktest.WriteJUnit(&b, r))
	var got struct {
		Failures int `xml:"failures,attr"`
		Suites   []struct {
			Cases []struct {
				Name    string `xml:"name,attr"`
				Failure struct {
					Message string `xml:"message,attr"`
				} `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	require.NoError(t, xml.Unmarshal(b.Bytes(), &got))
	require.Equal(t, 1, got.Failures)
	require.Equal(t, `<one> & "two"`, got.Suites[0].Cases[0].Name)
	require.Contains(t, got.Suites[0].Cases[0].Failure.Message,
		"no playbook handles the incident (escape, confidence 0.90, severity high)")
}
