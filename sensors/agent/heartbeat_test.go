package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/containermeta"
	"stanch/sensors/probe"
	"stanch/sensors/rules"
	lacking "stanch/testenv/prereq"
)

// startHeartbeatAgent runs an agent with a real probe and without a resolver, so that heartbeats that are not filtered
// appear as events.
func startHeartbeatAgent(t *testing.T, o probe.Options, wait time.Duration) (*Agent, func() []sensors.Event) {
	t.Helper()
	lacking.RequireRoot(t)
	p, err := probe.Load(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	a, err := New(Options{
		Node: "node-1", Probe: p, HeartbeatInterval: 50 * time.Millisecond,
		Log: slog.New(slog.DiscardHandler),
	}, &rules.Set{})
	require.NoError(t, err)
	a.heartbeat.timeout = wait
	var mu sync.Mutex
	var seen []sensors.Event
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- a.Watch(ctx, func(e sensors.Event) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, e)
		}, func(sensors.Detection) {})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
		root, err := containermeta.FindCgroupRoot()
		require.NoError(t, err)
		require.NoDirExists(t, filepath.Join(root, heartbeatName), "its cgroup is removed")
	})
	return a, func() []sensors.Event {
		mu.Lock()
		defer mu.Unlock()
		return append([]sensors.Event(nil), seen...)
	}
}

func TestHeartbeatIsReceivedAndFiltered(t *testing.T) {
	a, seen := startHeartbeatAgent(t, probe.Options{}, 0)
	first := time.Time{}
	for range 3 { // the heartbeat continues
		require.Eventually(t, func() bool { return a.Health().Heartbeat.LastReceived.After(first) }, 10*time.Second,
			5*time.Millisecond, "%+v", a.Health().Heartbeat)
		first = a.Health().Heartbeat.LastReceived
	}
	status := a.Health().Heartbeat
	require.False(t, status.Failing)
	require.Empty(t, status.FailureReason)
	require.Positive(t, status.LatencyMS)
	t.Logf("%+v", status)
	for _, e := range seen() {
		require.False(t, e.Kind == sensors.KindExec && e.Container.CgroupPath == "/"+heartbeatName, "%+v", e)
	}
}

func TestHeartbeatFailsWithoutItsHook(t *testing.T) {
	a, _ := startHeartbeatAgent(t, probe.Options{DisabledHooks: []probe.Hook{probe.HookExec}}, 300*time.Millisecond)
	require.Eventually(t, func() bool { return a.Health().Heartbeat.Failing }, 10*time.Second, 5*time.Millisecond)
	require.GreaterOrEqual(t, a.Health().Heartbeat.ConsecutiveMisses, maxMissedHeartbeats)
	require.Contains(t, a.Health().Heartbeat.FailureReason, "was not received from the kernel")
}

func TestHeartbeatFailsIfItsCgroupIsIgnored(t *testing.T) {
	a, _ := startHeartbeatAgent(t, probe.Options{}, time.Second)
	require.Eventually(t, func() bool { return !a.Health().Heartbeat.LastReceived.IsZero() }, 5*time.Second,
		5*time.Millisecond)
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	id, err := containermeta.CgroupID(root + "/" + heartbeatName)
	require.NoError(t, err)
	require.NoError(t, a.Probe.IgnoreCgroup(id))
	require.Eventually(t, func() bool { return a.Health().Heartbeat.Failing }, 10*time.Second, 5*time.Millisecond)
}

func TestOnlyTheHeartbeatItselfIsFiltered(t *testing.T) {
	y := &heartbeat{nonce: "word", received: make(chan struct{}), log: slog.New(slog.DiscardHandler)}
	own := func(kind sensors.Kind, pid uint32, args ...string) *sensors.Event {
		return &sensors.Event{
			Kind: kind, Process: sensors.Process{PID: pid, Args: args},
			Container: sensors.Container{CgroupPath: "/" + heartbeatName},
		}
	}
	require.False(t, y.isHeartbeatEvent(own(sensors.KindExec, 7, heartbeatName, "guess")), "another process in its cgroup")
	require.False(t, y.isHeartbeatEvent(own(sensors.KindExit, 7)))
	elsewhere := own(sensors.KindExec, 7, heartbeatName, "word")
	elsewhere.Container.CgroupPath = "/docker/abc"
	require.False(t, y.isHeartbeatEvent(elsewhere), "its nonce in another cgroup")
	require.True(t, y.isHeartbeatEvent(own(sensors.KindExec, 7, heartbeatName, "word")))
	require.True(t, y.isHeartbeatEvent(own(sensors.KindExit, 7)))
	require.False(t, y.isHeartbeatEvent(own(sensors.KindExec, 8, heartbeatName, "word")), "the same nonce again")
	require.False(t, y.isHeartbeatEvent(own(sensors.KindConnect, 7)), "it opens no connection")
}

// Two sensors on one machine recognize each other's heartbeats by a commitment that only root can publish, and not by
// a name that any process can use.
func TestHeartbeatOfAnotherSensorIsRecognizedByItsCommitment(t *testing.T) {
	lacking.RequireRoot(t)
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	dir := filepath.Join(root, heartbeatName)
	if err := os.Mkdir(dir, 0o755); !errors.Is(err, os.ErrExist) {
		require.NoError(t, err)
		t.Cleanup(func() { _ = os.Remove(dir) })
	}
	require.NoError(t, publishCommitment(dir, "other", "their-nonce"))
	t.Cleanup(func() { _ = unix.Removexattr(dir, commitmentXattrPrefix+"other") })
	y := &heartbeat{nonce: "mine", received: make(chan struct{}), log: slog.New(slog.DiscardHandler)}
	event := func(kind sensors.Kind, pid uint32, args ...string) *sensors.Event {
		return &sensors.Event{
			Kind: kind, Process: sensors.Process{PID: pid, Args: args},
			Container: sensors.Container{CgroupPath: "/" + heartbeatName},
		}
	}
	require.False(t, y.isHeartbeatEvent(event(sensors.KindExec, 7, heartbeatName, "guess")), "only its name")
	require.False(t, y.isHeartbeatEvent(event(sensors.KindExec, 7, "sh", "their-nonce")), "another program")
	elsewhere := event(sensors.KindExec, 7, heartbeatName, "their-nonce")
	elsewhere.Container.CgroupPath = "/docker/abc"
	require.False(t, y.isHeartbeatEvent(elsewhere), "in another cgroup")
	require.True(t, y.isHeartbeatEvent(event(sensors.KindExec, 8, heartbeatName, "their-nonce")))
	require.True(t, y.isHeartbeatEvent(event(sensors.KindExit, 8)))
	require.False(t, y.isHeartbeatEvent(event(sensors.KindConnect, 8)), "it opens no connection")
	require.False(t, y.isHeartbeatEvent(event(sensors.KindExec, 9, heartbeatName, "their-nonce")), "the same nonce again")
	require.NoError(t, publishCommitment(dir, "other", "next"))
	require.True(t, y.isHeartbeatEvent(event(sensors.KindExec, 10, heartbeatName, "next")))
}
