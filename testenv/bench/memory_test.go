package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/probe"
	"stanch/testenv/harness"
)

// The memory of the sensor as a separate process, connected to a gateway, after many short processes in a container.
func BenchmarkSensorMemory(b *testing.B) {
	address := harness.FreePort(b)
	s := harness.New(b, stanchBinary, harness.Options{
		Config: strings.Split(benchConfig, "sources")[0],
		Args:   []string{"--no-sensor", "--listen-nodes", address},
	})
	s.StartProcess(b)
	require.Eventually(b, func() bool { var nodes map[string]any; return s.Get("/v1/nodes", &nodes) == nil }, time.Minute,
		50*time.Millisecond)
	certs := filepath.Join(s.ConfigDir, "node")
	_, stderr, code := s.Run(b, "cert", "node", "bench", "--out", certs)
	require.Zero(b, code, stderr)
	lockDir := s.LockDir + "-sensor"
	b.Cleanup(func() { _ = probe.Cleanup(lockDir); _ = os.RemoveAll(lockDir) })
	sensor := exec.CommandContext(b.Context(), sensorBinary(b), "--gateway", address, "--certs", certs, "--state",
		filepath.Join(s.ConfigDir, "sensor"), "--node", "bench", "--lock-dir", lockDir)
	sensor.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(b, sensor.Start())
	defer func() { _ = sensor.Process.Kill(); _ = sensor.Wait() }()
	require.Eventually(b, func() bool {
		var nodes map[string]any
		return s.Get("/v1/nodes", &nodes) == nil &&
			len(nodes) == 1
	}, time.Minute, 50*time.Millisecond)
	rest := residentBytes(b, sensor.Process.Pid)
	container := harness.NewContainer(b)
	for b.Loop() {
		for range 50 {
			attack := container.StartAttack(b, "sh", "-c", "true")
			_ = attack.Process.Kill()
		}
	}
	harness.AppendBenchRecord(b, map[string]any{
		"name": "memory_sensor", "bytes_at_rest": rest,
		"bytes_after_storm": residentBytes(b, sensor.Process.Pid),
	})
	b.ReportMetric(float64(residentBytes(b, sensor.Process.Pid))/(1<<20), "sensor_MiB")
	harness.AppendBenchRecord(b, map[string]any{"name": "memory_worker_with_temporal", "bytes": s.ResidentBytes(b)})
}

// sensorBinary is the one that make built, or one built now.
func sensorBinary(b *testing.B) string {
	b.Helper()
	if dir := os.Getenv("STANCH_BIN"); dir != "" {
		return filepath.Join(dir, "stanch-sensor")
	}
	out := filepath.Join(b.TempDir(), "stanch-sensor")
	cmd := exec.CommandContext(b.Context(), "go", "build", "-o", out, "stanch/cmd/stanch-sensor")
	raw, err := cmd.CombinedOutput()
	require.NoError(b, err, string(raw))
	return out
}

func residentBytes(b *testing.B, pid int) int64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			require.NoError(b, err)
			return n << 10
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
