package acceptance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/harness"
)

// Every process is killed, including the sensor, and nothing restarts before the expiry: the kernel alone keeps the
// lock in force.
func TestEgressLockSurvivesAllProcessesUntilExpiry(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: isolatePlaybook(8 * time.Second),
	})
	c, in := startIsolatedContainer(t, s)
	locks := s.ActiveLocks(t)
	require.Len(t, locks, 1)
	require.Equal(t, in.Leases[0].ID, locks[0].LeaseID)
	end := locks[0].ExpiresAt

	s.Kill()
	heard := c.ReceivedCount()
	for time.Now().Before(end.Add(-200 * time.Millisecond)) {
		require.Equal(t, heard, c.ReceivedCount(), "something arrived %s before the end, with nobody left to hold it",
			time.Until(end))
		time.Sleep(20 * time.Millisecond)
	}
	require.True(t, c.WaitForTraffic(2*time.Second), "the lock lapses at its end, with nobody left to lift it")
	require.WithinDuration(t, end, c.LastReceived(), 1500*time.Millisecond)
	require.Empty(t, s.ActiveLocks(t))

	s.StartAndWait(t)
	after := s.WaitForIncident(t, c.ID, 40*time.Second, "the lease ended as undone", isUndone)
	require.Equal(t, in.ID, after.ID, "it is the same incident")
	require.True(t, c.WaitForTraffic(time.Second), "nothing was locked again")
}

// A restart in between neither removes nor repeats the lock; a person releases the lease.
func TestLeaseSurvivesRestartAndIsReleased(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: isolatePlaybook(10 * time.Minute),
	})
	c, in := startIsolatedContainer(t, s)
	before := s.ActiveLocks(t)
	s.Kill()
	require.True(t, c.IsSilent(300*time.Millisecond))
	s.StartAndWait(t)
	require.True(t, c.IsSilent(300*time.Millisecond))
	after := s.ActiveLocks(t)
	require.Len(t, after, 1)
	require.Equal(t, before[0].LeaseID, after[0].LeaseID)
	require.WithinDuration(t, before[0].ExpiresAt, after[0].ExpiresAt, time.Second)

	_, stderr, code := s.Run(t, "release", in.Leases[0].ID)
	require.Zero(t, code, stderr)
	s.WaitForIncident(t, c.ID, 30*time.Second, "released and undone", isUndone)
	require.Empty(t, s.ActiveLocks(t))
	require.True(t, c.WaitForTraffic(2*time.Second))
}
