package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stanch/sensors/containermeta"
	"stanch/sensors/gatewayrpc"
)

// netnsSharers returns the other containers in a container's network namespace, which a lock on its veth affects too.
// A container that was there before the target shares the namespace intentionally. A later one may have joined to
// obstruct the containment.
func (a *Agent) netnsSharers(at targetCgroups) []gatewayrpc.NetworkSharer {
	spaces := map[uint64]bool{}
	oldest, began := 0, uint64(0)
	for _, pid := range at.pids {
		spaces[netnsInodeOfProcess(pid)] = true
		if start := processStartTicks(pid); start > 0 && (oldest == 0 || start < began) {
			oldest, began = pid, start
		}
	}
	delete(spaces, 0)
	delete(spaces, netnsInodeOfProcess(os.Getpid())) // the node's own namespace is shared by many processes
	if len(spaces) == 0 || oldest == 0 {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		a.logThrottled("find containers that share a network", err)
		return nil
	}
	found := map[string]gatewayrpc.NetworkSharer{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || slices.Contains(at.pids, pid) {
			continue
		}
		space := netnsInodeOfProcess(pid)
		if !spaces[space] {
			continue
		}
		id := a.containerIDOfProcess(pid)
		if id == "" {
			continue
		}
		s := found[id]
		s.ContainerID = id
		// Only if the container never left its first network namespace: entering an older namespace does not count as
		// sharing.
		before := processStartTicks(pid)
		s.StartedBeforeTarget = s.StartedBeforeTarget || len(spaces) == 1 && before > 0 && before <= began
		found[id] = s
	}
	var out []gatewayrpc.NetworkSharer
	for _, s := range found {
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y gatewayrpc.NetworkSharer) int { return strings.Compare(x.ContainerID, y.ContainerID) })
	return out[:min(len(out), maxSpoofedPaths)]
}

func netnsInodeOfProcess(pid int) uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/net", &st) != nil {
		return 0 // gone
	}
	return st.Ino
}

// processStartTicks returns when a process started, in clock ticks since boot (field 22 of /proc/PID/stat), or 0 if it
// is gone.
func processStartTicks(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return 0
	}
	ticks, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0
	}
	return ticks
}

// containerIDOfProcess returns the ID of the process's container, or "" for a process of the host.
func (a *Agent) containerIDOfProcess(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		root := a.Resolver.CgroupRoot()
		if strings.HasPrefix(path, "/..") { // relative to this process's own cgroup namespace
			if path, ok = containermeta.ProcessCgroupPath(root, pid); !ok {
				return ""
			}
		}
		id, err := containermeta.CgroupID(filepath.Join(root, path))
		if err != nil {
			return ""
		}
		c, err := a.Resolver.Resolve(id)
		if err != nil {
			a.logThrottled("identify a container that shares a network", err)
		}
		return c.ID
	}
	return ""
}
