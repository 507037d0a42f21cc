package agent

import (
	"os"
	"strings"

	"stanch/sensors"
)

// hostPIDNamespace is what /proc/self/ns/pid reads in the node's own PID namespace.
// Source: PROC_PID_INIT_INO in include/linux/proc_ns.h.
const hostPIDNamespace = "pid:[4026531836]"

// selfProcess recognizes what this sensor does itself: it opens files by their handles, enters namespaces and calls bpf, as an
// attacker would. Only its own process counts, and those that it starts for snapshots; a container's name or path says
// nothing. The zero value recognizes nothing.
type selfProcess struct{ pid uint32 }

// currentProcess is this process, if it knows by which number the kernel's events call it.
func currentProcess() selfProcess {
	if at, err := os.Readlink("/proc/self/ns/pid"); err != nil || at != hostPIDNamespace {
		return selfProcess{} // in a namespace of its own its number may be another's on the node
	}
	return selfProcess{uint32(os.Getpid())} //nolint:gosec // the kernel's numbers fit
}

func (o selfProcess) caused(e *sensors.Event) bool {
	if o.pid == 0 {
		return false
	}
	p := &e.Process
	return p.PID == o.pid || p.PPID == o.pid && len(p.Args) > 1 && strings.HasPrefix(p.Args[0], "/proc/self/exe") && p.Args[1] == SnapshotCommand
}
