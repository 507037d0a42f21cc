package queries_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/testenv/temporal"
	"stanch/testenv/voters"
	"stanch/worker/queries"
)

func TestClosureOfUnreadableIncident(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": voters.OpenIncident})
	r := &queries.Service{Temporal: s}
	closure := func() activities.Closure {
		e, err := r.Closure(t.Context(), voters.IncidentID)
		require.NoError(t, err)
		return e
	}
	require.Equal(t, activities.Closure{NotFound: true}, closure())
	run := s.StartWorkflow("Incident", "incident/a", voters.IncidentID, true)
	s.WaitUntilListed("Incident", "Running", 1)
	require.Equal(t, activities.Closure{}, closure())
	_, err := r.Incident(t.Context(), voters.IncidentID)
	require.NoError(t, err, "it has run and can be queried later")

	require.NoError(t, s.TerminateWorkflow(t.Context(), run.GetID(), "", "by hand"))
	s.WaitUntilListed("Incident", "Terminated", 1)
	require.True(t, closure().Abnormal)
	require.WithinDuration(t, time.Now(), closure().ClosedAt, time.Minute)
	in, err := r.Incident(t.Context(), voters.IncidentID)
	require.NoError(t, err)
	require.Equal(t, "closed", in.Status, "its status before the termination is outdated")
}
