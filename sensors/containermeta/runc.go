package containermeta

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stanch/sensors"
)

// runcState is the part of runc's state.json that identifies a container.
type runcState struct {
	ID          string            `json:"id"`
	Created     time.Time         `json:"created"`
	CgroupPaths map[string]string `json:"cgroup_paths"`
}

// fillFromRuncState identifies a container that runc runs without a manager, from the state of runc. Without such a
// state, the ID is the name of the cgroup, which is also what people see.
func (r *Resolver) fillFromRuncState(c sensors.Container) sensors.Container {
	states, err := filepath.Glob(filepath.Join(r.opt.RuncRoot, "*", "state.json"))
	if err != nil {
		states = nil
	}
	for _, path := range states {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var st runcState
		if json.Unmarshal(b, &st) != nil || st.ID == "" {
			continue
		}
		for _, at := range st.CgroupPaths {
			// In the hybrid layout, runc lists the cgroup v1 directories; the path below the hierarchy is the same.
			if !isWithinDir(c.CgroupPath, at) {
				continue
			}
			own := c.CgroupPath
			for own != "/" && !strings.HasSuffix(at, own) {
				own = filepath.Dir(own)
			}
			c.ID, c.Runtime, c.StartedAt, c.CgroupPath = st.ID, "runc", st.Created.UTC(), own
			if id, err := CgroupID(r.opt.CgroupRoot + own); err == nil {
				c.CgroupID = id
			}
			c.Workload = sensors.Workload{Kind: "Container", Name: c.ID}
			return c
		}
	}
	c.ID = filepath.Base(c.CgroupPath)
	c.Workload = sensors.Workload{Kind: "Container", Name: c.ID}
	return c
}

// isWithinDir reports whether a cgroup path is at or below the absolute directory of any hierarchy.
func isWithinDir(path, dir string) bool {
	for p := path; p != "/" && p != "."; p = filepath.Dir(p) {
		if strings.HasPrefix(dir, "/sys/fs/cgroup") && strings.HasSuffix(dir, p) {
			return true
		}
	}
	return false
}
