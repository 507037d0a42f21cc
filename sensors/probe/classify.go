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
	"stanch/sensors/identity"
)

// DefaultClassify knows the paths of the usual container runtimes and of systemd's own units. Whatever else appears
// is unknown, and so is watched: better a few events of an odd service than a container that was not seen.
func DefaultClassify(path string) Class {
	p := identity.ParsePath(path)
	switch {
	case p.ContainerID != "" || p.PodUID != "":
		return ClassContainer
	case p.Host:
		return ClassHost
	}
	return ClassUnknown
}

// group is what is known of one cgroup.
type group struct {
	class Class
	path  string
	begun bool // a program was executed in it, or it was there before this probe
}

// maxGroups bounds the table; at the bound it is forgotten and learnt again.
const maxGroups = 16384

const (
	modeWatch  uint8 = 1
	modeIgnore uint8 = 2
)

// scan classifies the cgroups that exist. Where the first process of the machine and this process live is the host,
// unless the path says that this is a container.
func (p *Probe) scan() error {
	host := map[string]bool{"/": true}
	for _, pid := range []string{"1", "self"} {
		if own := cgroupOf(pid); own != "" && p.opt.Classify(own) != ClassContainer {
			host[own] = true
		}
	}
	return filepath.WalkDir(p.opt.CgroupRoot, func(full string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went away meanwhile
		}
		id, err := identity.CgroupID(full)
		if err != nil {
			return nil
		}
		path := strings.TrimPrefix(full, strings.TrimRight(p.opt.CgroupRoot, "/"))
		if path == "" {
			path = "/"
		}
		g := group{class: p.opt.Classify(path), path: path, begun: true}
		if host[path] {
			g.class = ClassHost
		}
		p.groups[id] = g
		return p.tell(id, g.class)
	})
}

// cgroupOf gives the v2 cgroup of a process, "" if it is gone.
func cgroupOf(pid string) string {
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

// tell lets the kernel filter the host's cgroups. What is not filtered is watched.
func (p *Probe) tell(id uint64, class Class) error {
	if p.opt.Host {
		return nil
	}
	mode := modeWatch
	if class == ClassHost {
		mode = modeIgnore
	}
	if err := p.coll.Maps[bpf.ObserveMapCgroups].Update(id, mode, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("tell the kernel about cgroup %d: %w", id, err)
	}
	return nil
}

// classify finds out whose a cgroup is at its first event. The caller holds p.mu.
func (p *Probe) classify(id uint64, pid uint32) group {
	if g, ok := p.groups[id]; ok {
		return g
	}
	path, err := identity.PathOf(p.opt.CgroupRoot, id)
	if err != nil {
		// Gone: ask the process, which may be in it as a zombie; else stay unknown and ask again.
		if path = cgroupOf(strconv.FormatUint(uint64(pid), 10)); path == "" || path == "/" {
			return group{}
		}
		path = strings.TrimSuffix(path, " (deleted)")
	}
	g := group{class: p.opt.Classify(path), path: path}
	if len(p.groups) >= maxGroups {
		clear(p.groups)
	}
	p.groups[id] = g
	_ = p.tell(id, g.class) // at worst its events keep coming and are dropped here
	return g
}

// made learns of a new cgroup from the kernel. The caller holds p.mu.
func (p *Probe) made(id uint64, path string) {
	if len(p.groups) >= maxGroups {
		clear(p.groups)
	}
	g := group{class: p.opt.Classify(path), path: path}
	p.groups[id] = g
	if g.class == ClassHost {
		_ = p.tell(id, g.class) // at worst its events come and are dropped here
	}
}

// Ignore filters a cgroup in the kernel from now on: the sensor's own, for example.
func (p *Probe) Ignore(cgroupID uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups[cgroupID] = group{class: ClassHost}
	return p.tell(cgroupID, ClassHost)
}
