package agent

import (
	"os"
	"strings"

	"stanch/sensors"
)

// hostPIDNamespace is the target of the link /proc/self/ns/pid in the node's own PID namespace. Source:
// PROC_PID_INIT_INO in include/linux/proc_ns.h.
const hostPIDNamespace = "pid:[4026531836]"

// selfProcess recognizes the events of this sensor. Like an attacker, it opens files by handle, enters namespaces and
// calls bpf. Only its own process and its snapshot processes count; the name or path of a container proves nothing.
// The zero value recognizes nothing.
type selfProcess struct{ pid uint32 }

// currentProcess returns this process, or the zero value if the PID in kernel events is unknown.
func currentProcess() selfProcess {
	if at, err := os.Readlink("/proc/self/ns/pid"); err != nil || at != hostPIDNamespace {
		return selfProcess{} // in another PID namespace, the same number may be another process of the node
	}
	return selfProcess{uint32(os.Getpid())}
}

func (o selfProcess) caused(e *sensors.Event) bool {
	if o.pid == 0 {
		return false
	}
	p := &e.Process
	return p.PID == o.pid || p.PPID == o.pid && len(p.Args) > 1 && strings.HasPrefix(p.Args[0], "/proc/self/exe") &&
		p.Args[1] == SnapshotCommand
}
