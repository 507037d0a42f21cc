package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// maxLabelBytes is the maximum length of a label's value.
const maxLabelBytes = 128

// labelText returns a valid label value of untrusted text: Prometheus rejects a complete scrape over one value that is
// not UTF-8.
func labelText(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxLabelBytes {
		return s
	}
	return strings.ToValidUTF8(s[:maxLabelBytes], "") + "…"
}

// otherLabel replaces all values beyond a limit.
const otherLabel = "other"

// metricFamily is one metric that is computed at each scrape.
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
