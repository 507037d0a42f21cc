// Package metrics exports to Prometheus what the process already knows: nodes' health reports, what the gateway
// accepted and refused, and the progress of Temporal's work.
//
// It keeps no state except for Temporal's counters. No label contains attacker-controlled text (a container's name, a
// path, an address, an error), and each node has a limited number of series.
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
	"stanch/worker/ingest"
	"stanch/worker/nodeserver"
	"stanch/worker/sourceserver"
)

// MetricSources are read at each scrape. Nil sources are omitted.
type MetricSources struct {
	Version    string
	NodeStatus NodeStatusSource
	Detections DetectionCountSource
	// SourceCounts returns the counts of other sensors, by the source's name in the configuration.
	SourceCounts func() map[string]sourceserver.Counts
	// ExportCounts returns the counts of exports, by the export's name in the configuration.
	ExportCounts func() map[string]export.DeliveryCounts
	// RuleStats returns the statistics of the rules that the gateway evaluates.
	RuleStats func() []rules.RuleStats
	// Temporal counts the work of the client and the workers; it must be in the client's options.
	Temporal *TemporalMetrics
}

// NodeStatusSource returns the nodes' health reports.
type NodeStatusSource interface {
	ConnectedNodes() map[string]json.RawMessage
	DisconnectedNodes(within time.Duration) []string
}

// DetectionCountSource returns the results of detections.
type DetectionCountSource interface {
	DetectionCounts() []ingest.DetectionCount
	QueuedDetections() int
}

var (
	_ NodeStatusSource     = (*nodeserver.Server)(nil)
	_ DetectionCountSource = (*ingest.Ingester)(nil)
)

// NewRegistry returns a separate registry for the sources.
func NewRegistry(s MetricSources) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stanch_build_info", Help: "The build of Stanch; always 1.",
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

// NewHandler returns the handler of GET /metrics for a registry. A collector that fails does not hide the others.
func NewHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		Registry: r, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	})
}
