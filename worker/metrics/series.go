package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// maxText bounds a label's value, in bytes.
const maxText = 128

// text makes a label's value of what somebody else wrote: Prometheus refuses a whole scrape over one that is not UTF-8.
func text(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// other stands for all values past a bound.
const other = "other"

// family is one metric that is made anew at each scrape.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

func (f family) send(out chan<- prometheus.Metric, value float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(f.desc, f.kind, value, labels...)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
