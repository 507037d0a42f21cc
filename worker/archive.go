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
	archiveInterval = 3 * time.Minute
	// archiveRoundTimeout bounds one round: what it does not get to is the next one's.
	archiveRoundTimeout = time.Minute
	maxArchivesPerRound = 200
)

// archiveClosed exports closed incidents beside everything else, at the start and every few minutes.
func (w *Worker) archiveClosed(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w.closers = append(w.closers, func() { cancel(); <-done })
	a := w.newAuditor()
	go func() {
		defer close(done)
		tick := time.NewTicker(archiveInterval)
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
	ctx, cancel := context.WithTimeout(ctx, archiveRoundTimeout)
	defer cancel()
	closed, err := a.listUnarchivedClosed(ctx)
	if err != nil {
		return 0, err
	}
	done, failures := 0, error(nil)
	for _, id := range a.archiveQueue.orderByLastAttempt(closed) {
		if done >= maxArchivesPerRound || ctx.Err() != nil {
			break
		}
		runs, err := a.HistoryExporter.Export(ctx, id)
		a.archiveQueue.recordAttempt(id)
		if err == nil && (!includesIncidentRun(runs) || !archive.AllRunsClosed(runs)) {
			continue // a lease still holds: later
		}
		if err == nil {
			err = a.Archive.Write(id, runs, signer, time.Now())
		}
		if err == nil {
			err = a.recordArchiveInManifest(id)
		}
		if err != nil {
			failures = fmt.Errorf("archive %s: %w", id, err)
			continue
		}
		done++
	}
	return done, failures
}

// archiveQueue remembers which incidents were tried and are still to be archived, and in which order.
type archiveQueue struct {
	lastAttempt  map[string]int // the number of its last try
	attemptCount int
}

// orderByLastAttempt puts those that were never tried first, as they come, and then those that were tried the longest ago.
func (q *archiveQueue) orderByLastAttempt(ids []string) []string {
	still := map[string]int{}
	for _, id := range ids {
		if n := q.lastAttempt[id]; n > 0 {
			still[id] = n
		}
	}
	q.lastAttempt = still
	ids = slices.Clone(ids)
	slices.SortStableFunc(ids, func(a, b string) int { return still[a] - still[b] })
	return ids
}

func (q *archiveQueue) recordAttempt(id string) {
	q.attemptCount++
	q.lastAttempt[id] = q.attemptCount
}

// recordArchiveInManifest enters an archive's hash into the incident's manifest, where the chain holds it.
func (a *Auditor) recordArchiveInManifest(incident string) error {
	sum, err := a.Archive.FileSHA256(incident)
	if err == nil {
		_, err = a.Evidence.Append(incident, activities.EntryKindArchive, activities.AuditRecord{Action: "archive", SHA256: sum})
	}
	return err //nolint:wrapcheck // the caller says which incident's
}

// listUnarchivedClosed lists the incidents that have closed and are not archived, the oldest first: their retention ends first.
func (a *Auditor) listUnarchivedClosed(ctx context.Context) ([]string, error) {
	var out []string
	var token []byte
	for {
		page, err := a.HistoryExporter.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: "WorkflowType = 'Incident' AND ExecutionStatus != 'Running' AND ExecutionStatus != 'ContinuedAsNew'", PageSize: 200, NextPageToken: token,
		})
		if err != nil {
			return nil, fmt.Errorf("list closed incidents: %w", err)
		}
		for _, w := range page.GetExecutions() {
			var id string
			payload := w.GetSearchAttributes().GetIndexedFields()[workflows.IncidentSearchAttribute]
			if payload != nil && converter.GetDefaultDataConverter().FromPayload(payload, &id) == nil && id != "" && !a.Archive.Exists(id) {
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
