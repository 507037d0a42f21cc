package rules

import (
	"sync/atomic"
	"time"

	"stanch/sensors"
)

// sampleEvery is of how many events one is timed, rule by rule: the clock costs more than most rules.
const sampleEvery = 256

// counters count without a lock.
type counters struct {
	seen, fired, excepted, failed atomic.Uint64
	sampled, nanos                atomic.Uint64
}

// Stats is what one rule did since its set was loaded.
type Stats struct {
	Rule      string       `json:"rule"`
	On        sensors.Kind `json:"on"`
	Evaluated uint64       `json:"evaluated"`
	Fired     uint64       `json:"fired"`
	Excepted  uint64       `json:"excepted"`
	Failed    uint64       `json:"failed"`
	// Mean is what an evaluation took, measured at one event of every 256.
	Mean    time.Duration `json:"mean_ns"`
	Sampled uint64        `json:"sampled"`
}

// Stats gives what every rule in force did, in the order of the files.
func (s *Set) Stats() []Stats {
	out := make([]Stats, 0, len(s.rules))
	for _, r := range s.rules {
		if r.Disabled {
			continue
		}
		one := Stats{
			Rule: r.Name, On: r.On, Evaluated: s.byKind[r.On].count.seen.Load(), Fired: r.count.fired.Load(), Excepted: r.count.excepted.Load(),
			Failed: r.count.failed.Load(), Sampled: r.count.sampled.Load(),
		}
		if one.Sampled > 0 {
			one.Mean = time.Duration(r.count.nanos.Load() / one.Sampled) //nolint:gosec // it is far below
		}
		out = append(out, one)
	}
	return out
}
