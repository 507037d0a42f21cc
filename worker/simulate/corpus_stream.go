package simulate

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"sync"

	"stanch/playbooks/recording"
)

// CorpusEntry is one recording of a corpus, which is read when it is simulated.
type CorpusEntry struct {
	Name string
	Read func() ([]byte, error)
}

// Runner simulates recordings, one at a time. It is not safe for concurrent use.
type Runner interface {
	// Run simulates an encoded recording. Errors are in the result.
	Run(ctx context.Context, name string, raw []byte) RecordingOutcome
	Close()
}

// BaselinePair simulates recordings with the current playbooks and, for comparison, with others. Baseline is nil
// without a comparison.
type BaselinePair struct{ Current, Baseline *Simulator }

var _ Runner = BaselinePair{}

// Close does nothing.
func (BaselinePair) Close() {}

// Run simulates a recording in this process.
func (p BaselinePair) Run(ctx context.Context, name string, raw []byte) RecordingOutcome {
	rec, err := recording.Decode(raw)
	if err != nil {
		return RecordingOutcome{Result: UnreadableResult(name, fmt.Errorf("%s: %w", name, err))}
	}
	out := RecordingOutcome{Result: p.Current.Run(ctx, name, rec)}
	if p.Baseline != nil {
		out.Change = CompareResults(p.Baseline.Run(ctx, name, rec), out.Result)
	}
	return out
}

// RecordingOutcome is the result of one recording, and the difference from the baseline.
type RecordingOutcome struct {
	Result Result `json:"result"`
	// Change is nil without a baseline, or without a difference.
	Change *IncidentChange `json:"change,omitempty"`
}

// maxInFlightPerCPU is the maximum number of recordings per CPU that run or wait for an earlier one.
const maxInFlightPerCPU = 8

// Each simulates recordings on every CPU, and passes the outcomes to each in the order of the entries. It keeps
// only a limited number in memory. runner is called once per CPU. An error of each ends it.
func Each(ctx context.Context, entries iter.Seq[CorpusEntry], runner func() Runner,
	each func(RecordingOutcome) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type job struct {
		entry CorpusEntry
		done  chan RecordingOutcome
	}
	processors := runtime.GOMAXPROCS(0)
	jobs, order := make(chan job), make(chan job, maxInFlightPerCPU*processors)
	var working sync.WaitGroup
	for range processors {
		working.Go(func() {
			r := runner()
			defer r.Close()
			for j := range jobs {
				raw, err := j.entry.Read()
				if err != nil {
					j.done <- RecordingOutcome{Result: UnreadableResult(j.entry.Name, err)}
					continue
				}
				j.done <- r.Run(ctx, j.entry.Name, raw)
			}
		})
	}
	working.Go(func() {
		defer close(order)
		defer close(jobs)
		for e := range entries {
			j := job{e, make(chan RecordingOutcome, 1)}
			select {
			case order <- j:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- j:
			case <-ctx.Done():
				return
			}
		}
	})
	defer working.Wait()
	for j := range order {
		select {
		case out := <-j.done:
			if err := each(out); err != nil {
				cancel()
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("simulate: %w", ctx.Err())
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("simulate: %w", err)
	}
	return nil
}
