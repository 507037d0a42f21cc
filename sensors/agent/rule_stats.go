package agent

import (
	"cmp"
	"slices"
	"time"

	"stanch/sensors/rules"
)

// The limits of the reported statistics: rules that matched, and rules that cost the most.
const (
	maxActiveRuleStats  = 100
	maxSlowestRuleStats = 20
)

// SelectReportedStats returns the statistics that a node reports, sorted by rule name: at most 100 rules that matched,
// and the 20 most expensive ones. A set can be large, and each node reports every few seconds. It reorders all.
func SelectReportedStats(all []rules.RuleStats) []rules.RuleStats {
	slices.SortStableFunc(all, func(a, b rules.RuleStats) int {
		return cmp.Compare(estimatedTotalCost(b),
			estimatedTotalCost(a))
	})
	var out []rules.RuleStats
	busy := 0
	for i, s := range all {
		did := s.Fired+s.Excepted+s.Failed > 0 && busy < maxActiveRuleStats
		if did {
			busy++
		}
		if did || i < maxSlowestRuleStats && s.Sampled > 0 {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b rules.RuleStats) int { return cmp.Compare(a.Rule, b.Rule) })
	return out
}

// estimatedTotalCost is the estimated total evaluation time of a rule. A slow rule that is rarely evaluated costs
// little.
func estimatedTotalCost(s rules.RuleStats) time.Duration {
	return s.MeanEvaluationTime * time.Duration(s.Evaluated)
}
