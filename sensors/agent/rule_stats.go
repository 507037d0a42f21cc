package agent

import (
	"cmp"
	"slices"
	"time"

	"stanch/sensors/rules"
)

// The bounds of what is told of rules: those that did something, and those that cost most.
const (
	maxActiveRuleStats  = 100
	maxSlowestRuleStats = 20
)

// SelectReportedStats picks what is worth telling of the rules: a set can be large, and each node tells it every few seconds.
func SelectReportedStats(all []rules.RuleStats) []rules.RuleStats {
	slices.SortStableFunc(all, func(a, b rules.RuleStats) int { return cmp.Compare(estimatedTotalCost(b), estimatedTotalCost(a)) })
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

// estimatedTotalCost is what a rule took in all: one that is slow and seldom asked costs nothing.
func estimatedTotalCost(s rules.RuleStats) time.Duration {
	return s.MeanEvaluationTime * time.Duration(s.Evaluated)
} //nolint:gosec // it is far below
