package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/rules"
)

func TestRuleStatsListOnlyBusyAndSlowRules(t *testing.T) {
	var all []rules.RuleStats
	for i := range 1000 {
		s := rules.RuleStats{
			Rule: fmt.Sprintf("rule-%03d", i), Evaluated: 1000, Sampled: 4,
			MeanEvaluationTime: time.Duration(i),
		}
		if i == 3 {
			s.Fired = 1 // it is fast, and it matched
		}
		all = append(all, s)
	}
	reported := SelectReportedStats(all)
	require.Len(t, reported, maxSlowestRuleStats+1)
	require.Equal(t, "rule-003", reported[0].Rule)
	require.Equal(t, "rule-999", reported[maxSlowestRuleStats].Rule)
	for i := range all {
		all[i].Fired = 1
	}
	require.LessOrEqual(t, len(SelectReportedStats(all)), maxActiveRuleStats+maxSlowestRuleStats)
}
