// Package metrics shows Prometheus what is known anyway: what nodes tell of themselves, what the gateway took and
// refused, and how Temporal's work goes.
//
// It refuses to keep state of its own beside Temporal's counters, to make a label of anything that an attacker writes
// (a container's name, a path, an address, an error), and to take more of a node than a fixed number of series.
package metrics

import (
	"encoding/json"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"stanch/sensors/rules"
	"stanch/worker/export"
	"stanch/worker/gateway"
)

// MetricSources are what is read at each scrape. What is nil is left out.
type MetricSources struct {
	Version    string
	NodeStatus NodeStatusSource
	Detections DetectionCountSource
	// SourceCounts tells what came from other sensors, by the source's name in the configuration.
	SourceCounts func() map[string]gateway.SourceCounts
	// ExportCounts tells what went out, by the export's name in the configuration.
	ExportCounts func() map[string]export.DeliveryCounts
	// RuleStats are those that the gateway evaluates itself.
	RuleStats func() []rules.RuleStats
	// Temporal counts what the client and the workers did; its Options have to be the client's.
	Temporal *TemporalMetrics
}

// NodeStatusSource knows what nodes tell of themselves.
type NodeStatusSource interface {
	ConnectedNodes() map[string]json.RawMessage
	DisconnectedNodes(within time.Duration) []string
}

// DetectionCountSource knows what became of detections.
type DetectionCountSource interface {
	DetectionCounts() []gateway.DetectionCount
	QueuedDetections() int
}

var (
	_ NodeStatusSource     = (*gateway.NodeServer)(nil)
	_ DetectionCountSource = (*gateway.Ingester)(nil)
)

// NewRegistry makes a registry of its own for the sources.
func NewRegistry(s MetricSources) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stanch_build_info", Help: "Which build of Stanch this is; always 1.",
		ConstLabels: prometheus.Labels{"version": labelText(s.Version), "goversion": runtime.Version()},
	}, func() float64 { return 1 }))
	if s.NodeStatus != nil {
		r.MustRegister(newNodeCollector(s.NodeStatus))
	}
	if s.Detections != nil {
		r.MustRegister(newDetectionCollector(s.Detections))
	}
	if s.SourceCounts != nil {
		r.MustRegister(newSourceCollector(s.SourceCounts))
	}
	if s.ExportCounts != nil {
		r.MustRegister(newExportCollector(s.ExportCounts))
	}
	if s.RuleStats != nil {
		r.MustRegister(newGatewayRuleCollector(s.RuleStats))
	}
	if s.Temporal != nil {
		r.MustRegister(s.Temporal)
	}
	return r
}

// NewHandler serves GET /metrics of a registry. What one collector cannot tell does not hide what the others can.
func NewHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		Registry: r, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	})
}
