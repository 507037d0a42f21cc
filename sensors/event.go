// Package sensors holds the words for what a node sees: events, detections and the rules between them.
//
// It is pure. It refuses to know a kernel, a container runtime, Kubernetes, Temporal or a clock: whoever has
// those hands it values (sensors/probe decodes the kernel's rings, sensors/identity names the container), so
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
	KindExec    Kind = "exec"    // a program was executed
	KindExit    Kind = "exit"    // a process ended
	KindConnect Kind = "connect" // an outgoing TCP connection was attempted
	KindOpen    Kind = "open"    // a sensitive file was opened
)

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

	Process   Process   `json:"process" expr:"process"`
	Container Container `json:"container,omitzero" expr:"container"`
	File      File      `json:"file,omitzero" expr:"file"`            // KindOpen
	Network   Network   `json:"network,omitzero" expr:"network"`      // KindConnect
	ExitCode  int       `json:"exit_code,omitempty" expr:"exit_code"` // KindExit; a signal is 128+n
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
	// UpperLayer: the executable lies in the container's writable layer, so it was not in the image.
	UpperLayer bool `json:"upper_layer,omitempty" expr:"upper_layer"`
	// Memfd: the executable is an anonymous memory file.
	Memfd bool `json:"memfd,omitempty" expr:"memfd"`
	// Deleted: the executable had no name left in any directory when it was executed.
	Deleted bool `json:"deleted,omitempty" expr:"deleted"`
	// StdioSockets is a bit mask of the descriptors 0 to 2 that were sockets at exec (bit 0 is stdin).
	StdioSockets uint8 `json:"stdio_sockets,omitempty" expr:"stdio_sockets"`
	// Inode and Device name the executed file.
	Inode  uint64 `json:"inode,omitempty" expr:"inode"`
	Device uint64 `json:"device,omitempty" expr:"device"`
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
	Path  string `json:"path,omitempty" expr:"path"` // resolved by the kernel
	Write bool   `json:"write,omitempty" expr:"write"`
	// Sensitive names the class of the file: "service-account-token", "shadow", "cloud-credentials".
	Sensitive string `json:"sensitive,omitempty" expr:"sensitive"`
}

// Network is an outgoing connection.
type Network struct {
	Protocol string `json:"protocol,omitempty" expr:"protocol"` // "tcp"
	Family   string `json:"family,omitempty" expr:"family"`     // "ipv4" or "ipv6"
	Address  string `json:"address,omitempty" expr:"address"`   // destination; a v4-mapped v6 address is given as v4
	Port     uint16 `json:"port,omitempty" expr:"port"`
	Denied   bool   `json:"denied,omitempty" expr:"denied"` // an egress lock refused it
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

// ExeName is the last element of the executed path, without the kernel's " (deleted)" mark.
func (p *Process) ExeName() string {
	return path.Base(strings.TrimSuffix(p.Exe, " (deleted)"))
}
