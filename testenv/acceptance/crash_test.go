package acceptance

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/testenv/harness"
)

// crashPoints are the places at which a process can die with something half done, in the order of a detection's way.
var crashPoints = []struct {
	name    string
	again   bool // what the process alone knew is lost with it: the attacker goes on and is seen again
	release bool // on the way back
}{
	{name: "agent/detected/miner-process", again: true},
	{name: "intake/attested"},
	{name: "intake/given"},
	{name: "observe/process.snapshot"},
	{name: "observed/process.snapshot"},
	{name: "planned/pod.isolate"},
	{name: "apply/before/pod.isolate"},
	{name: "apply/permitted/pod.isolate"},
	{name: "agent/locked"},
	{name: "apply/after/pod.isolate"},
	{name: "undo/before/pod.isolate", release: true},
	{name: "agent/unlocked", release: true},
	{name: "undo/after/pod.isolate", release: true},
}

// After a crash and a restart everything continues to its end: one incident, one lock, one undo. All instances are
// killed first and followed afterwards, because most of the time is spent waiting for Temporal's timeouts.
func TestCrashAtAnyFailpointLosesNothing(t *testing.T) {
	harness.SkipUnlessSupported(t)
	type victim struct {
		*harness.Harness
		c *harness.Container
	}
	victims := make([]victim, len(crashPoints))
	for i, point := range crashPoints {
		s := harness.New(t, stanchBinary, harness.Options{
			Config:    autoContainConfig,
			Playbooks: isolatePlaybook(10 * time.Minute),
		})
		s.StartAndWait(t, "STANCH_CRASH_AT="+point.name, "STANCH_CRASH_MARKER="+filepath.Join(s.ConfigDir, "crashed"))
		c := s.NewContainer(t)
		c.StartAttack(t)
		if point.release {
			in := s.WaitForIncident(t, c.ID, 30*time.Second, "held", isIsolated)
			releaseLease(t, s, in)
		}
		require.True(t, s.WaitForExit(30*time.Second), "the process dies at %s", point.name)
		s.StartAndWait(t)
		if point.again {
			c.StartAttack(t)
		}
		victims[i] = victim{s, c}
	}
	for i, point := range crashPoints {
		t.Run(point.name, func(t *testing.T) {
			s, c := victims[i].Harness, victims[i].c
			if !point.release {
				in := s.WaitForIncident(t, c.ID, 70*time.Second, "held", isIsolated)
				requireLockedOnce(t, s, c, in)
				releaseLease(t, s, in)
			}
			s.WaitForIncident(t, c.ID, 70*time.Second, "released and undone", isUndone)
			requireUndoneOnce(t, s, c)
			s.Kill()
		})
	}
}

func releaseLease(t *testing.T, s *harness.Harness, in playbooks.Incident) {
	t.Helper()
	_, stderr, code := s.Run(t, "release", in.Leases[0].ID)
	require.Zero(t, code, stderr)
}

func requireLockedOnce(t *testing.T, s *harness.Harness, c *harness.Container, in playbooks.Incident) {
	t.Helper()
	require.True(t, c.IsSilent(200*time.Millisecond), "it is held")
	locks := s.ActiveLocks(t)
	require.Len(t, locks, 1, "one lock")
	require.Len(t, in.Leases, 1, "one lease")
	require.Equal(t, in.Leases[0].ID, locks[0].LeaseID)
}

func requireUndoneOnce(t *testing.T, s *harness.Harness, c *harness.Container) {
	t.Helper()
	require.Empty(t, s.ActiveLocks(t))
	require.True(t, c.WaitForTraffic(2*time.Second))
	all, err := s.IncidentsAbout(c.ID)
	require.NoError(t, err)
	require.Len(t, all, 1, "one incident")
	require.Len(t, all[0].Leases, 1, "one lease, of which nothing was applied twice")
}

// Stanch is killed at random moments, repeatedly on the same data, while attacks are contained and released.
func TestRandomCrashesLoseNothing(t *testing.T) {
	kills := 5
	if text := os.Getenv("STANCH_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		kills = n
	}
	s := harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: isolatePlaybook(10 * time.Minute),
	})
	var slowest time.Duration
	stages := map[string]int{}
	for n := range kills {
		c := s.NewContainer(t)
		c.StartAttack(t)
		go func() { _ = s.Post("/v1/release", map[string]any{"all": true}, nil) }() // sometimes it comes in time
		after := time.Duration(rand.IntN(500)) * time.Millisecond
		time.Sleep(after)
		stages[trafficState(s, c)]++
		s.Kill()
		began := time.Now()
		s.StartAndWait(t)
		// A detection that nobody had written down dies with the process; the attacker goes on and is seen again.
		c.StartAttack(t)
		in := s.WaitForIncident(t, c.ID, 90*time.Second, "held or already released",
			func(in playbooks.Incident) bool { return isIsolated(in) || isUndone(in) })
		if isIsolated(in) {
			requireLockedOnce(t, s, c, in)
			var done json.RawMessage
			require.NoError(t, s.Post("/v1/release", map[string]any{"lease": in.Leases[0].ID}, &done))
		}
		s.WaitForIncident(t, c.ID, 90*time.Second, "undone", isUndone)
		requireUndoneOnce(t, s, c)
		slowest = max(slowest, time.Since(began))
		t.Logf("kill %d after %s: back and undone after %s", n+1, after, time.Since(began).Round(100*time.Millisecond))
	}
	t.Logf("%d kills, the slowest was back and undone after %s; killed at %v", kills, slowest.Round(100*time.Millisecond),
		stages)
}

// trafficState says how far it had come, by what the kernel says.
func trafficState(s *harness.Harness, c *harness.Container) string {
	before := c.ReceivedCount()
	time.Sleep(25 * time.Millisecond)
	if c.ReceivedCount() == before {
		return "locked"
	}
	return "not locked"
}
