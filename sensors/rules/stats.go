package rules

import (
	"sync/atomic"
	"time"

	"stanch/sensors"
)

// timingSampleInterval is of how many events one is timed, rule by rule: the clock costs more than most rules.
const timingSampleInterval = 256

// counters count without a lock.
type counters struct {
	evaluated, fired, excepted, failed atomic.Uint64
	sampled, sampledNanos              atomic.Uint64
}

// RuleStats is what one rule did since its set was loaded.
type RuleStats struct {
	Rule      string       `json:"rule"`
	Kind      sensors.Kind `json:"on"`
	Evaluated uint64       `json:"evaluated"`
	Fired     uint64       `json:"fired"`
	Excepted  uint64       `json:"excepted"`
	Failed    uint64       `json:"failed"`
	// MeanEvaluationTime is what an evaluation took, measured at one event of every 256.
	MeanEvaluationTime time.Duration `json:"mean_ns"`
	Sampled            uint64        `json:"sampled"`
}

// Stats gives what every rule in force did, in the order of the files.
func (s *Set) Stats() []RuleStats {
	out := make([]RuleStats, 0, len(s.rules))
	for _, r := range s.rules {
		if r.Disabled {
			continue
		}
		one := RuleStats{
			Rule: r.Name, Kind: r.Kind, Evaluated: s.byKind[r.Kind].counters.evaluated.Load(), Fired: r.counters.fired.Load(), Excepted: r.counters.excepted.Load(),
			Failed: r.counters.failed.Load(), Sampled: r.counters.sampled.Load(),
		}
		if one.Sampled > 0 {
			one.MeanEvaluationTime = time.Duration(r.counters.sampledNanos.Load() / one.Sampled) //nolint:gosec // it is far below
		}
		out = append(out, one)
	}
	return out
}
