package probe

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"stanch/bpf"
	"stanch/sensors/containermeta"
)

// ClassifyCgroupPath classifies a cgroup by its path. It knows the paths of the common container runtimes and of
// systemd's own units. Every other path is ClassUnknown, which is watched: a few events of an unusual service are
// better than a missed container.
func ClassifyCgroupPath(path string) CgroupClass {
	p := containermeta.ParseCgroupPath(path)
	switch {
	case p.ContainerID != "" || p.PodUID != "":
		return ClassContainer
	case p.IsHostUnit:
		return ClassHost
	}
	return ClassUnknown
}

// cgroupInfo is what the probe knows about one cgroup.
type cgroupInfo struct {
	class       CgroupClass
	path        string
	hasExecuted bool // a program was executed in it, or it is older than this probe
}

// maxCachedCgroups is the maximum size of the table. When it is reached, the table is cleared and filled again.
const maxCachedCgroups = 16384

const (
	filterModeWatch  uint8 = 1
	filterModeIgnore uint8 = 2
)

// scanCgroups classifies the existing cgroups. The cgroups of the machine's first process and of this process belong
// to the host, unless their path is a container's.
func (p *Probe) scanCgroups() error {
	host := map[string]bool{"/": true}
	for _, pid := range []string{"1", "self"} {
		if own := cgroupPathOfProcess(pid); own != "" && p.options.ClassifyCgroup(own) != ClassContainer {
			host[own] = true
		}
	}
	return filepath.WalkDir(p.options.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // the cgroup was removed in the meantime
		}
		id, err := containermeta.CgroupID(full)
		if err != nil {
			return nil
		}
		path := strings.TrimPrefix(full, strings.TrimRight(p.options.CgroupRoot, "/"))
		if path == "" {
			path = "/"
		}
		g := cgroupInfo{class: p.options.ClassifyCgroup(path), path: path, hasExecuted: true}
		if host[path] {
			g.class = ClassHost
		}
		p.cgroups[id] = g
		return p.setKernelFilter(id, g.class)
	})
}

// cgroupPathOfProcess returns the cgroup v2 path of a process, or "" if the process is gone.
func cgroupPathOfProcess(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Clean(path) // in another cgroup namespace, the path begins with steps up to the root
		}
	}
	return ""
}

// setKernelFilter makes the kernel ignore cgroups of the host. All other cgroups are watched.
func (p *Probe) setKernelFilter(id uint64, class CgroupClass) error {
	if p.options.IncludeHost {
		return nil
	}
	mode := filterModeWatch
	if class == ClassHost {
		mode = filterModeIgnore
	}
	if err := p.collection.Maps[bpf.ObserveMapCgroups].Update(id, mode, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("register cgroup %d with the kernel programs: %w", id, err)
	}
	return nil
}

// classifyCgroup classifies a cgroup at its first event. The caller holds p.mu.
func (p *Probe) classifyCgroup(id uint64, pid uint32) cgroupInfo {
	if g, ok := p.cgroups[id]; ok {
		return g
	}
	path, err := containermeta.CgroupPathByID(p.options.CgroupRoot, id)
	if err != nil {
		// The cgroup is gone, but the process may still be in it as a zombie. Otherwise the cgroup stays unknown, and
		// the next event tries again.
		if path = cgroupPathOfProcess(strconv.FormatUint(uint64(pid), 10)); path == "" || path == "/" {
			return cgroupInfo{}
		}
		path = strings.TrimSuffix(path, " (deleted)")
	}
	g := cgroupInfo{class: p.options.ClassifyCgroup(path), path: path}
	if len(p.cgroups) >= maxCachedCgroups {
		clear(p.cgroups)
	}
	p.cgroups[id] = g
	_ = p.setKernelFilter(id, g.class) // if this fails, the events still arrive and are dropped here
	return g
}

// recordNewCgroup records a new cgroup that the kernel reported. The caller holds p.mu.
func (p *Probe) recordNewCgroup(id uint64, path string) {
	if len(p.cgroups) >= maxCachedCgroups {
		clear(p.cgroups)
	}
	g := cgroupInfo{class: p.options.ClassifyCgroup(path), path: path}
	p.cgroups[id] = g
	if g.class == ClassHost {
		_ = p.setKernelFilter(id, g.class) // if this fails, the events still arrive and are dropped here
	}
}

// IgnoreCgroup makes the kernel ignore a cgroup from now on, for example the sensor's own. It returns an error if the
// kernel map cannot be updated.
func (p *Probe) IgnoreCgroup(cgroupID uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cgroups[cgroupID] = cgroupInfo{class: ClassHost}
	return p.setKernelFilter(cgroupID, ClassHost)
}
