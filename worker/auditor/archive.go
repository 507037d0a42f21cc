package auditor

import (
	"context"
	"fmt"
	"log/slog"
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
	// archiveRoundTimeout limits one round; the next round archives the rest.
	archiveRoundTimeout = time.Minute
	maxArchivesPerRound = 200
)

// ArchivePeriodically archives closed incidents, at once and every few minutes, until ctx ends.
func (a *Auditor) ArchivePeriodically(ctx context.Context, signer archive.Signer, log *slog.Logger) {
	tick := time.NewTicker(archiveInterval)
	defer tick.Stop()
	for {
		if n, err := a.ArchiveClosed(ctx, signer); err != nil && ctx.Err() == nil {
			log.Warn("could not archive some closed incidents; retrying", "error", err)
		} else if n > 0 {
			log.Info("closed incidents were archived", "incidents", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ArchiveClosed archives every closed incident that is not archived yet and whose workflows have all closed, and
// returns how many it archived. It continues after a failure. Incidents that failed before come last, so that they
// cannot block others. It is not safe for concurrent use.
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
			continue // a lease is still active
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

// archiveQueue orders the incidents that are not archived yet.
type archiveQueue struct {
	lastAttempt  map[string]int // number of the last attempt, by incident
	attemptCount int
}

// orderByLastAttempt puts incidents without an attempt first, in the given order, and then those with the oldest
// attempt.
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

// recordArchiveInManifest appends an archive's hash to the incident's manifest, whose chain protects it.
func (a *Auditor) recordArchiveInManifest(incident string) error {
	sum, err := a.Archive.FileSHA256(incident)
	if err == nil {
		_, err = a.Evidence.Append(incident, activities.EntryKindArchive, activities.AuditRecord{
			Action: "archive",
			SHA256: sum,
		})
	}
	return err //nolint:wrapcheck // the caller adds context
}

// listUnarchivedClosed returns the closed incidents that are not archived, oldest first, because their retention ends
// first.
func (a *Auditor) listUnarchivedClosed(ctx context.Context) ([]string, error) {
	var out []string
	var token []byte
	for {
		page, err := a.HistoryExporter.Temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query:    "WorkflowType = 'Incident' AND ExecutionStatus != 'Running' AND ExecutionStatus != 'ContinuedAsNew'",
			PageSize: 200, NextPageToken: token,
		})
		if err != nil {
			return nil, fmt.Errorf("list closed incidents: %w", err)
		}
		for _, w := range page.GetExecutions() {
			var id string
			payload := w.GetSearchAttributes().GetIndexedFields()[workflows.IncidentSearchAttribute]
			if payload != nil && converter.GetDefaultDataConverter().FromPayload(payload, &id) == nil && id != "" &&
				!a.Archive.Exists(id) {
				out = append(out, id)
			}
		}
		if token = page.GetNextPageToken(); len(token) == 0 {
			break
		}
	}
	slices.Sort(out) // ids sort by time
	return slices.Compact(out), nil
}
