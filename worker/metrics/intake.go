package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"stanch/worker/export"
	"stanch/worker/gateway"
)

type intake struct {
	source           Intake
	detections, wait family
}

func newIntake(source Intake) *intake {
	return &intake{
		source: source,
		detections: counter("stanch_detections_total", "Detections at the gateway: accepted, refused for good, or told to come again later.",
			"source", "severity", "outcome"),
		wait: gauge("stanch_detections_queued", "Detections that wait for Temporal."),
	}
}

// Describe implements prometheus.Collector.
func (i *intake) Describe(out chan<- *prometheus.Desc) {
	out <- i.detections.desc
	out <- i.wait.desc
}

// Collect implements prometheus.Collector.
func (i *intake) Collect(out chan<- prometheus.Metric) {
	for _, c := range i.source.Counts() {
		i.detections.send(out, float64(c.N), text(c.Source), string(c.Severity), string(c.Outcome))
	}
	i.wait.send(out, float64(i.source.Queued()))
}

// foreign is what other sensors sent. Its sources are those of the configuration.
type foreign struct {
	source                     func() map[string]gateway.ForeignCounts
	records, requests, dropped family
}

func newForeign(source func() map[string]gateway.ForeignCounts) *foreign {
	return &foreign{
		source: source,
		records: counter("stanch_foreign_records_total", "Records of another sensor: accepted as detections, telemetry of which nothing is made, words about itself, or refused.",
			"source", "outcome"),
		requests: counter("stanch_foreign_requests_delayed_total", "Requests that were told to come again: limited by the source's rate, or later because Temporal or the cluster was away.",
			"source", "reason"),
		dropped: counter("stanch_foreign_events_dropped_total", "Events that another sensor says it lost.", "source"),
	}
}

// Describe implements prometheus.Collector.
func (f *foreign) Describe(out chan<- *prometheus.Desc) {
	out <- f.records.desc
	out <- f.requests.desc
	out <- f.dropped.desc
}

// Collect implements prometheus.Collector.
func (f *foreign) Collect(out chan<- prometheus.Metric) {
	for name, c := range f.source() {
		name = text(name)
		f.records.send(out, float64(c.Accepted), name, "accepted")
		f.records.send(out, float64(c.Telemetry), name, "telemetry")
		f.records.send(out, float64(c.Health), name, "health")
		f.records.send(out, float64(c.Refused), name, "refused")
		f.requests.send(out, float64(c.Limited), name, "limited")
		f.requests.send(out, float64(c.Later), name, "later")
		f.dropped.send(out, float64(c.Dropped), name)
	}
}

// exports is what was sent on. Its targets are those of the configuration.
type exports struct {
	source     func() map[string]export.Counts
	detections family
}

func newExports(source func() map[string]export.Counts) *exports {
	return &exports{source, counter("stanch_export_detections_total", "Detections that were sent on: sent, failed after all tries, or dropped because the receiver is too slow.",
		"export", "outcome")}
}

// Describe implements prometheus.Collector.
func (e *exports) Describe(out chan<- *prometheus.Desc) { out <- e.detections.desc }

// Collect implements prometheus.Collector.
func (e *exports) Collect(out chan<- prometheus.Metric) {
	for name, c := range e.source() {
		name = text(name)
		e.detections.send(out, float64(c.Sent), name, "sent")
		e.detections.send(out, float64(c.Failed), name, "failed")
		e.detections.send(out, float64(c.Dropped), name, "dropped")
	}
}
