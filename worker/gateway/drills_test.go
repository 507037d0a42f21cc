package gateway

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
)

// newEmptyCgroup creates what a drill creates for its container: a cgroup without a process.
func newEmptyCgroup(t *testing.T, id string) DrillContainer {
	t.Helper()
	testrequire.RequireRoot(t)
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	path := "/stanch-drill-test/" + id
	require.NoError(t, os.MkdirAll(root+path, 0o755))
	t.Cleanup(func() { _ = os.Remove(root + path); _ = os.Remove(filepath.Dir(root + path)) })
	inode, err := containermeta.CgroupID(root + path)
	require.NoError(t, err)
	return DrillContainer{ID: id, CgroupPath: path, CgroupID: inode}
}

func newContainerDetection(c DrillContainer) sensors.Detection {
	d := sensors.Detection{ID: "1", Rule: "r", Node: "n"}
	d.Event.Container = sensors.Container{ID: c.ID, CgroupID: c.CgroupID, CgroupPath: c.CgroupPath}
	return d
}

func TestOnlyRegisteredCgroupIsInDrillScope(t *testing.T) {
	id := strings.Repeat("ab", 32)
	drills := &DrillRegistry{}
	secret, err := drills.IssueKey("cryptominer")
	require.NoError(t, err)
	c := newEmptyCgroup(t, id)
	i := &Ingester{Config: config.Default(), Log: slog.New(slog.DiscardHandler), DrillRegistry: drills}

	scope, phase, drill := i.scopeOfDetection(newContainerDetection(c))
	require.Nil(t, drill, "a path like a drill's cgroup is not registered")
	require.Equal(t, "default", scope)
	require.Equal(t, 1, phase)

	_, err = drills.Register(context.Background(), secret, DrillTargets{Containers: []DrillContainer{c}})
	require.NoError(t, err)
	scope, phase, drill = i.scopeOfDetection(newContainerDetection(c))
	require.NotNil(t, drill)
	require.Equal(t, config.DrillScope, scope)
	require.Equal(t, 3, phase)

	decoy := newContainerDetection(c)
	decoy.Event.Container.CgroupID++
	_, _, drill = i.scopeOfDetection(decoy)
	require.Nil(t, drill, "another cgroup with the registered id is not the drill's")
	pod := sensors.Detection{}
	pod.Event.Container.Pod = sensors.Pod{Namespace: config.DrillNamespace, Name: "victim", UID: "uid"}
	_, _, drill = i.scopeOfDetection(pod)
	require.Nil(t, drill, "the drill namespace alone is not registered")

	_, err = drills.Register(context.Background(), secret, DrillTargets{Containers: []DrillContainer{c}})
	require.ErrorContains(t, err, "already registered its targets")

	drills.keys[secret].registration.ExpiresAt = time.Now().Add(-time.Second)
	_, _, drill = i.scopeOfDetection(newContainerDetection(c))
	require.Nil(t, drill, "a registration expires")
}

func TestDrillRegistersOnlyOwnTargets(t *testing.T) {
	id := strings.Repeat("cd", 32)
	for name, c := range map[string]struct {
		change func(t *testing.T, drills *DrillRegistry, secret *string, c *DrillContainer)
		reason string
	}{
		"cgroup with a process": {func(t *testing.T, _ *DrillRegistry, _ *string, c *DrillContainer) {
			root, err := containermeta.FindCgroupRoot()
			require.NoError(t, err)
			sleep := exec.CommandContext(t.Context(), "sleep", "60")
			require.NoError(t, sleep.Start())
			require.NoError(t, os.WriteFile(root+c.CgroupPath+"/cgroup.procs", fmt.Appendf(nil, "%d", sleep.Process.Pid), 0o600))
			t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
		}, "already has 1 processes"},
		"cgroup older than the drill": {func(_ *testing.T, drills *DrillRegistry, secret *string, _ *DrillContainer) {
			drills.keys[*secret].issuedAt = time.Now().Add(time.Minute)
		}, "existed before the drill"},
		"another inode": {
			func(_ *testing.T, _ *DrillRegistry, _ *string, c *DrillContainer) { c.CgroupID++ },
			"has inode",
		},
		"parent path": {func(_ *testing.T, _ *DrillRegistry, _ *string, c *DrillContainer) {
			c.CgroupPath = "/stanch-drill-test/../x/" + c.ID
		}, "invalid id or cgroup path"},
		"path of another cgroup": {func(_ *testing.T, _ *DrillRegistry, _ *string, c *DrillContainer) {
			c.CgroupPath = "/docker/" + c.ID
		}, "invalid id or cgroup path"},
		"missing cgroup": {func(_ *testing.T, _ *DrillRegistry, _ *string, c *DrillContainer) {
			c.ID = strings.Repeat("ef", 32)
			c.CgroupPath = "/stanch-drill-test/" + c.ID
		}, "is not on this machine"},
		"unknown key": {
			func(_ *testing.T, _ *DrillRegistry, secret *string, _ *DrillContainer) { *secret = "guess" },
			"unknown or expired",
		},
		"expired key": {func(_ *testing.T, drills *DrillRegistry, secret *string, _ *DrillContainer) {
			drills.keys[*secret].issuedAt = time.Now().Add(-6 * time.Minute)
		}, "older than 5m"},
	} {
		t.Run(name, func(t *testing.T) {
			drills := &DrillRegistry{}
			secret, err := drills.IssueKey("shell")
			require.NoError(t, err)
			target := newEmptyCgroup(t, id)
			original := target
			c.change(t, drills, &secret, &target)
			_, err = drills.Register(context.Background(), secret, DrillTargets{Containers: []DrillContainer{target}})
			require.ErrorContains(t, err, c.reason)
			require.Nil(t, drills.RegistrationFor(newContainerDetection(original), "container:"+id))
		})
	}
}
