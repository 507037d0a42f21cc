package worker

import (
	"net/http"

	"stanch/worker/metrics"
)

// Metrics serves what Prometheus scrapes. temporal is what is in Client's options; nil leaves that out.
func (w *Worker) Metrics(version string, temporal *metrics.Temporal) http.Handler {
	s := metrics.Sources{Version: version, Nodes: w.Hub, Intake: w.Intake, Temporal: temporal}
	if w.Foreign != nil {
		s.Foreign = w.Foreign.Counts
	}
	return metrics.Handler(metrics.Registry(s))
}
