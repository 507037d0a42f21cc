package probe

import (
	"errors"
	"fmt"
	"slices"

	"stanch/bpf"
	"stanch/sensors/containermeta"
)

// Prober identifies the sockets that a locked pod may reply to: sockets of one user's processes in one cgroup.
type Prober struct {
	Cgroup uint64
	UID    uint32
}

// SetProbers replaces the probers to which locked pods may reply, for every lock. There are at most 64.
func (l *EgressLock) SetProbers(probers []Prober) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.ebpfMap(bpf.LockMapProbers)
	wanted := map[proberKey]bool{}
	for _, p := range probers {
		k := proberKey{Cgroup: p.Cgroup, UID: p.UID}
		wanted[k] = true
		if err := m.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("write the kubelet's cgroup to the egress lock: %w", err)
		}
	}
	deleteMatching(m, func(k proberKey) bool { return !wanted[k] })
	return nil
}

// RefreshNodeMACs updates the node's MAC addresses for every active lock. The address of a bridge can change when its
// ports change, and the kubelet's probes would then fail.
func (l *EgressLock) RefreshNodeMACs() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	veths := map[uint64][]Veth{}
	for k, v := range l.lockedObjects() {
		if k.Kind == objectVeth {
			veths[v.Lock] = append(veths[v.Lock], Veth{Index: int(k.ID)})
		}
	}
	for id, held := range veths {
		if err := l.writeNodeMACs(id, held); err != nil {
			return err
		}
	}
	return nil
}

// writeNodeMACs writes the node's MAC addresses for a lock: those of the host-side veths, of the bridges that they are
// ports of, and of interfaces with an IP address (such as the gateway port of a virtual switch).
func (l *EgressLock) writeNodeMACs(id uint64, veths []Veth) error {
	all, err := listAllInterfaces()
	if err != nil {
		return err
	}
	addrs, err := listAllAddresses()
	if err != nil {
		return err
	}
	wanted := map[macKey]bool{}
	masters := map[int]bool{}
	for _, i := range all {
		if i.master > 0 && slices.ContainsFunc(veths, func(w Veth) bool { return w.Index == i.index }) {
			masters[i.master] = true
		}
	}
	for _, i := range all {
		held := slices.ContainsFunc(veths, func(w Veth) bool { return w.Index == i.index })
		if i.mac != [6]byte{} && (held || masters[i.index] || len(addrs[i.index]) > 0) {
			wanted[macKey{Lock: id, MAC: i.mac}] = true
		}
	}
	m := l.ebpfMap(bpf.LockMapMacs)
	for k := range wanted {
		if err := m.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("write the node's MAC addresses to the egress lock: %w", err)
		}
	}
	deleteMatching(m, func(k macKey) bool { return k.Lock == id && !wanted[k] })
	return nil
}

// reachesOnlyViaNode reports whether all allowed destinations are routed through this node. Each frame must then be
// sent to a MAC address of the node, so that no neighbor on the pod's link can receive it instead.
func (r *EgressLockRequest) reachesOnlyViaNode() bool {
	if len(r.AllowList) == 0 {
		return true
	}
	nodes := r.NodeAddrs
	if nodes == nil {
		var err error
		if nodes, err = nodeAddrs(); err != nil {
			return false
		}
	}
	for _, w := range r.Veths {
		for _, gateway := range w.Gateways {
			if !slices.Contains(nodes, gateway) {
				return false // a router on the link, whose MAC address is unknown
			}
		}
		for _, link := range w.OnLinkPrefixes {
			if slices.ContainsFunc(r.AllowList, func(a AllowedDestination) bool { return a.Prefix.Overlaps(link) }) {
				return false
			}
		}
	}
	return true
}

// AddTargets adds cgroups and veths to the active lock of a lease. It removes nothing, and does nothing if the lease
// has no active lock. It returns ErrLockedByOtherLease if another lease locks one of them.
func (l *EgressLock) AddTargets(lease string, cgroups []uint64, veths []Veth) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := lockID(lease)
	st, err := l.stateByID(id)
	if err != nil || !st.Active {
		return err
	}
	rootID, err := containermeta.CgroupID(l.cgroupRoot)
	if err != nil {
		return fmt.Errorf("apply the egress lock: %w", err)
	}
	if slices.Contains(cgroups, rootID) {
		return errors.New("apply the egress lock: the root cgroup is not allowed, because it contains the entire node")
	}
	if err := l.checkNotLocked(id, EgressLockRequest{Cgroups: cgroups, Veths: veths}); err != nil {
		return err
	}
	for _, w := range veths {
		for _, a := range w.Addrs {
			if err := l.ebpfMap(bpf.LockMapAddresses).Put(addressKey{Lock: id, Address: a.As16(), Role: addressRolePod},
				uint8(1)); err != nil {
				return fmt.Errorf("write the addresses of the egress lock: %w", err)
			}
		}
	}
	for _, cg := range cgroups {
		if err := l.ebpfMap(bpf.LockMapLockedObjects).Put(lockedObjectKey{ID: cg, Kind: objectCgroup},
			lockedObjectValue{Lock: id}); err != nil {
			return fmt.Errorf("apply the egress lock: %w", err)
		}
	}
	var errs []error
	for _, w := range veths {
		k := lockedObjectKey{ID: uint64(w.Index), Kind: objectVeth}
		if err := l.ebpfMap(bpf.LockMapLockedObjects).Put(k, lockedObjectValue{Lock: id, MAC: w.MAC}); err != nil {
			return fmt.Errorf("apply the egress lock: %w", err)
		}
		if err := l.attachVeth(w.Index); err != nil {
			l.unlockObject(k)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
