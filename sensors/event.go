// Package sensors defines what a node reports: events, and the detections that rules derive from them.
//
// The package is pure. It refuses to depend on a kernel, a container runtime, Kubernetes, Temporal or a clock. Callers
// pass in values: sensors/probe decodes the kernel's ring buffers, and sensors/containermeta identifies the container.
// Rules can therefore be tested and fuzzed with recorded events alone.
//
// Every string in an Event comes from a container and is controlled by an attacker. It is data: it never reaches a
// shell, a template or a path that is opened.
package sensors

import (
	"path"
	"strings"
	"time"
)

// Kind is the type of an event.
type Kind string

// The kinds of events that the node sensor produces.
const (
	KindExec            Kind = "exec"         // a program was executed
	KindExit            Kind = "exit"         // a process ended
	KindConnect         Kind = "connect"      // an outgoing TCP connection was attempted
	KindFileOpen        Kind = "open"         // a sensitive file was opened
	KindFileDelete      Kind = "delete"       // a sensitive file was deleted, renamed or truncated
	KindChmod           Kind = "chmod"        // a file got a setuid or setgid bit, or file capabilities
	KindUnixConnect     Kind = "unix-connect" // a process connected to a sensitive Unix socket; File is the socket
	KindListen          Kind = "listen"       // a socket started to listen; Network.Port is the port
	KindDNS             Kind = "dns"          // a DNS query was sent over UDP; Network.Domain is the name
	KindRawSocket       Kind = "raw-socket"   // a raw or packet socket was opened
	KindMount           Kind = "mount"        // mount, move_mount, pivot_root or a similar call
	KindNamespaceChange Kind = "namespace"    // setns or unshare
	KindProcessTrace    Kind = "trace"        // another process was attached to, read or written
	KindBPF             Kind = "bpf"          // bpf() was called
	KindIOUring         Kind = "io-uring"     // an io_uring instance was set up
	KindKernelModule    Kind = "module"       // a kernel module was loaded or removed
	KindProcessBurst    Kind = "burst"        // a container started unusually many processes; Count is the number
)

// The kinds of events that come from other sources.
const (
	KindKubernetesAudit Kind = "audit"  // a request to the Kubernetes API
	KindCloudAPICall    Kind = "cloud"  // a call to the API of a cloud provider
	KindSensorHealth    Kind = "health" // a telemetry problem: lost or late events, or a silent source
)

// Subject is an entity other than a container that an incident can be about.
type Subject struct {
	Kind      string `json:"kind,omitempty" expr:"kind"` // "Node", "User", "ServiceAccount", "Role", "Source", …
	Namespace string `json:"namespace,omitempty" expr:"namespace"`
	Name      string `json:"name,omitempty" expr:"name"`
}

// NodeKinds lists the kinds that the node sensor produces.
var NodeKinds = []Kind{
	KindExec, KindExit, KindConnect, KindFileOpen, KindFileDelete, KindChmod, KindUnixConnect, KindListen, KindDNS,
	KindRawSocket, KindMount,
	KindNamespaceChange, KindProcessTrace, KindBPF, KindIOUring, KindKernelModule, KindProcessBurst,
}

// Event is one observation of the kernel or of another source. Its JSON is stable: `stanch-sensor watch --events -o
// json` prints it. Its `expr` tags are the field names in rule conditions. The fields that a kind does not use are
// zero.
type Event struct {
	// ID is unique across nodes and reboots. It consists of the node, the boot ID and the sequence number of the
	// kernel probe.
	ID   string    `json:"id" expr:"id"`
	Kind Kind      `json:"kind" expr:"kind"`
	Time time.Time `json:"time" expr:"time"`
	Node string    `json:"node,omitempty" expr:"node"`
	// Actor is the person or account behind the event, if the source knows it: "kubernetes:alice@example.com",
	// "aws:arn:…".
	Actor string `json:"actor,omitempty" expr:"actor"`

	// Subject is what the event is about, if that is not a container: a node, an account or a cloud principal.
	Subject Subject `json:"subject,omitzero" expr:"subject"`

	Process   Process   `json:"process" expr:"process"`
	Container Container `json:"container,omitzero" expr:"container"`
	// KindFileOpen, KindFileDelete, KindChmod, KindUnixConnect, KindMount
	File     File     `json:"file,omitzero" expr:"file"`
	Network  Network  `json:"network,omitzero" expr:"network"`      // KindConnect, KindListen, KindDNS
	Syscall  Syscall  `json:"syscall,omitzero" expr:"syscall"`      // the system call, for kinds that are about one
	Baseline Baseline `json:"baseline,omitzero" expr:"baseline"`    // how usual the event is for the image
	Audit    Audit    `json:"audit,omitzero" expr:"audit"`          // KindKubernetesAudit
	Cloud    Cloud    `json:"cloud,omitzero" expr:"cloud"`          // KindCloudAPICall
	ExitCode int      `json:"exit_code,omitempty" expr:"exit_code"` // KindExit; 128+n if signal n ended the process
	Count    int      `json:"count,omitempty" expr:"count"`         // KindProcessBurst: processes in the time window
}

// Process is the process that an event is about, as the kernel described it at the time of the event.
type Process struct {
	PID  uint32 `json:"pid" expr:"pid"` // in the host's PID namespace
	PPID uint32 `json:"ppid,omitempty" expr:"ppid"`
	// StartNS is the start time in nanoseconds since boot. PID and StartNS together identify a process uniquely until
	// the next reboot.
	StartNS uint64 `json:"start_ns,omitempty" expr:"start_ns"`
	// Name is the kernel's comm, at most 15 bytes. The process can set it, so never trust it alone.
	Name string `json:"name,omitempty" expr:"name"`
	// Exe is the path of the executable in the container's mount namespace. The kernel resolved it from its dentries;
	// it is not the string that the caller passed.
	Exe  string   `json:"exe,omitempty" expr:"exe"`
	Args []string `json:"args,omitempty" expr:"args"`
	// ArgsTruncated reports whether the command line was longer than the part that the probe copies.
	ArgsTruncated bool   `json:"args_truncated,omitempty" expr:"args_truncated"`
	Cwd           string `json:"cwd,omitempty" expr:"cwd"`
	TTY           string `json:"tty,omitempty" expr:"tty"` // "" without a controlling terminal
	UID           uint32 `json:"uid" expr:"uid"`
	EUID          uint32 `json:"euid" expr:"euid"`
	GID           uint32 `json:"gid" expr:"gid"`
	// Capabilities is the effective capability set as a bit mask.
	Capabilities uint64 `json:"capabilities,omitempty" expr:"capabilities"`
	// ExeInUpperLayer reports whether the executable is in the container's writable layer, and so not from the image.
	ExeInUpperLayer bool `json:"upper_layer,omitempty" expr:"upper_layer"`
	// ExeIsMemfd reports whether the executable is an anonymous memory file (memfd_create).
	ExeIsMemfd bool `json:"memfd,omitempty" expr:"memfd"`
	// ExeDeleted reports whether the executable had no directory entry left when it was executed.
	ExeDeleted bool `json:"exe_deleted,omitempty" expr:"exe_deleted"`
	// StdioSockets is a bit mask of the file descriptors 0 to 2 that were sockets at exec time. Bit 0 is stdin.
	StdioSockets uint8 `json:"stdio_sockets,omitempty" expr:"stdio_sockets"`
	// HasSetIDBits reports whether the executable has a setuid or setgid bit, or file capabilities.
	HasSetIDBits bool `json:"setid,omitempty" expr:"setid"`
	// PrivilegesGained reports whether the process runs as root or has capabilities, while its origin (its parent, or
	// itself before the exec) had neither.
	PrivilegesGained bool `json:"privileges_gained,omitempty" expr:"privileges_gained"`
	// ExecedInto reports whether the process was started in a running container from outside (`kubectl exec`, an exec
	// probe). It is false for the container's own first process.
	ExecedInto bool `json:"execed_into,omitempty" expr:"execed_into"`
	// NSPID is the process ID in the process's own PID namespace.
	NSPID uint32 `json:"ns_pid,omitempty" expr:"ns_pid"`
	// ExeInode and ExeDevice identify the executable file.
	ExeInode  uint64 `json:"inode,omitempty" expr:"inode"`
	ExeDevice uint64 `json:"device,omitempty" expr:"device"`
	// Ancestors are the parent processes, nearest first, up to the first process of the container or of the host.
	// There are at most MaxAncestors.
	Ancestors []Ancestor `json:"ancestors,omitempty" expr:"ancestors"`
}

// MaxAncestors is the maximum length of Process.Ancestors.
const MaxAncestors = 8

// Ancestor is a direct or indirect parent of a process.
type Ancestor struct {
	PID  uint32   `json:"pid" expr:"pid"`
	Name string   `json:"name,omitempty" expr:"name"`
	Exe  string   `json:"exe,omitempty" expr:"exe"`
	Args []string `json:"args,omitempty" expr:"args"`
}

// File is the file that an event is about.
type File struct {
	Path           string `json:"path,omitempty" expr:"path"` // resolved by the kernel, unless PathUnresolved
	OpenedForWrite bool   `json:"opened_for_write,omitempty" expr:"opened_for_write"`
	// SensitiveClass names the class of the file: "service-account-token", "shadow", "cloud-credentials", "private-key",
	// "process-environment", "process-memory", "kernel-escape", "runtime-socket", "log", "history", …
	SensitiveClass string `json:"sensitive_class,omitempty" expr:"sensitive_class"`
	// PathUnresolved reports whether Path is the string that the caller passed, which the kernel did not resolve.
	PathUnresolved bool `json:"path_unresolved,omitempty" expr:"path_unresolved"`
}

// Syscall is the system call that an event is about.
type Syscall struct {
	Name string `json:"name,omitempty" expr:"name"` // "mount", "setns", "ptrace", …
	// Failed reports whether the kernel rejected the call. Attempts are events too.
	Failed bool `json:"failed,omitempty" expr:"failed"`
	// Flags are the flags, mode or command of the call, with the values of its manual page.
	Flags uint64 `json:"flags,omitempty" expr:"flags"`
	// PID is the process that the call acted on, in the caller's PID namespace.
	PID uint32 `json:"pid,omitempty" expr:"pid"`
	// Detail is an additional fact: the file system type of a mount, or the family of a socket.
	Detail string `json:"detail,omitempty" expr:"detail"`
}

// Baseline compares an event with what containers of the same image digest did before.
type Baseline struct {
	// LearningComplete reports whether the image was observed long enough for "never seen" to be meaningful.
	LearningComplete bool `json:"learning_complete,omitempty" expr:"learning_complete"`
	// NewExe reports whether no container of the image executed this file before.
	NewExe bool `json:"new_exe,omitempty" expr:"new_exe"`
	// NewDestination reports whether no container of the image connected to this destination before.
	NewDestination bool `json:"new_destination,omitempty" expr:"new_destination"`
	// Reason is the measurement as a sentence: "never executed in 312 containers of this image over 9 days".
	Reason string `json:"reason,omitempty" expr:"reason"`
}

// Network is a connection, a listening socket or a DNS query.
type Network struct {
	Protocol string `json:"protocol,omitempty" expr:"protocol"` // "tcp"
	Family   string `json:"family,omitempty" expr:"family"`     // "ipv4" or "ipv6"
	Address  string `json:"address,omitempty" expr:"address"`   // destination; an IPv4-mapped address is given as IPv4
	Port     uint16 `json:"port,omitempty" expr:"port"`
	Denied   bool   `json:"denied,omitempty" expr:"denied"` // an egress lock rejected the connection
	Domain   string `json:"domain,omitempty" expr:"domain"` // KindDNS: the name in lower case, without the trailing dot
	// KubernetesAPI reports whether the destination is the cluster's API server.
	KubernetesAPI bool `json:"kubernetes_api,omitempty" expr:"kubernetes_api"`
}

// Container is the container that an event belongs to. The zero value is the host.
type Container struct {
	ID      string `json:"id,omitempty" expr:"id"`
	Name    string `json:"name,omitempty" expr:"name"`
	Runtime string `json:"runtime,omitempty" expr:"runtime"` // "containerd", "cri-o", "docker", "runc"
	// CgroupID is the inode of the container's cgroup v2 directory. PodCgroupID is the inode of its pod's directory,
	// and 0 outside of Kubernetes.
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

// Workload is the owner of a pod: the top of its owner chain, or the container itself outside of Kubernetes.
type Workload struct {
	Kind string `json:"kind,omitempty" expr:"kind"` // "Deployment", "StatefulSet", "Pod", "Container", …
	Name string `json:"name,omitempty" expr:"name"`
}

// InContainer reports whether the event belongs to a container, and not to the host.
func (e *Event) InContainer() bool { return e.Container.ID != "" || e.Container.CgroupID != 0 }

// multicallBinaries are executables that contain many programs. The name under which they are called selects the
// program.
var multicallBinaries = map[string]bool{"busybox": true, "toybox": true, "coreutils": true}

// ExeName returns the last element of the executable's path, without the kernel's " (deleted)" suffix and without a
// version: the kernel reports the target of a link (python3.11, php-fpm8.2), and rules name the program (python,
// php-fpm). For a multi-call binary such as busybox it returns the applet, found in the arguments as the binary finds
// it, so an attacker cannot fake it.
func (p *Process) ExeName() string {
	name := path.Base(strings.TrimSuffix(p.Exe, " (deleted)"))
	if !multicallBinaries[name] {
		return trimVersionSuffix(name)
	}
	for _, arg := range p.Args {
		// "busybox busybox sh" runs sh, and so does "busyboxx sh".
		if applet := strings.TrimPrefix(path.Base(arg), "-"); !strings.HasPrefix(applet, name) {
			return applet
		}
	}
	return name
}

// trimVersionSuffix removes a version from a program's name: digits with a dot, or digits after a hyphen. "python3",
// "mkfs.ext4" and "sha256sum" have no version.
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

// ExeName returns the name of the ancestor's program like Process.ExeName, or its comm if the executable is unknown.
func (a *Ancestor) ExeName() string {
	p := Process{Exe: a.Exe, Args: a.Args}
	if name := p.ExeName(); a.Exe != "" {
		return name
	}
	return a.Name
}
