package worker

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

func ends(workflow.Context) error { return nil }

func waits(ctx workflow.Context) error {
	workflow.GetSignalChannel(ctx, "end").Receive(ctx, nil)
	return nil
}

// What keeps an incident's message may be open for ever; a lease that holds is waited for, behind all others.
func TestAnOpenThreadHoldsUpNoArchive(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": ends, "Thread": waits, "Lease": waits})
	auth, err := authority.Open(t.TempDir())
	require.NoError(t, err)
	a := &Auditor{
		Collect: &archive.Collector{Temporal: s, Converter: converter.GetDefaultDataConverter()}, Archive: archive.Store{Dir: t.TempDir()},
		Converter: converter.GetDefaultDataConverter(), Keys: auth.Keys(), Evidence: &activities.EvidenceStore{Dir: t.TempDir(), Authority: auth},
	}
	s.Run("Incident", "incident/a", joined)
	thread := s.Run("Thread", "thread/a", joined)
	s.Run("Incident", "incident/b", told)
	lease := s.Run("Lease", "lease/b", told)
	s.Listed("Incident", "Completed", 2)
	s.Listed("Thread", "Running", 1)
	s.Listed("Lease", "Running", 1)

	n, err := a.ArchiveClosed(t.Context(), auth)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.True(t, a.Archive.Has(joined))
	require.False(t, a.Archive.Has(told), "its lease still holds")
	require.Equal(t, []string{"INC-NEW", told}, a.line.order([]string{told, "INC-NEW"}), "what was skipped comes last")

	// That the thread goes on, or ends, is no difference to what was archived.
	live, archived, _, err := a.runs(t.Context(), joined, true)
	require.NoError(t, err)
	require.Len(t, live, 2)
	require.Len(t, archived, 1)
	require.Empty(t, archive.Compare(live, archived))
	require.NoError(t, s.SignalWorkflow(t.Context(), thread.GetID(), "", "end", nil))
	require.NoError(t, s.SignalWorkflow(t.Context(), lease.GetID(), "", "end", nil))
	s.Listed("Lease", "Completed", 1)
	n, err = a.ArchiveClosed(t.Context(), auth)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestWhatWasTriedLongestAgoIsTriedFirst(t *testing.T) {
	var q queue
	require.Equal(t, []string{"a", "b", "c"}, q.order([]string{"a", "b", "c"}))
	q.tried("a")
	q.tried("b")
	require.Equal(t, []string{"c", "d", "a", "b"}, q.order([]string{"a", "b", "c", "d"}))
	q.tried("a")
	require.Equal(t, []string{"c", "b", "a"}, q.order([]string{"a", "b", "c"}))
	require.Equal(t, []string{"c", "a"}, q.order([]string{"a", "c"}), "what was archived is forgotten")
	require.Len(t, q.last, 1)
}
