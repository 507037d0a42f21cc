package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"stanch/sensors/rules"
)

// ruleFamilies are the metrics of rules: their results and their cost.
type ruleFamilies struct {
	evaluated, fired, exceptions, failed metricFamily
	evaluationSeconds                    *prometheus.Desc
}

func newRuleFamilies(prefix string, before ...string) ruleFamilies {
	labels := append(slices.Clone(before), "rule")
	return ruleFamilies{
		evaluated: newCounterFamily(prefix+"_evaluations_total", "Events that a rule was evaluated on.", labels...),
		fired:     newCounterFamily(prefix+"_fired_total", "Events on which a rule fired.", labels...),
		exceptions: newCounterFamily(prefix+"_excepted_total",
			"Events on which a rule would have fired without its exceptions.", labels...),
		failed: newCounterFamily(prefix+"_failed_total",
			"Events on which a rule failed. Any increase means that the rule must be fixed.", labels...),
		evaluationSeconds: prometheus.NewDesc(prefix+"_evaluation_seconds",
			"Evaluation time of a rule: the sum and count of a sample of evaluations.",
			labels, nil),
	}
}

func (f ruleFamilies) allFamilies() []metricFamily {
	return []metricFamily{f.evaluated, f.fired, f.exceptions, f.failed, {desc: f.evaluationSeconds}}
}

func (f ruleFamilies) sendStats(out chan<- prometheus.Metric, all []rules.RuleStats, before ...string) {
	reported := map[string]bool{}
	for _, s := range all {
		rule := labelText(s.Rule)
		if reported[rule] || len(reported) >= maxRulesPerNode {
			continue
		}
		reported[rule] = true
		labels := append(slices.Clone(before), rule)
		f.evaluated.sendMetric(out, float64(s.Evaluated), labels...)
		f.fired.sendMetric(out, float64(s.Fired), labels...)
		f.exceptions.sendMetric(out, float64(s.Excepted), labels...)
		f.failed.sendMetric(out, float64(s.Failed), labels...)
		out <- prometheus.MustNewConstSummary(f.evaluationSeconds, s.Sampled,
			s.MeanEvaluationTime.Seconds()*float64(s.Sampled), nil, labels...)
	}
}

// gatewayRuleCollector collects the statistics of the rules that the gateway evaluates.
type gatewayRuleCollector struct {
	ruleFamilies
	source func() []rules.RuleStats
}

func newGatewayRuleCollector(source func() []rules.RuleStats) *gatewayRuleCollector {
	return &gatewayRuleCollector{newRuleFamilies("stanch_gateway_rule"), source}
}

// Describe implements prometheus.Collector.
func (g *gatewayRuleCollector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range g.allFamilies() {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (g *gatewayRuleCollector) Collect(out chan<- prometheus.Metric) { g.sendStats(out, g.source()) }
