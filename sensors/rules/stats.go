package rules

import (
	"sync/atomic"
	"time"

	"stanch/sensors"
)

// timingSampleInterval is the sampling interval for timing: every 256th event is timed, because reading the clock
// costs more than most rules.
const timingSampleInterval = 256

// counters are counters without a lock.
type counters struct {
	evaluated, fired, excepted, failed atomic.Uint64
	sampled, sampledNanos              atomic.Uint64
}

// RuleStats are the statistics of one rule since its set was loaded. Evaluated, Fired, Excepted and Failed count
// events, and Sampled counts the timed evaluations.
type RuleStats struct {
	Rule      string       `json:"rule"`
	Kind      sensors.Kind `json:"on"`
	Evaluated uint64       `json:"evaluated"`
	Fired     uint64       `json:"fired"`
	Excepted  uint64       `json:"excepted"`
	Failed    uint64       `json:"failed"`
	// MeanEvaluationTime is the mean duration of an evaluation, measured for every 256th event. It is 0 without
	// samples.
	MeanEvaluationTime time.Duration `json:"mean_ns"`
	Sampled            uint64        `json:"sampled"`
}

// Stats returns the statistics of every enabled rule, in the order of the files.
func (s *Set) Stats() []RuleStats {
	out := make([]RuleStats, 0, len(s.rules))
	for _, r := range s.rules {
		if r.Disabled {
			continue
		}
		one := RuleStats{
			Rule: r.Name, Kind: r.Kind, Evaluated: s.byKind[r.Kind].counters.evaluated.Load(), Fired: r.counters.fired.Load(),
			Excepted: r.counters.excepted.Load(),
			Failed:   r.counters.failed.Load(), Sampled: r.counters.sampled.Load(),
		}
		if one.Sampled > 0 {
			one.MeanEvaluationTime = time.Duration(r.counters.sampledNanos.Load() / one.Sampled)
		}
		out = append(out, one)
	}
	return out
}
