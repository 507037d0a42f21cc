package probe

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"stanch/bpf"
	"stanch/sensors/containermeta"
)

// StateOfCgroup returns the active lock of a cgroup or of one of its ancestors, or the zero value. cgroupID is any
// cgroup of a pod or container.
func (l *EgressLock) StateOfCgroup(cgroupID uint64) (EgressLockState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range l.cgroupAndAncestors(cgroupID) {
		var v lockedObjectValue
		if l.ebpfMap(bpf.LockMapLockedObjects).Lookup(lockedObjectKey{ID: id, Kind: objectCgroup}, &v) != nil {
			continue
		}
		if st, err := l.stateByID(v.Lock); err != nil || st.Active {
			return st, err
		}
	}
	return EgressLockState{}, nil
}

// cgroupAndAncestors returns a cgroup and its ancestors, without the root.
func (l *EgressLock) cgroupAndAncestors(cgroupID uint64) []uint64 {
	ids := []uint64{cgroupID}
	path, err := containermeta.CgroupPathByID(l.cgroupRoot, cgroupID)
	if err != nil {
		return ids
	}
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			if id, err := containermeta.CgroupID(l.cgroupRoot + path[:i]); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// WouldDeny reports whether a TCP connection from a cgroup would be blocked now. It is for display only: the kernel
// decides.
func (l *EgressLock) WouldDeny(cgroupID uint64, to netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var latest uint64
	now := uint64(sinceBoot())
	if l.ebpfMap(bpf.LockMapLatestExpiry).Lookup(uint32(0), &latest) != nil || latest <= now {
		return false
	}
	for _, id := range l.cgroupAndAncestors(cgroupID) {
		var v lockedObjectValue
		var rec lockRecord
		if l.ebpfMap(bpf.LockMapLockedObjects).Lookup(lockedObjectKey{ID: id, Kind: objectCgroup}, &v) != nil ||
			l.ebpfMap(bpf.LockMapLocks).Lookup(v.Lock, &rec) != nil {
			continue
		}
		if rec.Expiry <= now || to.Addr().IsLoopback() && rec.Flags&lockFlagHostNetwork == 0 {
			continue
		}
		var allow allowValue
		key := newAllowKey(v.Lock, netip.PrefixFrom(to.Addr(), to.Addr().BitLen()))
		if l.ebpfMap(bpf.LockMapAllow).Lookup(key, &allow) != nil || !slices.ContainsFunc(allow[:], func(r allowRule) bool {
			return r.Used == 1 && (r.Protocol == 0 || r.Protocol == 6) && (r.Port == 0 || r.Port == to.Port())
		}) {
			return true
		}
	}
	return false
}

// List returns every active lock, sorted by expiry, and removes expired ones.
func (l *EgressLock) List() ([]EgressLockState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeExpired()
	out, err := l.readActiveLocks()
	if err != nil {
		return out, err
	}
	return out, l.recomputeLatestExpiry()
}

// readActiveLocks reads every lock that has not expired.
func (l *EgressLock) readActiveLocks() ([]EgressLockState, error) {
	var out []EgressLockState
	for id := range readMap[uint64, lockRecord](l.ebpfMap(bpf.LockMapLocks)) {
		st, err := l.stateByID(id)
		if err != nil {
			return out, err
		}
		if st.Active {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b EgressLockState) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	return out, nil
}

// StateOfLease returns the state of a lease's lock. Active is false if there is none or it has expired.
func (l *EgressLock) StateOfLease(lease string) (EgressLockState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stateByID(lockID(lease))
}

func (l *EgressLock) stateByID(id uint64) (EgressLockState, error) {
	var rec lockRecord
	switch err := l.ebpfMap(bpf.LockMapLocks).Lookup(id, &rec); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return EgressLockState{}, nil
	case err != nil:
		return EgressLockState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	wall, boot := readClocks()
	left := time.Duration(rec.Expiry) - boot
	st := EgressLockState{
		Active: left > 0, LeaseID: string(bytes.TrimRight(rec.Lease[:], "\x00")),
		TargetID: string(bytes.TrimRight(rec.Target[:], "\x00")), ExpiresAt: wall.Add(left).UTC(),
		DeniedByProtocol: map[string]uint64{},
	}
	var c packetCountsRecord
	if l.ebpfMap(bpf.LockMapCounts).Lookup(id, &c) == nil {
		st.AnsweredPackets = c.Answered
		for i, n := range c.Denied {
			if n > 0 {
				st.DeniedPackets += n
				st.DeniedByProtocol[deniedProtocols[i]] = n
			}
		}
	}
	for k, v := range l.lockedObjects() {
		switch {
		case v.Lock != id:
		case k.Kind == objectCgroup:
			st.Cgroups = append(st.Cgroups, k.ID)
		case l.isVethLocked(int(k.ID)):
			st.VethIndexes = append(st.VethIndexes, int(k.ID))
		}
	}
	slices.Sort(st.Cgroups)
	slices.Sort(st.VethIndexes)
	st.VethLocked = len(st.VethIndexes) > 0
	return st, nil
}

func (l *EgressLock) lockedObjects() map[lockedObjectKey]lockedObjectValue {
	return readMap[lockedObjectKey, lockedObjectValue](l.ebpfMap(bpf.LockMapLockedObjects))
}

// readMap copies a kernel map. A concurrent change may hide or repeat an entry until the next call.
func readMap[K comparable, V any](m *ebpf.Map) map[K]V {
	var (
		k   K
		v   V
		all = map[K]V{}
	)
	for it := m.Iterate(); it.Next(&k, &v); {
		all[k] = v
	}
	return all
}

// deleteMatching deletes the keys that match.
func deleteMatching[K comparable](m *ebpf.Map, match func(K) bool) {
	var k K
	var gone []K
	value := make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&k, &value); {
		if match(k) {
			gone = append(gone, k)
		}
	}
	for _, k := range gone {
		_ = m.Delete(k) // an error means that the key is already gone
	}
}

// removeExpired removes expired locks from the maps. The kernel already ignores them.
func (l *EgressLock) removeExpired() {
	now := uint64(sinceBoot())
	for id, rec := range readMap[uint64, lockRecord](l.ebpfMap(bpf.LockMapLocks)) {
		if rec.Expiry <= now {
			l.removeLock(id)
		}
	}
}

// removeLock removes a lock. It deletes the record first, which ends the lock.
func (l *EgressLock) removeLock(id uint64) {
	_ = l.ebpfMap(bpf.LockMapLocks).Delete(id)
	for k, v := range l.lockedObjects() {
		if v.Lock == id {
			l.unlockObject(k)
		}
	}
	_ = l.ebpfMap(bpf.LockMapCounts).Delete(id)
	deleteMatching(l.ebpfMap(bpf.LockMapAddresses), func(k addressKey) bool { return k.Lock == id })
	deleteMatching(l.ebpfMap(bpf.LockMapAllow), func(k allowKey) bool { return k.lockID() == id })
	deleteMatching(l.ebpfMap(bpf.LockMapMacs), func(k macKey) bool { return k.Lock == id })
}

func (l *EgressLock) unlockObject(k lockedObjectKey) {
	_ = l.ebpfMap(bpf.LockMapLockedObjects).Delete(k)
	if k.Kind == objectVeth {
		l.detachVeth(int(k.ID))
	}
}

// extendLatestExpiry makes the kernel programs check packets at least until end.
func (l *EgressLock) extendLatestExpiry(end uint64) error {
	var now uint64
	m := l.ebpfMap(bpf.LockMapLatestExpiry)
	if err := m.Lookup(uint32(0), &now); err == nil && now >= end {
		return nil
	}
	if err := m.Put(uint32(0), end); err != nil {
		return fmt.Errorf("write the latest expiry of the egress lock: %w", err)
	}
	return nil
}

// recomputeLatestExpiry lets the kernel programs skip their checks if no lock is left.
func (l *EgressLock) recomputeLatestExpiry() error {
	var latest uint64
	for _, rec := range readMap[uint64, lockRecord](l.ebpfMap(bpf.LockMapLocks)) {
		latest = max(latest, rec.Expiry)
	}
	if err := l.ebpfMap(bpf.LockMapLatestExpiry).Put(uint32(0), latest); err != nil {
		return fmt.Errorf("write the latest expiry of the egress lock: %w", err)
	}
	return nil
}
