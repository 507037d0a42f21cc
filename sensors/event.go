// Package sensors holds the words for what a node sees: events, detections and the rules between them.
//
// It is pure. It refuses to know a kernel, a container runtime, Kubernetes, Temporal or a clock: whoever has
// those hands it values (sensors/probe decodes the kernel's rings, sensors/containermeta names the container), so
// that rules can be tested and fuzzed from recorded events alone.
//
// Every string in an Event comes from a container and belongs to an attacker. It is data: it never reaches a
// shell, a template or a path that is opened.
package sensors

import (
	"path"
	"strings"
	"time"
)

// Kind says what an event is about.
type Kind string

// The kinds of event that the node's own sensor produces.
const (
	KindExec            Kind = "exec"         // a program was executed
	KindExit            Kind = "exit"         // a process ended
	KindConnect         Kind = "connect"      // an outgoing TCP connection was attempted
	KindFileOpen        Kind = "open"         // a sensitive file was opened
	KindFileDelete      Kind = "delete"       // a sensitive file was deleted, renamed or cut
	KindChmod           Kind = "chmod"        // a file got a set-uid or set-gid bit, or capabilities
	KindUnixConnect     Kind = "unix-connect" // a connection to a Unix socket of a sensitive name; File is the socket
	KindListen          Kind = "listen"       // a socket began to wait for connections; Network.Port is where
	KindDNS             Kind = "dns"          // a name was asked for over UDP; Network.Domain
	KindRawSocket       Kind = "raw-socket"   // a socket that sends packets of its own making was opened
	KindMount           Kind = "mount"        // mount, move_mount, pivot_root and their like
	KindNamespaceChange Kind = "namespace"    // setns, unshare
	KindProcessTrace    Kind = "trace"        // another process was attached to, written or read
	KindBPF             Kind = "bpf"          // bpf() was called
	KindIOUring         Kind = "io-uring"     // an io_uring was set up
	KindKernelModule    Kind = "module"       // a kernel module was loaded or removed
	KindProcessBurst    Kind = "burst"        // a container made unusually many processes; Count is how many
)

// The kinds of event that come from elsewhere.
const (
	KindKubernetesAudit Kind = "audit"  // a request to the Kubernetes API
	KindCloudAPICall    Kind = "cloud"  // a call to a cloud's API
	KindSensorHealth    Kind = "health" // something about the telemetry itself: what is lost, late or silent
)

// Subject is something that is no container and yet may have an incident.
type Subject struct {
	Kind      string `json:"kind,omitempty" expr:"kind"` // "Node", "User", "ServiceAccount", "Role", "Source", …
	Namespace string `json:"namespace,omitempty" expr:"namespace"`
	Name      string `json:"name,omitempty" expr:"name"`
}

// NodeKinds are the kinds that a node's own sensor produces.
var NodeKinds = []Kind{
	KindExec, KindExit, KindConnect, KindFileOpen, KindFileDelete, KindChmod, KindUnixConnect, KindListen, KindDNS, KindRawSocket, KindMount,
	KindNamespaceChange, KindProcessTrace, KindBPF, KindIOUring, KindKernelModule, KindProcessBurst,
}

// Event is one thing that the kernel or another source saw. Its JSON is stable and is what
// `stanch-sensor watch --events -o json` prints; its `expr` names are what rule conditions use.
type Event struct {
	// ID is unique over nodes and reboots: node, boot id and the kernel's sequence number.
	ID   string    `json:"id" expr:"id"`
	Kind Kind      `json:"kind" expr:"kind"`
	Time time.Time `json:"time" expr:"time"`
	Node string    `json:"node,omitempty" expr:"node"`
	// Actor is the person or account behind it where the source knows one: "kubernetes:alice@example.com", "aws:arn:…".
	Actor string `json:"actor,omitempty" expr:"actor"`

	// Subject is what the event is about where that is no container: a node, an account, a cloud's principal.
	Subject Subject `json:"subject,omitzero" expr:"subject"`

	Process   Process   `json:"process" expr:"process"`
	Container Container `json:"container,omitzero" expr:"container"`
	File      File      `json:"file,omitzero" expr:"file"`            // KindFileOpen, KindFileDelete, KindChmod, KindUnixConnect, KindMount
	Network   Network   `json:"network,omitzero" expr:"network"`      // KindConnect, KindListen, KindDNS
	Syscall   Syscall   `json:"syscall,omitzero" expr:"syscall"`      // what was called, where the kind is about a system call
	Baseline  Baseline  `json:"baseline,omitzero" expr:"baseline"`    // how usual this is for the image
	Audit     Audit     `json:"audit,omitzero" expr:"audit"`          // KindKubernetesAudit
	Cloud     Cloud     `json:"cloud,omitzero" expr:"cloud"`          // KindCloudAPICall
	ExitCode  int       `json:"exit_code,omitempty" expr:"exit_code"` // KindExit; a signal is 128+n
	Count     int       `json:"count,omitempty" expr:"count"`         // KindProcessBurst: processes in the window
}

// Process is the process that an event is about, as the kernel described it at that moment.
type Process struct {
	PID  uint32 `json:"pid" expr:"pid"` // in the host's pid namespace
	PPID uint32 `json:"ppid,omitempty" expr:"ppid"`
	// StartNS is the start in nanoseconds since boot: with PID it names a process that is never reused.
	StartNS uint64 `json:"start_ns,omitempty" expr:"start_ns"`
	// Name is the kernel's comm (15 bytes, settable by the process itself: never trust it alone).
	Name string `json:"name,omitempty" expr:"name"`
	// Exe is the path of the executed file in the container's mount namespace, from the kernel's dentries and
	// not from the caller's string.
	Exe  string   `json:"exe,omitempty" expr:"exe"`
	Args []string `json:"args,omitempty" expr:"args"`
	// ArgsTruncated says that the command line was longer than what the probe copies.
	ArgsTruncated bool   `json:"args_truncated,omitempty" expr:"args_truncated"`
	Cwd           string `json:"cwd,omitempty" expr:"cwd"`
	TTY           string `json:"tty,omitempty" expr:"tty"` // "" when there is no controlling terminal
	UID           uint32 `json:"uid" expr:"uid"`
	EUID          uint32 `json:"euid" expr:"euid"`
	GID           uint32 `json:"gid" expr:"gid"`
	// Capabilities is the effective set as the kernel's bit mask.
	Capabilities uint64 `json:"capabilities,omitempty" expr:"capabilities"`
	// ExeInUpperLayer: the executable lies in the container's writable layer, so it was not in the image.
	ExeInUpperLayer bool `json:"upper_layer,omitempty" expr:"upper_layer"`
	// ExeIsMemfd: the executable is an anonymous memory file.
	ExeIsMemfd bool `json:"memfd,omitempty" expr:"memfd"`
	// ExeDeleted: the executable had no name left in any directory when it was executed.
	ExeDeleted bool `json:"exe_deleted,omitempty" expr:"exe_deleted"`
	// StdioSockets is a bit mask of the descriptors 0 to 2 that were sockets at exec (bit 0 is stdin).
	StdioSockets uint8 `json:"stdio_sockets,omitempty" expr:"stdio_sockets"`
	// HasSetIDBits: the executable has a set-uid or set-gid bit, or capabilities of its own.
	HasSetIDBits bool `json:"setid,omitempty" expr:"setid"`
	// PrivilegesGained: the process runs as root or has capabilities, and what it came from (its parent, or itself before) had not.
	PrivilegesGained bool `json:"privileges_gained,omitempty" expr:"privileges_gained"`
	// ExecedInto: the process was put into a running container from outside (`kubectl exec`, an exec probe), and is
	// not the container's own first process.
	ExecedInto bool `json:"execed_into,omitempty" expr:"execed_into"`
	// NSPID is the process's id in its own pid namespace.
	NSPID uint32 `json:"ns_pid,omitempty" expr:"ns_pid"`
	// ExeInode and Device name the executed file.
	ExeInode  uint64 `json:"inode,omitempty" expr:"inode"`
	ExeDevice uint64 `json:"device,omitempty" expr:"device"`
	// Ancestors, nearest first, at most MaxAncestors, ending at the container's first process or the host's.
	Ancestors []Ancestor `json:"ancestors,omitempty" expr:"ancestors"`
}

// MaxAncestors bounds Process.Ancestors.
const MaxAncestors = 8

// Ancestor is one process above another.
type Ancestor struct {
	PID  uint32   `json:"pid" expr:"pid"`
	Name string   `json:"name,omitempty" expr:"name"`
	Exe  string   `json:"exe,omitempty" expr:"exe"`
	Args []string `json:"args,omitempty" expr:"args"`
}

// File is a file that was opened.
type File struct {
	Path           string `json:"path,omitempty" expr:"path"` // resolved by the kernel
	OpenedForWrite bool   `json:"opened_for_write,omitempty" expr:"opened_for_write"`
	// SensitiveClass names the class of the file: "service-account-token", "shadow", "cloud-credentials", "private-key",
	// "process-environment", "process-memory", "kernel-escape", "runtime-socket", "log", "history", …
	SensitiveClass string `json:"sensitive_class,omitempty" expr:"sensitive_class"`
	// PathUnresolved says that Path is what the caller asked for and was not resolved by the kernel.
	PathUnresolved bool `json:"path_unresolved,omitempty" expr:"path_unresolved"`
}

// Syscall is the system call that an event is about.
type Syscall struct {
	Name string `json:"name,omitempty" expr:"name"` // "mount", "setns", "ptrace", …
	// Failed: the kernel refused it. An attempt is an event too.
	Failed bool `json:"failed,omitempty" expr:"failed"`
	// Flags are the call's flags, mode or command, as its manual page numbers them.
	Flags uint64 `json:"flags,omitempty" expr:"flags"`
	// PID is the process that the call acted on, in the caller's own pid namespace.
	PID uint32 `json:"pid,omitempty" expr:"pid"`
	// Detail is a word more: the file system's type of a mount, the family of a socket.
	Detail string `json:"detail,omitempty" expr:"detail"`
}

// Baseline says how usual an event is, measured against what containers of the same image digest did before.
type Baseline struct {
	// LearningComplete: the image was watched for long enough that "never seen" means something.
	LearningComplete bool `json:"learning_complete,omitempty" expr:"learning_complete"`
	// NewExe: no container of the image executed this file before.
	NewExe bool `json:"new_exe,omitempty" expr:"new_exe"`
	// NewDestination: none connected there before.
	NewDestination bool `json:"new_destination,omitempty" expr:"new_destination"`
	// Reason is the measured statement for people: "never executed in 312 containers of this image over 9 days".
	Reason string `json:"reason,omitempty" expr:"reason"`
}

// Network is a connection, a listening socket or a name that was asked for.
type Network struct {
	Protocol string `json:"protocol,omitempty" expr:"protocol"` // "tcp"
	Family   string `json:"family,omitempty" expr:"family"`     // "ipv4" or "ipv6"
	Address  string `json:"address,omitempty" expr:"address"`   // destination; a v4-mapped v6 address is given as v4
	Port     uint16 `json:"port,omitempty" expr:"port"`
	Denied   bool   `json:"denied,omitempty" expr:"denied"` // an egress lock refused it
	Domain   string `json:"domain,omitempty" expr:"domain"` // KindDNS: the name, in lower case, without the last dot
	// KubernetesAPI: the destination is the cluster's API server.
	KubernetesAPI bool `json:"kubernetes_api,omitempty" expr:"kubernetes_api"`
}

// Container says whose event it is. The zero value is the host.
type Container struct {
	ID      string `json:"id,omitempty" expr:"id"`
	Name    string `json:"name,omitempty" expr:"name"`
	Runtime string `json:"runtime,omitempty" expr:"runtime"` // "containerd", "cri-o", "docker", "runc"
	// CgroupID is the inode of the container's cgroup v2 directory; PodCgroupID that of its pod's, 0 outside
	// of Kubernetes.
	CgroupID    uint64    `json:"cgroup_id,omitempty" expr:"cgroup_id"`
	PodCgroupID uint64    `json:"pod_cgroup_id,omitempty" expr:"pod_cgroup_id"`
	CgroupPath  string    `json:"cgroup_path,omitempty" expr:"cgroup_path"`
	Image       string    `json:"image,omitempty" expr:"image"`
	ImageDigest string    `json:"image_digest,omitempty" expr:"image_digest"` // "sha256:…"
	StartedAt   time.Time `json:"started_at,omitzero" expr:"started_at"`
	Pod         Pod       `json:"pod,omitzero" expr:"pod"`
	Workload    Workload  `json:"workload,omitzero" expr:"workload"`
}

// Pod is the Kubernetes pod of a container.
type Pod struct {
	Namespace      string            `json:"namespace,omitempty" expr:"namespace"`
	Name           string            `json:"name,omitempty" expr:"name"`
	UID            string            `json:"uid,omitempty" expr:"uid"`
	IP             string            `json:"ip,omitempty" expr:"ip"`
	HostNetwork    bool              `json:"host_network,omitempty" expr:"host_network"`
	ServiceAccount string            `json:"service_account,omitempty" expr:"service_account"`
	Labels         map[string]string `json:"labels,omitempty" expr:"labels"`
	Annotations    map[string]string `json:"annotations,omitempty" expr:"annotations"`
}

// Workload is what owns a pod: the top of its owner chain, or the container itself outside of Kubernetes.
type Workload struct {
	Kind string `json:"kind,omitempty" expr:"kind"` // "Deployment", "StatefulSet", "Pod", "Container", …
	Name string `json:"name,omitempty" expr:"name"`
}

// InContainer tells whether the event belongs to a container and not to the host.
func (e *Event) InContainer() bool { return e.Container.ID != "" || e.Container.CgroupID != 0 }

// multicallBinaries are programs that are many: which one, the name says under which they were called.
var multicallBinaries = map[string]bool{"busybox": true, "toybox": true, "coreutils": true}

// ExeName is the last element of the executed path, without the kernel's " (deleted)" mark and without a version: the
// kernel says what a link led to, python3.11 and php-fpm8.2, and rules say what it is. Of a program such as busybox it is the
// name of the applet, found as that program finds it, so that it cannot lie.
func (p *Process) ExeName() string {
	name := path.Base(strings.TrimSuffix(p.Exe, " (deleted)"))
	if !multicallBinaries[name] {
		return trimVersionSuffix(name)
	}
	for _, arg := range p.Args {
		// "busybox busybox sh" is sh, and so is "busyboxx sh".
		if applet := strings.TrimPrefix(path.Base(arg), "-"); !strings.HasPrefix(applet, name) {
			return applet
		}
	}
	return name
}

// trimVersionSuffix takes a version off a program's name: digits with a point or behind a hyphen. "python3", "mkfs.ext4" and
// "sha256sum" have none.
func trimVersionSuffix(name string) string {
	end := len(name)
	for end > 0 && (name[end-1] >= '0' && name[end-1] <= '9' || name[end-1] == '.') {
		end--
	}
	version := name[end:]
	switch {
	case end == 0 || version == "" || version[0] == '.':
		return name
	case name[end-1] == '-':
		return name[:end-1]
	case strings.Contains(version, "."):
		return name[:end]
	}
	return name
}

// ExeName is the name of the ancestor's program, or of its thread where that is all that is known.
func (a *Ancestor) ExeName() string {
	p := Process{Exe: a.Exe, Args: a.Args}
	if name := p.ExeName(); a.Exe != "" {
		return name
	}
	return a.Name
}
