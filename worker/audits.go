package worker

import (
	"context"
	"path/filepath"

	"go.temporal.io/sdk/converter"

	"stanch/worker/archive"
	"stanch/worker/auditor"
)

// archiveClosed archives closed incidents in the background.
func (w *Worker) archiveClosed(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w.closers = append(w.closers, func() { cancel(); <-done })
	a := w.newAuditor()
	go func() { defer close(done); a.ArchivePeriodically(ctx, w.Authority, w.Log) }()
}

// newAuditor returns the running worker's auditor.
func (w *Worker) newAuditor() *auditor.Auditor {
	return &auditor.Auditor{
		HistoryExporter: &archive.HistoryExporter{Temporal: w.TemporalClient, DataConverter: w.dataConverter()},
		Archive:         archive.Store{Dir: filepath.Join(w.DataDir, "archive")},
		Converter:       w.dataConverter(), Keyring: w.Authority.Keyring(), Catalog: w.Activities.Catalog(),
		Evidence: w.Activities.Evidence,
	}
}

func (w *Worker) dataConverter() converter.DataConverter {
	if w.DataConverter == nil {
		return converter.GetDefaultDataConverter()
	}
	return w.DataConverter
}
