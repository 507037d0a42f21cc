// Package harness runs the real `stanch up` as a separate process, so that a test can kill it. Its data, lock directory
// and containers belong to the test and are removed at its end.
//
// It refuses to fake any part: the kernel, Temporal, the certificates and the sockets are those of the product.
package harness

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors/probe"
	lacking "stanch/testenv/prereq"
	"stanch/worker/freeport"
)

// Options configure Stanch. The zero value has no configuration file, which is phase 1.
type Options struct {
	// Config is the text of stanch.yaml; "" starts without one. "DIR" in it is replaced by a directory with Playbooks.
	Config string
	// Playbooks are written to the directory, by file name.
	Playbooks map[string]string
	// Args are additional arguments of `stanch up`, and Env additional environment variables.
	Args []string
	Env  []string
}

// Harness is an installation of Stanch and usually a process that runs it.
type Harness struct {
	DataDir         string // the data directory
	LockDir         string // where its egress lock is pinned
	ContainerPrefix string // prefix of the ids of its containers; "MARK" in playbooks
	ConfigDir       string // files of the test: configuration, playbooks, tokens
	binary          string
	options         Options
	configPath      string

	mu      sync.Mutex
	process *exec.Cmd
	exited  chan struct{}
	output  *syncBuffer
}

// startTimeout bounds a start. Most of it is Temporal's on a busy machine.
const startTimeout = 60 * time.Second

// Start creates an installation and starts it. It stops with the test.
func Start(t testing.TB, binary string, o Options) *Harness {
	t.Helper()
	s := New(t, binary, o)
	s.StartAndWait(t)
	return s
}

// New creates an installation without starting it.
func New(t testing.TB, binary string, o Options) *Harness {
	t.Helper()
	SkipUnlessSupported(t)
	// The path of a Unix socket must be short; the test's own directory may be too long.
	dir, err := os.MkdirTemp("", "stand-")
	require.NoError(t, err)
	s := &Harness{
		DataDir: filepath.Join(dir, "data"), ConfigDir: dir, LockDir: "/sys/fs/bpf/" + filepath.Base(dir),
		ContainerPrefix: ContainerIDPrefix + randomHex(2), binary: binary, options: o, output: &syncBuffer{},
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the end of Stanch's log:\n%s", lastLines(s.Output(), 60))
		}
		if err := probe.Cleanup(s.LockDir); err != nil {
			t.Errorf("cleanup: %v", err)
		}
		_ = os.RemoveAll(s.LockDir)
		_ = os.RemoveAll(dir)
	})
	plays := filepath.Join(dir, "playbooks")
	require.NoError(t, os.MkdirAll(plays, 0o700))
	for name, text := range o.Playbooks {
		require.NoError(t, os.WriteFile(filepath.Join(plays, name),
			[]byte(strings.ReplaceAll(text, "MARK", s.ContainerPrefix)), 0o600))
	}
	if o.Config != "" {
		s.configPath = filepath.Join(dir, "stanch.yaml")
		require.NoError(t, os.WriteFile(s.configPath, []byte(strings.ReplaceAll(o.Config, "DIR", dir)), 0o600))
	}
	return s
}

// SkipUnlessSupported skips the test, or fails it under STANCH_NO_SKIP=1, unless this machine can run all of Stanch.
func SkipUnlessSupported(t testing.TB) {
	t.Helper()
	lacking.RequireRoot(t)
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		lacking.SkipOrFail(t, "a kernel with BTF (CONFIG_DEBUG_INFO_BTF)")
	}
}

// StartAndWait starts the process and waits until its node is connected. env applies to this start only.
func (s *Harness) StartAndWait(t testing.TB, env ...string) {
	t.Helper()
	s.StartProcess(t, env...)
	deadline := time.Now().Add(startTimeout)
	for {
		var nodes map[string]any
		if s.Get("/v1/nodes", &nodes) == nil && len(nodes) > 0 {
			return
		}
		if s.WaitForExit(0) {
			require.Fail(t, "Stanch ended while it started", lastLines(s.Output(), 40))
		}
		if time.Now().After(deadline) {
			require.Fail(t, "Stanch did not start in time", lastLines(s.Output(), 40))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// StartProcess starts the process without waiting.
func (s *Harness) StartProcess(t testing.TB, env ...string) {
	t.Helper()
	args := append([]string{"up", "--kubeconfig", "none", "--lock-dir", s.LockDir, "--ui", "", "--verify-every", "2s"},
		s.options.Args...)
	c := s.Command(args...)
	c.Env = append(append(c.Env, s.options.Env...), env...)
	c.Stdout, c.Stderr = s.output, s.output
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	ended := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NoError(t, c.Start())
	s.process, s.exited = c, ended
	go func() { _ = c.Wait(); close(ended) }()
}

// Command returns a command of the installation's binary with its data directory and configuration.
func (s *Harness) Command(args ...string) *exec.Cmd {
	args = append(args, "--data", s.DataDir)
	if s.configPath != "" {
		args = append(args, "--config", s.configPath)
	}
	c := exec.Command(s.binary, args...)
	c.Env = append(os.Environ(), "KUBECONFIG=")
	return c
}

// Run runs a command and returns its output and exit code.
func (s *Harness) Run(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	c := s.Command(args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// Kill sends SIGKILL to the process and waits until it is gone.
func (s *Harness) Kill() { s.signalAndWait(syscall.SIGKILL, 10*time.Second) }

// Stop stops the process as an administrator would.
func (s *Harness) Stop() { s.signalAndWait(syscall.SIGTERM, 30*time.Second) }

func (s *Harness) signalAndWait(sig syscall.Signal, limit time.Duration) {
	s.mu.Lock()
	process, ended := s.process, s.exited
	s.mu.Unlock()
	if process == nil {
		return
	}
	_ = process.Process.Signal(sig)
	select {
	case <-ended:
	case <-time.After(limit):
		_ = process.Process.Kill()
		<-ended
	}
}

// WaitForExit waits at most timeout for the process to exit, and reports whether it did.
func (s *Harness) WaitForExit(limit time.Duration) bool {
	s.mu.Lock()
	ended := s.exited
	s.mu.Unlock()
	select {
	case <-ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// PID returns the process ID.
func (s *Harness) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Process.Pid
}

// Output returns the output of the process and of the earlier processes of the installation.
func (s *Harness) Output() string { return s.output.String() }

// ResidentBytes returns the resident memory of the process in bytes.
func (s *Harness) ResidentBytes(t testing.TB) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	require.NoError(t, err)
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	require.Fail(t, "no VmRSS")
	return 0
}

// ActiveLocks reads the egress locks in force directly from the kernel.
func (s *Harness) ActiveLocks(t testing.TB) []probe.EgressLockState {
	t.Helper()
	held, err := probe.ReadLocks(s.LockDir)
	require.NoError(t, err)
	return held
}

// BuildBinary builds the binary into dir, unless STANCH_BIN names a directory that contains it.
func BuildBinary(dir string) (string, error) {
	if bin := os.Getenv("STANCH_BIN"); bin != "" {
		path := filepath.Join(bin, "stanch")
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("STANCH_BIN: %w; run `make build`", err)
		}
		return path, nil
	}
	path := filepath.Join(dir, "stanch")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-o", path, "stanch/cmd/stanch").
		CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build stanch: %w: %s", err, out)
	}
	return path, nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

type syncBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p) //nolint:wrapcheck // never fails
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// FreePort returns an address of loopback on which nothing listens; see freeport.Find.
func FreePort(t testing.TB) string {
	t.Helper()
	ports, err := freeport.Find("127.0.0.1", 1)
	require.NoError(t, err)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
}
