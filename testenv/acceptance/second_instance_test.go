package acceptance

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/harness"
)

// A second Stanch with a sensor on the same machine is refused at its start, with the process and data directory of the
// first and the remedy. Without a sensor it starts. A killed Stanch does not block another.
func TestSecondSensorOnMachineIsRefused(t *testing.T) {
	s := harness.Start(t, stanchBinary, harness.Options{})
	dir, err := os.MkdirTemp("", "second-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	second := func(args ...string) *exec.Cmd {
		c := exec.Command(
			stanchBinary,
			append(
				[]string{"up", "--data", filepath.Join(dir, "data"), "--lock-dir", s.LockDir, "--kubeconfig", "none", "--ui", ""},
				args...)...) //nolint:noctx // it is waited for
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return c
	}
	var out bytes.Buffer
	c := second()
	c.Stdout, c.Stderr = &out, &out
	require.Error(t, c.Run())
	require.Equal(t, 1, c.ProcessState.ExitCode(), out.String())
	for _, part := range []string{
		"start a sensor on this machine", "process " + strconv.Itoa(s.PID()),
		"data directory " + s.DataDir, "--no-sensor",
	} {
		require.Contains(t, out.String(), part)
	}

	starts := func(args ...string) {
		c := second(args...)
		require.NoError(t, c.Start())
		defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
		require.Eventually(t, func() bool {
			conn, err := net.Dial("unix", filepath.Join(dir, "data", "stanch.sock")) //nolint:noctx // local
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		}, 60*time.Second, 100*time.Millisecond)
	}
	starts("--no-sensor")
	s.Kill()
	starts()
}
