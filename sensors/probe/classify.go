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

// ClassifyCgroupPath knows the paths of the usual container runtimes and of systemd's own units. Whatever else appears
// is unknown, and so is watched: better a few events of an odd service than a container that was not seen.
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

// cgroupInfo is what is known of one cgroup.
type cgroupInfo struct {
	class       CgroupClass
	path        string
	hasExecuted bool // a program was executed in it, or it was there before this probe
}

// maxCachedCgroups bounds the table; at the bound it is forgotten and learnt again.
const maxCachedCgroups = 16384

const (
	filterModeWatch  uint8 = 1
	filterModeIgnore uint8 = 2
)

// scanCgroups classifies the cgroups that exist. Where the first process of the machine and this process live is the host,
// unless the path says that this is a container.
func (p *Probe) scanCgroups() error {
	host := map[string]bool{"/": true}
	for _, pid := range []string{"1", "self"} {
		if own := cgroupPathOfProcess(pid); own != "" && p.options.ClassifyCgroup(own) != ClassContainer {
			host[own] = true
		}
	}
	return filepath.WalkDir(p.options.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away meanwhile
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

// cgroupPathOfProcess gives the v2 cgroup of a process, "" if it is gone.
func cgroupPathOfProcess(pid string) string {
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Clean(path) // in a cgroup namespace of our own it begins with steps up to the root
		}
	}
	return ""
}

// setKernelFilter lets the kernel filter the host's cgroups. What is not filtered is watched.
func (p *Probe) setKernelFilter(id uint64, class CgroupClass) error {
	if p.options.IncludeHost {
		return nil
	}
	mode := filterModeWatch
	if class == ClassHost {
		mode = filterModeIgnore
	}
	if err := p.collection.Maps[bpf.ObserveMapCgroups].Update(id, mode, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("tell the kernel about cgroup %d: %w", id, err)
	}
	return nil
}

// classifyCgroup finds out whose a cgroup is at its first event. The caller holds p.mu.
func (p *Probe) classifyCgroup(id uint64, pid uint32) cgroupInfo {
	if g, ok := p.cgroups[id]; ok {
		return g
	}
	path, err := containermeta.CgroupPathByID(p.options.CgroupRoot, id)
	if err != nil {
		// Gone: ask the process, which may be in it as a zombie; else stay unknown and ask again.
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
	_ = p.setKernelFilter(id, g.class) // at worst its events keep coming and are dropped here
	return g
}

// recordNewCgroup learns of a new cgroup from the kernel. The caller holds p.mu.
func (p *Probe) recordNewCgroup(id uint64, path string) {
	if len(p.cgroups) >= maxCachedCgroups {
		clear(p.cgroups)
	}
	g := cgroupInfo{class: p.options.ClassifyCgroup(path), path: path}
	p.cgroups[id] = g
	if g.class == ClassHost {
		_ = p.setKernelFilter(id, g.class) // at worst its events come and are dropped here
	}
}

// IgnoreCgroup filters a cgroup in the kernel from now on: the sensor's own, for example.
func (p *Probe) IgnoreCgroup(cgroupID uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cgroups[cgroupID] = cgroupInfo{class: ClassHost}
	return p.setKernelFilter(cgroupID, ClassHost)
}
