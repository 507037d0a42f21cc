package agent

import (
	"cmp"
	"slices"
	"time"

	"stanch/sensors/rules"
)

// The bounds of what is told of rules: those that did something, and those that cost most.
const (
	maxBusyRules = 100
	slowestRules = 20
)

// Telling picks what is worth telling of the rules: a set can be large, and each node tells it every few seconds.
func Telling(all []rules.Stats) []rules.Stats {
	slices.SortStableFunc(all, func(a, b rules.Stats) int { return cmp.Compare(cost(b), cost(a)) })
	var out []rules.Stats
	busy := 0
	for i, s := range all {
		did := s.Fired+s.Excepted+s.Failed > 0 && busy < maxBusyRules
		if did {
			busy++
		}
		if did || i < slowestRules && s.Sampled > 0 {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b rules.Stats) int { return cmp.Compare(a.Rule, b.Rule) })
	return out
}

// cost is what a rule took in all: one that is slow and seldom asked costs nothing.
func cost(s rules.Stats) time.Duration { return s.Mean * time.Duration(s.Evaluated) } //nolint:gosec // it is far below
