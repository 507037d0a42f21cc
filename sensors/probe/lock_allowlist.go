package probe

import (
	"net/netip"

	"stanch/bpf"
)

// AllowList returns the destinations that the lock of a lease allows, read from the kernel map. Callers use it to
// decide whether a new request would allow more.
func (l *EgressLock) AllowList(lease string) []AllowedDestination {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := lockID(lease)
	var open []AllowedDestination
	for k, v := range readMap[allowKey, allowValue](l.ebpfMap(bpf.LockMapAllow)) {
		if k.lockID() != id {
			continue
		}
		addr, bits := netip.AddrFrom16(k.Address), int(k.Prefix)-64
		if bits >= 96 && addr.Is4In6() {
			addr, bits = addr.Unmap(), bits-96
		}
		for _, r := range v {
			if r.Used == 1 {
				open = append(open, AllowedDestination{
					Prefix: netip.PrefixFrom(addr, bits), Port: r.Port,
					Protocol: map[uint8]string{6: "tcp", 17: "udp"}[r.Protocol],
				})
			}
		}
	}
	return open
}

// Covers reports whether a allows all traffic that other allows.
func (a AllowedDestination) Covers(other AllowedDestination) bool {
	p, o := a.Prefix.Masked(), other.Prefix.Masked()
	return p.Bits() <= o.Bits() && p.Contains(o.Addr()) && (a.Port == 0 || a.Port == other.Port) &&
		(a.Protocol == "" || a.Protocol == other.Protocol)
}
