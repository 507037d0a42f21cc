package attestation

import (
	"fmt"
	"time"
)

// DrillRegistration lists the targets of one drill. The drill creates these targets itself and registers them before
// the attack starts. Only registered targets are in the drill's scope: a name, path or namespace never puts a target
// there.
type DrillRegistration struct {
	Name         string        `json:"name"`
	Targets      []DrillTarget `json:"targets"`
	RegisteredAt time.Time     `json:"registered_at"`
	ExpiresAt    time.Time     `json:"expires"`
}

// DrillTarget is one target of a drill. Its ID is never reused.
type DrillTarget struct {
	ID string `json:"id"` // as in statements: "container:<id>", "pod:<uid>", "workload:<uid>", "role:<RoleId>"
	// CgroupID is the inode of the container's cgroup v2 directory. It is 0 for a target that is not a container of
	// this host.
	CgroupID uint64 `json:"cgroup_id,omitempty"`
}

// FindTarget returns the registered target with this ID, and whether it exists. A nil DrillRegistration has no
// targets.
func (d *DrillRegistration) FindTarget(id string) (DrillTarget, bool) {
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

// CheckDrillTarget returns an error that wraps ErrUnverified unless the target of the lease token is the registered
// one: the same ID and, for a container of a host, the same cgroup. cgroup is the inode that the node found. A token
// outside of a drill always passes.
func (t LeaseToken) CheckDrillTarget(cgroup uint64) error {
	switch {
	case !t.DrillOnly:
		return nil
	case t.DrillTarget == nil || t.DrillTarget.ID != t.TargetID:
		return fmt.Errorf("%w: the lease token is for a drill, but its target is not registered", ErrUnverified)
	case t.DrillTarget.CgroupID != 0 && t.DrillTarget.CgroupID != cgroup:
		return fmt.Errorf("%w: the drill registered cgroup %d for %s, not cgroup %d", ErrUnverified, t.DrillTarget.CgroupID,
			t.TargetID, cgroup)
	}
	return nil
}
