// Command noderights does once, in a pod, everything that a sensor does on its node, and prints what failed. Tests run
// it with the rights of the chart's sensor, and with one of them removed, to measure what each right is for.
//
// It takes the pod that it observes, contains and releases as its argument, and changes nothing else on the node.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/containermeta"
	"stanch/sensors/durablefile"
	"stanch/sensors/probe"
	"stanch/sensors/snapshot"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == agent.SnapshotCommand {
		exit(snapshot.ServeHelper(os.Stdin, os.Stdout))
	}
	if len(os.Args) == 3 && os.Args[1] == agent.ThawCommand {
		exit(snapshot.RunThawer(os.Args[2]))
	}
	// Without the right to do so, it stays, as a sensor would.
	if err := agent.EnterNodeCgroupNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, "noderights:", err)
	}
	var o options
	flag.StringVar(&o.podUID, "pod", "", "the UID of the pod to observe and contain")
	flag.StringVar(&o.criSocket, "cri", "", "the CRI socket")
	flag.StringVar(&o.lockDir, "lock-dir", "", "where the egress lock is pinned")
	flag.StringVar(&o.state, "state", "/var/lib/stanch-sensor", "the state directory")
	flag.Parse()
	exit(json.NewEncoder(os.Stdout).Encode(o.measure(context.Background())))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "noderights:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

type options struct{ podUID, criSocket, lockDir, state string }

// failures are the functions that failed, with the reason.
type failures map[string]string

func (f failures) record(function string, err error) {
	if err != nil {
		f[function] = err.Error()
	}
}

// run is one measurement.
type run struct {
	failures
	options
	agent *agent.Agent
	dir   string // the cgroup of the pod
	pod   containermeta.NamedCgroup
	pids  []int
}

// measure does everything once. A function that fails does not keep the others from being measured.
func (o options) measure(ctx context.Context) failures {
	r := &run{failures: failures{}, options: o}
	a, closeAll, err := agent.NewFromConfig(agent.Config{
		Node: "measured", StateDir: o.state, EgressLockDir: o.lockDir, CRISocket: o.criSocket,
		SnapshotProgram:   []string{"/proc/self/exe", agent.SnapshotCommand},
		ThawProgram:       []string{"/proc/self/exe", agent.ThawCommand},
		HeartbeatInterval: 200 * time.Millisecond, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		r.record("start", err)
		return r.failures
	}
	defer closeAll()
	r.agent = a
	r.record("write state", durablefile.Write(filepath.Join(o.state, "measured"), []byte("x"), 0o600))
	r.probes(ctx)
	if err := r.findPod(ctx); err != nil {
		r.record("find the pod's cgroup", err)
		return r.failures
	}
	r.names(ctx)
	r.evidence(ctx)
	r.lock()
	r.freeze(ctx)
	return r.failures
}

// probes records the probes that are off, and whether events arrive: the heartbeat is one.
func (r *run) probes(ctx context.Context) {
	if r.agent.Probe == nil {
		r.record("probes", errors.New("none is loaded"))
		return
	}
	for _, h := range r.agent.Probe.Status().Hooks {
		if !h.Enabled {
			r.record("probe "+string(h.Hook), errors.New(h.Reason))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.agent.Watch(ctx, nil, func(sensors.Detection) {}) }()
	for ctx.Err() == nil && r.agent.Health().Heartbeat.LastReceived.IsZero() {
		time.Sleep(50 * time.Millisecond)
	}
	if h := r.agent.Health().Heartbeat; h.LastReceived.IsZero() {
		r.record("heartbeat", fmt.Errorf("none arrived: %s", h.FailureReason))
	}
	cancel()
	r.record("watch", <-done)
}

func (r *run) findPod(ctx context.Context) error {
	found, err := r.agent.Resolver.FindNamedCgroups(ctx, r.podUID, "")
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%d cgroups", len(found))
	}
	r.pod, r.dir = found[0], filepath.Join(r.agent.Resolver.CgroupRoot(), found[0].Path)
	r.pids, err = containermeta.ListPIDs(r.dir)
	return err
}

// names asks the runtime about the pod's containers, and the kernel about a cgroup's ID.
func (r *run) names(ctx context.Context) {
	if path, err := r.agent.Resolver.CgroupPathByID(r.pod.CgroupID); err != nil || path != r.pod.Path {
		r.record("path of a cgroup by its ID", fmt.Errorf("%q, %w", path, err))
	}
	r.record("open a cgroup by its ID", r.openByID())
	all, err := r.agent.Resolver.ListContainers(ctx)
	if err == nil && !slices.ContainsFunc(all, func(c sensors.Container) bool {
		return c.Pod.UID == r.podUID && c.Name == "main" && c.Image != ""
	}) {
		err = errors.New(r.agent.Health().Runtime)
	}
	r.record("names of containers", err)
	found, err := probe.FindKubelets("")
	if err == nil && len(found) == 0 {
		err = errors.New("no copy was found")
	}
	r.record("find the kubelet", err)
}

// openByID opens the pod's cgroup as the resolver does. If that fails, the resolver searches the tree for each event.
func (r *run) openByID() error {
	root, err := os.Open(r.agent.Resolver.CgroupRoot())
	if err != nil {
		return err
	}
	defer root.Close()
	const kernfsHandle = 0xfe // FILEID_KERNFS
	handle := binary.NativeEndian.AppendUint64(nil, r.pod.CgroupID)
	fd, err := unix.OpenByHandleAt(int(root.Fd()), unix.NewFileHandle(kernfsHandle, handle), unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_by_handle_at: %w", err)
	}
	return unix.Close(fd)
}

// evidence takes a snapshot. The pod must run a program that is not in its image.
func (r *run) evidence(ctx context.Context) {
	taken, copies, err := r.agent.SnapshotHelper.Take(ctx, snapshot.Target{CgroupDirs: []string{r.dir}}, snapshot.Limits{})
	if err != nil {
		r.record("evidence", err)
		return
	}
	if len(taken.Missing) > 0 {
		r.record("evidence", errors.New(strings.Join(taken.Missing, "; ")))
	}
	if len(copies) == 0 {
		r.record("evidence: copy of a dropped program", errors.New("no copy was found"))
	}
	for _, p := range taken.Processes {
		if p.Exe == "" || len(p.EnvNames) == 0 || p.Cwd == "" {
			r.record("evidence of a process", fmt.Errorf("%s (uid %d) is incomplete", p.Name, p.UID))
		}
	}
}

// lock locks the pod's network and releases it.
func (r *run) lock() {
	if r.agent.EgressLock == nil {
		r.record("egress lock", errors.New(r.agent.EgressLockError))
		return
	}
	veths, err := probe.FindVeths(r.pids...)
	if err == nil && len(veths) != 1 {
		err = fmt.Errorf("%d found", len(veths))
	}
	r.record("find the pod's network interfaces", err)
	const lease = "measured-lock"
	state, err := r.agent.EgressLock.Apply(probe.EgressLockRequest{
		LeaseID: lease, TargetID: "pod:" + r.podUID, Cgroups: []uint64{r.pod.CgroupID}, Veths: veths,
		ExpiresAt: time.Now().Add(20 * time.Second),
	})
	if err == nil && !state.VethLocked {
		err = fmt.Errorf("no interface is locked: %s", state.VethError)
	}
	r.record("egress lock", err)
	r.record("release the egress lock", r.agent.EgressLock.Release(lease))
}

// freeze freezes the pod, looks at the process that ends the freeze, and thaws.
func (r *run) freeze(ctx context.Context) {
	const lease = "measured-freeze"
	if err := r.agent.Freezer.Freeze(ctx, snapshot.CgroupFreeze{
		LeaseID: lease, TargetID: "pod:" + r.podUID, CgroupDir: r.dir, CgroupID: r.pod.CgroupID,
		ExpiresAt: time.Now().Add(20 * time.Second),
	}); err != nil {
		r.record("freeze", err)
		return
	}
	r.record("a freeze that outlives the sensor", r.checkThawer())
	r.record("thaw", r.agent.Freezer.Thaw(ctx, lease))
	if state, err := snapshot.ReadFreezeState(r.dir); err != nil || state.Frozen {
		r.record("thaw", fmt.Errorf("%+v, %w", state, err))
	}
}

// checkThawer checks that the thawer is in no cgroup and no mount namespace that ends with this pod.
func (r *run) checkThawer() error {
	b := make([]byte, 1024)
	n, err := unix.Getxattr(r.dir, "trusted.stanch.freeze", b)
	if err != nil {
		return fmt.Errorf("read the mark of the freeze: %w", err)
	}
	var mark struct {
		PID int `json:"thawer_pid"`
	}
	if err := json.Unmarshal(b[:n], &mark); err != nil {
		return fmt.Errorf("read the mark of the freeze: %w", err)
	}
	dir := fmt.Sprintf("/proc/%d/", mark.PID)
	cgroups, err := os.ReadFile(dir + "cgroup")
	if err != nil {
		return err
	}
	if strings.Contains(string(cgroups), "kubepods") {
		return fmt.Errorf("it is in the cgroups of the sensor's pod: %s", strings.Fields(string(cgroups)))
	}
	theirs, err := os.Readlink(dir + "ns/mnt")
	if err != nil {
		return err
	}
	// Some machines protect their first process. The thawer then stays in the sensor's mount namespace.
	if node, err := os.Readlink("/proc/1/ns/mnt"); err == nil && theirs != node {
		return errors.New("it is in the mount namespace of the sensor's pod, and keeps its mounts")
	}
	return nil
}
