package worker

import (
	"net/http"

	"stanch/sensors/agent"
	"stanch/sensors/rules"
	"stanch/worker/metrics"
)

// MetricsHandler returns the handler of /metrics. temporal is the metrics handler in the Temporal client's options; nil
// omits its metrics.
func (w *Worker) MetricsHandler(version string, temporal *metrics.TemporalMetrics) http.Handler {
	s := metrics.MetricSources{Version: version, NodeStatus: w.NodeServer, Detections: w.Ingester, Temporal: temporal}
	if w.SourceServer != nil {
		s.SourceCounts = w.SourceServer.CountsBySource
	}
	if w.Exporters != nil {
		s.ExportCounts = w.Exporters.CountsByTarget
	}
	if w.ruleEvaluator != nil {
		s.RuleStats = func() []rules.RuleStats { return agent.SelectReportedStats(w.ruleEvaluator.Rules().Stats()) }
	}
	return metrics.NewHandler(metrics.NewRegistry(s))
}
