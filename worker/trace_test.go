package worker_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/testenv/otlp"
	"stanch/worker/config"
	"stanch/worker/metrics"
	"stanch/worker/tracing"
)

// The test sends an attack's detection from a fake node, which refuses all commands: a containment is planned and
// refused. testenv/acceptance continues to the lease, with a real kernel.
func TestDetectionAndLeasePlanShareOneTrace(t *testing.T) {
	receiver := otlp.Start(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(
		filepath.Join(dir, "hold.yaml"),
		[]byte(
			"playbook: hold\ndescription: Hold it.\nmatch: { objective: crypto-mining }\nsteps:\n  - evidence: process.snapshot\n  - contain: pod.isolate\n    for: 5s\n",
		),
		0o600,
	))
	cfg, problems := config.Parse("c", []byte("phase: 2\nlibrary: {enabled: false}\nidle_timeout: 1s\nplaybooks: ['"+dir+
		"']\n"))
	require.NoError(t, problems.Err())
	traces, err := tracing.Open(t.Context(), "v9", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(traces.Close)
	w := startInstallation(t, cfg, metrics.NewTemporalMetrics(), traces)
	spool := connectNode(t, w, agent.Health{Node: "node-1"})
	at := time.Now().Add(-3 * time.Second)
	require.NoError(t, spool.Add(sensors.Detection{
		ID: "d-1", Rule: "miner", Title: "A miner", Severity: sensors.SeverityHigh, Confidence: 0.95,
		Objective: sensors.ObjectiveCryptoMining, Source: "stanch", Time: at,
		Event: sensors.Event{
			ID: "d-1", Kind: sensors.KindExec, Process: sensors.Process{Exe: "/tmp/evil"},
			Container: sensors.Container{ID: "c-1", Name: "evil-name"},
		},
	}))
	// chain returns a span with its exported parents.
	chain := func(name string) (names []string, root otlp.Span) {
		by := map[string]otlp.Span{}
		at := ""
		for _, s := range receiver.Spans() {
			by[s.SpanID()] = s
			if s.GetName() == name {
				at = s.SpanID()
			}
		}
		for at != "" {
			root = by[at]
			if root.Span == nil {
				return append(names, "missing"), root
			}
			names, at = append(names, root.GetName()), root.ParentID()
		}
		return names, root
	}
	want := []string{
		"RunActivity:Plan", "StartActivity:Plan", "RunWorkflow:Playbook", "StartChildWorkflow:Playbook",
		"RunWorkflow:Incident", "SignalWithStartWorkflow:Incident", "gateway.accept",
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range receiver.Spans() {
				t.Log(s.GetName(), s.Attributes)
			}
		}
	})
	require.Eventually(t, func() bool { names, _ := chain(want[0]); return len(names) == len(want) }, 15*time.Second,
		50*time.Millisecond)
	names, root := chain(want[0])
	require.Equal(t, want, names)
	require.Equal(t, "miner", root.Attributes["stanch.rule"])
	require.Equal(t, "high", root.Attributes["stanch.severity"])
	require.Equal(t, "node-1", root.Attributes["stanch.node"])
	recorded, err := time.Parse(time.RFC3339Nano, root.Attributes["stanch.event_time"])
	require.NoError(t, err)
	require.WithinDuration(t, at, recorded, time.Millisecond)
	for _, a := range root.GetAttributes() {
		if a.GetKey() == "stanch.delay_seconds" {
			require.Greater(t, a.GetValue().GetDoubleValue(), 2.9)
		}
	}
	require.Equal(t, []string{"stanch"}, receiver.Services())
	for _, s := range receiver.Spans() {
		require.NotContains(t, s.GetName(), "evil")
		require.NotContains(t, s.GetStatus().GetMessage(), "evil")
		require.Empty(t, s.GetEvents())
	}
}
