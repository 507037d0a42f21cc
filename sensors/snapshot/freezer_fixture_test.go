package snapshot

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
	"stanch/testenv/prereq"
)

func newTestFreezer(t *testing.T) *Freezer {
	t.Helper()
	f := NewFreezer(requireKernel(t), slog.New(slog.DiscardHandler), "/proc/self/exe", thawCommand)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// freezeForever acts as a sensor that froze a cgroup and continues to run.
func freezeForever(path, until string) {
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	nanoseconds, err := strconv.ParseInt(until, 10, 64)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	f := NewFreezer(root, slog.Default(), "/proc/self/exe", thawCommand)
	if err := f.Freeze(context.Background(), CgroupFreeze{
		LeaseID: "L", CgroupDir: path,
		ExpiresAt: time.Unix(0, nanoseconds),
	}); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("frozen")
	select {}
}

// startWorkload starts a busy process in its own cgroup and returns the cgroup directory.
func startWorkload(t *testing.T) string {
	t.Helper()
	dir := newCgroup(t)
	startInCgroup(t, dir, exec.Command("/bin/sh", "-c", "while :; do :; done"))
	// Nothing that the test freezes may stay frozen.
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("0"), 0)
		_ = unix.Removexattr(dir, freezeMarkerXattr)
	})
	return dir
}

func isFrozen(dir string) bool {
	st, err := ReadFreezeState(dir)
	return err == nil && st.Requested && st.Frozen
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

func freezeMarkerOf(t *testing.T, dir string) freezeMarker {
	t.Helper()
	d, err := openCgroup(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m, err := readFreezeMarker(d)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func isThawerRunning(m freezeMarker) bool {
	fd, ok := m.openThawerProcess()
	if ok {
		_ = unix.Close(fd)
	}
	return ok
}

func freezeForTest(t *testing.T, f *Freezer, lease, dir string, until time.Time) {
	t.Helper()
	if err := f.Freeze(t.Context(), CgroupFreeze{
		LeaseID: lease, TargetID: "container:c", CgroupDir: dir,
		ExpiresAt: until,
	}); err != nil {
		t.Fatal(err)
	}
	if !isFrozen(dir) {
		t.Fatal("it is not frozen")
	}
}

// requireThawedOnTime waits until a cgroup is thawed and checks the time.
func requireThawedOnTime(t *testing.T, dir string, until time.Time) {
	t.Helper()
	waitUntil(t, "it thaws", func() bool { return !isFrozen(dir) })
	if late := time.Since(until); late < -50*time.Millisecond || late > time.Second {
		t.Errorf("thawed %s after its end", late)
	}
}

func waitUntilTime(t *testing.T, end time.Time) {
	t.Helper()
	waitUntil(t, "the expiry passes", func() bool { return time.Now().After(end) })
}

// freezeWithCgroupV1 freezes the processes of a cgroup like runc on a hybrid machine.
func freezeWithCgroupV1(t *testing.T, dir string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := ""
	for options, path := range cgroupV1Roots(string(mounts)) {
		if slices.Contains(strings.Split(options, ","), "freezer") {
			root = path
		}
	}
	if root == "" {
		prereq.SkipOrFail(t, "the freezer of cgroup v1")
	}
	v1, err := os.MkdirTemp(root, "stanch-test-")
	if err != nil {
		t.Fatal(err)
	}
	pids, err := containermeta.ListPIDs(dir)
	if err != nil || len(pids) == 0 {
		t.Fatal(err, pids)
	}
	for _, pid := range pids {
		writeFile(t, filepath.Join(v1, "cgroup.procs"), strconv.Itoa(pid))
	}
	state := filepath.Join(v1, "freezer.state")
	writeFile(t, state, "FROZEN")
	t.Cleanup(func() {
		writeFile(t, state, "THAWED")
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		waitUntil(t, "the v1 cgroup goes away", func() bool { return os.Remove(v1) == nil })
	})
	return state
}
