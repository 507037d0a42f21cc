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
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	"stanch/sensors/rules"
	"stanch/worker"
	"stanch/worker/actions"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/worker/config"
	"stanch/worker/embeddedtemporal"
	"stanch/worker/metrics"
	"stanch/worker/playbookstore"
	"stanch/worker/tracing"
	"stanch/workflows"
)

// startInstallation starts a worker on a real Temporal, as `stanch up` does, without a kernel.
func startInstallation(t *testing.T, cfg *config.Config, counts *metrics.TemporalMetrics, traces *tracing.Traces,
	more ...func(*worker.Options),
) *worker.Worker {
	t.Helper()
	dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	pki, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	require.NoError(t, err)
	auth, err := authority.OpenOrCreate(filepath.Join(dir, "keys"))
	require.NoError(t, err)
	server, err := embeddedtemporal.Start(t.Context(), embeddedtemporal.Options{
		DataDir: filepath.Join(dir, "temporal"),
		PKI:     pki,
		Log:     quiet,
		SearchAttributes: map[string]enumspb.IndexedValueType{
			workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Stop() })
	options, err := worker.SecureClientOptions(client.Options{
		HostPort: server.Address, Namespace: embeddedtemporal.Namespace,
		ConnectionOptions: client.ConnectionOptions{TLS: server.TLS}, Logger: sdklog.NewStructuredLogger(quiet),
	}, filepath.Join(dir, "keys"))
	require.NoError(t, err)
	temporal, err := client.Dial(traces.WithTracing(counts.WithMetrics(options)))
	require.NoError(t, err)
	t.Cleanup(temporal.Close)
	library, problems, err := playbookstore.Open(cfg, actions.Catalog())
	require.NoError(t, err)
	require.Empty(t, problems.WithoutWarnings())
	codec, err := codec.Open(filepath.Join(dir, "keys"))
	require.NoError(t, err)
	o := worker.Options{
		Config: cfg, DataDir: dir, TemporalClient: temporal, Authority: auth, PKI: pki, Library: library,
		NodeListen: "127.0.0.1:0", DataConverter: codec.DataConverter(), Log: quiet, Version: "test", Tracer: traces.Tracer(),
	}
	for _, change := range more {
		change(&o)
	}
	w, err := worker.Start(t.Context(), o)
	require.NoError(t, err)
	t.Cleanup(w.Close)
	return w
}

type commandIgnoringNode struct{}

func (commandIgnoringNode) Handle(context.Context, gatewayrpc.CommandKind, []byte, attestation.Keyring) (any,
	[]gatewayrpc.Attachment, error,
) {
	return nil, nil, gatewayrpc.ErrRefused
}

// connectNode connects a node that sends the given health report, and refuses commands unless handlers are given.
func connectNode(t *testing.T, w *worker.Worker, h agent.Health,
	handlers ...gatewayrpc.CommandHandler,
) *gatewayrpc.Spool {
	t.Helper()
	var handler gatewayrpc.CommandHandler = commandIgnoringNode{}
	for _, given := range handlers {
		handler = given
	}
	return connectNodeWithHandler(t, w, h, handler)
}

func connectNodeWithHandler(t *testing.T, w *worker.Worker, h agent.Health,
	handler gatewayrpc.CommandHandler,
) *gatewayrpc.Spool {
	t.Helper()
	base, err := w.PKI.MutualTLSConfig(authority.RoleNode, h.Node)
	require.NoError(t, err)
	identity, err := gatewayrpc.NewNodeCertificate(base, filepath.Join(t.TempDir(), "node.pem"))
	require.NoError(t, err)
	spool, err := gatewayrpc.OpenSpool(t.TempDir(), gatewayrpc.SpoolLimits{})
	require.NoError(t, err)
	pins, err := gatewayrpc.OpenPinnedKeys("", "", w.Authority.KeySet())
	require.NoError(t, err)
	c := &gatewayrpc.Client{
		Address: w.NodeAddr, Node: h.Node, PinnedKeys: pins, Version: "test", BootID: "boot", Spool: spool, Handler: handler,
		NodeCertificate: identity,
		StatusFunc: func() any {
			return agent.StatusReport{
				Health: h, Spooled: spool.Len(),
				SpoolDropped: spool.Dropped(),
			}
		},
		HealthInterval: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return spool
}

// scrapeMetrics reads /metrics as Prometheus does.
func scrapeMetrics(t *testing.T, url string) map[string]*dto.MetricFamily {
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

// metricValue returns the value of the series with these labels; -1 if there is none.
func metricValue(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
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

func TestPrometheusScrapesNodeAndIncidentMetrics(t *testing.T) {
	counts := metrics.NewTemporalMetrics()
	w := startInstallation(t, config.Default(), counts, nil)
	server := httptest.NewServer(w.MetricsHandler("v9", counts))
	t.Cleanup(server.Close)
	spool := connectNode(t, w, agent.Health{
		Node: "node-1", ProbeStatus: probe.Status{
			LoadedAt: time.Now(), Events: map[sensors.Kind]uint64{sensors.KindExec: 41},
			Drops: map[string]uint64{"alerts ring full": 3},
		},
		RuleStats: []rules.RuleStats{{
			Rule: "miner", Evaluated: 41, Fired: 1, Sampled: 2,
			MeanEvaluationTime: time.Microsecond,
		}},
	})
	for n, id := range []string{"d-1", "d-2", "d-3"} {
		d := sensors.Detection{
			ID: id, Rule: "miner", Title: "A miner", Severity: sensors.SeverityHigh, Confidence: 0.5,
			Objective: sensors.ObjectiveExecution, Source: "stanch", Time: time.Now(),
			Event: sensors.Event{ID: id, Kind: sensors.KindExec, Process: sensors.Process{
				Exe:  "/tmp/evil\n# HELP x",
				Args: []string{id},
			}, Container: sensors.Container{ID: "c-1", Name: "evil-name"}},
		}
		if n == 2 {
			d.Severity = "apocalyptic"
		}
		require.NoError(t, spool.Add(d))
	}
	var seen map[string]*dto.MetricFamily
	require.Eventually(t, func() bool {
		seen = scrapeMetrics(t, server.URL)
		return metricValue(seen, "stanch_detections_total", "outcome=accepted", "severity=high", "source=stanch") == 2 &&
			metricValue(seen, "stanch_detections_total", "outcome=refused", "severity=unknown", "source=stanch") == 1 &&
			metricValue(seen, "stanch_node_up", "node=node-1") == 1 &&
			metricValue(seen, "stanch_node_spooled_detections", "node=node-1") == 0 &&
			metricValue(seen, "stanch_temporal_activity_execution_seconds", "activity_type=Observe") > 0
	}, 30*time.Second, 50*time.Millisecond)
	require.InDelta(t, 1, metricValue(seen, "stanch_incidents_started_total"), 0, "both detections are one incident")
	require.InDelta(t, 41, metricValue(seen, "stanch_node_events_total", "kind=exec", "node=node-1"), 0)
	require.InDelta(t, 3, metricValue(seen, "stanch_node_events_dropped_total", "node=node-1", "reason=alerts ring full"),
		0)
	require.InDelta(t, 2e-6, metricValue(seen, "stanch_node_rule_evaluation_seconds", "node=node-1", "rule=miner"), 1e-12)
	require.Positive(t, metricValue(seen, "stanch_temporal_workflow_task_execution_seconds", "workflow_type=Incident"))
	for name, f := range seen {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				require.NotContains(t, l.GetValue(), "evil", "%s shows attacker-controlled text", name)
			}
		}
	}
}
