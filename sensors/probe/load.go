package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"stanch/bpf"
	"stanch/sensors"
	"stanch/sensors/containermeta"
)

// Probe observes the containers of this machine. Its methods may be called from several goroutines.
type Probe struct {
	options        Options
	bootIDPrefix   string // the first eight characters of the boot id
	collection     *ebpf.Collection
	links          []link.Link
	alerts         *ringbuf.Reader
	telemetry      *ringbuf.Reader
	hooks          []HookStatus
	loadedAt       time.Time
	loadedAtBootNS uint64 // CLOCK_BOOTTIME when it was loaded, ns
	processes      *containermeta.ProcessTable
	closeOnce      sync.Once

	mu                 sync.Mutex // orders calls of Run's callback, and guards what follows
	cgroups            map[uint64]cgroupInfo
	clock              bootClock
	eventCounts        map[sensors.Kind]*atomic.Uint64 // all of sensors.NodeKinds
	undecodable        atomic.Uint64
	runtimeSetupEvents atomic.Uint64 // events of container runtimes
}

// hookAttachment is one program and where it goes.
type hookAttachment struct {
	hook    Hook
	program string
	// optional: other programs of the same hook are enough.
	optional bool
	attach   func(p *Probe, prog *ebpf.Program) ([]link.Link, error)
}

var hookAttachments = []hookAttachment{
	{HookExec, bpf.ObserveProgObserveExec, false, attachTracing},
	{HookExit, bpf.ObserveProgObserveExit, false, attachTracing},
	{HookCgroup, bpf.ObserveProgObserveCgroup, false, attachTracing},
	{HookConnect4, bpf.ObserveProgObserveConnect4, false, attachCgroup(ebpf.AttachCGroupInet4Connect)},
	{HookConnect6, bpf.ObserveProgObserveConnect6, false, attachCgroup(ebpf.AttachCGroupInet6Connect)},
	{HookOpen, bpf.ObserveProgObserveOpenat, false, attachSyscall("sys_exit_openat")},
	{HookOpen, bpf.ObserveProgObserveOpenat2, true, attachSyscall("sys_exit_openat2")},
	{HookOpen, bpf.ObserveProgObserveOpen, true, attachSyscall("sys_exit_open")}, // no such call on arm64
	{HookOpen, bpf.ObserveProgObserveCreat, true, attachSyscall("sys_exit_creat")},
	{HookSyscalls, bpf.ObserveProgObserveCall, false, attachTracedSyscalls},
	{HookUnixConnect, bpf.ObserveProgObserveUnix, false, attachSyscall("sys_exit_connect")},
	{HookListen, bpf.ObserveProgObserveListen, false, attachSyscall("sys_exit_listen")},
	{HookDNS, bpf.ObserveProgObserveDns, false, attachCgroup(ebpf.AttachCGroupInetEgress)},
	{HookFork, bpf.ObserveProgObserveFork, false, attachTracing},
	{HookIOUring, bpf.ObserveProgObserveUring, false, attachTracing},
}

func singleLink(l link.Link, err error) ([]link.Link, error) {
	if err != nil {
		return nil, err
	}
	return []link.Link{l}, nil
}

func attachTracing(_ *Probe, prog *ebpf.Program) ([]link.Link, error) {
	return singleLink(link.AttachTracing(link.TracingOptions{Program: prog}))
}

func attachCgroup(at ebpf.AttachType) func(*Probe, *ebpf.Program) ([]link.Link, error) {
	return func(p *Probe, prog *ebpf.Program) ([]link.Link, error) {
		return singleLink(link.AttachCgroup(link.CgroupOptions{Path: p.options.CgroupRoot, Attach: at, Program: prog}))
	}
}

func attachSyscall(name string) func(*Probe, *ebpf.Program) ([]link.Link, error) {
	return func(_ *Probe, prog *ebpf.Program) ([]link.Link, error) {
		if err := mountTracefs(); err != nil {
			return nil, err
		}
		return singleLink(link.Tracepoint("syscalls", name, prog, nil))
	}
}

// mountTracefs mounts the tracing file system where it is looked for, if it is not there.
func mountTracefs() error {
	const dir = "/sys/kernel/tracing"
	if _, err := os.Stat(dir + "/events"); err == nil {
		return nil
	}
	if err := unix.Mount("tracefs", dir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount tracefs at %s (needed for syscall tracepoints): %w", dir, err)
	}
	return nil
}

// Load loads and attaches the programs. It fails only if nothing at all can be observed; a hook that this kernel
// lacks is off and said in Status.
func Load(opt Options) (*Probe, error) {
	p := &Probe{
		options: opt, loadedAt: time.Now(), processes: containermeta.NewProcessTable(0), cgroups: map[uint64]cgroupInfo{},
		clock: bootClock{readClocks: readClocks}, eventCounts: map[sensors.Kind]*atomic.Uint64{}, loadedAtBootNS: uint64(sinceBoot()), //nolint:gosec // a time since boot
	}
	for _, kind := range sensors.NodeKinds {
		p.eventCounts[kind] = new(atomic.Uint64)
	}
	if p.options.CgroupRoot == "" {
		root, err := containermeta.FindCgroupRoot()
		if err != nil {
			return nil, err
		}
		p.options.CgroupRoot = root
	}
	if p.options.Node == "" {
		p.options.Node, _ = os.Hostname()
	}
	if p.options.ClassifyCgroup == nil {
		p.options.ClassifyCgroup = ClassifyCgroupPath
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 8 {
		return nil, fmt.Errorf("read the boot id: %w", err)
	}
	p.bootIDPrefix = string(b[:8])

	if err := p.loadPrograms(); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Probe) loadPrograms() error {
	// Old kernels account BPF memory to RLIMIT_MEMLOCK; new ones do not care.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})

	spec, err := bpf.LoadObserve()
	if err != nil {
		return fmt.Errorf("read the embedded programs: %w", err)
	}
	if p.options.AlertRingBytes > 0 {
		spec.Maps[bpf.ObserveMapAlerts].MaxEntries = uint32(p.options.AlertRingBytes) //nolint:gosec // a size in memory
	}
	if p.options.TelemetryRingBytes > 0 {
		spec.Maps[bpf.ObserveMapTelemetry].MaxEntries = uint32(p.options.TelemetryRingBytes) //nolint:gosec // a size in memory
	}
	programs := spec.Programs
	spec.Programs = map[string]*ebpf.ProgramSpec{}
	if p.collection, err = ebpf.NewCollection(spec); err != nil {
		return fmt.Errorf("make the kernel maps (root or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_RESOURCE are needed): %w", err)
	}
	if err := p.fillMaps(); err != nil {
		return err
	}

	// Each program is loaded alone, so that one that this kernel refuses takes no other with it.
	status := map[Hook]*HookStatus{}
	for _, hook := range Hooks {
		status[hook] = &HookStatus{Hook: hook}
	}
	on := 0
	for _, a := range hookAttachments {
		st := status[a.hook]
		if p.isDisabled(a.hook) {
			st.Reason = ReasonDisabled
			continue
		}
		if err := p.attachHook(a, spec, programs[a.program]); err != nil {
			if !a.optional {
				st.Reason = shortReason(err)
			}
			continue
		}
		st.Enabled = st.Enabled || !a.optional
		on++
	}
	for _, hook := range Hooks {
		p.hooks = append(p.hooks, *status[hook])
	}
	if on == 0 {
		return fmt.Errorf("no hook could be attached: %s", p.hooks[0].Reason)
	}
	if p.alerts, err = ringbuf.NewReader(p.collection.Maps[bpf.ObserveMapAlerts]); err != nil {
		return fmt.Errorf("open the alerts ring: %w", err)
	}
	if p.telemetry, err = ringbuf.NewReader(p.collection.Maps[bpf.ObserveMapTelemetry]); err != nil {
		return fmt.Errorf("open the telemetry ring: %w", err)
	}
	return nil
}

func (p *Probe) isDisabled(h Hook) bool {
	return slices.Contains(p.options.DisabledHooks, h)
}

func (p *Probe) attachHook(a hookAttachment, maps *ebpf.CollectionSpec, prog *ebpf.ProgramSpec) error {
	single := maps.Copy()
	single.Programs = map[string]*ebpf.ProgramSpec{a.program: prog.Copy()}
	coll, err := ebpf.NewCollectionWithOptions(single, ebpf.CollectionOptions{MapReplacements: p.collection.Maps})
	if err != nil {
		return err
	}
	defer coll.Close() // the link holds the program
	links, err := a.attach(p, coll.Programs[a.program])
	p.links = append(p.links, links...)
	return err
}

// shortReason makes a short reason of an error for people: the verifier's log is for bug reports.
func shortReason(err error) string {
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		return "refused by this kernel's verifier: " + firstLine(err)
	}
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return "this kernel has no such hook: " + firstLine(err)
	case errors.Is(err, unix.EPERM):
		return "not permitted (root or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN needed; or locked down): " + firstLine(err)
	}
	return firstLine(err)
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// fillMaps fills the maps that the programs read: which names are sensitive, which cgroups are the host's.
func (p *Probe) fillMaps() error {
	for name, on := range sensitiveNames {
		var key [48]byte
		copy(key[:], name)
		if err := p.collection.Maps[bpf.ObserveMapSensitive].Put(key, on); err != nil {
			return fmt.Errorf("tell the kernel the sensitive names: %w", err)
		}
	}
	return p.scanCgroups()
}

// Status tells what is on and what was lost.
func (p *Probe) Status() Status {
	s := Status{Hooks: p.hooks, LoadedAt: p.loadedAt, Events: map[sensors.Kind]uint64{}, Drops: map[string]uint64{}}
	for kind, n := range p.eventCounts {
		s.Events[kind] = n.Load()
	}
	for i, reason := range []string{"alerts ring full", "telemetry ring full", "no scratch"} {
		var perCPU []uint64
		if err := p.collection.Maps[bpf.ObserveMapDrops].Lookup(uint32(i), &perCPU); err == nil { //nolint:gosec // three
			for _, n := range perCPU {
				s.Drops[reason] += n
			}
		}
	}
	s.Drops["undecodable"] = p.undecodable.Load()
	s.RuntimeSetupEvents = p.runtimeSetupEvents.Load()
	s.DropsByCgroup = p.dropsByCgroupPath()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.cgroups {
		if g.class == ClassHost {
			s.FilteredCgroups++
		}
	}
	return s
}

// dropsByCgroupPath tells whose events were lost, by the path of the cgroup.
func (p *Probe) dropsByCgroupPath() map[string]uint64 {
	out := map[string]uint64{}
	for _, each := range p.DropSources() {
		out[each.Path] += each.Dropped
	}
	return out
}

// DropSources tells whose events were lost since Load.
func (p *Probe) DropSources() []DropSource {
	var out []DropSource
	var id, n uint64
	for each := p.collection.Maps[bpf.ObserveMapLosers].Iterate(); each.Next(&id, &n); {
		p.mu.Lock()
		name := p.cgroups[id].path
		p.mu.Unlock()
		if name == "" {
			if name, _ = containermeta.CgroupPathByID(p.options.CgroupRoot, id); name == "" {
				name = "gone"
			}
		}
		out = append(out, DropSource{Cgroup: id, Path: name, Dropped: n})
	}
	return out
}

// Close detaches everything. It does not touch egress locks.
func (p *Probe) Close() error {
	var errs []error
	p.closeOnce.Do(func() {
		// The kernel waits for every processor before it lets a tracepoint go: for all of them at once.
		closed := make([]error, len(p.links))
		var wg sync.WaitGroup
		for i, l := range p.links {
			wg.Go(func() { closed[i] = l.Close() })
		}
		wg.Wait()
		errs = append(errs, closed...)
		if p.alerts != nil {
			errs = append(errs, p.alerts.Close())
		}
		if p.telemetry != nil {
			errs = append(errs, p.telemetry.Close())
		}
		if p.collection != nil {
			p.collection.Close()
		}
	})
	return errors.Join(errs...)
}
