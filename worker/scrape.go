package worker

import (
	"net/http"

	"stanch/sensors/agent"
	"stanch/sensors/rules"
	"stanch/worker/metrics"
)

// Metrics serves what Prometheus scrapes. temporal is what is in Client's options; nil leaves that out.
func (w *Worker) Metrics(version string, temporal *metrics.Temporal) http.Handler {
	s := metrics.Sources{Version: version, Nodes: w.Hub, Intake: w.Intake, Temporal: temporal}
	if w.Foreign != nil {
		s.Foreign = w.Foreign.Counts
	}
	if w.Exports != nil {
		s.Exports = w.Exports.Counts
	}
	if w.judge != nil {
		s.Rules = func() []rules.RuleStats { return agent.SelectReportedStats(w.judge.Rules().Stats()) }
	}
	return metrics.Handler(metrics.Registry(s))
}
