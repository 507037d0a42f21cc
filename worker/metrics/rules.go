package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"stanch/sensors/rules"
)

// ruleFamilies are what rules did and what they cost.
type ruleFamilies struct {
	evaluated, fired, excepted, failed family
	took                               *prometheus.Desc
}

func newRuleFamilies(prefix string, before ...string) ruleFamilies {
	labels := append(slices.Clone(before), "rule")
	return ruleFamilies{
		evaluated: counter(prefix+"_evaluations_total", "Events that a rule was asked about.", labels...),
		fired:     counter(prefix+"_fired_total", "Events on which a rule fired.", labels...),
		excepted:  counter(prefix+"_excepted_total", "Events on which a rule would have fired without its exceptions.", labels...),
		failed:    counter(prefix+"_failed_total", "Events that a rule could not judge. Any increase is a rule to mend.", labels...),
		took: prometheus.NewDesc(prefix+"_evaluation_seconds", "What an evaluation of a rule took: the sum and the number of those that were timed, a sample of all.",
			labels, nil),
	}
}

func (f ruleFamilies) families() []family {
	return []family{f.evaluated, f.fired, f.excepted, f.failed, {desc: f.took}}
}

func (f ruleFamilies) send(out chan<- prometheus.Metric, all []rules.RuleStats, before ...string) {
	told := map[string]bool{}
	for _, s := range all {
		rule := text(s.Rule)
		if told[rule] || len(told) >= maxRules {
			continue
		}
		told[rule] = true
		labels := append(slices.Clone(before), rule)
		f.evaluated.send(out, float64(s.Evaluated), labels...)
		f.fired.send(out, float64(s.Fired), labels...)
		f.excepted.send(out, float64(s.Excepted), labels...)
		f.failed.send(out, float64(s.Failed), labels...)
		out <- prometheus.MustNewConstSummary(f.took, s.Sampled, s.MeanEvaluationTime.Seconds()*float64(s.Sampled), nil, labels...)
	}
}

// gatewayRules are the rules that the gateway evaluates itself.
type gatewayRules struct {
	ruleFamilies
	source func() []rules.RuleStats
}

func newGatewayRules(source func() []rules.RuleStats) *gatewayRules {
	return &gatewayRules{newRuleFamilies("stanch_gateway_rule"), source}
}

// Describe implements prometheus.Collector.
func (g *gatewayRules) Describe(out chan<- *prometheus.Desc) {
	for _, f := range g.families() {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (g *gatewayRules) Collect(out chan<- prometheus.Metric) { g.send(out, g.source()) }
