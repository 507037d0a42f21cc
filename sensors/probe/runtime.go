package probe

import (
	"path"
	"strings"

	"stanch/sensors"
)

// containerRuntimes are the programs that set up a container's process before they execute it.
var containerRuntimes = map[string]bool{
	"runc": true, "crun": true, "youki": true, "runsc": true, "kata-runtime": true,
	"conmon": true, "conmon-rs": true, "containerd-shim-runc-v2": true,
}

// isRuntimeSetup reports whether an event belongs to the container runtime: a process that is already in the
// container's cgroup, but has not yet executed the container's program. Like an attacker, it mounts, changes
// namespaces and executes itself from memory. It is recognized by four facts together, of which a process of the
// container can fake only one: its parent is on the host, its executable is not on a mount that only the container
// has, it never executed a program of the container, and it has the name of a runtime. The caller holds p.mu.
func (p *Probe) isRuntimeSetup(d *decodedRecord) bool {
	e := &d.event
	if !d.parentOnHost || d.exeFromPrivateMount || e.Process.StartNS < p.loadedAtBootNS ||
		p.processes.HasExecuted(e.Process.PID, e.Process.StartNS) {
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

// setExecedInto sets ExecedInto if the process was started in a running container from outside. The container's first
// process comes from outside too: it is the first in its PID namespace or, if that namespace is shared, the first in
// the cgroup. The caller holds p.mu.
func (p *Probe) setExecedInto(d *decodedRecord) {
	e := &d.event
	g, known := p.cgroups[e.Container.CgroupID]
	if d.parentOnHost && g.hasExecuted && e.Process.NSPID != 1 && !p.processes.HasExecuted(e.Process.PID,
		e.Process.StartNS) {
		e.Process.ExecedInto = true
	}
	if known && !g.hasExecuted {
		g.hasExecuted = true
		p.cgroups[e.Container.CgroupID] = g
	}
}
