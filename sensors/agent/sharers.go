package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stanch/sensors/identity"
	"stanch/sensors/link"
)

// sharers finds the other containers in a container's network namespace: what holds its wire holds theirs too. One that was
// there before the container started shares by somebody's intent. One that came later may have come to be in the way.
func (a *Agent) sharers(at place) []link.Sharer {
	spaces := map[uint64]bool{}
	oldest, began := 0, uint64(0)
	for _, pid := range at.pids {
		spaces[netSpaceOf(pid)] = true
		if start := startOf(pid); start > 0 && (oldest == 0 || start < began) {
			oldest, began = pid, start
		}
	}
	delete(spaces, 0)
	delete(spaces, netSpaceOf(os.Getpid())) // the node's own is everybody's
	if len(spaces) == 0 || oldest == 0 {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		a.complain("look for containers that share a network", err)
		return nil
	}
	found := map[string]link.Sharer{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || slices.Contains(at.pids, pid) {
			continue
		}
		space := netSpaceOf(pid)
		if !spaces[space] {
			continue
		}
		id := a.containerOf(pid)
		if id == "" {
			continue
		}
		s := found[id]
		s.Container = id
		// Only where the container never left the network that it began in: to enter an older one's is no sharing.
		before := startOf(pid)
		s.Before = s.Before || len(spaces) == 1 && before > 0 && before <= began
		found[id] = s
	}
	var out []link.Sharer
	for _, s := range found {
		out = append(out, s)
	}
	slices.SortFunc(out, func(x, y link.Sharer) int { return strings.Compare(x.Container, y.Container) })
	return out[:min(len(out), maxNamed)]
}

func netSpaceOf(pid int) uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/net", &st) != nil {
		return 0 // gone
	}
	return st.Ino
}

// startOf is when a process started, in ticks since boot: field 22 of stat. 0 if it is gone.
func startOf(pid int) uint64 {
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

// containerOf names the container that a process is in; "" for the host's own.
func (a *Agent) containerOf(pid int) string {
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
			if path, ok = identity.PathOfProcess(root, pid); !ok {
				return ""
			}
		}
		id, err := identity.CgroupID(filepath.Join(root, path))
		if err != nil {
			return ""
		}
		c, err := a.Resolver.Resolve(id)
		if err != nil {
			a.complain("name a container that shares a network", err)
		}
		return c.ID
	}
	return ""
}
