package simulate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/playbooks/recording"
	"stanch/testenv/corpus"
	"stanch/worker/actions"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
	"stanch/worker/simulationreport"
)

func newSimulator(t testing.TB, o simulate.Options) *simulate.Simulator {
	t.Helper()
	m, err := simulate.NewSimulator(o)
	require.NoError(t, err)
	return m
}

// newPairRunner returns a function that creates runners in this process.
func newPairRunner(now, base *simulate.Simulator) func() simulate.Runner {
	return func() simulate.Runner { return simulate.BaselinePair{Current: now, Baseline: base} }
}

func corpusEntries(all []loadedRecording) iter.Seq[simulate.CorpusEntry] {
	return func(yield func(simulate.CorpusEntry) bool) {
		for _, l := range all {
			if !yield(simulate.CorpusEntry{
				Name: l.File,
				Read: func() ([]byte, error) { return recording.Encode(l.Recording) },
			}) {
				return
			}
		}
	}
}

// Every kind of incident in the corpus can be simulated to its end, and together they have every outcome.
func TestCorpusCoversAllOutcomes(t *testing.T) {
	outcomes, asked := map[string]int{}, 0
	all := generateCorpus(t, corpus.Options{Seed: 3, Count: 400, StormDetections: 60})
	require.NoError(t, simulate.Each(t.Context(), corpusEntries(all), newPairRunner(newSimulator(t, optionsWith(t)), nil),
		func(o simulate.RecordingOutcome) error {
			require.Empty(t, o.Result.Error, o.Result.RecordingFile)
			for _, s := range o.Result.Steps {
				outcomes[string(s.Outcome)]++
			}
			asked += len(o.Result.ApprovalRequests)
			return nil
		}))
	for _, want := range []string{"changed", "proposed", "denied", "refused", "failed", "skipped", "unverified"} {
		require.Positive(t, outcomes[want], "%s in %v", want, outcomes)
	}
	require.Positive(t, asked)
}

// Results are in the order of the recordings and reproducible, whatever the scheduling.
func TestResultsAreInRecordingOrder(t *testing.T) {
	all := generateCorpus(t, corpus.Options{Seed: 5, Count: 60, StormDetections: 100})
	read := func() (names []string, steps [][]simulate.StepResult) {
		require.NoError(t, simulate.Each(t.Context(), corpusEntries(all), newPairRunner(newSimulator(t, optionsWith(t)), nil),
			func(o simulate.RecordingOutcome) error {
				for i := range o.Result.Steps {
					o.Result.Steps[i].AtMS = 0 // on an overloaded machine, Temporal's test environment lets real time pass
				}
				names, steps = append(names, o.Result.IncidentID), append(steps, o.Result.Steps)
				return nil
			}))
		return names, steps
	}
	names, steps := read()
	for i, l := range all {
		require.Equal(t, l.Recording.Incident.ID, names[i])
	}
	again, same := read()
	require.Equal(t, names, again)
	for i, l := range all {
		if l.Recording.Incident.ConfigHash != "corpus:miner-pods" { // which of several pods uses the budget is random
			require.Equal(t, steps[i], same[i], names[i])
		}
	}
	m := newSimulator(t, optionsWith(t))
	require.NoError(t, simulate.Each(t.Context(), corpusEntries(all), newPairRunner(m, m),
		func(o simulate.RecordingOutcome) error {
			require.Nil(t, o.Change, "%+v", o.Change)
			return nil
		}))
}

// An unreadable recording is reported, and the others continue.
func TestUnreadableRecordingDoesNotStopCorpus(t *testing.T) {
	all := generateCorpus(t, corpus.Options{Seed: 1, Count: 3})
	broken := func(yield func(simulate.CorpusEntry) bool) {
		n := 0
		for e := range corpusEntries(all) {
			if n++; n == 2 {
				e = simulate.CorpusEntry{Name: "b.json", Read: func() ([]byte, error) {
					return nil,
						errors.New("b.json: it is corrupted")
				}}
			}
			if !yield(e) {
				return
			}
		}
	}
	tally := simulate.NewTotals(false)
	var errs []string
	require.NoError(t, simulate.Each(t.Context(), broken, newPairRunner(newSimulator(t, optionsWith(t)), nil),
		func(o simulate.RecordingOutcome) error {
			tally.AddOutcome(o)
			errs = append(errs, o.Result.Error)
			return nil
		}))
	require.Equal(t, []string{"", "b.json: it is corrupted", ""}, errs)
	require.Contains(t, tally.Summarize(), "3 incidents")
	require.Contains(t, tally.Summarize(), "1 could not be simulated to the end")
}

// Only a limited number of recordings is in memory, and unneeded ones are not read.
func TestRecordingsInMemoryAreLimited(t *testing.T) {
	unread := errors.New("not there")
	var asked, given, most atomic.Int64
	endless := func(yield func(simulate.CorpusEntry) bool) {
		for range 300 {
			most.Store(max(most.Load(), asked.Add(1)-given.Load()))
			if !yield(simulate.CorpusEntry{Name: "r", Read: func() ([]byte, error) { return nil, unread }}) {
				return
			}
		}
	}
	stop := errors.New("enough")
	window := int64(8 * runtime.GOMAXPROCS(0))
	err := simulate.Each(t.Context(), endless, newPairRunner(newSimulator(t, optionsWith(t)), nil),
		func(simulate.RecordingOutcome) error {
			if given.Load() == 0 { // a slow consumer: reading continues until the limit
				require.Eventually(t, func() bool { return asked.Load() > window }, time.Minute, time.Millisecond)
				require.Never(t, func() bool { return asked.Load() > window+3 }, 100*time.Millisecond, time.Millisecond)
			}
			if given.Add(1) == 50 {
				return stop
			}
			return nil
		})
	require.ErrorIs(t, err, stop)
	require.LessOrEqual(t, most.Load(), window+3)
	require.Less(t, asked.Load(), int64(300))
}

// The streamed document is valid, and equal to the report that is built in memory.
func TestStreamedReportIsOneDocument(t *testing.T) {
	all := generateCorpus(t, corpus.Options{Seed: 2, Count: 40, StormDetections: 20})
	edited := "playbook: cryptominer\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 10m\n"
	now, base := newSimulator(t, optionsWith(t, edited)), newSimulator(t, optionsWith(t))
	var out bytes.Buffer
	w, err := simulationreport.NewJSON(&out, true)
	require.NoError(t, err)
	tally := simulate.NewTotals(true)
	require.NoError(t, simulate.Each(t.Context(), corpusEntries(all), newPairRunner(now, base),
		func(o simulate.RecordingOutcome) error {
			tally.AddOutcome(o)
			return w.Add(o)
		}))
	require.NoError(t, w.Close(tally))
	var got simulationreport.Report
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(&got))
	require.Len(t, got.Results, 40)
	whole := buildReport(simulateAll(t, all, optionsWith(t, edited)), simulateAll(t, all,
		optionsWith(t)))
	require.Equal(t, whole.Summary, got.Summary)
	require.Len(t, got.Changes, len(whole.Changes))
	for i := range got.Changes {
		require.Equal(t, whole.Changes[i].IncidentID, got.Changes[i].IncidentID)
		require.Equal(t, whole.Changes[i].Kinds, got.Changes[i].Kinds)
	}
	require.NotEmpty(t, got.Changes)
	require.Equal(t, len(got.Changes), got.Totals.ChangedIncidents)
	for _, c := range got.Changes {
		require.NotEmpty(t, c.Kinds, "%+v", c)
		require.NotNil(t, c.FirstDifference, "%+v", c)
	}
	// An empty report is a valid document too.
	var nothing bytes.Buffer
	w, err = simulationreport.NewJSON(&nothing, false)
	require.NoError(t, err)
	require.NoError(t, w.Close(simulate.NewTotals(false)))
	require.True(t, json.Valid(nothing.Bytes()), nothing.String())
}

// An edit that requests approval later, contains for less time or matches less is reported by its kind, with the first
// decision that differs.
func TestChangesAreReportedByKind(t *testing.T) {
	const before = "playbook: p\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 1h\n"
	rec := loadRecording(t, "cryptominer")
	for _, c := range []struct{ name, after, kind, first string }{
		{"shorter duration", strings.Replace(before, "1h", "10m", 1), simulate.ChangeEffect, "lasts 10m"},
		{
			"no match", strings.Replace(before, "crypto-mining", "exfiltration", 1), simulate.ChangePlaybooks,
			"no playbook matches",
		},
		{"approval requested", quorumPlaybook, simulate.ChangeApprovalRequest, "playbook careful started"},
		{
			"phase limit", strings.Replace(before, "steps:", "max_phase: 1\nsteps:", 1), simulate.ChangeOutcome,
			"would only be proposed",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := simulate.CompareResults(runSimulation(t, rec, optionsWith(t, before)),
				runSimulation(t, rec, optionsWith(t, c.after)))
			require.NotNil(t, got)
			require.Contains(t, got.Kinds, c.kind)
			require.Contains(t, got.FirstDifference.Current, c.first)
			require.NotEqual(t, got.FirstDifference.Baseline, got.FirstDifference.Current)
		})
	}
	require.Nil(t, simulate.CompareResults(runSimulation(t, rec, optionsWith(t, before)),
		runSimulation(t, rec, optionsWith(t, before))))
}

// The page of a corpus has a limited size.
func TestCorpusHTMLSizeIsLimited(t *testing.T) {
	r := runSimulation(t, loadRecording(t, "shell"), optionsWith(t))
	size := func(n int) int {
		var out bytes.Buffer
		page, tally := simulationreport.NewHTML(&out, false), simulate.NewTotals(false)
		for range n {
			tally.AddOutcome(simulate.RecordingOutcome{Result: r})
			require.NoError(t, page.Add(simulate.RecordingOutcome{Result: r}))
		}
		require.NoError(t, page.Close(tally))
		require.Contains(t, out.String(), "default-src 'none'")
		require.NotContains(t, out.String(), "http://")
		require.NotContains(t, out.String(), "https://")
		return out.Len()
	}
	require.InDelta(t, size(1000), size(3000), 100)
}

// A corpus simulated in replaced processes has the same results as in one process, and a crash of a process affects one
// recording only.
func TestProcessRunnerMatchesInProcessResults(t *testing.T) {
	all := generateCorpus(t, corpus.Options{Seed: 9, Count: 30, StormDetections: 50})
	// which pod uses the budget is random
	all = slices.DeleteFunc(all, func(l loadedRecording) bool { return l.File == "corpus:miner-pods" })
	for i := range all {
		all[i].File = fmt.Sprintf("%d.json", i)
	}
	m := newSimulator(t, optionsWith(t))
	each := func(runner func() simulate.Runner) (steps [][]simulate.StepResult, broken []string) {
		require.NoError(t, simulate.Each(t.Context(), corpusEntries(all), runner, func(o simulate.RecordingOutcome) error {
			if o.Result.Error != "" {
				broken = append(broken, o.Result.RecordingFile)
			}
			for i := range o.Result.Steps {
				o.Result.Steps[i].AtMS = 0 // random, on a busy machine
			}
			steps = append(steps, o.Result.Steps)
			return nil
		}))
		return steps, broken
	}
	want, broken := each(newPairRunner(m, nil))
	require.Empty(t, broken)
	command := func(env ...string) func() simulate.Runner {
		return func() simulate.Runner {
			return &simulate.ProcessRunner{RecordingsPerProcess: 7, Command: func(ctx context.Context) *exec.Cmd {
				c := exec.CommandContext(ctx, os.Args[0])
				c.Env, c.Stderr = append(append(os.Environ(), "STANCH_TEST_SERVE=1"), env...), os.Stderr
				return c
			}}
		}
	}
	got, broken := each(command())
	require.Empty(t, broken)
	for i := range want {
		require.Equal(t, want[i], got[i], all[i].File)
	}
	_, broken = each(command("STANCH_TEST_DIES=" + all[11].File))
	require.Equal(t, []string{all[11].File}, broken)
}

// A process that hangs, or returns nonsense, affects its recording only.
func TestHangingProcessIsKilled(t *testing.T) {
	big, small := bytes.Repeat([]byte("x"), 1<<20), []byte("x") // more than a pipe holds, and less
	for name, c := range map[string]struct {
		script, wantError string
		raw               []byte
		limit             time.Duration
	}{
		"no output":                      {"exec sleep 40", "timed out after 300ms", small, 300 * time.Millisecond},
		"no output, also from its child": {"sleep 40; true", "timed out after 300ms", small, 300 * time.Millisecond},
		"no input read":                  {"sleep 40; true", "timed out after 300ms", big, 300 * time.Millisecond},
		"invalid output, no input read":  {"echo garbage; sleep 40", "timed out after 300ms", big, 300 * time.Millisecond},
		"invalid output":                 {"echo garbage; sleep 40", "invalid character 'g'", small, 0},
		"start failure":                  {"", "no such file", small, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &simulate.ProcessRunner{
				RecordingsPerProcess: 7, Timeout: c.limit,
				Command: func(ctx context.Context) *exec.Cmd {
					if c.script == "" {
						return exec.CommandContext(ctx, "/nonexistent/stanch")
					}
					return exec.CommandContext(ctx, "sh", "-c", c.script)
				},
			}
			began := time.Now()
			for range 2 {
				require.Contains(t, p.Run(t.Context(), "one.json", c.raw).Result.Error, c.wantError)
			}
			p.Close()
			require.Less(t, time.Since(began), 20*time.Second)
		})
	}
}

// A process that does not exit when there is no more work is killed.
func TestProcessThatDoesNotExitIsKilled(t *testing.T) {
	p := &simulate.ProcessRunner{RecordingsPerProcess: 1, Command: func(ctx context.Context) *exec.Cmd {
		return exec.CommandContext(ctx, "sh", "-c", "echo '{}'; sleep 40")
	}}
	began := time.Now()
	require.Empty(t, p.Run(t.Context(), "one.json", []byte("{}")).Result.Error)
	require.Less(t, time.Since(began), 30*time.Second)
}

// crashingRunner is a runner whose process crashes on one recording.
type crashingRunner struct {
	simulate.BaselinePair
	crashOn string
}

func (d crashingRunner) Run(ctx context.Context, name string, raw []byte) simulate.RecordingOutcome {
	if name == d.crashOn {
		os.Exit(3)
	}
	return d.BaselinePair.Run(ctx, name, raw)
}

func TestMain(m *testing.M) {
	if os.Getenv("STANCH_TEST_SERVE") == "" {
		os.Exit(m.Run())
	}
	catalog := actions.Catalog()
	programs, _ := playbooks.LoadPlaybooks(library.PlaybookSources(), catalog)
	now, err := simulate.NewSimulator(simulate.Options{
		Catalog: catalog,
		NewMatchFunc: func(a activities.Authority) simulate.MatchFunc {
			return playbookstore.NewFixed(a, programs...).MatchPlaybooks
		},
	})
	if err == nil {
		err = simulate.ServeProcess(context.Background(), os.Stdin, os.Stdout,
			crashingRunner{simulate.BaselinePair{Current: now}, os.Getenv("STANCH_TEST_DIES")})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
