package decisions_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/temporal"
	"stanch/testenv/voters"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/workflows/lease"
)

// `--for` counts from now: a lease with a later end is unchanged, and the response names its end.
func TestExtendNeverShortensLease(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Lease": voters.ExtendableLease})
	d, operator := voters.NewService(t, s), decisions.Principal{
		Person:          config.Person{Name: "ann"},
		AuthenticatedBy: "uid 7", IsOperator: true,
	}
	run := s.StartWorkflow("Lease", "lease/prod/pod:1/network", "", 4*time.Hour)
	s.WaitUntilListed("Lease", "Running", 1)
	id := lease.IDFromFirstRun(run.GetRunID())
	end := func() time.Time {
		machines, err := d.Queries.RunningLeases(t.Context(), id)
		require.NoError(t, err)
		return machines["lease/prod/pod:1/network"].LastExpiry()
	}
	before := end()

	_, err := d.Extend(t.Context(), operator, decisions.LeaseRequest{LeaseID: id, Duration: time.Hour})
	require.ErrorContains(t, err, "the lease already lasts until "+before.UTC().Format(time.DateTime)+" UTC")
	require.ErrorContains(t, err, "stanch release "+id)
	require.Equal(t, before, end())

	done, err := d.Extend(t.Context(), operator, decisions.LeaseRequest{LeaseID: id, Duration: 24 * time.Hour})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), done[0].ExpiresAt, time.Minute,
		"the response contains the new end")
	require.Eventually(t, func() bool { return end().Equal(done[0].ExpiresAt) }, 10*time.Second, 20*time.Millisecond)

	_, err = d.Extend(t.Context(), operator, decisions.LeaseRequest{LeaseID: id, Duration: 8 * 24 * time.Hour})
	require.ErrorContains(t, err, "at most 7d")
}
