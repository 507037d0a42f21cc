package probe

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"testing"
)

// parseMAC parses a MAC address. The functions below build frames for a packet socket, byte by byte.

func parseMAC(t *testing.T, s string) []byte {
	t.Helper()
	m, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bridgeMAC returns the MAC address of the node's end of the lab's link.
func bridgeMAC(t *testing.T) []byte {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().String() == nodeIP {
				return i.HardwareAddr
			}
		}
	}
	t.Fatal("no bridge")
	return nil
}

func ethernetFrame(to, from []byte, ethertype uint16, payload []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(f, ethertype), payload...)
}

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts { // each part has an even length
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func ipv4Packet(from, to string, protocol byte, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	a, b := netip.MustParseAddr(from).As4(), netip.MustParseAddr(to).As4()
	copy(h[12:], a[:])
	copy(h[16:], b[:])
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, payload...)
}

func ipv6Packet(from, to string, hopLimit byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, 58, hopLimit
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], netip.MustParseAddr(from).AsSlice())
	copy(h[24:], netip.MustParseAddr(to).AsSlice())
	return append(h, payload...)
}

// tcpSegment returns a TCP segment without a checksum, which the lock does not check.
func tcpSegment(from, to uint16, payload []byte) []byte {
	s := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(s, from)
	binary.BigEndian.PutUint16(s[2:], to)
	s[12], s[13] = 0x50, 0x10
	return append(s, payload...)
}

// neighborSolicitation returns a neighbor solicitation. edit may change it before the checksum is computed.
func neighborSolicitation(from, to, target string, hopLimit byte, mac []byte, edit func(message []byte)) []byte {
	m := make([]byte, 24, 32)
	m[0] = 135
	copy(m[8:], netip.MustParseAddr(target).AsSlice())
	m = append(append(m, 1, 1), mac...)
	if edit != nil {
		edit(m)
	}
	pseudo := make([]byte, 8)
	binary.BigEndian.PutUint32(pseudo, uint32(len(m)))
	pseudo[7] = 58
	binary.BigEndian.PutUint16(m[2:], checksum(netip.MustParseAddr(from).AsSlice(), netip.MustParseAddr(to).AsSlice(),
		pseudo, m))
	return ipv6Packet(from, to, hopLimit, m)
}

// solicitedNodeGroup returns the solicited-node multicast group of an address and its MAC address.
func solicitedNodeGroup(address string) (ip string, mac []byte) {
	a := netip.MustParseAddr(address).As16()
	g := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(g[13:], a[13:])
	return netip.AddrFrom16(g).String(), []byte{0x33, 0x33, 0xff, a[13], a[14], a[15]}
}

func formatHex(b []byte) string { return hex.EncodeToString(b) }
