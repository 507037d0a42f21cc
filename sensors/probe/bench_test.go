package probe

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/containermeta"
)

func newBenchCgroup(b *testing.B) (string, uint64) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: lacking: root")
	}
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		b.Skip("SKIPPED: lacking: " + err.Error())
	}
	dir, err := os.MkdirTemp(root, "stanch-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.Remove(dir) })
	id, err := containermeta.CgroupID(dir)
	if err != nil {
		b.Fatal(err)
	}
	return dir, id
}

// BenchmarkApplyLock measures the time to lock a cgroup, without the veth programs.
func BenchmarkApplyLock(b *testing.B) {
	_, id := newBenchCgroup(b)
	dir := "/sys/fs/bpf/stanch-bench-" + strconv.Itoa(os.Getpid())
	l, err := OpenEgressLock(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close(); _ = Cleanup(dir) })
	for b.Loop() {
		if _, err := l.Apply(EgressLockRequest{
			LeaseID: "bench", Cgroups: []uint64{id},
			ExpiresAt: time.Now().Add(time.Minute),
		}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSyscallOverhead measures a system call that is not traced, with and without the open hook.
func BenchmarkSyscallOverhead(b *testing.B) {
	newBenchCgroup(b)
	for name, opt := range map[string]*Options{
		"no probe": nil, "without open": {DisabledHooks: []Hook{HookOpen}},
		"all": {},
	} {
		b.Run(name, func(b *testing.B) {
			if opt != nil {
				p, err := Load(*opt)
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close()
			}
			for b.Loop() {
				_ = unix.Getppid()
			}
		})
	}
}

// BenchmarkExec measures fork, exec and exit of a program in a watched cgroup, and reports the latency of its events.
func BenchmarkExec(b *testing.B) {
	dir, _ := newBenchCgroup(b)
	fd, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer fd.Close()
	for _, probed := range []bool{false, true} {
		b.Run("probed="+strconv.FormatBool(probed), func(b *testing.B) {
			var (
				mu   sync.Mutex
				late []time.Duration
			)
			if probed {
				p, err := Load(Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer p.Close()
				ctx := b.Context()
				go func() {
					_ = p.Run(ctx, func(e sensors.Event) {
						mu.Lock()
						defer mu.Unlock()
						late = append(late, time.Since(e.Time))
					})
				}()
			}
			for b.Loop() {
				cmd := exec.Command("/bin/true")
				cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if len(late) > 0 {
				slices.Sort(late)
				b.ReportMetric(float64(late[len(late)/2].Microseconds()), "p50-late-µs")
				b.ReportMetric(float64(late[len(late)*99/100].Microseconds()), "p99-late-µs")
			}
		})
	}
}
