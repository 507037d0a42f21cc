// Package probe loads the kernel programs of package bpf and is the only user of cilium/ebpf. Probe reports what
// containers do as sensors.Event values. EgressLock blocks the outgoing traffic of pods on this node.
//
// It refuses to evaluate rules, and to depend on Kubernetes or a container runtime. It blocks only what an egress lock
// blocks, and the kernel ends each lock at its expiry. A feature that the kernel does not support is off, and Status
// reports why; the others stay on.
package probe

import (
	"net/netip"
	"time"

	"stanch/sensors"
)

// Options configures a probe. The zero value observes all containers of this machine.
type Options struct {
	// Node is copied into events. Empty means the host name.
	Node string
	// CgroupRoot is the mount point of cgroup v2. Empty means the one in /proc/self/mountinfo.
	CgroupRoot string
	// ClassifyCgroup returns the class of a cgroup by its path below CgroupRoot, with a leading slash. It is called
	// once for each cgroup that exists at Load, and once for each new cgroup. Nil means ClassifyCgroupPath.
	ClassifyCgroup func(path string) CgroupClass
	// IncludeHost also reports events outside of containers. It is for debugging and produces many events.
	IncludeHost bool
	// DisabledHooks are hooks that stay off, for example HookOpen, whose tracepoint adds a small cost to every system
	// call.
	DisabledHooks []Hook
	// WouldDeny reports whether an egress lock blocks a connection (see EgressLock.WouldDeny); it fills
	// sensors.Network.Denied. If it is nil, Denied is always false.
	WouldDeny func(cgroupID uint64, to netip.AddrPort) bool
	// AlertRingBytes and TelemetryRingBytes are the sizes of the two ring buffers, which must be powers of two. 0
	// means 4 MiB and 1 MiB.
	AlertRingBytes, TelemetryRingBytes int
	// RecordTap is called with every record before it is decoded, by two goroutines. It must not retain the record.
	// ReplayRecord accepts these records. Nil disables it.
	RecordTap func(record []byte)
}

// CgroupClass says whether a cgroup belongs to a container or to the host.
type CgroupClass uint8

// The classes of cgroups.
const (
	ClassUnknown   CgroupClass = iota // undecided: watched
	ClassContainer                    // watched
	ClassHost                         // filtered in the kernel
)

// Hook is a kernel hook that the probe attaches to.
type Hook string

// The hooks.
const (
	HookExec        Hook = "exec"
	HookExit        Hook = "exit"
	HookConnect4    Hook = "connect4"
	HookConnect6    Hook = "connect6"
	HookOpen        Hook = "open"
	HookSyscalls    Hook = "calls" // on return of mount, setns, ptrace, chmod, bpf and other calls
	HookUnixConnect Hook = "unix-connect"
	HookListen      Hook = "listen"
	HookDNS         Hook = "dns"
	HookFork        Hook = "fork"
	HookIOUring     Hook = "io-uring"
	HookCgroup      Hook = "cgroup"
)

// Hooks lists every hook.
var Hooks = []Hook{
	HookExec, HookExit, HookConnect4, HookConnect6, HookOpen, HookSyscalls, HookUnixConnect, HookListen,
	HookDNS, HookFork, HookIOUring, HookCgroup,
}

// Status is the current state of the probe.
type Status struct {
	Hooks []HookStatus `json:"hooks"`
	// Events counts the events that were passed to the callback of Run, by kind.
	Events map[sensors.Kind]uint64 `json:"events"`
	// Drops counts lost events by reason: "alerts ring full", "telemetry ring full", "no scratch" or "undecodable".
	Drops map[string]uint64 `json:"drops"`
	// DropsByCgroup counts lost events by cgroup path, for about 1,000 cgroups at most.
	DropsByCgroup map[string]uint64 `json:"drops_by_cgroup,omitempty"`
	// RuntimeSetupEvents counts the events of container runtimes, which are not reported.
	RuntimeSetupEvents uint64 `json:"runtime_setup_events,omitempty"`
	// FilteredCgroups is the number of cgroups that are known to belong to the host.
	FilteredCgroups int       `json:"filtered_cgroups"`
	LoadedAt        time.Time `json:"loaded_at"`
}

// DropSource is a cgroup whose events were lost. Path is "gone" if the cgroup no longer exists.
type DropSource struct {
	Cgroup  uint64
	Path    string
	Dropped uint64
}

// ReasonDisabled is the reason of a hook that is off because of Options.DisabledHooks.
const ReasonDisabled = "disabled by configuration"

// HookStatus says whether a hook is on, and otherwise why not and how to enable it.
type HookStatus struct {
	Hook    Hook   `json:"hook"`
	Enabled bool   `json:"on"`
	Reason  string `json:"reason,omitempty"`
}
