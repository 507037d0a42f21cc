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
	Read func() (recording.Recording, error)
}

// Outcome is what became of one recording, and with a baseline what becomes of it under that.
type Outcome struct {
	Result Result
	// Change is nil without a baseline, and where nothing changes.
	Change *Change
}

// window is how many recordings are under way or wait for an earlier one, for each processor.
const window = 8

// Each simulates recordings on every processor and gives the outcomes in their order. Only a window of them is held at
// any time. base is nil without a baseline. An error of each ends it.
func Each(ctx context.Context, entries iter.Seq[Entry], now, base *Simulator, each func(Outcome) error) error {
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
			for j := range jobs {
				j.done <- simulated(ctx, j.entry, now, base)
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

func simulated(ctx context.Context, e Entry, now, base *Simulator) Outcome {
	rec, err := e.Read()
	if err != nil {
		return Outcome{Result: Broken(e.Name, err)}
	}
	out := Outcome{Result: now.Run(ctx, e.Name, rec)}
	if base != nil {
		out.Change = Compare(base.Run(ctx, e.Name, rec), out.Result)
	}
	return out
}
