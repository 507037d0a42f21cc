package probe

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"stanch/bpf"
)

// writeDestinations writes the addresses of the node and the pod and the allow list, and deletes outdated entries.
func (l *EgressLock) writeDestinations(id uint64, r EgressLockRequest) error {
	nodes := r.NodeAddrs
	if nodes == nil {
		var err error
		if nodes, err = nodeAddrs(); err != nil {
			return err
		}
	}
	addrs := map[addressKey]bool{}
	for _, a := range nodes {
		addrs[addressKey{Lock: id, Address: a.As16(), Role: addressRoleNode}] = true
	}
	for _, w := range r.Veths {
		for _, a := range w.Addrs {
			addrs[addressKey{Lock: id, Address: a.As16(), Role: addressRolePod}] = true
		}
		for _, a := range w.Gateways {
			addrs[addressKey{Lock: id, Address: a.As16(), Role: addressRoleNode}] = true
		}
	}
	allow := map[allowKey]allowValue{}
	for _, a := range r.AllowList {
		k := newAllowKey(id, a.Prefix)
		v := allow[k]
		if !v.add(a) {
			return fmt.Errorf("apply the egress lock: more than %d ports for %s", len(v), a.Prefix)
		}
		allow[k] = v
	}
	propagatePorts(allow)
	for k := range addrs {
		if err := l.ebpfMap(bpf.LockMapAddresses).Put(k, uint8(1)); err != nil {
			return fmt.Errorf("write the addresses of the egress lock: %w", err)
		}
	}
	if err := l.writeNodeMACs(id, r.Veths); err != nil {
		return err
	}
	for k, v := range allow {
		if err := l.ebpfMap(bpf.LockMapAllow).Put(k, v); err != nil {
			return fmt.Errorf("write the allow list of the egress lock: %w", err)
		}
	}
	deleteMatching(l.ebpfMap(bpf.LockMapAddresses), func(k addressKey) bool { return k.Lock == id && !addrs[k] })
	deleteMatching(l.ebpfMap(bpf.LockMapAllow), func(k allowKey) bool {
		_, keep := allow[k]
		return k.lockID() == id && !keep
	})
	return nil
}

func newAllowKey(id uint64, p netip.Prefix) allowKey {
	p = p.Masked()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	k := allowKey{Prefix: uint32(64 + bits), Address: p.Addr().As16()}
	// An LPM trie compares bytes in memory order. The kernel program writes the halves in the same way.
	k.LockHigh, k.LockLow = uint32(id>>32), uint32(id&math.MaxUint32)
	return k
}

func (k allowKey) lockID() uint64 { return uint64(k.LockHigh)<<32 | uint64(k.LockLow) }

func (k allowKey) covers(o allowKey) bool {
	if k.Prefix >= o.Prefix || k.LockHigh != o.LockHigh || k.LockLow != o.LockLow {
		return false
	}
	a, b := netip.AddrFrom16(k.Address), netip.AddrFrom16(o.Address)
	return netip.PrefixFrom(a, int(k.Prefix)-64).Contains(b)
}

func (v *allowValue) add(a AllowedDestination) bool {
	r := allowRule{Port: a.Port, Used: 1}
	switch a.Protocol {
	case "tcp":
		r.Protocol = 6
	case "udp":
		r.Protocol = 17
	}
	for i := range v {
		if v[i] == r {
			return true
		}
		if v[i].Used == 0 {
			v[i] = r
			return true
		}
	}
	return false
}

// propagatePorts adds to every prefix the ports of the prefixes that contain it, because the kernel uses only the
// longest match.
func propagatePorts(allow map[allowKey]allowValue) {
	for k, v := range allow {
		for o, outer := range allow {
			if !o.covers(k) {
				continue
			}
			for _, r := range outer {
				if r.Used == 1 && !slices.Contains(v[:], r) {
					if i := slices.Index(v[:], allowRule{}); i >= 0 {
						v[i] = r
					}
				}
			}
		}
		allow[k] = v
	}
}

func nodeAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this node's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok && !addr.IsLoopback() {
				out = append(out, addr.Unmap())
			}
		}
	}
	return out, nil
}
