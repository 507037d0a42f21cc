package simulate_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/playbooks/recording"
	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
	"stanch/workflows/incident"
)

func loadRecording(t testing.TB, name string) recording.Recording {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../testenv/recordings", name+".json"))
	require.NoError(t, err)
	r, err := recording.Decode(raw)
	require.NoError(t, err)
	return r
}

// optionsWith returns options with the given playbooks, or the shipped ones.
func optionsWith(t testing.TB, sources ...string) simulate.Options {
	t.Helper()
	catalog := actions.Catalog()
	given := library.PlaybookSources()
	if sources != nil {
		given = nil
	}
	for _, s := range sources {
		given = append(given, playbooks.SourceFile{File: "test.yaml", Content: []byte(s)})
	}
	programs, problems := playbooks.LoadPlaybooks(given, catalog)
	require.NoError(t, problems.Err())
	return simulate.Options{Catalog: catalog, NewMatchFunc: func(a activities.Authority) simulate.MatchFunc {
		return playbookstore.NewFixed(a, programs...).MatchPlaybooks
	}}
}

func runSimulation(t testing.TB, rec recording.Recording, o simulate.Options) simulate.Result {
	t.Helper()
	r := simulate.Run(t.Context(), "test", rec, o)
	require.Empty(t, r.Error)
	return r
}

// outcomeOfAction returns the outcome of an action, "" if it did not run.
func outcomeOfAction(r simulate.Result, action string) string {
	for _, s := range r.Steps {
		if s.Action == action {
			return string(s.Outcome)
		}
	}
	return ""
}

// Every stored recording is simulated with its recorded decisions and outcomes.
func TestSimulationMatchesRecordings(t *testing.T) {
	files, err := filepath.Glob("../../testenv/recordings/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			rec, o := loadRecording(t, name), optionsWith(t)
			if own, err := os.ReadFile(strings.TrimSuffix(file, ".json") + ".yaml"); err == nil {
				o = optionsWith(t, string(own)) // it ran another playbook than the shipped ones
			}
			r := runSimulation(t, rec, o)
			require.Empty(t, simulate.Divergences(rec, r))
			require.Empty(t, r.AssumedResults)
			require.NotEmpty(t, r.Effects)
			require.Positive(t, r.Effects[0].UndoneAtMS, "every lease is undone")
			// The comparison must detect a difference.
			r.Steps[0].Outcome = playbooks.OutcomeFailed
			require.NotEmpty(t, simulate.Divergences(rec, r))
		})
	}
}

func TestSimulationIsReproducible(t *testing.T) {
	rec := loadRecording(t, "shell")
	a, b := runSimulation(t, rec, optionsWith(t)), runSimulation(t, rec, optionsWith(t))
	require.Equal(t, a.Steps, b.Steps)
	require.Nil(t, simulate.CompareResults(a, b))
}

func TestPhaseOneOnlyProposes(t *testing.T) {
	o := optionsWith(t)
	o.Phase = 1
	r := runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, "proposed", outcomeOfAction(r, "pod.isolate"))
	require.Empty(t, r.Effects)
	require.Equal(t, 1, r.Phase)
	require.False(t, r.Drill, "with another phase it is not a drill")
}

const quorumPlaybook = `playbook: careful
match: { objective: crypto-mining }
steps:
  - evidence: process.snapshot
  - approval: cut its line
    from: { groups: [responders], quorum: 2 }
    timeout: 15m
    on_timeout: deny
    steps:
      - contain: pod.isolate
        for: 1h
`

func TestApprovalAnswers(t *testing.T) {
	rec := loadRecording(t, "cryptominer")
	cfg := config.Default()
	cfg.Cluster, cfg.Phase = rec.Incident.Cluster, 3
	cfg.People = []config.Person{
		{Name: "alice", Groups: []string{"responders"}},
		{Name: "bob", Groups: []string{"responders"}},
		{Name: "eve", Groups: []string{"visitors"}},
	}
	answers := func(text string) simulate.ApprovalAnswers {
		a, err := simulate.ParseAnswers("answers.yaml", []byte(text))
		require.NoError(t, err)
		return a
	}
	for _, c := range []struct {
		name    string
		answers simulate.ApprovalAnswers
		want    string
		asked   int64 // approximate start of the effect, in seconds
	}{
		{"no answers", simulate.ApprovalAnswers{NoAnswers: true}, "denied", 0},
		{"approval by all", simulate.ApprovalAnswers{ApproveAll: true}, "succeeded", 60},
		{"below quorum", answers("answers: [{person: alice, answer: 'yes'}]"), "denied", 0},
		{"duplicate approval", answers(
			"answers: [{person: alice, answer: 'yes'}, {person: alice, answer: 'yes', after: 2m}]"), "denied", 0},
		{"not an approver", answers("answers: [{person: alice, answer: 'yes'}, {person: eve, answer: 'yes'}]"), "denied", 0},
		{
			"quorum reached", answers("answers: [{person: alice, answer: 'yes'}, {person: bob, answer: 'yes', after: 5m}]"),
			"succeeded", 300,
		},
		{
			"late approval", answers("answers: [{person: alice, answer: 'yes'}, {person: bob, answer: 'yes', after: 16m}]"),
			"denied", 0,
		},
		{
			"one denial", answers("answers: [{person: alice, answer: 'no'}, {person: bob, answer: 'yes', after: 5m}]"), "denied",
			0,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := optionsWith(t, quorumPlaybook)
			o.Config, o.Phase, o.ApprovalAnswers = cfg, 3, c.answers
			r := runSimulation(t, rec, o)
			require.Equal(t, c.want, outcomeOfAction(r, "approval"), "%+v", r.Events)
			require.Len(t, r.ApprovalRequests, 1)
			if c.want == "succeeded" {
				require.InDelta(t, c.asked, r.Effects[0].AppliedAtMS/1000, 5)
				require.InDelta(t, 3600, (r.Effects[0].UndoneAtMS-r.Effects[0].AppliedAtMS)/1000, 5)
			} else {
				require.Empty(t, r.Effects)
			}
		})
	}
}

// Alice's recorded answer is repeated, unless nobody is to answer.
func TestRecordedVoteIsRepeated(t *testing.T) {
	own, err := os.ReadFile("../../testenv/recordings/asked.yaml")
	require.NoError(t, err)
	o := optionsWith(t, string(own))
	require.Equal(t, "unverified", outcomeOfAction(runSimulation(t, loadRecording(t, "asked"), o), "pod.isolate"))
	o.ApprovalAnswers.NoAnswers = true
	require.Equal(t, "denied", outcomeOfAction(runSimulation(t, loadRecording(t, "asked"), o), "pod.isolate"))
}

// Results that were not recorded are assumed from the action's spec, and marked in every report.
func TestUnrecordedResultIsAssumedAndMarked(t *testing.T) {
	o := optionsWith(
		t,
		"playbook: freezer\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.freeze\n    for: 30s\n",
	)
	r := runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Equal(t, "unverified", outcomeOfAction(r, "pod.freeze"))
	require.NotEmpty(t, r.AssumedResults)
	require.Contains(t, r.AssumedResults[0], "pod.freeze")
	require.True(t, r.Effects[0].Assumed)
	for _, s := range r.Steps {
		require.Equal(t, s.Action == "pod.freeze", s.Assumed, "%+v", s)
	}
	page := renderPage(t, r)
	require.Contains(t, page, "unverified, assumed")
	require.Contains(t, page, "Assumed, because the recording has no result")

	// An unsupported target is refused as in production.
	o = optionsWith(
		t,
		"playbook: scaler\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - approval: stop it\n    from: { groups: [responders] }\n    timeout: 5m\n    on_timeout: deny\n    steps:\n      - contain: workload.scale\n        target: incident.targets\n        with: { replicas: 0 }\n        for: 1h\n",
	)
	r = runSimulation(t, loadRecording(t, "cryptominer"), o)
	require.Empty(t, r.Effects)
	require.Equal(t, "refused", outcomeOfAction(r, "workload.scale"))
}

// A recording of phase 1 has plans without effects: the effects are assumed and marked.
func TestUnrecordedEffectIsAssumed(t *testing.T) {
	rec := loadRecording(t, "cryptominer")
	var kept []recording.ActionResult
	for _, a := range rec.ActionResults {
		if a.Operation != recording.OperationApply {
			kept = append(kept, a)
		}
	}
	rec.ActionResults = kept
	r := runSimulation(t, rec, optionsWith(t))
	require.Equal(t, "unverified", outcomeOfAction(r, "pod.isolate"))
	require.True(t, r.Effects[0].Assumed)
}

// Failures, contested leases and drift of the recording are simulated, and the simulation still ends.
func TestRecordedFailuresAreReplayed(t *testing.T) {
	rec := loadRecording(t, "cryptominer")
	var target string
	for i, a := range rec.ActionResults {
		if a.Operation == recording.OperationApply {
			target = a.Target
			rec.ActionResults[i].AttemptNumber = 2
		}
	}
	trouble := []recording.ActionResult{
		{
			Operation: recording.OperationApply, Action: "pod.isolate", Target: target, AttemptNumber: 1,
			FailureReason: "the node did not answer",
		},
		{
			Operation: recording.OperationVerify, Action: "pod.isolate", Target: target, AttemptNumber: 1, InForce: false,
			VerifyDetail: "someone took it away",
		},
		{
			Operation: recording.OperationUndo, Action: "pod.isolate", Target: target, AttemptNumber: 1,
			Drift: "it is not what it was",
		},
	}
	rec.ActionResults = append(trouble, rec.ActionResults...)
	r := runSimulation(t, rec, optionsWith(t))
	require.Equal(t, "changed", outcomeOfAction(r, "pod.isolate"), "a failed attempt is retried")
	text, err := json.Marshal(r.Events)
	require.NoError(t, err)
	for _, want := range []string{
		"the node did not answer", "someone took it away", "would be applied again",
		"another writer changed it", "would be undone",
	} {
		require.Contains(t, string(text), want)
	}
}

func TestBaselineReportsChangesOfEdit(t *testing.T) {
	var all []loadedRecording
	for _, name := range []string{"cryptominer", "shell", "reverse-shell"} {
		all = append(all, loadedRecording{File: name, Recording: loadRecording(t, name)})
	}
	base := simulateAll(t, all, optionsWith(t))
	require.Equal(t, "this edit changes 0 of 3 incidents",
		buildReport(base, simulateAll(t, all, optionsWith(t))).Summary)

	shorter := "playbook: shell-in-production\nmatch: { objective: execution }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 5m\n"
	catalog := actions.Catalog()
	edited := optionsWith(t)
	p, _ := playbooks.LoadPlaybook("shell.yaml", []byte(shorter), catalog)
	require.NotNil(t, p)
	before := edited.NewMatchFunc
	edited.NewMatchFunc = func(a activities.Authority) simulate.MatchFunc {
		shipped, own := before(a), playbookstore.NewFixed(a, p)
		return func(ctx context.Context, in playbooks.Incident) (out []incident.SelectedPlaybook, err error) {
			was, err := shipped(ctx, in)
			if err != nil {
				return nil, err
			}
			for _, s := range was {
				if s.Name != p.Name {
					out = append(out, s)
				}
			}
			mine, err := own.MatchPlaybooks(ctx, in)
			return append(out, mine...), err
		}
	}
	report := buildReport(simulateAll(t, all, edited), base)
	require.Equal(t, "this edit changes 1 of 3 incidents", report.Summary)
	require.Equal(t, "shell", report.Changes[0].RecordingFile)
	require.Contains(t, strings.Join(report.Changes[0].Descriptions, "\n"), "lasts 5m, instead of 30m")
	require.Contains(t, strings.Join(report.Changes[0].Descriptions, "\n"), "workload on container")
}

func TestParseAnswersRejectsInvalidInput(t *testing.T) {
	for _, text := range []string{
		"", "answers: []", "answers: [{person: a}]", "answers: [{person: a, answer: maybe}]",
		"answers: [{person: a, answer: 'yes', when: 2m}]", "answers: [{person: a, answer: 'yes', after: -2m}]",
	} {
		_, err := simulate.ParseAnswers("a.yaml", []byte(text))
		require.ErrorContains(t, err, "a.yaml", text)
	}
}

func FuzzParseAnswers(f *testing.F) {
	f.Add([]byte("answers: [{person: a, answer: 'yes', after: 2m}]"))
	f.Add([]byte("answers: &a [*a]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := simulate.ParseAnswers("a.yaml", raw)
		require.True(t, err != nil || len(a.ExplicitAnswers) > 0)
	})
}

// The page escapes attacker-controlled strings.
func TestHTMLIsEscaped(t *testing.T) {
	rec := loadRecording(t, "cryptominer")
	rec.Detections[0].Detection.Event.Process.Args = []string{"<script>alert(1)</script>\u202e"}
	r := runSimulation(t, rec, optionsWith(t))
	page := renderPage(t, r)
	require.NotContains(t, page, "<script>")
	require.NotContains(t, page, "\u202e")
	require.Contains(t, page, "&lt;script&gt;")
}
