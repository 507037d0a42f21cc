package simulate

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"sync"

	"stanch/playbooks/recording"
)

// CorpusEntry is one recording of a corpus, read when its turn comes.
type CorpusEntry struct {
	Name string
	Read func() ([]byte, error)
}

// Runner simulates recordings, one at a time.
type Runner interface {
	// Run simulates an encoded recording. What goes wrong is in the result.
	Run(ctx context.Context, name string, raw []byte) RecordingOutcome
	Close()
}

// BaselinePair simulates recordings under playbooks and, for comparison, under others. Base is nil without a baseline.
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

// RecordingOutcome is what became of one recording, and with a baseline what becomes of it under that.
type RecordingOutcome struct {
	Result Result `json:"result"`
	// Change is nil without a baseline, and where nothing changes.
	Change *IncidentChange `json:"change,omitempty"`
}

// maxInFlightPerCPU is how many recordings are under way or wait for an earlier one, for each processor.
const maxInFlightPerCPU = 8

// SimulateEach simulates recordings on every processor and gives the outcomes in their order. Only a window of them is held at
// any time. runner makes the runner of a processor. An error of each ends it.
func SimulateEach(ctx context.Context, entries iter.Seq[CorpusEntry], runner func() Runner, each func(RecordingOutcome) error) error {
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
