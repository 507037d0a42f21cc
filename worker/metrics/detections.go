package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"stanch/worker/export"
	"stanch/worker/sourceserver"
)

type detectionCollector struct {
	source             DetectionCountSource
	detections, queued metricFamily
}

func newDetectionCollector(source DetectionCountSource) *detectionCollector {
	return &detectionCollector{
		source: source,
		detections: newCounterFamily("stanch_detections_total",
			"Detections at the gateway: accepted, refused permanently, or deferred for a retry.",
			"source", "severity", "outcome"),
		queued: newGaugeFamily("stanch_detections_queued", "Detections that are waiting for Temporal."),
	}
}

// Describe implements prometheus.Collector.
func (i *detectionCollector) Describe(out chan<- *prometheus.Desc) {
	out <- i.detections.desc
	out <- i.queued.desc
}

// Collect implements prometheus.Collector.
func (i *detectionCollector) Collect(out chan<- prometheus.Metric) {
	for _, c := range i.source.DetectionCounts() {
		i.detections.sendMetric(out, float64(c.Count), labelText(c.Source), string(c.Severity), string(c.Outcome))
	}
	i.queued.sendMetric(out, float64(i.source.QueuedDetections()))
}

// sourceCollector collects the counts of other sensors. Its sources are those of the configuration.
type sourceCollector struct {
	source                     func() map[string]sourceserver.Counts
	records, requests, dropped metricFamily
}

func newSourceCollector(source func() map[string]sourceserver.Counts) *sourceCollector {
	return &sourceCollector{
		source: source,
		records: newCounterFamily("stanch_source_records_total",
			"Records of another sensor: accepted as detections, telemetry that produces no detection, health reports, or refused.",
			"source", "outcome"),
		requests: newCounterFamily("stanch_source_requests_delayed_total",
			"Requests that were deferred: rate-limited for the source, or postponed because Temporal or the cluster was "+
				"unavailable.",
			"source", "reason"),
		dropped: newCounterFamily("stanch_source_events_dropped_total", "Events that another sensor reported as lost.",
			"source"),
	}
}

// Describe implements prometheus.Collector.
func (f *sourceCollector) Describe(out chan<- *prometheus.Desc) {
	out <- f.records.desc
	out <- f.requests.desc
	out <- f.dropped.desc
}

// Collect implements prometheus.Collector.
func (f *sourceCollector) Collect(out chan<- prometheus.Metric) {
	for name, c := range f.source() {
		name = labelText(name)
		f.records.sendMetric(out, float64(c.Accepted), name, "accepted")
		f.records.sendMetric(out, float64(c.Telemetry), name, "telemetry")
		f.records.sendMetric(out, float64(c.Health), name, "health")
		f.records.sendMetric(out, float64(c.Refused), name, "refused")
		f.requests.sendMetric(out, float64(c.RateLimited), name, "limited")
		f.requests.sendMetric(out, float64(c.RetryLater), name, "later")
		f.dropped.sendMetric(out, float64(c.Dropped), name)
	}
}

// exportCollector collects the counts of exports. Its targets are those of the configuration.
type exportCollector struct {
	source     func() map[string]export.DeliveryCounts
	detections metricFamily
}

func newExportCollector(source func() map[string]export.DeliveryCounts) *exportCollector {
	return &exportCollector{source, newCounterFamily("stanch_export_detections_total",
		"Detections for an export: sent, failed after all attempts, or dropped because the receiver is too slow.",
		"export", "outcome")}
}

// Describe implements prometheus.Collector.
func (e *exportCollector) Describe(out chan<- *prometheus.Desc) { out <- e.detections.desc }

// Collect implements prometheus.Collector.
func (e *exportCollector) Collect(out chan<- prometheus.Metric) {
	for name, c := range e.source() {
		name = labelText(name)
		e.detections.sendMetric(out, float64(c.Sent), name, "sent")
		e.detections.sendMetric(out, float64(c.Failed), name, "failed")
		e.detections.sendMetric(out, float64(c.Dropped), name, "dropped")
	}
}
