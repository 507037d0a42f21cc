package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"

	"stanch/activities"
	"stanch/worker/archive"
	"stanch/workflows"
)

const (
	archiveEvery = 3 * time.Minute
	// archiveRound bounds one round: what it does not get to is the next one's.
	archiveRound = time.Minute
	archiveMost  = 200
)

// archiveClosed exports closed incidents beside everything else, at the start and every few minutes.
func (w *Worker) archiveClosed(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w.closers = append(w.closers, func() { cancel(); <-done })
	a := w.auditor()
	go func() {
		defer close(done)
		tick := time.NewTicker(archiveEvery)
		defer tick.Stop()
		for {
			if n, err := a.ArchiveClosed(ctx, w.Authority); err != nil && ctx.Err() == nil {
				w.Log.Warn("closed incidents could not all be archived; it is tried again", "error", err)
			} else if n > 0 {
				w.Log.Info("closed incidents were archived", "incidents", n)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
}

// ArchiveClosed archives every closed incident that is not archived yet and whose workflows have all closed. It goes on
// past one that fails, and tells how many it archived. What could not be archived before comes last, so that some that
// never can keep no other from it.
func (a *Auditor) ArchiveClosed(ctx context.Context, signer archive.Signer) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, archiveRound)
	defer cancel()
	closed, err := a.closed(ctx)
	if err != nil {
		return 0, err
	}
	done, failures := 0, error(nil)
	for _, id := range a.line.order(closed) {
		if done >= archiveMost || ctx.Err() != nil {
			break
		}
		runs, err := a.Collect.Collect(ctx, id)
		a.line.tried(id)
		if err == nil && (!whole(runs) || !archive.Closed(runs)) {
			continue // a lease still holds: later
		}
		if err == nil {
			err = a.Archive.Write(id, runs, signer, time.Now())
		}
		if err == nil {
			err = a.noteArchive(id)
		}
		if err != nil {
			failures = fmt.Errorf("archive %s: %w", id, err)
			continue
		}
		done++
	}
	return done, failures
}

// queue remembers which incidents were tried and are still to be archived, and in which order.
type queue struct {
	last map[string]int // the number of its last try
	n    int
}

// order puts those that were never tried first, as they come, and then those that were tried the longest ago.
func (q *queue) order(ids []string) []string {
	still := map[string]int{}
	for _, id := range ids {
		if n := q.last[id]; n > 0 {
			still[id] = n
		}
	}
	q.last = still
	ids = slices.Clone(ids)
	slices.SortStableFunc(ids, func(a, b string) int { return still[a] - still[b] })
	return ids
}

func (q *queue) tried(id string) {
	q.n++
	q.last[id] = q.n
}

// noteArchive enters an archive's hash into the incident's manifest, where the chain holds it.
func (a *Auditor) noteArchive(incident string) error {
	sum, err := a.Archive.Sum(incident)
	if err == nil {
		_, err = a.Evidence.Append(incident, activities.EntryKindArchive, activities.AuditRecord{Action: "archive", SHA256: sum})
	}
	return err //nolint:wrapcheck // the caller says which incident's
}

// closed lists the incidents that have closed and are not archived, the oldest first: their retention ends first.
func (a *Auditor) closed(ctx context.Context) ([]string, error) {
	var out []string
	var token []byte
	for {
		page, err := a.Collect.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: "WorkflowType = 'Incident' AND ExecutionStatus != 'Running' AND ExecutionStatus != 'ContinuedAsNew'", PageSize: 200, NextPageToken: token,
		})
		if err != nil {
			return nil, fmt.Errorf("list closed incidents: %w", err)
		}
		for _, w := range page.GetExecutions() {
			var id string
			payload := w.GetSearchAttributes().GetIndexedFields()[workflows.IncidentSearchAttribute]
			if payload != nil && converter.GetDefaultDataConverter().FromPayload(payload, &id) == nil && id != "" && !a.Archive.Has(id) {
				out = append(out, id)
			}
		}
		if token = page.GetNextPageToken(); len(token) == 0 {
			break
		}
	}
	slices.Sort(out) // ids are sortable by their time
	return slices.Compact(out), nil
}
