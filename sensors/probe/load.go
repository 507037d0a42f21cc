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

// Probe observes the containers of this machine. It is safe for concurrent use. Create it with Load.
type Probe struct {
	options        Options
	bootIDPrefix   string // the first eight characters of the boot ID
	collection     *ebpf.Collection
	links          []link.Link // that are not in attached yet
	attached       attachedLinks
	alerts         *ringbuf.Reader
	telemetry      *ringbuf.Reader
	hooks          []HookStatus
	loadedAt       time.Time
	loadedAtBootNS uint64 // CLOCK_BOOTTIME at load time, in nanoseconds
	processes      *containermeta.ProcessTable
	closeOnce      sync.Once

	mu                 sync.Mutex // serializes the calls of Run's callback, and guards the fields below
	cgroups            map[uint64]cgroupInfo
	clock              bootClock
	eventCounts        map[sensors.Kind]*atomic.Uint64 // has an entry for each of sensors.NodeKinds
	undecodable        atomic.Uint64
	runtimeSetupEvents atomic.Uint64 // events of container runtimes
}

// hookAttachment is a program and where it is attached.
type hookAttachment struct {
	hook    Hook
	program string
	// optional reports whether the hook also works without this program.
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
	{HookOpen, bpf.ObserveProgObserveOpen, true, attachSyscall("sys_exit_open")}, // arm64 has no such system call
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

// mountTracefs mounts tracefs at its standard path if it is not mounted there.
func mountTracefs() error {
	const dir = "/sys/kernel/tracing"
	if _, err := os.Stat(dir + "/events"); err == nil {
		return nil
	}
	if err := unix.Mount("tracefs", dir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil &&
		!errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount tracefs at %s (needed for syscall tracepoints): %w", dir, err)
	}
	return nil
}

// Load loads and attaches the kernel programs. It returns an error only if nothing at all can be observed. A hook that
// this kernel does not support stays off, and Status reports why. The caller must call Close.
func Load(opt Options) (*Probe, error) {
	p := &Probe{
		options:   opt,
		loadedAt:  time.Now(),
		processes: containermeta.NewProcessTable(0),
		cgroups:   map[uint64]cgroupInfo{},
		clock: bootClock{
			readClocks: readClocks,
		},
		eventCounts:    map[sensors.Kind]*atomic.Uint64{},
		loadedAtBootNS: uint64(sinceBoot()),
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
	// Kernels before 5.11 charge BPF memory to RLIMIT_MEMLOCK. On newer kernels this has no effect.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})

	spec, err := bpf.LoadObserve()
	if err != nil {
		return fmt.Errorf("read the embedded programs: %w", err)
	}
	if p.options.AlertRingBytes > 0 {
		spec.Maps[bpf.ObserveMapAlerts].MaxEntries = uint32(p.options.AlertRingBytes)
	}
	if p.options.TelemetryRingBytes > 0 {
		spec.Maps[bpf.ObserveMapTelemetry].MaxEntries = uint32(
			p.options.TelemetryRingBytes,
		)
	}
	programs := spec.Programs
	spec.Programs = map[string]*ebpf.ProgramSpec{}
	if p.collection, err = ebpf.NewCollection(spec); err != nil {
		return fmt.Errorf(
			"create the kernel maps (root or CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_RESOURCE are required): %w",
			err,
		)
	}
	if err := p.fillMaps(); err != nil {
		return err
	}

	spec.Programs = programs
	if err := p.attachHooks(spec); err != nil {
		return err
	}
	if p.alerts, err = ringbuf.NewReader(p.collection.Maps[bpf.ObserveMapAlerts]); err != nil {
		return fmt.Errorf("open the alerts ring: %w", err)
	}
	if p.telemetry, err = ringbuf.NewReader(p.collection.Maps[bpf.ObserveMapTelemetry]); err != nil {
		return fmt.Errorf("open the telemetry ring: %w", err)
	}
	return nil
}

// attachHooks loads and attaches the programs of the enabled hooks. It returns an error if none could be attached.
func (p *Probe) attachHooks(spec *ebpf.CollectionSpec) error {
	var enabled []hookAttachment
	status := map[Hook]*HookStatus{}
	for _, hook := range Hooks {
		status[hook] = &HookStatus{Hook: hook}
	}
	for _, a := range hookAttachments {
		if p.isDisabled(a.hook) {
			status[a.hook].Reason = ReasonDisabled
		} else {
			enabled = append(enabled, a)
		}
	}
	loaded := loadEach(spec, enabled, p.collection.Maps)
	on := 0
	for i, a := range enabled {
		st := status[a.hook]
		if err := p.attachHook(a, loaded[i]); err != nil {
			if !a.optional {
				st.Reason = shortReason(err)
			}
			continue
		}
		st.Enabled = st.Enabled || !a.optional
		on++
	}
	p.attached, p.links = keepAttached(p.links), nil
	for _, hook := range Hooks {
		p.hooks = append(p.hooks, *status[hook])
	}
	if on == 0 {
		return fmt.Errorf("no hook could be attached: %s", p.hooks[0].Reason)
	}
	return nil
}

func (p *Probe) isDisabled(h Hook) bool {
	return slices.Contains(p.options.DisabledHooks, h)
}

// loadedProgram is a program in the kernel, or why it is not there.
type loadedProgram struct {
	program *ebpf.Program
	err     error
}

// loadEach loads the programs of the hooks, and returns them in the same order. Loading them together takes a third of
// the time; if this kernel rejects one, each is loaded separately, so that it does not affect the others.
func loadEach(spec *ebpf.CollectionSpec, hooks []hookAttachment, maps map[string]*ebpf.Map) []loadedProgram {
	out := make([]loadedProgram, len(hooks))
	load := func(hooks []hookAttachment, out []loadedProgram) error {
		some := spec.Copy()
		some.Programs = map[string]*ebpf.ProgramSpec{}
		for _, a := range hooks {
			some.Programs[a.program] = spec.Programs[a.program].Copy()
		}
		coll, err := ebpf.NewCollectionWithOptions(some, ebpf.CollectionOptions{MapReplacements: maps})
		if err != nil {
			return err
		}
		defer coll.Close()
		for i, a := range hooks {
			out[i].program = coll.DetachProgram(a.program)
		}
		return nil
	}
	if load(hooks, out) == nil {
		return out
	}
	for i := range hooks {
		out[i].err = load(hooks[i:i+1], out[i:i+1])
	}
	return out
}

func (p *Probe) attachHook(a hookAttachment, loaded loadedProgram) error {
	if loaded.err != nil {
		return loaded.err
	}
	defer loaded.program.Close() // the links keep the program alive
	links, err := a.attach(p, loaded.program)
	p.links = append(p.links, links...)
	return err
}

// shortReason returns a short reason for people. The complete verifier log is only useful in a bug report.
func shortReason(err error) string {
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		return "rejected by this kernel's verifier: " + firstLine(err)
	}
	switch {
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		return "this kernel has no such hook: " + firstLine(err)
	case errors.Is(err, unix.EPERM):
		return "not permitted (root or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are required, or the kernel is locked down): " +
			firstLine(err)
	}
	return firstLine(err)
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// fillMaps fills the maps that the programs read: the sensitive file names and the cgroups of the host.
func (p *Probe) fillMaps() error {
	for name, on := range sensitiveNames {
		var key [48]byte
		copy(key[:], name)
		if err := p.collection.Maps[bpf.ObserveMapSensitive].Put(key, on); err != nil {
			return fmt.Errorf("load the sensitive names into the kernel maps: %w", err)
		}
	}
	return p.scanCgroups()
}

// Status returns which hooks are on and how many events were delivered and dropped.
func (p *Probe) Status() Status {
	s := Status{Hooks: p.hooks, LoadedAt: p.loadedAt, Events: map[sensors.Kind]uint64{}, Drops: map[string]uint64{}}
	for kind, n := range p.eventCounts {
		s.Events[kind] = n.Load()
	}
	for i, reason := range []string{"alerts ring full", "telemetry ring full", "no scratch buffer"} {
		var perCPU []uint64
		if err := p.collection.Maps[bpf.ObserveMapDrops].Lookup(uint32(i), &perCPU); err == nil {
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

// dropsByCgroupPath returns the number of dropped events by cgroup path.
func (p *Probe) dropsByCgroupPath() map[string]uint64 {
	out := map[string]uint64{}
	for _, each := range p.DropSources() {
		out[each.Path] += each.Dropped
	}
	return out
}

// DropSources returns the cgroups whose events were dropped since Load, in no particular order.
func (p *Probe) DropSources() []DropSource {
	var out []DropSource
	var id, n uint64
	for each := p.collection.Maps[bpf.ObserveMapDropSources].Iterate(); each.Next(&id, &n); {
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

// Close detaches all programs and frees the kernel maps. Egress locks stay in force. Further calls do nothing.
func (p *Probe) Close() error {
	var errs []error
	p.closeOnce.Do(func() {
		p.attached.open = append(p.attached.open, p.links...)
		errs = append(errs, p.attached.close())
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
