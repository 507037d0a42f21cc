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
	"stanch/testenv/stand"
)

// points are the places at which a process can die with something half done, in the order of a detection's way.
var points = []struct {
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

// After a death and a new start it all goes on to its end: one incident, one lock, one undo. All die first and are
// followed then: most of the time they wait for Temporal to notice.
func TestDeathAtAnyPointLosesNothing(t *testing.T) {
	stand.Needs(t)
	type victim struct {
		*stand.Stand
		c *stand.Container
	}
	victims := make([]victim, len(points))
	for i, point := range points {
		s := stand.New(t, binary, stand.Options{Config: contains, Playbooks: holdFor(10 * time.Minute)})
		s.Up(t, "STANCH_CRASH_AT="+point.name, "STANCH_CRASH_MARKER="+filepath.Join(s.Dir, "crashed"))
		c := s.Container(t)
		c.Attack(t)
		if point.release {
			in := s.Incident(t, c.ID, 30*time.Second, "held", held)
			release(t, s, in)
		}
		require.True(t, s.Ended(30*time.Second), "the process dies at %s", point.name)
		s.Up(t)
		if point.again {
			c.Attack(t)
		}
		victims[i] = victim{s, c}
	}
	for i, point := range points {
		t.Run(point.name, func(t *testing.T) {
			s, c := victims[i].Stand, victims[i].c
			if !point.release {
				in := s.Incident(t, c.ID, 70*time.Second, "held", held)
				heldOnce(t, s, c, in)
				release(t, s, in)
			}
			s.Incident(t, c.ID, 70*time.Second, "released and undone", undone)
			undoneOnce(t, s, c)
			s.Kill()
		})
	}
}

func release(t *testing.T, s *stand.Stand, in playbooks.Incident) {
	t.Helper()
	_, stderr, code := s.Run(t, "release", in.Leases[0].ID)
	require.Zero(t, code, stderr)
}

func heldOnce(t *testing.T, s *stand.Stand, c *stand.Container, in playbooks.Incident) {
	t.Helper()
	require.True(t, c.Silent(200*time.Millisecond), "it is held")
	locks := s.Locks(t)
	require.Len(t, locks, 1, "one lock")
	require.Len(t, in.Leases, 1, "one lease")
	require.Equal(t, in.Leases[0].ID, locks[0].LeaseID)
}

func undoneOnce(t *testing.T, s *stand.Stand, c *stand.Container) {
	t.Helper()
	require.Empty(t, s.Locks(t))
	require.True(t, c.Resumed(2*time.Second))
	all, err := s.About(c.ID)
	require.NoError(t, err)
	require.Len(t, all, 1, "one incident")
	require.Len(t, all[0].Leases, 1, "one lease, of which nothing was applied twice")
}

// Death at any moment, over and over on the same data, while attacks are contained and released.
func TestDeathAtAnyMoment(t *testing.T) {
	kills := 5
	if text := os.Getenv("STANCH_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		kills = n
	}
	s := stand.Start(t, binary, stand.Options{Config: contains, Playbooks: holdFor(10 * time.Minute)})
	var slowest time.Duration
	stages := map[string]int{}
	for n := range kills {
		c := s.Container(t)
		c.Attack(t)
		go func() { _ = s.Post("/v1/release", map[string]any{"all": true}, nil) }() // sometimes it comes in time
		after := time.Duration(rand.IntN(500)) * time.Millisecond
		time.Sleep(after)
		stages[stage(s, c)]++
		s.Kill()
		began := time.Now()
		s.Up(t)
		// A detection that nobody had written down dies with the process; the attacker goes on and is seen again.
		c.Attack(t)
		in := s.Incident(t, c.ID, 90*time.Second, "held or already released", func(in playbooks.Incident) bool { return held(in) || undone(in) })
		if held(in) {
			heldOnce(t, s, c, in)
			var done json.RawMessage
			require.NoError(t, s.Post("/v1/release", map[string]any{"lease": in.Leases[0].ID}, &done))
		}
		s.Incident(t, c.ID, 90*time.Second, "undone", undone)
		undoneOnce(t, s, c)
		slowest = max(slowest, time.Since(began))
		t.Logf("kill %d after %s: back and undone after %s", n+1, after, time.Since(began).Round(100*time.Millisecond))
	}
	t.Logf("%d kills, the slowest was back and undone after %s; killed at %v", kills, slowest.Round(100*time.Millisecond), stages)
}

// stage says how far it had come, by what the kernel says.
func stage(s *stand.Stand, c *stand.Container) string {
	before := c.Heard()
	time.Sleep(25 * time.Millisecond)
	if c.Heard() == before {
		return "locked"
	}
	return "not locked"
}
