package proof

import (
	"fmt"
	"time"
)

// Drill is the registration of one drill's targets: what the drill itself created, named before the attack starts.
// Only a registered target is ever in the drill's scope; no name, path or namespace puts anything there.
type Drill struct {
	Name       string        `json:"name"`
	Targets    []DrillTarget `json:"targets"`
	Registered time.Time     `json:"registered"`
	Expires    time.Time     `json:"expires"`
}

// DrillTarget is one target of a drill, by an identity that is never reused.
type DrillTarget struct {
	ID string `json:"id"` // as statements name it: "container:<id>", "pod:<uid>", "workload:<uid>", "role:<RoleId>"
	// Cgroup is the inode of the container's cgroup v2 directory; 0 for what is not a container of this host.
	Cgroup uint64 `json:"cgroup,omitempty"`
}

// Target returns the registered target with this id, and whether there is one.
func (d *Drill) Target(id string) (DrillTarget, bool) {
	if d == nil {
		return DrillTarget{}, false
	}
	for _, t := range d.Targets {
		if t.ID == id {
			return t, true
		}
	}
	return DrillTarget{}, false
}

// CheckDrill returns an error unless the target of a lease token is the registered one: the same id and, for a container of a
// host, the same cgroup. A token that is not a drill's passes. cgroup is the inode that the node found.
func (t Token) CheckDrill(cgroup uint64) error {
	switch {
	case !t.Drill:
		return nil
	case t.DrillTarget == nil || t.DrillTarget.ID != t.Target:
		return fmt.Errorf("%w: the lease token is a drill's and names no registered target", ErrUnproved)
	case t.DrillTarget.Cgroup != 0 && t.DrillTarget.Cgroup != cgroup:
		return fmt.Errorf("%w: the drill registered cgroup %d for %s, this one is %d", ErrUnproved, t.DrillTarget.Cgroup, t.Target, cgroup)
	}
	return nil
}
