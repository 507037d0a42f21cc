package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// maxLabelBytes bounds a label's value, in bytes.
const maxLabelBytes = 128

// labelText makes a label's value of what somebody else wrote: Prometheus refuses a whole scrape over one that is not UTF-8.
func labelText(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxLabelBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxLabelBytes], "") + "…"
}

// otherLabel stands for all values past a bound.
const otherLabel = "other"

// metricFamily is one metric that is made anew at each scrape.
type metricFamily struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newCounterFamily(name, help string, labels ...string) metricFamily {
	return metricFamily{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

func newGaugeFamily(name, help string, labels ...string) metricFamily {
	return metricFamily{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

func (f metricFamily) sendMetric(out chan<- prometheus.Metric, value float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(f.desc, f.kind, value, labels...)
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
