package ingest_test

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/sensors"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/workflows/incident"
)

// A detection is acknowledged only when a power loss cannot take it anymore.
func TestDetectionIsAcknowledgedWhenItIsDurable(t *testing.T) {
	server := temporal.Start(t, map[string]any{
		"Story": func(ctx workflow.Context, _ incident.Input) error { return workflow.Sleep(ctx, time.Hour) },
	})
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	diskError := errors.New("the disk is full")
	i := &ingest.Ingester{
		Temporal: server, Authority: auth, Config: config.Default(), Log: slog.New(slog.DiscardHandler),
		IncidentWorkflow: "Story", Persist: func() error { return diskError },
	}
	d := sensors.Detection{
		ID: "1", Rule: "r", Title: "t", Objective: "o", Severity: sensors.SeverityHigh,
		Time: time.Now(),
	}
	d.Event.Container.ID = "c0ffee"
	err = i.Accept(t.Context(), []sensors.Detection{d})
	require.ErrorIs(t, err, diskError)
	var again *ingest.TemporaryError
	require.ErrorAs(t, err, &again, "the sender keeps it")
	diskError = nil
	require.NoError(t, i.Accept(t.Context(), []sensors.Detection{d}))
}
