package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/probe"
	"stanch/testenv/harness"
)

// connectStormEnv makes this program connect as often as it says: "ADDR N".
const connectStormEnv = "STANCH_BENCH_CONNECT"

func connectStorm() {
	address, count, ok := strings.Cut(os.Getenv(connectStormEnv), " ")
	if !ok {
		return
	}
	n, _ := strconv.Atoi(count)
	for range n {
		c, err := net.Dial("tcp", address) //nolint:noctx // at once
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		// No wait for the other side: a local port is free again at once.
		_ = c.(*net.TCPConn).SetLinger(0) //nolint:forcetypeassert // dialed so
		_ = c.Close()
	}
	os.Exit(0)
}

// containerLoad is something that a container does, the same each time.
type containerLoad struct {
	name string
	run  func(b *testing.B, c *harness.Container)
}

func runCommand(b *testing.B, cmd *exec.Cmd) {
	b.Helper()
	out, err := cmd.CombinedOutput()
	require.NoError(b, err, string(out))
}

func containerLoads(b *testing.B) []containerLoad {
	b.Helper()
	sink, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	require.NoError(b, err)
	b.Cleanup(func() { _ = sink.Close() })
	go func() {
		for {
			c, err := sink.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	self, err := os.Executable()
	require.NoError(b, err)
	all := []containerLoad{
		{"exec-storm", func(b *testing.B, c *harness.Container) {
			runCommand(b, c.Command(b, "/bin/sh", "-c", `i=0; while [ $i -lt 2000 ]; do /bin/true; i=$((i+1)); done`))
		}},
		{"connect-storm", func(b *testing.B, c *harness.Container) {
			cmd := c.Command(b, self)
			cmd.Env = append(os.Environ(), connectStormEnv+"="+sink.Addr().String()+" 20000")
			runCommand(b, cmd)
		}},
		{"build", func(b *testing.B, c *harness.Container) {
			cache := b.TempDir()
			cmd := c.Command(b, "go", "build", "-o", filepath.Join(cache, "out"), "stanch/sensors/rules")
			cmd.Env = append(os.Environ(), "GOCACHE="+cache)
			runCommand(b, cmd)
		}},
	}
	if _, err := exec.LookPath("redis-benchmark"); err == nil {
		all = append(all, containerLoad{"redis", func(b *testing.B, c *harness.Container) {
			port := freePort(b)
			server := c.Command(b, "redis-server", "--port", port, "--save", "", "--dir", b.TempDir())
			require.NoError(b, server.Start())
			defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
			require.Eventually(b, func() bool {
				return exec.CommandContext(b.Context(), "redis-cli", "-p", port,
					"ping").Run() == nil
			}, 10*time.Second, 20*time.Millisecond)
			runCommand(b, c.Command(b, "redis-benchmark", "-q", "-p", port, "-n", "200000", "-c", "20", "-t", "set,get"))
		}})
	}
	if _, err := exec.LookPath("ab"); err == nil {
		all = append(all, containerLoad{"nginx", func(b *testing.B, c *harness.Container) {
			dir, port := b.TempDir(), freePort(b)
			conf := filepath.Join(dir, "nginx.conf")
			text := fmt.Sprintf(
				"worker_processes 1; daemon off; pid %[1]s/pid; error_log /dev/null; user root; events {} http { access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e; server { listen 127.0.0.1:%[2]s; location / { return 200 ok; } } }",
				dir,
				port,
			)
			require.NoError(b, os.WriteFile(conf, []byte(text), 0o600))
			server := c.Command(b, "nginx", "-c", conf, "-p", dir)
			require.NoError(b, server.Start())
			defer func() { _ = server.Process.Signal(syscall.SIGTERM); _ = server.Wait() }()
			require.Eventually(b, func() bool {
				conn, err := net.Dial("tcp", "127.0.0.1:"+port) //nolint:noctx // at once
				if err != nil {
					return false
				}
				_ = conn.Close()
				return true
			}, 10*time.Second, 20*time.Millisecond)
			runCommand(b, c.Command(b, "ab", "-q", "-k", "-n", "300000", "-c", "8", "http://127.0.0.1:"+port+"/"))
		}})
	}
	return all
}

func freePort(b *testing.B) string {
	b.Helper()
	_, port, err := net.SplitHostPort(harness.FreePort(b))
	require.NoError(b, err)
	return port
}

// observerProcess is a process that watches the kernel, or none.
type observerProcess struct {
	cmd            *exec.Cmd
	cpuTimeAtStart time.Duration
	ownsProgram    func(name string) bool // is a program of the kernel this watcher's?
}

// processTime is the time that a process has used.
func processTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(b, err)
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	user, err := strconv.ParseInt(fields[11], 10, 64)
	require.NoError(b, err)
	system, err := strconv.ParseInt(fields[12], 10, 64)
	require.NoError(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// programRuns are how often a program ran and for how long.
type programRuns struct {
	Count       uint64  `json:"count"`
	NanosPerRun float64 `json:"ns_each"`
	total       time.Duration
}

// bpfRunTime is how long BPF programs ran so far, together and each.
func bpfRunTime(b *testing.B, mine func(string) bool) (total time.Duration, each map[string]programRuns) {
	b.Helper()
	each = map[string]programRuns{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return total, each
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := p.Info(); err == nil && mine(info.Name) {
			if stats, err := p.Stats(); err == nil {
				total += stats.Runtime
				r := each[info.Name]
				each[info.Name] = programRuns{Count: r.Count + stats.RunCount, total: r.total + stats.Runtime}
			}
		}
		_ = p.Close()
	}
}

const bpftraceProgram = `tracepoint:syscalls:sys_enter_execve { printf("exec %d %s %s\n", pid, comm, str(args->filename)); }
tracepoint:syscalls:sys_enter_connect { printf("connect %d %s %d\n", pid, comm, args->fd); }`

// startObserver starts one of "off", "stanch" and "bpftrace" and waits until it watches.
func startObserver(b *testing.B, which string) *observerProcess {
	b.Helper()
	w := &observerProcess{ownsProgram: func(string) bool { return false }}
	switch which {
	case "stanch":
		w.cmd = exec.CommandContext(b.Context(), sensorBinary(b), "watch")
		w.ownsProgram = func(name string) bool { return strings.HasPrefix(name, "observe_") }
	case "bpftrace":
		w.cmd = exec.CommandContext(b.Context(), "bpftrace", "-e", bpftraceProgram)
		w.ownsProgram = func(name string) bool {
			return strings.HasPrefix(name, "sys_enter_") || strings.HasPrefix(name, "tracepoint")
		}
	default:
		return w
	}
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	require.NoError(b, err)
	w.cmd.Stdout, w.cmd.Stderr = out, out
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(b, w.cmd.Start())
	require.Eventually(b, func() bool {
		for id := ebpf.ProgramID(0); ; {
			next, err := ebpf.ProgramGetNextID(id)
			if err != nil {
				return false
			}
			id = next
			if p, err := ebpf.NewProgramFromID(id); err == nil {
				info, err := p.Info()
				_ = p.Close()
				if err == nil && w.ownsProgram(info.Name) {
					return true
				}
			}
		}
	}, 20*time.Second, 50*time.Millisecond)
	// It goes on attaching for a moment.
	time.Sleep(2 * time.Second)
	return w
}

func (w *observerProcess) stop() {
	if w.cmd == nil {
		return
	}
	_ = w.cmd.Process.Signal(syscall.SIGINT)
	_ = w.cmd.Wait()
}

// The cost of the sensor: each load without it, with it, and with bpftrace printing the same execs and connects,
// STANCH_BENCH_PAIRS times in turn (default 3). CPU seconds are those of the load's cgroup, which include the kernel
// programs; the sensor's own are reported separately.
func BenchmarkSensorCost(b *testing.B) {
	harness.SkipUnlessSupported(b)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	require.NoError(b, err)
	b.Cleanup(func() { _ = stats.Close() })
	pairs := 3
	if said, err := strconv.Atoi(os.Getenv("STANCH_BENCH_PAIRS")); err == nil {
		pairs = said
	}
	watchers := []string{"off", "stanch"}
	if _, err := exec.LookPath("bpftrace"); err == nil {
		watchers = append(watchers, "bpftrace")
	}
	for _, l := range containerLoads(b) {
		b.Run(l.name, func(b *testing.B) {
			for range b.N { //nolint:intrange // pairs are what is repeated
				measureLoad(b, l, watchers, pairs)
			}
		})
	}
}

func measureLoad(b *testing.B, l containerLoad, watchers []string, pairs int) {
	b.Helper()
	container := harness.NewContainer(b)
	used, kernel, own := map[string]measurementsMS{}, map[string]measurementsMS{}, map[string]measurementsMS{}
	programs := map[string]programRuns{} // of the last run
	for range pairs {
		for _, which := range watchers {
			w := startObserver(b, which)
			before := container.CPUTime(b)
			kernelBefore, eachBefore := bpfRunTime(b, w.ownsProgram)
			if w.cmd != nil {
				w.cpuTimeAtStart = processTime(b, w.cmd.Process.Pid)
			}
			l.run(b, container)
			used[which] = append(used[which], (container.CPUTime(b) - before).Seconds())
			kernelAfter, eachAfter := bpfRunTime(b, w.ownsProgram)
			kernel[which] = append(kernel[which], (kernelAfter - kernelBefore).Seconds())
			if which == "stanch" {
				for name, after := range eachAfter {
					if n := after.Count - eachBefore[name].Count; n > 0 {
						programs[name] = programRuns{Count: n, NanosPerRun: float64(after.total-eachBefore[name].total) / float64(n)}
					}
				}
			}
			if w.cmd != nil {
				own[which] = append(own[which], (processTime(b, w.cmd.Process.Pid) - w.cpuTimeAtStart).Seconds())
			}
			w.stop()
		}
	}
	off := used["off"].percentile(0.5)
	line := map[string]any{"name": "sensor_cost", "load": l.name, "pairs": pairs, "cpu_s_off": off, "programs": programs}
	for _, which := range watchers[1:] {
		share := (kernel[which].percentile(0.5) + own[which].percentile(0.5)) / off
		line[which] = map[string]float64{
			"cpu_s": used[which].percentile(0.5), "bpf_s": kernel[which].percentile(0.5),
			"process_s": own[which].percentile(0.5), "share": share, "cpu_ratio": used[which].percentile(0.5) / off,
		}
		b.ReportMetric(100*share, which+"_%")
	}
	harness.AppendBenchRecord(b, line)
}

// The ring buffer under load: two processes connect as fast as possible, with the shipped size and with one so small
// that events are lost, which must be counted.
func BenchmarkRingStorm(b *testing.B) {
	harness.SkipUnlessSupported(b)
	for name, size := range map[string]int{"shipped": 0, "tiny": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			sink, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
			require.NoError(b, err)
			defer func() { _ = sink.Close() }()
			go func() {
				for {
					c, err := sink.Accept()
					if err != nil {
						return
					}
					_ = c.Close()
				}
			}()
			container := harness.NewContainer(b)
			self, err := os.Executable()
			require.NoError(b, err)
			for range b.N { //nolint:intrange // a storm is what is repeated
				p, err := probe.Load(probe.Options{AlertRingBytes: size})
				require.NoError(b, err)
				var seen atomic.Uint64
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() {
					done <- p.Run(ctx, func(e sensors.Event) {
						if e.Kind == sensors.KindConnect {
							seen.Add(1)
						}
					})
				}()
				const each, processes = 20_000, 2
				began := time.Now()
				var all []*exec.Cmd
				for range processes {
					cmd := container.Command(b, self)
					cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", connectStormEnv, sink.Addr(), each))
					require.NoError(b, cmd.Start())
					all = append(all, cmd)
				}
				for _, cmd := range all {
					require.NoError(b, cmd.Wait())
				}
				took := time.Since(began)
				require.Eventually(b, func() bool {
					var lost uint64
					for _, n := range p.Status().Drops {
						lost += n
					}
					return seen.Load()+lost >= each*processes
				}, 20*time.Second, 10*time.Millisecond, "what is lost is counted")
				lost := p.Status().Drops["alerts ring full"]
				cancel()
				require.NoError(b, <-done)
				require.NoError(b, p.Close())
				rate := float64(each*processes) / took.Seconds()
				b.ReportMetric(rate, "events/s")
				b.ReportMetric(float64(lost), "lost")
				harness.AppendBenchRecord(b, map[string]any{
					"name": "ring_storm", "ring": name, "events": each * processes,
					"events_s": rate, "seen": seen.Load(), "lost": lost,
				})
			}
		})
	}
}

// The idle sensor.
func BenchmarkSensorIdle(b *testing.B) {
	harness.SkipUnlessSupported(b)
	for range b.N { //nolint:intrange // a rest is what is repeated
		w := startObserver(b, "stanch")
		before := processTime(b, w.cmd.Process.Pid)
		const rest = 10 * time.Second
		time.Sleep(rest)
		used := processTime(b, w.cmd.Process.Pid) - before
		harness.AppendBenchRecord(b, map[string]any{
			"name":        "sensor_at_rest",
			"cpu_percent": 100 * used.Seconds() / rest.Seconds(), "rss_bytes": residentBytes(b, w.cmd.Process.Pid),
		})
		b.ReportMetric(100*used.Seconds()/rest.Seconds(), "cpu_%")
		w.stop()
	}
}
