package worker

import (
	"context"

	"stanch/worker/sweeper"
)

// sweepOrphans undoes containments without a running lease in the background. The node's lock ends in the kernel and
// needs no sweep.
func (w *Worker) sweepOrphans(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.closers = append(w.closers, func() { cancel() })
	s := &sweeper.Sweeper{
		Actions: w.actions, Temporal: w.TemporalClient, Cluster: w.Config.Cluster, SearchCloud: w.Config.Phase > 1,
		Log: w.Log,
	}
	go s.Run(ctx)
}
