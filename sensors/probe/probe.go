// Package probe is the only user of package bpf and of cilium/ebpf: it turns inert kernel programs into live ones.
// Probe reports what containers do as sensors.Event values; Lock holds a pod's network on this node.
//
// It refuses to judge: it knows no rules, no Kubernetes and no container runtime. It never denies anything but
// what an egress lock says, and a lock ends by itself in the kernel. What a kernel lacks is turned off and said
// in Status; the rest stays on.
package probe

import (
	"net/netip"
	"time"

	"stanch/sensors"
)

// Options says how to observe. The zero value observes all containers of this machine.
type Options struct {
	// Node is copied into events. Empty: the host's name.
	Node string
	// CgroupRoot is the mount point of cgroup v2. Empty: found in /proc/self/mountinfo.
	CgroupRoot string
	// ClassifyCgroup tells whether a cgroup (path below CgroupRoot, with a leading slash) holds a container. It is asked
	// once for each cgroup that exists at Load and once for each new one at its first event. Nil: ClassifyCgroupPath.
	ClassifyCgroup func(path string) CgroupClass
	// IncludeHost also reports what runs outside of containers (loud; for debugging).
	IncludeHost bool
	// DisabledHooks names hooks that stay off, for example HookOpen whose tracepoint taxes every system call a little.
	DisabledHooks []Hook
	// WouldDeny tells whether an egress lock refuses a connection (EgressLock.WouldDeny); events then say so. Nil: no event does.
	WouldDeny func(cgroupID uint64, to netip.AddrPort) bool
	// AlertBytes and TelemetryBytes size the two rings, powers of two. Zero: 4 MiB and 1 MiB.
	AlertRingBytes, TelemetryRingBytes int
	// RecordTap is handed every record of the rings before it is decoded, by two goroutines; it is the tap's only until it
	// returns. For Feed. Nil: nobody is.
	RecordTap func(record []byte)
}

// CgroupClass says whose a cgroup is.
type CgroupClass uint8

// The classes of cgroups.
const (
	ClassUnknown   CgroupClass = iota // not decided: watched, asked again later
	ClassContainer                    // watched
	ClassHost                         // filtered in the kernel
)

// Hook names one place in the kernel where the probe listens.
type Hook string

// The hooks.
const (
	HookExec        Hook = "exec"
	HookExit        Hook = "exit"
	HookConnect4    Hook = "connect4"
	HookConnect6    Hook = "connect6"
	HookOpen        Hook = "open"
	HookSyscalls    Hook = "calls" // mount, setns, ptrace, chmod, bpf, … on their return
	HookUnixConnect Hook = "unix-connect"
	HookListen      Hook = "listen"
	HookDNS         Hook = "dns"
	HookFork        Hook = "fork"
	HookIOUring     Hook = "io-uring"
	HookCgroup      Hook = "cgroup"
)

// Hooks lists every hook.
var Hooks = []Hook{HookExec, HookExit, HookConnect4, HookConnect6, HookOpen, HookSyscalls, HookUnixConnect, HookListen, HookDNS, HookFork, HookIOUring, HookCgroup}

// Status is what the probe does at this moment.
type Status struct {
	Hooks []HookStatus `json:"hooks"`
	// Events counts what was handed to Run's callback, by kind.
	Events map[sensors.Kind]uint64 `json:"events"`
	// Drops counts events that were lost, by reason: "alerts ring full", "telemetry ring full", "no scratch",
	// "undecodable".
	Drops map[string]uint64 `json:"drops"`
	// DropsByCgroup counts the events lost by the path of the cgroup whose they were. At most some 1,000 are remembered.
	DropsByCgroup map[string]uint64 `json:"drops_by_cgroup,omitempty"`
	// RuntimeSetupEvents counts events that were the container runtime's own and were left out.
	RuntimeSetupEvents uint64 `json:"runtime_setup_events,omitempty"`
	// FilteredCgroups counts cgroups that are known to be the host's.
	FilteredCgroups int       `json:"filtered_cgroups"`
	LoadedAt        time.Time `json:"loaded_at"`
}

// DropSource is a cgroup whose events were lost: "gone" is the path of one that no longer is.
type DropSource struct {
	Cgroup  uint64
	Path    string
	Dropped uint64
}

// ReasonDisabled is the reason of a hook that is off because somebody configured it so.
const ReasonDisabled = "disabled by configuration"

// HookStatus says whether a hook is on, and if not why not and what would mend it.
type HookStatus struct {
	Hook    Hook   `json:"hook"`
	Enabled bool   `json:"on"`
	Reason  string `json:"reason,omitempty"`
}
