package ingest_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/containermeta"
	testrequire "stanch/testenv/prereq"
	"stanch/worker/config"
	"stanch/worker/drills"
	"stanch/worker/ingest"
)

// newEmptyCgroup creates what a drill creates for its container: a cgroup without a process.
func newEmptyCgroup(t *testing.T, id string) drills.Container {
	t.Helper()
	testrequire.RequireRoot(t)
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	path := "/stanch-drill-test/" + id
	require.NoError(t, os.MkdirAll(root+path, 0o755))
	t.Cleanup(func() { _ = os.Remove(root + path); _ = os.Remove(filepath.Dir(root + path)) })
	inode, err := containermeta.CgroupID(root + path)
	require.NoError(t, err)
	return drills.Container{ID: id, CgroupPath: path, CgroupID: inode}
}

func newContainerDetection(c drills.Container) sensors.Detection {
	d := sensors.Detection{ID: "1", Rule: "r", Node: "n"}
	d.Event.Container = sensors.Container{ID: c.ID, CgroupID: c.CgroupID, CgroupPath: c.CgroupPath}
	return d
}

func TestOnlyRegisteredCgroupIsInDrillScope(t *testing.T) {
	id := strings.Repeat("ab", 32)
	registry := &drills.Registry{}
	secret, err := registry.IssueKey("cryptominer")
	require.NoError(t, err)
	c := newEmptyCgroup(t, id)
	i := &ingest.Ingester{Config: config.Default(), Log: slog.New(slog.DiscardHandler), DrillRegistry: registry}

	scope, phase, drill := i.ScopeOfDetection(newContainerDetection(c))
	require.Nil(t, drill, "a path like a drill's cgroup is not registered")
	require.Equal(t, "default", scope)
	require.Equal(t, 1, phase)

	_, err = registry.Register(context.Background(), secret, drills.Targets{Containers: []drills.Container{c}})
	require.NoError(t, err)
	scope, phase, drill = i.ScopeOfDetection(newContainerDetection(c))
	require.NotNil(t, drill)
	expiry := drill.ExpiresAt
	require.Equal(t, config.DrillScope, scope)
	require.Equal(t, 3, phase)

	decoy := newContainerDetection(c)
	decoy.Event.Container.CgroupID++
	_, _, drill = i.ScopeOfDetection(decoy)
	require.Nil(t, drill, "another cgroup with the registered id is not the drill's")
	pod := sensors.Detection{}
	pod.Event.Container.Pod = sensors.Pod{Namespace: config.DrillNamespace, Name: "victim", UID: "uid"}
	_, _, drill = i.ScopeOfDetection(pod)
	require.Nil(t, drill, "the drill namespace alone is not registered")

	_, err = registry.Register(context.Background(), secret, drills.Targets{Containers: []drills.Container{c}})
	require.ErrorContains(t, err, "already registered its targets")

	registry.Now = func() time.Time { return expiry.Add(time.Second) }
	_, _, drill = i.ScopeOfDetection(newContainerDetection(c))
	require.Nil(t, drill, "a registration expires")
}

func TestDrillRegistersOnlyOwnTargets(t *testing.T) {
	id := strings.Repeat("cd", 32)
	for name, c := range map[string]struct {
		change func(t *testing.T, registry *drills.Registry, secret *string, c *drills.Container)
		reason string
	}{
		"cgroup with a process": {func(t *testing.T, _ *drills.Registry, _ *string, c *drills.Container) {
			root, err := containermeta.FindCgroupRoot()
			require.NoError(t, err)
			sleep := exec.CommandContext(t.Context(), "sleep", "60")
			require.NoError(t, sleep.Start())
			require.NoError(t, os.WriteFile(root+c.CgroupPath+"/cgroup.procs", fmt.Appendf(nil, "%d", sleep.Process.Pid), 0o600))
			t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
		}, "already has 1 processes"},
		"cgroup older than the drill": {func(_ *testing.T, registry *drills.Registry, secret *string, _ *drills.Container) {
			registry.Now = func() time.Time { return time.Now().Add(time.Minute) }
			key, err := registry.IssueKey("later")
			if err == nil {
				*secret = key
			}
			registry.Now = time.Now
		}, "existed before the drill"},
		"another inode": {
			func(_ *testing.T, _ *drills.Registry, _ *string, c *drills.Container) { c.CgroupID++ },
			"has inode",
		},
		"parent path": {func(_ *testing.T, _ *drills.Registry, _ *string, c *drills.Container) {
			c.CgroupPath = "/stanch-drill-test/../x/" + c.ID
		}, "invalid id or cgroup path"},
		"path of another cgroup": {func(_ *testing.T, _ *drills.Registry, _ *string, c *drills.Container) {
			c.CgroupPath = "/docker/" + c.ID
		}, "invalid id or cgroup path"},
		"missing cgroup": {func(_ *testing.T, _ *drills.Registry, _ *string, c *drills.Container) {
			c.ID = strings.Repeat("ef", 32)
			c.CgroupPath = "/stanch-drill-test/" + c.ID
		}, "is not on this machine"},
		"unknown key": {
			func(_ *testing.T, _ *drills.Registry, secret *string, _ *drills.Container) { *secret = "guess" },
			"unknown or expired",
		},
		"expired key": {func(_ *testing.T, registry *drills.Registry, secret *string, _ *drills.Container) {
			registry.Now = func() time.Time { return time.Now().Add(6 * time.Minute) }
		}, "older than 5m"},
	} {
		t.Run(name, func(t *testing.T) {
			registry := &drills.Registry{}
			secret, err := registry.IssueKey("shell")
			require.NoError(t, err)
			target := newEmptyCgroup(t, id)
			original := target
			c.change(t, registry, &secret, &target)
			_, err = registry.Register(context.Background(), secret, drills.Targets{Containers: []drills.Container{target}})
			require.ErrorContains(t, err, c.reason)
			require.Nil(t, registry.RegistrationFor(newContainerDetection(original), "container:"+id))
		})
	}
}
