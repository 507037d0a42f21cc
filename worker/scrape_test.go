package worker_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/link"
	"stanch/sensors/probe"
	"stanch/sensors/proof"
	"stanch/sensors/rules"
	"stanch/worker"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/engine"
	"stanch/worker/metrics"
	"stanch/worker/tracing"
	"stanch/workflows"
)

// installation is a worker on a real Temporal, as `stanch up` makes it, without a kernel.
func installation(t *testing.T, cfg *config.Config, counts *metrics.Temporal, traces *tracing.Traces, more ...func(*worker.Options)) *worker.Worker {
	t.Helper()
	dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	pki, err := authority.OpenPKI(filepath.Join(dir, "pki"))
	require.NoError(t, err)
	auth, err := authority.Open(filepath.Join(dir, "keys"))
	require.NoError(t, err)
	server, err := engine.Start(t.Context(), engine.Options{
		Dir: filepath.Join(dir, "temporal"), PKI: pki, Log: quiet, Attributes: map[string]enumspb.IndexedValueType{workflows.IncidentAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	options, err := worker.DialOptions(client.Options{
		HostPort: server.Address, Namespace: engine.Namespace, ConnectionOptions: client.ConnectionOptions{TLS: server.TLS}, Logger: sdklog.NewStructuredLogger(quiet),
	}, filepath.Join(dir, "keys"))
	require.NoError(t, err)
	temporal, err := client.Dial(traces.Options(counts.Options(options)))
	require.NoError(t, err)
	t.Cleanup(temporal.Close)
	library, problems, err := worker.LoadLibrary(cfg, worker.Catalogue())
	require.NoError(t, err)
	require.Empty(t, problems.Errors())
	codec, err := worker.PayloadCodec(filepath.Join(dir, "keys"))
	require.NoError(t, err)
	o := worker.Options{
		Config: cfg, Dir: dir, Client: temporal, Authority: auth, PKI: pki, Library: library, NodeListen: "127.0.0.1:0", Converter: codec.Converter(), Log: quiet, Version: "test", Tracer: traces.Tracer(),
	}
	for _, change := range more {
		change(&o)
	}
	w, err := worker.Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(w.Close)
	return w
}

type deaf struct{}

func (deaf) Handle(context.Context, link.CommandKind, []byte, proof.Keyring) (any, []link.Blob, error) {
	return nil, nil, link.ErrRefused
}

// join connects a node that tells of itself what it is given, and obeys nothing unless it is given what does.
func join(t *testing.T, w *worker.Worker, h agent.Health, handlers ...link.Handler) *link.Spool {
	t.Helper()
	var handler link.Handler = deaf{}
	for _, given := range handlers {
		handler = given
	}
	return joinWith(t, w, h, handler)
}

func joinWith(t *testing.T, w *worker.Worker, h agent.Health, handler link.Handler) *link.Spool {
	t.Helper()
	base, err := w.PKI.TLS(authority.RoleNode, h.Node)
	require.NoError(t, err)
	identity, err := link.NewIdentity(base, filepath.Join(t.TempDir(), "node.pem"))
	require.NoError(t, err)
	spool, err := link.OpenSpool(t.TempDir(), link.SpoolLimit{})
	require.NoError(t, err)
	pins, err := link.OpenPins("", "", w.Authority.KeySet())
	require.NoError(t, err)
	c := &link.Client{
		Address: w.NodeAddr, Node: h.Node, Pins: pins, Version: "test", BootID: "boot", Spool: spool, Handler: handler, Identity: identity,
		Status: func() any { return agent.Report{Health: h, Spooled: spool.Len(), Dropped: spool.Dropped()} }, HealthEvery: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return spool
}

// scrape reads /metrics as Prometheus does.
func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	require.Equal(t, http.StatusOK, response.StatusCode)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	require.NoError(t, err)
	return families
}

// value is that of the one series with these labels; -1 if there is none.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	for _, m := range families[name].GetMetric() {
		have := []string{}
		for _, l := range m.GetLabel() {
			have = append(have, l.GetName()+"="+l.GetValue())
		}
		if strings.Join(have, ",") == strings.Join(labels, ",") {
			switch {
			case m.GetSummary() != nil:
				return m.GetSummary().GetSampleSum()
			case m.GetHistogram() != nil:
				return float64(m.GetHistogram().GetSampleCount())
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return -1
}

func TestPrometheusSeesANodeAndItsIncident(t *testing.T) {
	counts := metrics.NewTemporal()
	w := installation(t, config.Default(), counts, nil)
	server := httptest.NewServer(w.Metrics("v9", counts))
	t.Cleanup(server.Close)
	spool := join(t, w, agent.Health{
		Node: "node-1", Probe: probe.Status{Since: time.Now(), Events: map[sensors.Kind]uint64{sensors.KindExec: 41}, Drops: map[string]uint64{"alerts ring full": 3}},
		RuleCounts: []rules.Stats{{Rule: "miner", Evaluated: 41, Fired: 1, Sampled: 2, Mean: time.Microsecond}},
	})
	for n, id := range []string{"d-1", "d-2", "d-3"} {
		d := sensors.Detection{
			ID: id, Rule: "miner", Title: "A miner", Severity: sensors.SeverityHigh, Confidence: 0.5, Objective: sensors.ObjectiveExecution, Source: "stanch", Time: time.Now(),
			Event: sensors.Event{ID: id, Kind: sensors.KindExec, Process: sensors.Process{Exe: "/tmp/evil\n# HELP x", Args: []string{id}}, Container: sensors.Container{ID: "c-1", Name: "evil-name"}},
		}
		if n == 2 {
			d.Severity = "apocalyptic"
		}
		require.NoError(t, spool.Add(d))
	}
	var seen map[string]*dto.MetricFamily
	require.Eventually(t, func() bool {
		seen = scrape(t, server.URL)
		return value(seen, "stanch_detections_total", "outcome=accepted", "severity=high", "source=stanch") == 2 &&
			value(seen, "stanch_detections_total", "outcome=refused", "severity=unknown", "source=stanch") == 1 && value(seen, "stanch_node_up", "node=node-1") == 1 &&
			value(seen, "stanch_node_spooled_detections", "node=node-1") == 0 && value(seen, "stanch_temporal_activity_execution_seconds", "activity_type=Observe") > 0
	}, 30*time.Second, 50*time.Millisecond)
	require.InDelta(t, 1, value(seen, "stanch_incidents_started_total"), 0, "both are one story")
	require.InDelta(t, 41, value(seen, "stanch_node_events_total", "kind=exec", "node=node-1"), 0)
	require.InDelta(t, 3, value(seen, "stanch_node_events_dropped_total", "node=node-1", "reason=alerts ring full"), 0)
	require.InDelta(t, 2e-6, value(seen, "stanch_node_rule_evaluation_seconds", "node=node-1", "rule=miner"), 1e-12)
	require.Positive(t, value(seen, "stanch_temporal_workflow_task_execution_seconds", "workflow_type=Incident"))
	for name, f := range seen {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				require.NotContains(t, l.GetValue(), "evil", "%s shows what an attacker wrote", name)
			}
		}
	}
}
