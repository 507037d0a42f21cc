package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/containermeta"
	"stanch/testenv/prereq"
)

// requireKernel skips the test, with a visible message, if the kernel cannot be used.
func requireKernel(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "root"
	} else if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		why = "a kernel with BTF"
	} else if _, err := containermeta.FindCgroupRoot(); err != nil {
		why = "cgroup v2"
	}
	skipOrFail(t, why)
}

func skipOrFail(t *testing.T, lacking string) {
	t.Helper()
	if lacking == "" {
		return
	}
	prereq.SkipOrFail(t, "%s", lacking)
}

// newCgroup creates a cgroup that is removed, with its processes, at the end of the test.
func newCgroup(t *testing.T, parent string) (dir string, id uint64) {
	t.Helper()
	if parent == "" {
		root, err := containermeta.FindCgroupRoot()
		if err != nil {
			t.Fatal(err)
		}
		parent = root
	}
	dir, err := os.MkdirTemp(parent, "stanch-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		waitUntil(t, "cgroup is removed",
			func() bool { err := os.Remove(dir); return err == nil || errors.Is(err, os.ErrNotExist) })
	})
	id, err = containermeta.CgroupID(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, id
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// startCommandInCgroup makes cmd start in a cgroup.
func startCommandInCgroup(t *testing.T, dir string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(fd.Fd())
	return cmd
}

// eventCollector collects events. It is safe for concurrent use.
type eventCollector struct {
	mu     sync.Mutex
	events []sensors.Event
	probe  *Probe
}

func startCollector(t *testing.T, opt Options) *eventCollector {
	t.Helper()
	p, err := Load(opt)
	if err != nil {
		t.Fatal(err)
	}
	w := &eventCollector{probe: p}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- p.Run(ctx, func(e sensors.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return w
}

func (w *eventCollector) waitForEvent(t *testing.T, what string, match func(*sensors.Event) bool) sensors.Event {
	t.Helper()
	var found sensors.Event
	deadline := time.Now().Add(5 * time.Second)
	for {
		w.mu.Lock()
		for i := range w.events {
			if match(&w.events[i]) {
				found = w.events[i]
				w.mu.Unlock()
				return found
			}
		}
		n := len(w.events)
		w.mu.Unlock()
		if time.Now().After(deadline) {
			w.mu.Lock()
			defer w.mu.Unlock()
			t.Fatalf("no event: %s, in %d: %+v", what, n, w.events)
		}
		time.Sleep(time.Millisecond)
	}
}

func matchKindInCgroup(kind sensors.Kind, cgroup uint64) func(*sensors.Event) bool {
	return func(e *sensors.Event) bool { return e.Kind == kind && e.Container.CgroupID == cgroup }
}

// selfCommand returns a command that runs this test binary as a helper.
func selfCommand(args ...string) *exec.Cmd {
	exe, _ := os.Executable()
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "STANCH_TEST_HELPER=1")
	return cmd
}

func TestMain(m *testing.M) {
	if os.Getenv("STANCH_TEST_HELPER") == "1" {
		if err := runHelper(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runHelper(what string, args []string) error {
	switch what {
	case "connect":
		return dialWithoutResolver(args[0], args[1])
	case "ask":
		answer, err := dialAndAsk(args[0], args[1])
		fmt.Println(answer)
		return err
	case "actor":
		return runHelperProcess()
	case "lock":
		return runLockHelper(args)
	}
	return errors.New("no such helper: " + what)
}

// dialWithoutResolver dials without Go's resolver, which would convert a mapped address to IPv4.
func dialWithoutResolver(host, port string) error {
	addr := net.ParseIP(host)
	var n int
	fmt.Sscan(port, &n)
	if strings.Contains(host, ":") {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet6{Port: n, Addr: [16]byte(addr.To16())})
	}
	c, err := net.Dial("tcp4", net.JoinHostPort(host, port))
	if err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	return err
}
