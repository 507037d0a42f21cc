package probe

import (
	"errors"
	"fmt"
	"slices"

	"stanch/bpf"
	"stanch/sensors/identity"
)

// Prober is whose sockets a locked pod may answer: those made by processes of one user in one cgroup.
type Prober struct {
	Cgroup uint64
	UID    uint32
}

// SetProbers replaces the list of whose connections are answered, for every lock. At most 64.
func (l *Lock) SetProbers(probers []Prober) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.m(bpf.LockMapProbers)
	wanted := map[proberKey]bool{}
	for _, p := range probers {
		k := proberKey{Cgroup: p.Cgroup, UID: p.UID}
		wanted[k] = true
		if err := m.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("egress lock: write the kubelet's cgroup: %w", err)
		}
	}
	prune(m, func(k proberKey) bool { return !wanted[k] })
	return nil
}

// Refresh writes the node's MAC addresses again, for every lock in force: those of a bridge change when interfaces come
// and go, and the kubelet's probes would fail.
func (l *Lock) Refresh() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wires := map[uint64][]Wire{}
	for k, v := range l.holds() {
		if k.Kind == holdWire {
			wires[v.Lock] = append(wires[v.Lock], Wire{Index: int(k.ID)}) //nolint:gosec // an index
		}
	}
	for id, held := range wires {
		if err := l.nodeMACs(id, held); err != nil {
			return err
		}
	}
	return nil
}

// nodeMACs writes which MAC addresses are the node's for a lock: those of its ends of the wires, of what these are
// ports of, and of its interfaces with an address (the gateway port of a virtual switch).
func (l *Lock) nodeMACs(id uint64, wires []Wire) error {
	all, err := interfaces()
	if err != nil {
		return err
	}
	addrs, err := addresses()
	if err != nil {
		return err
	}
	wanted := map[macKey]bool{}
	masters := map[int]bool{}
	for _, i := range all {
		if i.master > 0 && slices.ContainsFunc(wires, func(w Wire) bool { return w.Index == i.index }) {
			masters[i.master] = true
		}
	}
	for _, i := range all {
		held := slices.ContainsFunc(wires, func(w Wire) bool { return w.Index == i.index })
		if i.mac != [6]byte{} && (held || masters[i.index] || len(addrs[i.index]) > 0) {
			wanted[macKey{Lock: id, MAC: i.mac}] = true
		}
	}
	m := l.m(bpf.LockMapMacs)
	for k := range wanted {
		if err := m.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("egress lock: write the node's MAC addresses: %w", err)
		}
	}
	prune(m, func(k macKey) bool { return k.Lock == id && !wanted[k] })
	return nil
}

// byNode reports whether everything that the pod may still reach lies behind this node: then each frame must bear a
// MAC address of the node's, so that no neighbor on the pod's link receives it in the destination's place.
func (r *LockRequest) byNode() bool {
	if len(r.Allow) == 0 {
		return true
	}
	nodes := r.NodeAddrs
	if nodes == nil {
		var err error
		if nodes, err = nodeAddrs(); err != nil {
			return false
		}
	}
	for _, w := range r.Wires {
		for _, gateway := range w.Gateways {
			if !slices.Contains(nodes, gateway) {
				return false // a router on the link, whose MAC address is not known
			}
		}
		for _, link := range w.Links {
			if slices.ContainsFunc(r.Allow, func(a Allow) bool { return a.Prefix.Overlaps(link) }) {
				return false
			}
		}
	}
	return true
}

// Add holds further cgroups and wires for a lease that is in force, until its end. It takes nothing away. What another
// lease holds is left to that one.
func (l *Lock) Add(lease string, cgroups []uint64, wires []Wire) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := lockID(lease)
	st, err := l.state(id)
	if err != nil || !st.Held {
		return err
	}
	rootID, err := identity.CgroupID(l.root)
	if err != nil {
		return fmt.Errorf("egress lock: %w", err)
	}
	if slices.Contains(cgroups, rootID) {
		return errors.New("egress lock: the root cgroup is the whole node")
	}
	if err := l.free(id, LockRequest{Cgroups: cgroups, Wires: wires}); err != nil {
		return err
	}
	for _, w := range wires {
		for _, a := range w.Addrs {
			if err := l.m(bpf.LockMapAddresses).Put(addressKey{Lock: id, Address: a.As16(), Role: rolePod}, uint8(1)); err != nil {
				return fmt.Errorf("egress lock: write addresses: %w", err)
			}
		}
	}
	for _, cg := range cgroups {
		if err := l.m(bpf.LockMapHolds).Put(holdKey{ID: cg, Kind: holdCgroup}, holdValue{Lock: id}); err != nil {
			return fmt.Errorf("egress lock: hold: %w", err)
		}
	}
	var errs []error
	for _, w := range wires {
		k := holdKey{ID: uint64(w.Index), Kind: holdWire} //nolint:gosec // an index
		if err := l.m(bpf.LockMapHolds).Put(k, holdValue{Lock: id, MAC: w.MAC}); err != nil {
			return fmt.Errorf("egress lock: hold: %w", err)
		}
		if err := l.attachWire(w.Index); err != nil {
			l.unhold(k)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
