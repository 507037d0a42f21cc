package probe

import (
	"path"
	"strings"

	"stanch/sensors"
)

// runtimes are the programs that set a container's process up before they become it.
var runtimes = map[string]bool{"runc": true, "crun": true, "youki": true, "runsc": true, "kata-runtime": true, "conmon": true, "conmon-rs": true, "containerd-shim-runc-v2": true}

// runtime tells whether an event is the container runtime's: in the container's cgroup already, and not yet its process.
// It mounts, changes namespaces and executes itself from memory, as attackers do. It is known by four things
// together, of which a process of the container's can forge but one: its parent is the host's, its program is from no
// mount that only the container has, it never executed a program of the container's, and it is called as a runtime is.
// The caller holds p.mu.
func (p *Probe) runtime(d *decoded) bool {
	e := &d.event
	if !d.outside || d.ownExe || e.Process.StartNS < p.began || p.table.Ran(e.Process.PID, e.Process.StartNS) {
		return false
	}
	if e.Process.Memfd {
		name := strings.TrimPrefix(e.Process.Exe, "memfd:")
		return strings.HasPrefix(name, "runc") || strings.HasPrefix(name, "crun")
	}
	if e.Process.Exe == "" && e.Kind == sensors.KindExit {
		return false
	}
	return runtimes[path.Base(e.Process.Exe)]
}

// enter says of an executed program whether it was put into a running container from outside. A container's own first
// program comes from outside too: it is the first in its pid namespace, or, where that is shared, the first in the
// cgroup. The caller holds p.mu.
func (p *Probe) enter(d *decoded) {
	e := &d.event
	g, known := p.groups[e.Container.CgroupID]
	if d.outside && g.begun && e.Process.NSPID != 1 && !p.table.Ran(e.Process.PID, e.Process.StartNS) {
		e.Process.Entered = true
	}
	if known && !g.begun {
		g.begun = true
		p.groups[e.Container.CgroupID] = g
	}
}
