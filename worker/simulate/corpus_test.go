package simulate_test

import (
	"context"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"stanch/testenv/corpus"
	"stanch/worker/simulate"
)

func made(t testing.TB, o corpus.Options) []simulate.Loaded {
	t.Helper()
	all, err := corpus.All(o)
	require.NoError(t, err)
	var out []simulate.Loaded
	for _, r := range all {
		out = append(out, simulate.Loaded{File: r.Incident.Config, Recording: r})
	}
	return out
}

func BenchmarkCorpus(b *testing.B) {
	all := made(b, corpus.Options{Seed: 1, Count: 1000})
	o := with(b)
	for b.Loop() {
		for _, r := range simulate.All(b.Context(), all, o) {
			require.Empty(b, r.Error)
		}
	}
	b.ReportMetric(float64(b.N*len(all))/b.Elapsed().Seconds(), "incidents/s")
}

// The bare test environment, with as many activities an incident.
func BenchmarkBare(b *testing.B) {
	activities := func() (n int) {
		for _, r := range simulate.All(b.Context(), made(b, corpus.Options{Seed: 1, Count: 1000}), with(b)) {
			n += r.Activities
		}
		return n / 1000
	}()
	n := 0
	for b.Loop() {
		var working sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			working.Go(func() {
				for range 500 {
					bareRun(b, activities)
				}
			})
		}
		working.Wait()
		n += 500 * runtime.GOMAXPROCS(0)
	}
	b.ReportMetric(float64(activities), "activities")
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "incidents/s")
}

type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}

func bareRun(b *testing.B, n int) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(quiet{})
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(time.Minute)
	env.RegisterActivity(nothing)
	env.RegisterWorkflow(bare)
	env.ExecuteWorkflow(bare, n)
	require.NoError(b, env.GetWorkflowError())
}

func bare(ctx workflow.Context, n int) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
	for range n {
		if err := workflow.ExecuteActivity(ctx, nothing).Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

func nothing(context.Context) error { return nil }

// What each kind costs, in CPU time.
func BenchmarkKinds(b *testing.B) {
	for _, k := range corpus.Kinds {
		b.Run(k.Name, func(b *testing.B) {
			all := made(b, corpus.Options{Seed: 1, Count: 60, Kinds: []string{k.Name}})
			m, err := simulate.New(with(b))
			require.NoError(b, err)
			began, n, activities := cpu(b), 0, 0
			for b.Loop() {
				for _, one := range all {
					r := m.Run(b.Context(), one.File, one.Recording)
					require.Empty(b, r.Error)
					activities += r.Activities
					n++
				}
			}
			b.ReportMetric((cpu(b)-began).Seconds()*1000/float64(n), "cpu-ms/incident")
			b.ReportMetric(float64(activities)/float64(n), "activities")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
