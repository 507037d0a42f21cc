package auditor

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/testenv/temporal"
	"stanch/worker/archive"
	"stanch/worker/authority"
)

func endingWorkflow(workflow.Context) error { return nil }

func waitingWorkflow(ctx workflow.Context) error {
	workflow.GetSignalChannel(ctx, "end").Receive(ctx, nil)
	return nil
}

// An incident's message workflow may stay open forever; incidents with an active lease wait, after all others.
func TestOpenMessageWorkflowDoesNotDelayArchive(t *testing.T) {
	s := temporal.Start(t, map[string]any{
		"Incident": endingWorkflow, "ChatMessage": waitingWorkflow,
		"Lease": waitingWorkflow,
	})
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	a := &Auditor{
		HistoryExporter: &archive.HistoryExporter{Temporal: s, DataConverter: converter.GetDefaultDataConverter()},
		Archive:         archive.Store{Dir: t.TempDir()},
		Converter:       converter.GetDefaultDataConverter(), Keyring: auth.Keyring(),
		Evidence: &activities.EvidenceStore{Dir: t.TempDir(), Authority: auth},
	}
	s.StartWorkflow("Incident", "incident/a", joinedIncidentID)
	thread := s.StartWorkflow("ChatMessage", "chat-message/a", joinedIncidentID)
	s.StartWorkflow("Incident", "incident/b", auditedIncidentID)
	lease := s.StartWorkflow("Lease", "lease/b", auditedIncidentID)
	s.WaitUntilListed("Incident", "Completed", 2)
	s.WaitUntilListed("ChatMessage", "Running", 1)
	s.WaitUntilListed("Lease", "Running", 1)

	n, err := a.ArchiveClosed(t.Context(), auth)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.True(t, a.Archive.Exists(joinedIncidentID))
	require.False(t, a.Archive.Exists(auditedIncidentID), "its lease is still active")
	require.Equal(t, []string{"INC-NEW", auditedIncidentID},
		a.archiveQueue.orderByLastAttempt([]string{auditedIncidentID, "INC-NEW"}), "a skipped incident is tried last")

	// Whether the message workflow continues or ends makes no difference to the archive.
	live, archived, _, err := a.loadRuns(t.Context(), joinedIncidentID, true)
	require.NoError(t, err)
	require.Len(t, live, 2)
	require.Len(t, archived, 1)
	require.Empty(t, archive.CompareHistories(live, archived))
	require.NoError(t, s.SignalWorkflow(t.Context(), thread.GetID(), "", "end", nil))
	require.NoError(t, s.SignalWorkflow(t.Context(), lease.GetID(), "", "end", nil))
	s.WaitUntilListed("Lease", "Completed", 1)
	n, err = a.ArchiveClosed(t.Context(), auth)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestArchiveQueueOrdersByLastAttempt(t *testing.T) {
	var q archiveQueue
	require.Equal(t, []string{"a", "b", "c"}, q.orderByLastAttempt([]string{"a", "b", "c"}))
	q.recordAttempt("a")
	q.recordAttempt("b")
	require.Equal(t, []string{"c", "d", "a", "b"}, q.orderByLastAttempt([]string{"a", "b", "c", "d"}))
	q.recordAttempt("a")
	require.Equal(t, []string{"c", "b", "a"}, q.orderByLastAttempt([]string{"a", "b", "c"}))
	require.Equal(t, []string{"c", "a"}, q.orderByLastAttempt([]string{"a", "c"}), "an archived incident leaves the queue")
	require.Len(t, q.lastAttempt, 1)
}
