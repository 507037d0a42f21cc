package attestation

import (
	"fmt"
	"time"
)

// DrillRegistration is the registration of one drill's targets: what the drill itself created, named before the attack starts.
// Only a registered target is ever in the drill's scope; no name, path or namespace puts anything there.
type DrillRegistration struct {
	Name         string        `json:"name"`
	Targets      []DrillTarget `json:"targets"`
	RegisteredAt time.Time     `json:"registered_at"`
	ExpiresAt    time.Time     `json:"expires"`
}

// DrillTarget is one target of a drill, by an identity that is never reused.
type DrillTarget struct {
	ID string `json:"id"` // as statements name it: "container:<id>", "pod:<uid>", "workload:<uid>", "role:<RoleId>"
	// CgroupID is the inode of the container's cgroup v2 directory; 0 for what is not a container of this host.
	CgroupID uint64 `json:"cgroup_id,omitempty"`
}

// FindTarget returns the registered target with this id, and whether there is one.
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

// CheckDrillTarget returns an error unless the target of a lease token is the registered one: the same id and, for a container of a
// host, the same cgroup. A token that is not a drill's passes. cgroup is the inode that the node found.
func (t LeaseToken) CheckDrillTarget(cgroup uint64) error {
	switch {
	case !t.DrillOnly:
		return nil
	case t.DrillTarget == nil || t.DrillTarget.ID != t.TargetID:
		return fmt.Errorf("%w: the lease token is a drill's and names no registered target", ErrUnverified)
	case t.DrillTarget.CgroupID != 0 && t.DrillTarget.CgroupID != cgroup:
		return fmt.Errorf("%w: the drill registered cgroup %d for %s, this one is %d", ErrUnverified, t.DrillTarget.CgroupID, t.TargetID, cgroup)
	}
	return nil
}
