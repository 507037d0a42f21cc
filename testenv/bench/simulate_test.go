package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"stanch/testenv/corpus"
	"stanch/testenv/harness"
	"stanch/worker/simulate"
)

// runMeasurement is what one run of the program took.
type runMeasurement struct {
	wall, cpu time.Duration
	peakBytes int64
	out       []byte
}

// runMeasured runs the program to its end; its output goes to a file, as a pipeline's would.
func runMeasured(b *testing.B, args ...string) runMeasurement {
	b.Helper()
	out, err := os.Create(filepath.Join(b.TempDir(), "out"))
	require.NoError(b, err)
	var stderr bytes.Buffer
	cmd := exec.CommandContext(b.Context(), stanchBinary, args...)
	cmd.Stdout, cmd.Stderr = out, &stderr
	began := time.Now()
	require.NoError(b, cmd.Run(), stderr.String())
	m := runMeasurement{wall: time.Since(began)}
	require.NoError(b, out.Close())
	u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	require.True(b, ok)
	m.cpu, m.peakBytes = time.Duration(u.Utime.Nano()+u.Stime.Nano()), u.Maxrss<<10
	m.out, err = os.ReadFile(out.Name())
	require.NoError(b, err)
	return m
}

// The time to validate a thousand playbooks.
func BenchmarkValidate(b *testing.B) {
	const n = 1000
	dir := b.TempDir()
	shipped, err := filepath.Glob("../../playbooks/library/*.yaml")
	require.NoError(b, err)
	shipped = slices.DeleteFunc(shipped, func(file string) bool { return strings.HasSuffix(file, "_test.yaml") })
	for i := range n {
		source, err := os.ReadFile(shipped[i%len(shipped)])
		require.NoError(b, err)
		text := strings.Replace(string(source), "\nplaybook: ", fmt.Sprintf("\nplaybook: n%d-", i), 1)
		require.NoError(b, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.yaml", i)), []byte(text), 0o600))
	}
	var took measurementsMS
	for b.Loop() {
		took = append(took, toMilliseconds(runMeasured(b, "validate", dir).wall))
	}
	reportPercentiles(b, "validate_1000_playbooks", took)
}

// corpusSize the corpus: STANCH_BENCH_CORPUS, or a small one. The record is made with 10000.
func corpusSize(b *testing.B) int {
	b.Helper()
	text := os.Getenv("STANCH_BENCH_CORPUS")
	if text == "" {
		return 500
	}
	n, err := strconv.Atoi(text)
	require.NoError(b, err)
	return max(n, 10)
}

// A corpus in `stanch simulate`: incidents per second, memory, the cost per incident as the corpus grows tenfold, and
// the comparison with the bare test environment of Temporal's SDK with as many activities.
func BenchmarkSimulate(b *testing.B) {
	n := corpusSize(b)
	small, large := filepath.Join(b.TempDir(), "small"), filepath.Join(b.TempDir(), "large")
	_, err := corpus.Write(corpus.Options{Seed: 1, Count: n / 10}, small)
	require.NoError(b, err)
	_, err = corpus.Write(corpus.Options{Seed: 1, Count: n}, large)
	require.NoError(b, err)
	args := func(dir string) []string {
		return []string{"simulate", "--playbooks", "../../playbooks/library", "--incident", dir, "-o", "json"}
	}
	for b.Loop() {
		tenth, all := runMeasured(b, args(small)...), runMeasured(b, args(large)...)
		sum := parseTally(b, all.out)
		require.Equal(b, n, sum.Incidents)
		require.Zero(b, sum.FailedIncidents)
		activities := sum.ActivityCount / n
		bareRate, bareCPU := bareIncidents(b, activities, min(n, 2000))
		rate := float64(n) / all.wall.Seconds()
		cost := func(m runMeasurement, n int) float64 { return toMilliseconds(m.cpu) / float64(n) }
		harness.AppendBenchRecord(b, map[string]any{
			"name": "simulate", "incidents": n, "incidents_per_second": rate, "cpu_ms_per_incident": cost(all, n),
			"peak_bytes": all.peakBytes, "processors": runtime.GOMAXPROCS(0),
			"activities_per_incident": activities, "baseline": "bare TestWorkflowEnvironment with as many activities",
			"baseline_per_second": bareRate, "baseline_cpu_ms": bareCPU,
			"ratio": rate / bareRate, "ratio_cpu": bareCPU / cost(all, n),
			"tenth_cpu_ms_per_incident": cost(tenth, n/10), "tenth_peak_bytes": tenth.peakBytes,
			"growth_of_cost": cost(all, n) / cost(tenth, n/10),
		})
		b.ReportMetric(rate, "incidents/s")
		b.ReportMetric(cost(all, n), "cpu-ms/incident")
		b.ReportMetric(float64(all.peakBytes)/(1<<20), "peak-MiB")
		b.ReportMetric(bareRate, "bare/s")
		b.ReportMetric(rate/bareRate, "ratio")
		b.ReportMetric(cost(all, n)/cost(tenth, n/10), "growth")
	}
}

// parseTally is what stands at the end of a report.
func parseTally(b *testing.B, raw []byte) simulate.Totals {
	b.Helper()
	var r struct {
		Tally simulate.Totals `json:"totals"`
	}
	require.NoError(b, json.Unmarshal(raw, &r))
	return r.Tally
}

// bareIncidents runs a workflow of so many activities that do nothing, on every processor, each in an environment of
// its own.
func bareIncidents(b *testing.B, activities, n int) (perSecond, cpuMS float64) {
	b.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as the program does
	used := func() time.Duration {
		var u syscall.Rusage
		require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began, before := time.Now(), used()
	each := n / runtime.GOMAXPROCS(0)
	var working sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		working.Go(func() {
			for range each {
				var suite testsuite.WorkflowTestSuite
				suite.SetLogger(discardLogger{})
				env := suite.NewTestWorkflowEnvironment()
				env.RegisterActivity(noopActivity)
				env.RegisterWorkflow(bareWorkflow)
				env.ExecuteWorkflow(bareWorkflow, activities)
				if err := env.GetWorkflowError(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	working.Wait()
	done := float64(each * runtime.GOMAXPROCS(0))
	return done / time.Since(began).Seconds(), toMilliseconds(used()-before) / done
}

type discardLogger struct{}

func (discardLogger) Debug(string, ...any) {}
func (discardLogger) Info(string, ...any)  {}
func (discardLogger) Warn(string, ...any)  {}
func (discardLogger) Error(string, ...any) {}
