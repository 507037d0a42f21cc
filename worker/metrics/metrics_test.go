package metrics_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/probe"
	"stanch/sensors/rules"
	"stanch/worker/ingest"
	"stanch/worker/metrics"
	"stanch/worker/nodeserver"
	"stanch/worker/sourceserver"
)

// fakeNodeStatus is the node data of a fake gateway.
type fakeNodeStatus struct {
	connected    map[string]json.RawMessage
	disconnected []string
}

func (k fakeNodeStatus) ConnectedNodes() map[string]json.RawMessage { return k.connected }
func (k fakeNodeStatus) DisconnectedNodes(time.Duration) []string   { return k.disconnected }

func nodeReport(t *testing.T, r agent.StatusReport, state nodeserver.NodeStreamState) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(r)
	require.NoError(t, err)
	var all map[string]any
	require.NoError(t, json.Unmarshal(raw, &all))
	all["gateway"] = state
	raw, err = json.Marshal(all)
	require.NoError(t, err)
	return raw
}

func defaultNodeReport(t *testing.T) json.RawMessage {
	t.Helper()
	at := time.Unix(1_800_000_000, 0)
	return nodeReport(t, agent.StatusReport{
		Health: agent.Health{
			Node: "node-1",
			ProbeStatus: probe.Status{
				LoadedAt: at, Events: map[sensors.Kind]uint64{sensors.KindExec: 7},
				Drops: map[string]uint64{"alerts ring full": 3}, DropsByCgroup: map[string]uint64{"/evil\"path": 3},
			},
			Heartbeat: agent.HeartbeatStatus{LastReceived: at, LatencyMS: 12},
			RuleStats: []rules.RuleStats{{
				Rule: "miner", Evaluated: 512, Fired: 2, Sampled: 2,
				MeanEvaluationTime: 250 * time.Nanosecond,
			}},
		},
		Spooled: 4, SpoolDropped: 5,
	}, nodeserver.NodeStreamState{
		ConnectedSince: at, CertificateExpiresAt: at,
		ClockSkew: &nodeserver.ClockSkew{Offset: -1500 * time.Millisecond, MaxError: time.Millisecond}, LimitedBatches: 6,
	})
}

func TestNodeHealthIsExported(t *testing.T) {
	r := metrics.NewRegistry(metrics.MetricSources{
		Version: "v1",
		NodeStatus: fakeNodeStatus{
			connected:    map[string]json.RawMessage{"node-1": defaultNodeReport(t)},
			disconnected: []string{"node-2", "node-1"},
		},
	})
	require.NoError(t, testutil.GatherAndCompare(r, strings.NewReader(`
# HELP stanch_node_up Whether the node's sensor is connected to this gateway; 0 for a day after it disconnected.
# TYPE stanch_node_up gauge
stanch_node_up{node="node-1"} 1
stanch_node_up{node="node-2"} 0
# HELP stanch_node_events_dropped_total Events that the node's sensor lost, by reason. Any increase means that telemetry is missing.
# TYPE stanch_node_events_dropped_total counter
stanch_node_events_dropped_total{node="node-1",reason="alerts ring full"} 3
# HELP stanch_node_clock_skew_seconds How far the node's clock is ahead of the gateway's; negative is behind.
# TYPE stanch_node_clock_skew_seconds gauge
stanch_node_clock_skew_seconds{node="node-1"} -1.5
# HELP stanch_node_spool_dropped_detections_total Detections that the node's spool refused: it was full, or they were too large.
# TYPE stanch_node_spool_dropped_detections_total counter
stanch_node_spool_dropped_detections_total{node="node-1"} 5
# HELP stanch_node_rule_evaluation_seconds Evaluation time of a rule: the sum and count of a sample of evaluations.
# TYPE stanch_node_rule_evaluation_seconds summary
stanch_node_rule_evaluation_seconds_sum{node="node-1",rule="miner"} 5e-07
stanch_node_rule_evaluation_seconds_count{node="node-1",rule="miner"} 2
`), "stanch_node_up", "stanch_node_events_dropped_total", "stanch_node_clock_skew_seconds", "stanch_node_spool_dropped_detections_total", "stanch_node_rule_evaluation_seconds"))
}

func TestMetricNamesFollowPrometheusConventions(t *testing.T) {
	intake := &ingest.Ingester{}
	r := metrics.NewRegistry(metrics.MetricSources{
		Version: "v1", NodeStatus: fakeNodeStatus{connected: map[string]json.RawMessage{"node-1": defaultNodeReport(t)}},
		Detections: intake, Temporal: metrics.NewTemporalMetrics(),
		SourceCounts: func() map[string]sourceserver.Counts {
			return map[string]sourceserver.Counts{"falco": {Accepted: 1}}
		},
		RuleStats: func() []rules.RuleStats { return []rules.RuleStats{{Rule: "secret-read"}} },
	})
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
	n, err := testutil.GatherAndCount(r, "stanch_gateway_rule_fired_total", "stanch_source_records_total",
		"stanch_incidents_started_total")
	require.NoError(t, err)
	require.Equal(t, 1+4+1, n)
}

// A compromised node may report anything: the others' numbers stay, and its own series are limited.
func TestMaliciousNodeReportIsContained(t *testing.T) {
	r := agent.StatusReport{Health: agent.Health{Node: "liar", ProbeStatus: probe.Status{
		LoadedAt: time.Now(),
		Events:   map[sensors.Kind]uint64{}, Drops: map[string]uint64{},
	}}}
	for i := range 3000 {
		r.ProbeStatus.Events[sensors.Kind(fmt.Sprint("kind", i))] = 1
		r.ProbeStatus.Drops[fmt.Sprint("reason\xff", i)] = 1
		r.ProbeStatus.Hooks = append(r.ProbeStatus.Hooks, probe.HookStatus{Hook: probe.Hook(fmt.Sprint("hook", i%2000))})
		r.RuleStats = append(r.RuleStats, rules.RuleStats{Rule: fmt.Sprint(i, strings.Repeat("é", i)), Fired: 1},
			rules.RuleStats{Rule: "twice", MeanEvaluationTime: -5, Sampled: 1 << 62})
	}
	registry := metrics.NewRegistry(metrics.MetricSources{NodeStatus: fakeNodeStatus{connected: map[string]json.RawMessage{
		"liar": nodeReport(t, r, nodeserver.NodeStreamState{}), "node-1": defaultNodeReport(t), "mute": nil,
		"odd": json.RawMessage(`{"node":7,"probe":[],"gateway":"x"}`),
	}}})
	families, err := registry.Gather()
	require.NoError(t, err)
	series := 0
	good := false
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				require.LessOrEqual(t, len(l.GetValue()), 140)
				if l.GetName() == "node" && l.GetValue() == "liar" {
					series++
				}
				good = good || f.GetName() == "stanch_node_rule_fired_total" && l.GetValue() == "miner"
			}
		}
	}
	require.True(t, good)
	require.Less(t, series, 1000)
}

func TestWorkflowLabelsAreBounded(t *testing.T) {
	counts := metrics.NewTemporalMetrics()
	for i := range 1000 {
		h := counts.ClientHandler().
			WithTags(map[string]string{"namespace": "stanch"}).
			WithTags(map[string]string{"workflow_type": fmt.Sprint("Made", i)})
		h.Counter("temporal_workflow_failed").Inc(1)
		h.Timer("temporal_workflow_task_execution_latency").Record(time.Second)
		h.Counter("temporal_nobody_knows").Inc(1)
		h.Gauge("temporal_num_pollers").Update(1)
	}
	n, err := testutil.GatherAndCount(metrics.NewRegistry(metrics.MetricSources{Temporal: counts}),
		"stanch_temporal_workflow_failed_total")
	require.NoError(t, err)
	require.Equal(t, 65, n)
}
