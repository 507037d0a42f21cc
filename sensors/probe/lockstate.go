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
	"stanch/sensors/identity"
)

// State tells whether a cgroup, or one above it, is held. cgroupID is any cgroup of a pod or container. A lock that has
// lapsed is not held.
func (l *Lock) State(cgroupID uint64) (LockState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range l.above(cgroupID) {
		var v holdValue
		if l.m(bpf.LockMapHolds).Lookup(holdKey{ID: id, Kind: holdCgroup}, &v) != nil {
			continue
		}
		if st, err := l.state(v.Lock); err != nil || st.Held {
			return st, err
		}
	}
	return LockState{}, nil
}

// above gives a cgroup and those that it is in, but for the root.
func (l *Lock) above(cgroupID uint64) []uint64 {
	ids := []uint64{cgroupID}
	path, err := identity.PathOf(l.root, cgroupID)
	if err != nil {
		return ids
	}
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			if id, err := identity.CgroupID(l.root + path[:i]); err == nil {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// Denies tells whether a TCP connection from a cgroup would be refused now. It is for telling people: what is refused
// is decided in the kernel.
func (l *Lock) Denies(cgroupID uint64, to netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var latest uint64
	now := uint64(bootNow()) //nolint:gosec // positive
	if l.m(bpf.LockMapLatest).Lookup(uint32(0), &latest) != nil || latest <= now {
		return false
	}
	for _, id := range l.above(cgroupID) {
		var v holdValue
		var rec lockRecord
		if l.m(bpf.LockMapHolds).Lookup(holdKey{ID: id, Kind: holdCgroup}, &v) != nil || l.m(bpf.LockMapLocks).Lookup(v.Lock, &rec) != nil {
			continue
		}
		if rec.Expiry <= now || to.Addr().IsLoopback() && rec.Flags&lockHostNetwork == 0 {
			continue
		}
		var allow allowValue
		key := allowKeyOf(v.Lock, netip.PrefixFrom(to.Addr(), to.Addr().BitLen()))
		if l.m(bpf.LockMapAllow).Lookup(key, &allow) != nil || !slices.ContainsFunc(allow[:], func(r allowRule) bool {
			return r.Used == 1 && (r.Protocol == 0 || r.Protocol == 6) && (r.Port == 0 || r.Port == to.Port())
		}) {
			return true
		}
	}
	return false
}

// List gives every lock in force, and forgets those that have lapsed.
func (l *Lock) List() ([]LockState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep()
	out, err := l.inForce()
	if err != nil {
		return out, err
	}
	return out, l.settle()
}

// inForce reads every lock that has not lapsed.
func (l *Lock) inForce() ([]LockState, error) {
	var out []LockState
	for id := range each[uint64, lockRecord](l.m(bpf.LockMapLocks)) {
		st, err := l.state(id)
		if err != nil {
			return out, err
		}
		if st.Held {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b LockState) int { return a.Until.Compare(b.Until) })
	return out, nil
}

// Lease gives the state of a lease's lock, with Held false if there is none or it has lapsed.
func (l *Lock) Lease(lease string) (LockState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state(lockID(lease))
}

func (l *Lock) state(id uint64) (LockState, error) {
	var rec lockRecord
	switch err := l.m(bpf.LockMapLocks).Lookup(id, &rec); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return LockState{}, nil
	case err != nil:
		return LockState{}, fmt.Errorf("read the egress lock: %w", err)
	}
	wall, boot := readClock()
	left := time.Duration(rec.Expiry) - boot //nolint:gosec // 292 years
	st := LockState{
		Held: left > 0, Lease: string(bytes.TrimRight(rec.Lease[:], "\x00")), Target: string(bytes.TrimRight(rec.Target[:], "\x00")), Until: wall.Add(left).UTC(),
		DeniedBy: map[string]uint64{},
	}
	var c countsRecord
	if l.m(bpf.LockMapCounts).Lookup(id, &c) == nil {
		st.Answered = c.Answered
		for i, n := range c.Denied {
			if n > 0 {
				st.Denied += n
				st.DeniedBy[deniedKinds[i]] = n
			}
		}
	}
	for k, v := range l.holds() {
		switch {
		case v.Lock != id:
		case k.Kind == holdCgroup:
			st.Cgroups = append(st.Cgroups, k.ID)
		case l.wireHeld(int(k.ID)): //nolint:gosec // an index
			st.Wires = append(st.Wires, int(k.ID)) //nolint:gosec // an index
		}
	}
	slices.Sort(st.Cgroups)
	slices.Sort(st.Wires)
	st.Wire = len(st.Wires) > 0
	return st, nil
}

func (l *Lock) holds() map[holdKey]holdValue { return each[holdKey, holdValue](l.m(bpf.LockMapHolds)) }

// each copies a map of the kernel. A change under the walk may hide or repeat an entry; the next look sees it.
func each[K comparable, V any](m *ebpf.Map) map[K]V {
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

// prune deletes the keys that match.
func prune[K comparable](m *ebpf.Map, match func(K) bool) {
	var k K
	var gone []K
	value := make([]byte, m.ValueSize())
	for it := m.Iterate(); it.Next(&k, &value); {
		if match(k) {
			gone = append(gone, k)
		}
	}
	for _, k := range gone {
		_ = m.Delete(k) // gone already is as good
	}
}

// sweep forgets locks that have lapsed. The kernel has let go of them by itself.
func (l *Lock) sweep() {
	now := uint64(bootNow()) //nolint:gosec // positive
	for id, rec := range each[uint64, lockRecord](l.m(bpf.LockMapLocks)) {
		if rec.Expiry <= now {
			l.drop(id)
		}
	}
}

// drop takes a lock away: first its record, which ends it.
func (l *Lock) drop(id uint64) {
	_ = l.m(bpf.LockMapLocks).Delete(id)
	for k, v := range l.holds() {
		if v.Lock == id {
			l.unhold(k)
		}
	}
	_ = l.m(bpf.LockMapCounts).Delete(id)
	prune(l.m(bpf.LockMapAddresses), func(k addressKey) bool { return k.Lock == id })
	prune(l.m(bpf.LockMapAllow), func(k allowKey) bool { return k.lock() == id })
	prune(l.m(bpf.LockMapMacs), func(k macKey) bool { return k.Lock == id })
}

func (l *Lock) unhold(k holdKey) {
	_ = l.m(bpf.LockMapHolds).Delete(k)
	if k.Kind == holdWire {
		l.detachWire(int(k.ID)) //nolint:gosec // an index
	}
}

// raise makes the programs look until end.
func (l *Lock) raise(end uint64) error {
	var now uint64
	m := l.m(bpf.LockMapLatest)
	if err := m.Lookup(uint32(0), &now); err == nil && now >= end {
		return nil
	}
	if err := m.Put(uint32(0), end); err != nil {
		return fmt.Errorf("egress lock: write the latest end: %w", err)
	}
	return nil
}

// settle lets the programs rest when no lock is left.
func (l *Lock) settle() error {
	var latest uint64
	for _, rec := range each[uint64, lockRecord](l.m(bpf.LockMapLocks)) {
		latest = max(latest, rec.Expiry)
	}
	if err := l.m(bpf.LockMapLatest).Put(uint32(0), latest); err != nil {
		return fmt.Errorf("egress lock: write the latest end: %w", err)
	}
	return nil
}
