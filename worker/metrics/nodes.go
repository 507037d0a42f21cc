package metrics

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/worker/gateway"
)

// awayFor is how long a node that left is shown as away: long enough for any alert, and not for ever.
const awayFor = 24 * time.Hour

// The bounds of one node's series. A node that was taken over writes what it wants.
const (
	maxRules   = 150
	maxReasons = 16
	maxHooks   = 32
)

type nodes struct {
	source Nodes

	up, events, dropped, setup, nameless, hook, since   family
	spooled, spoolDropped, limited, rulesLoaded, broken family
	sees, heartbeat, latency, skew, skewError, ends     family
	connected                                           family
	rules                                               ruleFamilies
}

func newNodes(source Nodes) *nodes {
	return &nodes{
		source: source,
		up:     gauge("stanch_node_up", "Whether the node's sensor is connected to this gateway; 0 for a day after it left.", "node"),
		events: counter("stanch_node_events_total", "Events that the node's sensor took from the kernel, by kind.", "node", "kind"),
		dropped: counter("stanch_node_events_dropped_total", "Events that the node's sensor lost, by reason. Any increase is telemetry that is missing.",
			"node", "reason"),
		setup:        counter("stanch_node_events_setup_total", "Events of the container runtime itself, which are left out.", "node"),
		nameless:     counter("stanch_node_events_nameless_total", "Events whose container could not be named.", "node"),
		hook:         gauge("stanch_node_hook_on", "Whether a hook of the sensor is attached to the kernel.", "node", "hook"),
		since:        gauge("stanch_node_sensor_start_timestamp_seconds", "When the node's probe started.", "node"),
		connected:    gauge("stanch_node_connected_timestamp_seconds", "When the node's present stream began.", "node"),
		spooled:      gauge("stanch_node_spooled_detections", "Detections that wait on the node for the gateway.", "node"),
		spoolDropped: counter("stanch_node_spool_dropped_detections_total", "Detections that the node's spool refused: it was full, or they were too large.", "node"),
		limited:      counter("stanch_node_batches_limited_total", "Batches that came faster than the node's rate and were told to wait.", "node"),
		rulesLoaded:  gauge("stanch_node_rules", "Rules in force on the node.", "node"),
		broken:       gauge("stanch_node_rule_problems", "Problems in the node's rule packs; what has one is left out.", "node"),
		sees:         gauge("stanch_node_eyes_open", "Whether the node's sensor sees what it makes happen itself.", "node"),
		heartbeat:    gauge("stanch_node_heartbeat_timestamp_seconds", "When the sensor last saw its own heartbeat come back from the kernel.", "node"),
		latency:      gauge("stanch_node_heartbeat_latency_seconds", "How long the sensor's last heartbeat took through the kernel.", "node"),
		skew:         gauge("stanch_node_clock_skew_seconds", "How far the node's clock is ahead of the gateway's; negative is behind.", "node"),
		skewError:    gauge("stanch_node_clock_skew_error_seconds", "How far off the measured clock skew may be.", "node"),
		ends:         gauge("stanch_node_certificate_expiry_timestamp_seconds", "When the node's certificate ends.", "node"),
		rules:        newRuleFamilies("stanch_node_rule", "node"),
	}
}

func (n *nodes) families() []family {
	return append(n.rules.families(), n.up, n.events, n.dropped, n.setup, n.nameless, n.hook, n.since, n.connected, n.spooled, n.spoolDropped, n.limited, n.rulesLoaded,
		n.broken, n.sees, n.heartbeat, n.latency, n.skew, n.skewError, n.ends)
}

// Describe implements prometheus.Collector.
func (n *nodes) Describe(out chan<- *prometheus.Desc) {
	for _, f := range n.families() {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (n *nodes) Collect(out chan<- prometheus.Metric) {
	here := n.source.Nodes()
	told := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(here)) {
		label := text(name)
		if told[label] {
			continue // two names that are one when cut would spoil the scrape
		}
		told[label] = true
		n.up.send(out, 1, label)
		n.node(out, label, here[name])
	}
	for _, name := range n.source.Away(awayFor) {
		if label := text(name); !told[label] {
			told[label] = true
			n.up.send(out, 0, label)
		}
	}
}

// node tells what one node said of itself. What cannot be read is left out, part by part.
func (n *nodes) node(out chan<- prometheus.Metric, name string, raw json.RawMessage) {
	var state struct {
		Gateway gateway.NodeState `json:"gateway"`
	}
	if json.Unmarshal(raw, &state) == nil {
		g := state.Gateway
		n.limited.send(out, float64(g.Limited), name)
		moment(n.connected, out, g.Since, name)
		moment(n.ends, out, g.CertificateEnds, name)
		if g.Clock != nil {
			n.skew.send(out, g.Clock.Skew.Seconds(), name)
			n.skewError.send(out, g.Clock.Error.Seconds(), name)
		}
	}
	var r agent.StatusReport
	if json.Unmarshal(raw, &r) != nil || r.Node == "" {
		return // it has not spoken yet, or not so that it can be read
	}
	n.probe(out, name, r)
	n.nameless.send(out, float64(r.UnresolvedEvents), name)
	n.spooled.send(out, float64(r.Spooled), name)
	n.spoolDropped.send(out, float64(r.SpoolDropped), name)
	n.rulesLoaded.send(out, float64(r.Rules.RuleCount), name)
	n.broken.send(out, float64(len(r.Rules.Problems)), name)
	n.rules.send(out, r.RuleStats, name)
	if !r.Heartbeat.LastReceived.IsZero() || r.Heartbeat.Failing {
		n.sees.send(out, number(!r.Heartbeat.Failing), name)
		moment(n.heartbeat, out, r.Heartbeat.LastReceived, name)
		n.latency.send(out, r.Heartbeat.LatencyMS/1000, name)
	}
}

func (n *nodes) probe(out chan<- prometheus.Metric, name string, r agent.StatusReport) {
	p := r.ProbeStatus
	if p.LoadedAt.IsZero() {
		return // it has no probe
	}
	moment(n.since, out, p.LoadedAt, name)
	n.setup.send(out, float64(p.RuntimeSetupEvents), name)
	for _, kind := range sensors.NodeKinds { // and no others, whatever it says
		n.events.send(out, float64(p.Events[kind]), name, string(kind))
	}
	reasons := 0
	rest := uint64(0)
	seen := map[string]bool{other: true}
	for _, reason := range slices.Sorted(maps.Keys(p.Drops)) {
		if label := text(reason); reasons < maxReasons && !seen[label] {
			seen[label] = true
			reasons++
			n.dropped.send(out, float64(p.Drops[reason]), name, label)
			continue
		}
		rest += p.Drops[reason]
	}
	if rest > 0 || reasons == 0 {
		n.dropped.send(out, float64(rest), name, other)
	}
	hooks := map[string]bool{}
	for _, h := range p.Hooks {
		label := text(string(h.Hook))
		if len(hooks) < maxHooks && !hooks[label] {
			hooks[label] = true
			n.hook.send(out, number(h.Enabled), name, label)
		}
	}
}

func moment(f family, out chan<- prometheus.Metric, at time.Time, labels ...string) {
	if !at.IsZero() {
		f.send(out, float64(at.UnixMilli())/1000, labels...)
	}
}
