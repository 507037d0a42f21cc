package probe

import (
	"path"
	"strings"

	"stanch/sensors"
)

// containerRuntimes are the programs that set a container's process up before they become it.
var containerRuntimes = map[string]bool{"runc": true, "crun": true, "youki": true, "runsc": true, "kata-runtime": true, "conmon": true, "conmon-rs": true, "containerd-shim-runc-v2": true}

// isRuntimeSetup tells whether an event is the container runtime's: in the container's cgroup already, and not yet its process.
// It mounts, changes namespaces and executes itself from memory, as attackers do. It is known by four things
// together, of which a process of the container's can forge but one: its parent is the host's, its program is from no
// mount that only the container has, it never executed a program of the container's, and it is called as a runtime is.
// The caller holds p.mu.
func (p *Probe) isRuntimeSetup(d *decodedRecord) bool {
	e := &d.event
	if !d.parentOnHost || d.exeFromPrivateMount || e.Process.StartNS < p.loadedAtBootNS || p.processes.HasExecuted(e.Process.PID, e.Process.StartNS) {
		return false
	}
	if e.Process.ExeIsMemfd {
		name := strings.TrimPrefix(e.Process.Exe, "memfd:")
		return strings.HasPrefix(name, "runc") || strings.HasPrefix(name, "crun")
	}
	if e.Process.Exe == "" && e.Kind == sensors.KindExit {
		return false
	}
	return containerRuntimes[path.Base(e.Process.Exe)]
}

// setExecedInto says of an executed program whether it was put into a running container from outside. A container's own first
// program comes from outside too: it is the first in its pid namespace, or, where that is shared, the first in the
// cgroup. The caller holds p.mu.
func (p *Probe) setExecedInto(d *decodedRecord) {
	e := &d.event
	g, known := p.cgroups[e.Container.CgroupID]
	if d.parentOnHost && g.hasExecuted && e.Process.NSPID != 1 && !p.processes.HasExecuted(e.Process.PID, e.Process.StartNS) {
		e.Process.ExecedInto = true
	}
	if known && !g.hasExecuted {
		g.hasExecuted = true
		p.cgroups[e.Container.CgroupID] = g
	}
}
