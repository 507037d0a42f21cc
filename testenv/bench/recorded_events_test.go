package bench

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/testenv/harness"
)

// recordedRunsPerLoad is how many programs a container starts, and how many connections it makes, for a record.
const recordedRunsPerLoad = "400"

// BenchmarkRecordedEvents records the rings while a container starts programs, opens files and connects, and then takes
// the same bytes again and again through what the node does with them: decoding, naming the container, baselines, and
// every shipped rule. One goroutine does it, as in production; records/cpu-s counts what its collector takes beside it,
// too.
func BenchmarkRecordedEvents(b *testing.B) {
	harness.SkipUnlessSupported(b)
	var (
		mu      sync.Mutex
		records [][]byte
	)
	s := agent.Config{Node: "bench", StateDir: b.TempDir(), DisableLock: true, Log: slog.New(slog.DiscardHandler)}
	s.Probe.RecordTap = func(record []byte) {
		mu.Lock()
		defer mu.Unlock()
		records = append(records, slices.Clone(record))
	}
	a, closeAll, err := agent.NewFromConfig(s)
	require.NoError(b, err)
	defer closeAll()
	ctx, cancel := context.WithCancel(b.Context())
	watched := make(chan error, 1)
	go func() { watched <- a.Watch(ctx, nil, func(sensors.Detection) {}) }()
	c := harness.NewContainer(b)
	run := func(name string, args ...string) {
		out, err := c.Command(b, name, args...).CombinedOutput()
		require.NoError(b, err, string(out))
	}
	run("/bin/sh", "-c", "i=0; while [ $i -lt "+recordedRunsPerLoad+
		" ]; do /bin/cat /etc/hostname >/dev/null; i=$((i+1)); done")
	run("/bin/bash", "-c", "for i in $(seq "+recordedRunsPerLoad+
		"); do (: < /dev/tcp/127.0.0.1/9) 2>/dev/null; done; for i in $(seq 40); do head -c 1 /etc/shadow >/dev/null; done")
	require.Eventually(b, func() bool {
		seen := a.Probe.Status().Events
		return seen[sensors.KindExit] >= seen[sensors.KindExec]
	}, 10*time.Second, 10*time.Millisecond, "the last exits come")
	cancel()
	require.NoError(b, <-watched)
	kinds := a.Probe.Status().Events
	require.Greater(b, kinds[sensors.KindExec], uint64(400))
	require.Greater(b, kinds[sensors.KindConnect], uint64(300))

	found := 0
	before := a.Probe.Status().Events
	cpu := cpuTime(b)
	i := 0
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		a.Probe.ReplayRecord(records[i%len(records)],
			func(e sensors.Event) { a.ProcessEvent(e, nil, func(sensors.Detection) { found++ }) })
		i++
	}
	took := b.Elapsed()
	rate := float64(i) / took.Seconds()
	used := (cpuTime(b) - cpu).Seconds()
	b.ReportMetric(rate, "records/s")
	b.ReportMetric(float64(i)/used, "records/cpu-s")
	var handled uint64
	for kind, n := range a.Probe.Status().Events {
		handled += n - before[kind]
	}
	require.Positive(b, found, "the rules were asked")
	harness.AppendBenchRecord(b, map[string]any{
		"name": "recorded_events", "records": len(records), "records_s": rate,
		"records_cpu_s": float64(i) / used, "became_events": float64(handled) / float64(i), "kinds": kinds,
	})
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
