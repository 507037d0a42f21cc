package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/sensors/agent"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	"stanch/sensors/snapshot"
	"stanch/testenv/prereq"
)

// A wrong --state must not delete other people's files.
func TestOnlyDirectoryOfSensorIsRemoved(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []string
		want  string
	}{
		{name: "enrolled sensor", files: []string{"node.pem", "baselines"}},
		{name: "sensor with pinned keys", files: []string{gatewayrpc.AuthorityKeysFile}},
		{name: "sensor that never connected", files: []string{"detections.spool"}},
		{name: "sensor with released leases", files: []string{"released.json"}},
		{name: "empty"},
		{
			name: "other files", files: []string{"node.key", "notes"},
			want: "has no state of a sensor; set --state to the sensor's directory",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			require.NoError(t, os.Mkdir(dir, 0o700))
			for _, name := range c.files {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
			}
			err := removeState(dir)
			if c.want == "" {
				require.NoError(t, err)
				require.NoDirExists(t, dir)
				return
			}
			require.ErrorContains(t, err, c.want)
			for _, name := range c.files {
				require.FileExists(t, filepath.Join(dir, name))
			}
		})
	}
	require.NoError(t, removeState(filepath.Join(t.TempDir(), "missing")))
}

// openLock acts as a running sensor. It returns the directory of its pins.
func openLock(t *testing.T) (*probe.EgressLock, string) {
	t.Helper()
	prereq.RequireRoot(t)
	dir := filepath.Join("/sys/fs/bpf", "stanch-test-cleanup")
	lock, err := probe.OpenEgressLock(dir)
	if err != nil {
		prereq.SkipOrFail(t, "%v", err)
	}
	t.Cleanup(func() {
		_ = lock.Close()
		_ = probe.Cleanup(dir)
	})
	return lock, dir
}

func TestCleanupWaitsUntilSensorHasEnded(t *testing.T) {
	lock, dir := openLock(t)
	state := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.MkdirAll(state, 0o700))
	setup := &agent.Config{EgressLockDir: dir, StateDir: state}
	clean := func(wait time.Duration) error {
		var out bytes.Buffer
		o := cleanupOptions{wait: wait, removeState: true}
		return o.run(context.WithoutCancel(t.Context()), &out, setup)
	}
	require.ErrorIs(t, clean(0), probe.ErrInUse)
	started := time.Now()
	require.ErrorIs(t, clean(time.Second), probe.ErrInUse)
	require.Greater(t, time.Since(started), 500*time.Millisecond, "it waited")
	require.DirExists(t, state, "the state of a running sensor stays")

	cleaned := make(chan error, 1)
	go func() { cleaned <- clean(time.Minute) }()
	require.NoError(t, lock.Close())
	require.NoError(t, <-cleaned)
	require.NoDirExists(t, dir)
	require.NoDirExists(t, state)
}

// The pods of the chart that clean the nodes have two capabilities, and a network of their own. Each of the two is
// needed.
func TestCleanupNeedsOnlyTheRightsOfItsPod(t *testing.T) {
	for _, c := range []struct {
		name         string
		capabilities []string
		left         []string
	}{
		{"both", []string{"SYS_ADMIN", "DAC_OVERRIDE"}, nil},
		{"without SYS_ADMIN", []string{"DAC_OVERRIDE"}, []string{"freeze", "cgroup of thawers"}},
		{"without DAC_OVERRIDE", []string{"SYS_ADMIN"}, []string{"cgroup of thawers"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, cgroup, thawers := containAsSensor(t)
			var drop []string
			for number := range unix.CAP_LAST_CAP + 1 {
				if !slices.ContainsFunc(c.capabilities, func(name string) bool { return capabilityNumbers()[name] == number }) {
					drop = append(drop, strconv.Itoa(number))
				}
			}
			cmd := exec.CommandContext(t.Context(), "unshare", "--net", os.Args[0], "cleanup", "--lock-dir", dir)
			cmd.Env = append(os.Environ(), withoutCapability+"="+strings.Join(drop, " "))
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)

			require.NoDirExists(t, dir)
			var left []string
			if state, err := snapshot.ReadFreezeState(cgroup); err != nil || state.Frozen {
				left = append(left, "freeze")
			}
			if _, err := os.Stat(thawers); err == nil {
				left = append(left, "cgroup of thawers")
			}
			require.Equal(t, c.left, left)
		})
	}
}

// containAsSensor locks a network interface and freezes a cgroup, as a sensor does that then ends. It returns the
// directory of the pins, the cgroup, and that of the processes which end freezes.
func containAsSensor(t *testing.T) (dir, cgroup, thawers string) {
	t.Helper()
	lock, dir := openLock(t)
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	thawers = filepath.Join(root, "stanch-thawer")
	t.Cleanup(func() { _ = os.Remove(thawers) })
	cgroup = newFrozenCgroup(t, root)
	id, err := containermeta.CgroupID(cgroup)
	require.NoError(t, err)
	state, err := lock.Apply(probe.EgressLockRequest{
		LeaseID: "L", TargetID: "pod:test", Cgroups: []uint64{id}, Veths: []probe.Veth{newVeth(t)},
		ExpiresAt: time.Now().Add(time.Minute),
	})
	require.NoError(t, err)
	require.True(t, state.VethLocked, state.VethError)
	require.NoError(t, lock.Close())
	return dir, cgroup, thawers
}

// newFrozenCgroup returns a cgroup that a sensor froze.
func newFrozenCgroup(t *testing.T, root string) string {
	t.Helper()
	cgroup, err := os.MkdirTemp(root, "stanch-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.Remove(cgroup)) })
	f := snapshot.NewFreezer(root, slog.New(slog.DiscardHandler), "/proc/self/exe", agent.ThawCommand)
	require.NoError(t, f.Freeze(t.Context(), snapshot.CgroupFreeze{
		LeaseID: "L", CgroupDir: cgroup, ExpiresAt: time.Now().Add(time.Minute),
	}))
	t.Cleanup(func() {
		require.NoError(t, f.Thaw(context.Background(), "L"))
		require.NoError(t, f.Close())
	})
	return cgroup
}

// newVeth returns the host's end of a pair of network interfaces.
func newVeth(t *testing.T) probe.Veth {
	t.Helper()
	const name = "stanch-test0"
	add := exec.CommandContext(t.Context(), "ip", "link", "add", name, "type", "veth", "peer", "name", "stanch-test1")
	out, err := add.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", name).Run() })
	i, err := net.InterfaceByName(name)
	require.NoError(t, err)
	return probe.Veth{Index: i.Index, Name: name}
}
