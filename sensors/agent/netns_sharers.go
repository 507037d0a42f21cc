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

// netnsSharers finds the other containers in a container's network namespace: what holds its wire holds theirs too. One that was
// there before the container started shares by somebody's intent. One that came later may have come to be in the way.
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
	delete(spaces, netnsInodeOfProcess(os.Getpid())) // the node's own is everybody's
	if len(spaces) == 0 || oldest == 0 {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		a.logThrottled("look for containers that share a network", err)
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
		// Only where the container never left the network that it began in: to enter an older one's is no sharing.
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

// processStartTicks is when a process started, in ticks since boot: field 22 of stat. 0 if it is gone.
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

// containerIDOfProcess names the container that a process is in; "" for the host's own.
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
		if strings.HasPrefix(path, "/..") { // told from a cgroup namespace of this process's own
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
			a.logThrottled("name a container that shares a network", err)
		}
		return c.ID
	}
	return ""
}
