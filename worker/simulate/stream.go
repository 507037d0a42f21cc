package simulate

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"sync"

	"stanch/playbooks/recording"
)

// Entry is one recording of a corpus, read when its turn comes.
type Entry struct {
	Name string
	Read func() ([]byte, error)
}

// Runner simulates recordings, one at a time.
type Runner interface {
	// Run simulates an encoded recording. What goes wrong is in the result.
	Run(ctx context.Context, name string, raw []byte) Outcome
	Close()
}

// Pair simulates recordings under playbooks and, for comparison, under others. Base is nil without a baseline.
type Pair struct{ Now, Base *Simulator }

var _ Runner = Pair{}

// Close does nothing.
func (Pair) Close() {}

// Run simulates a recording in this process.
func (p Pair) Run(ctx context.Context, name string, raw []byte) Outcome {
	rec, err := recording.Decode(raw)
	if err != nil {
		return Outcome{Result: Broken(name, fmt.Errorf("%s: %w", name, err))}
	}
	out := Outcome{Result: p.Now.Run(ctx, name, rec)}
	if p.Base != nil {
		out.Change = Compare(p.Base.Run(ctx, name, rec), out.Result)
	}
	return out
}

// Outcome is what became of one recording, and with a baseline what becomes of it under that.
type Outcome struct {
	Result Result `json:"result"`
	// Change is nil without a baseline, and where nothing changes.
	Change *Change `json:"change,omitempty"`
}

// window is how many recordings are under way or wait for an earlier one, for each processor.
const window = 8

// Each simulates recordings on every processor and gives the outcomes in their order. Only a window of them is held at
// any time. runner makes the runner of a processor. An error of each ends it.
func Each(ctx context.Context, entries iter.Seq[Entry], runner func() Runner, each func(Outcome) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type job struct {
		entry Entry
		done  chan Outcome
	}
	processors := runtime.GOMAXPROCS(0)
	jobs, order := make(chan job), make(chan job, window*processors)
	var working sync.WaitGroup
	for range processors {
		working.Go(func() {
			r := runner()
			defer r.Close()
			for j := range jobs {
				raw, err := j.entry.Read()
				if err != nil {
					j.done <- Outcome{Result: Broken(j.entry.Name, err)}
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
			j := job{e, make(chan Outcome, 1)}
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
