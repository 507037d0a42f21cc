package health_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	lacking "stanch/testenv/prereq"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/health"
)

// newContainerCgroup creates the cgroup of a container of this host.
func newContainerCgroup(t *testing.T) (id, dir string) {
	t.Helper()
	root, err := containermeta.FindCgroupRoot()
	require.NoError(t, err)
	raw := make([]byte, 32)
	_, err = rand.Read(raw)
	require.NoError(t, err)
	id = hex.EncodeToString(raw)
	parent := filepath.Join(root, "docker")
	dir = filepath.Join(parent, id)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		require.Eventually(t, func() bool { err := os.Remove(dir); return err == nil || os.IsNotExist(err) }, 10*time.Second,
			5*time.Millisecond)
		_ = os.Remove(parent) // unless others use it
	})
	return id, dir
}

// runInCgroup runs a command in a container.
func runInCgroup(t *testing.T, dir string, command ...string) {
	t.Helper()
	fd, err := os.Open(dir)
	require.NoError(t, err)
	defer func() { _ = fd.Close() }()
	c := exec.CommandContext(t.Context(), command[0], command[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestEventFloodIsIncidentOfItsContainer(t *testing.T) {
	lacking.RequireRoot(t)
	server := temporal.Start(t, map[string]any{"Story": incidentWorkflow})
	e := newGatewayFixture(t, server, gatewayFixtureOptions{timing: health.Timing{
		CheckInterval:  20 * time.Millisecond,
		RepeatInterval: 500 * time.Millisecond,
	}})
	base, err := e.pki.MutualTLSConfig(authority.RoleNode, "flooded-1")
	require.NoError(t, err)
	dir := t.TempDir()
	a, closeAll, err := agent.NewFromConfig(agent.Config{
		Node: "flooded-1", StateDir: dir, CRISocket: "none", DisableLock: true, Log: slog.New(slog.DiscardHandler),
		Probe: probe.Options{AlertRingBytes: 4096, TelemetryRingBytes: 4096},
	})
	require.NoError(t, err)
	defer closeAll()
	spool, err := gatewayrpc.OpenSpool(dir, gatewayrpc.SpoolLimits{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- a.Serve(ctx, &gatewayrpc.Client{
			Address: e.address, TLS: base, Node: a.Node,
			HealthInterval: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		}, spool)
	}()
	defer func() { cancel(); <-done }()
	e.waitUntilConnected(t, "flooded-1")

	id, cgroup := newContainerCgroup(t)
	// Many processes at once overflow the ring buffer, and hide an attack among them. How many are needed depends on
	// the machine.
	require.Eventually(t, func() bool {
		runInCgroup(t, cgroup, "/bin/sh", "-c",
			"for j in $(seq 48); do (for i in $(seq 40); do /bin/true; done) & done; /bin/cat /dev/null; wait")
		return a.Report(0, 0).Drops.KernelEvents > 0
	}, time.Minute, time.Millisecond, "the ring must have been too small")

	// Other containers of this machine may lose events too, because the ring buffer is small.
	require.Eventually(t, func() bool {
		return slices.ContainsFunc(incidentDetections(t, server, "Node/flooded-1"), func(d sensors.Detection) bool {
			return d.Rule == "events-dropped" && d.Event.Count > 0 && strings.Contains(fmt.Sprint(d.Reasons),
				"container "+id[:12])
		})
	}, 20*time.Second, 50*time.Millisecond)
	d := waitForDetection(t, server, "Container/"+id[:12]+"@flooded-1", "event-flood")
	require.Equal(t, id, d.Event.Container.ID)
	require.Equal(t, sensors.ObjectiveDefenseEvasion, d.Objective)
	require.Equal(t, "T1685", d.Technique)
	t.Log(d.Reasons)
}
