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

// Sources are what is read at each scrape. What is nil is left out.
type Sources struct {
	Version string
	Nodes   Nodes
	Intake  Intake
	// Foreign tells what came from other sensors, by the source's name in the configuration.
	Foreign func() map[string]gateway.ForeignCounts
	// Exports tells what went out, by the export's name in the configuration.
	Exports func() map[string]export.Counts
	// Rules are those that the gateway evaluates itself.
	Rules func() []rules.RuleStats
	// Temporal counts what the client and the workers did; its Options have to be the client's.
	Temporal *Temporal
}

// Nodes knows what nodes tell of themselves.
type Nodes interface {
	Nodes() map[string]json.RawMessage
	Away(within time.Duration) []string
}

// Intake knows what became of detections.
type Intake interface {
	Counts() []gateway.DetectionCount
	Queued() int
}

var (
	_ Nodes  = (*gateway.Hub)(nil)
	_ Intake = (*gateway.Intake)(nil)
)

// Registry makes a registry of its own for the sources.
func Registry(s Sources) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stanch_build_info", Help: "Which build of Stanch this is; always 1.",
		ConstLabels: prometheus.Labels{"version": text(s.Version), "goversion": runtime.Version()},
	}, func() float64 { return 1 }))
	if s.Nodes != nil {
		r.MustRegister(newNodes(s.Nodes))
	}
	if s.Intake != nil {
		r.MustRegister(newIntake(s.Intake))
	}
	if s.Foreign != nil {
		r.MustRegister(newForeign(s.Foreign))
	}
	if s.Exports != nil {
		r.MustRegister(newExports(s.Exports))
	}
	if s.Rules != nil {
		r.MustRegister(newGatewayRules(s.Rules))
	}
	if s.Temporal != nil {
		r.MustRegister(s.Temporal)
	}
	return r
}

// Handler serves GET /metrics of a registry. What one collector cannot tell does not hide what the others can.
func Handler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		Registry: r, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	})
}
