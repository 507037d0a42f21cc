package metrics

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/worker/nodeserver"
)

// disconnectedShownFor is how long a disconnected node is exported: long enough for any alert, and not forever.
const disconnectedShownFor = 24 * time.Hour

// Limits of one node's series, because a compromised node may report anything.
const (
	maxRulesPerNode   = 150
	maxReasonsPerNode = 16
	maxHooksPerNode   = 32
)

type nodeCollector struct {
	source NodeStatusSource

	connectedUp, probeEvents, droppedEvents, runtimeSetupEvents, unresolvedEvents, hookAttached, probeStarted metricFamily
	spooled, spoolDropped, limitedBatches, rulesLoaded, ruleProblems                                          metricFamily
	sensorSees, heartbeat, heartbeatLatency, clockSkew, clockSkewError, certificateExpiry                     metricFamily
	streamConnected                                                                                           metricFamily
	rules                                                                                                     ruleFamilies
}

func newNodeCollector(source NodeStatusSource) *nodeCollector {
	return &nodeCollector{
		source: source,
		connectedUp: newGaugeFamily("stanch_node_up",
			"Whether the node's sensor is connected to this gateway; 0 for a day after it disconnected.", "node"),
		probeEvents: newCounterFamily("stanch_node_events_total",
			"Events that the node's sensor received from the kernel, by kind.", "node", "kind"),
		droppedEvents: newCounterFamily("stanch_node_events_dropped_total",
			"Events that the node's sensor lost, by reason. Any increase means that telemetry is missing.",
			"node", "reason"),
		runtimeSetupEvents: newCounterFamily("stanch_node_events_runtime_setup_total",
			"Events of the container runtime itself, which are ignored.", "node"),
		unresolvedEvents: newCounterFamily("stanch_node_events_unresolved_total",
			"Events whose container could not be resolved.", "node"),
		hookAttached: newGaugeFamily("stanch_node_hook_enabled", "Whether a hook of the sensor is attached to the kernel.",
			"node", "hook"),
		probeStarted: newGaugeFamily("stanch_node_sensor_start_timestamp_seconds", "When the node's probe started.", "node"),
		streamConnected: newGaugeFamily("stanch_node_connected_timestamp_seconds",
			"When the node's current stream started.", "node"),
		spooled: newGaugeFamily("stanch_node_spooled_detections",
			"Detections on the node that are waiting for the gateway.", "node"),
		spoolDropped: newCounterFamily("stanch_node_spool_dropped_detections_total",
			"Detections that the node's spool refused: it was full, or they were too large.", "node"),
		limitedBatches: newCounterFamily("stanch_node_batches_limited_total",
			"Batches that exceeded the node's rate and were delayed.", "node"),
		rulesLoaded: newGaugeFamily("stanch_node_rules", "Rules in force on the node.", "node"),
		ruleProblems: newGaugeFamily("stanch_node_rule_problems",
			"Problems in the node's rule packs; a rule with a problem is not used.", "node"),
		sensorSees: newGaugeFamily("stanch_node_heartbeat_healthy",
			"Whether the node's sensor receives its own heartbeats.", "node"),
		heartbeat: newGaugeFamily("stanch_node_heartbeat_timestamp_seconds",
			"When the sensor last received its own heartbeat from the kernel.", "node"),
		heartbeatLatency: newGaugeFamily("stanch_node_heartbeat_latency_seconds",
			"How long the sensor's last heartbeat took to pass through the kernel.", "node"),
		clockSkew: newGaugeFamily("stanch_node_clock_skew_seconds",
			"How far the node's clock is ahead of the gateway's; negative is behind.", "node"),
		clockSkewError: newGaugeFamily("stanch_node_clock_skew_error_seconds",
			"The maximum error of the measured clock skew.", "node"),
		certificateExpiry: newGaugeFamily("stanch_node_certificate_expiry_timestamp_seconds",
			"When the node's certificate expires.", "node"),
		rules: newRuleFamilies("stanch_node_rule", "node"),
	}
}

func (n *nodeCollector) allFamilies() []metricFamily {
	return append(n.rules.allFamilies(), n.connectedUp, n.probeEvents, n.droppedEvents, n.runtimeSetupEvents,
		n.unresolvedEvents, n.hookAttached, n.probeStarted, n.streamConnected, n.spooled, n.spoolDropped, n.limitedBatches,
		n.rulesLoaded,
		n.ruleProblems, n.sensorSees, n.heartbeat, n.heartbeatLatency, n.clockSkew, n.clockSkewError, n.certificateExpiry)
}

// Describe implements prometheus.Collector.
func (n *nodeCollector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range n.allFamilies() {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (n *nodeCollector) Collect(out chan<- prometheus.Metric) {
	here := n.source.ConnectedNodes()
	reported := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(here)) {
		label := labelText(name)
		if reported[label] {
			continue // two names that are equal when truncated would make the scrape invalid
		}
		reported[label] = true
		n.connectedUp.sendMetric(out, 1, label)
		n.collectNode(out, label, here[name])
	}
	for _, name := range n.source.DisconnectedNodes(disconnectedShownFor) {
		if label := labelText(name); !reported[label] {
			reported[label] = true
			n.connectedUp.sendMetric(out, 0, label)
		}
	}
}

// collectNode collects the health report of one node. It omits the parts that cannot be decoded.
func (n *nodeCollector) collectNode(out chan<- prometheus.Metric, name string, raw json.RawMessage) {
	var state struct {
		Gateway nodeserver.NodeStreamState `json:"gateway"`
	}
	if json.Unmarshal(raw, &state) == nil {
		g := state.Gateway
		n.limitedBatches.sendMetric(out, float64(g.LimitedBatches), name)
		sendTimestamp(n.streamConnected, out, g.ConnectedSince, name)
		sendTimestamp(n.certificateExpiry, out, g.CertificateExpiresAt, name)
		if g.ClockSkew != nil {
			n.clockSkew.sendMetric(out, g.ClockSkew.Offset.Seconds(), name)
			n.clockSkewError.sendMetric(out, g.ClockSkew.MaxError.Seconds(), name)
		}
	}
	var r agent.StatusReport
	if json.Unmarshal(raw, &r) != nil || r.Node == "" {
		return // no readable report yet
	}
	n.collectProbe(out, name, r)
	n.unresolvedEvents.sendMetric(out, float64(r.UnresolvedEvents), name)
	n.spooled.sendMetric(out, float64(r.Spooled), name)
	n.spoolDropped.sendMetric(out, float64(r.SpoolDropped), name)
	n.rulesLoaded.sendMetric(out, float64(r.Rules.RuleCount), name)
	n.ruleProblems.sendMetric(out, float64(len(r.Rules.Problems)), name)
	n.rules.sendStats(out, r.RuleStats, name)
	if !r.Heartbeat.LastReceived.IsZero() || r.Heartbeat.Failing {
		n.sensorSees.sendMetric(out, boolToFloat(!r.Heartbeat.Failing), name)
		sendTimestamp(n.heartbeat, out, r.Heartbeat.LastReceived, name)
		n.heartbeatLatency.sendMetric(out, r.Heartbeat.LatencyMS/1000, name)
	}
}

func (n *nodeCollector) collectProbe(out chan<- prometheus.Metric, name string, r agent.StatusReport) {
	p := r.ProbeStatus
	if p.LoadedAt.IsZero() {
		return // it has no probe
	}
	sendTimestamp(n.probeStarted, out, p.LoadedAt, name)
	n.runtimeSetupEvents.sendMetric(out, float64(p.RuntimeSetupEvents), name)
	for _, kind := range sensors.NodeKinds { // known kinds only, whatever it reports
		n.probeEvents.sendMetric(out, float64(p.Events[kind]), name, string(kind))
	}
	reasons := 0
	rest := uint64(0)
	seen := map[string]bool{otherLabel: true}
	for _, reason := range slices.Sorted(maps.Keys(p.Drops)) {
		if label := labelText(reason); reasons < maxReasonsPerNode && !seen[label] {
			seen[label] = true
			reasons++
			n.droppedEvents.sendMetric(out, float64(p.Drops[reason]), name, label)
			continue
		}
		rest += p.Drops[reason]
	}
	if rest > 0 || reasons == 0 {
		n.droppedEvents.sendMetric(out, float64(rest), name, otherLabel)
	}
	hooks := map[string]bool{}
	for _, h := range p.Hooks {
		label := labelText(string(h.Hook))
		if len(hooks) < maxHooksPerNode && !hooks[label] {
			hooks[label] = true
			n.hookAttached.sendMetric(out, boolToFloat(h.Enabled), name, label)
		}
	}
}

func sendTimestamp(f metricFamily, out chan<- prometheus.Metric, at time.Time, labels ...string) {
	if !at.IsZero() {
		f.sendMetric(out, float64(at.UnixMilli())/1000, labels...)
	}
}
