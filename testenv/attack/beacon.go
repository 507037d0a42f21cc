package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// beaconInterval is how often a beacon sends.
const beaconInterval = 50 * time.Millisecond

// experimentalProtocol is the IP protocol number that beacon raw uses; it is reserved for experiments.
const experimentalProtocol = 253

// sendBeacons sends "stanch-beacon KIND N" until it is killed. It reports repeated failures only once.
func sendBeacons(kind, address string) error {
	open, ok := map[string]func(string) (func([]byte) error, error){
		"tcp": newTCPSender, "tcp-new": newTCPPerMessageSender, "udp": newUDPSender, "raw": newRawIPSender,
		"packet": newPacketSender, "icmp": newICMPSender,
	}[kind]
	if !ok {
		return errUsage
	}
	stop := terminationSignal()
	beat := time.NewTicker(beaconInterval)
	defer beat.Stop()
	var send func([]byte) error
	failing := ""
	for n := 1; ; n++ {
		var err error
		if send == nil {
			send, err = open(address)
		}
		if err == nil {
			if err = send(fmt.Appendf(nil, "stanch-beacon %s %d\n", kind, n)); err != nil && kind == "tcp" {
				send = nil // the connection is dead: open another one
			}
		}
		switch {
		case err != nil && failing != err.Error():
			failing = err.Error()
			fmt.Printf("beacon %s %d fails: %s\n", kind, n, failing)
		case err == nil && (failing != "" || n == 1):
			failing = ""
			fmt.Printf("beacon %s %d works\n", kind, n)
		}
		select {
		case <-stop:
			return nil
		case <-beat.C:
		}
	}
}

// newTCPSender returns a sender over one connection. While the connection hangs, a message waits at most one second;
// the kernel keeps retransmitting what it has accepted.
func newTCPSender(address string) (func([]byte) error, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return nil, err
	}
	return func(message []byte) error { _, err := conn.Write(message); return err }, nil
}

func newTCPPerMessageSender(address string) (func([]byte) error, error) {
	return func(message []byte) error {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(message)
		return err
	}, nil
}

func newUDPSender(address string) (func([]byte) error, error) {
	conn, err := net.Dial("udp", address)
	if err != nil {
		return nil, err
	}
	return func(message []byte) error { _, err := conn.Write(message); return err }, nil
}

// newRawIPSender returns a sender of packets of an experimental IP protocol. It requires CAP_NET_RAW, as do the senders
// below.
func newRawIPSender(address string) (func([]byte) error, error) {
	return newIPSender(address, experimentalProtocol, nil)
}

// newICMPSender returns a sender of echo requests with the message as payload.
func newICMPSender(address string) (func([]byte) error, error) {
	return newIPSender(address, unix.IPPROTO_ICMP, func(message []byte) []byte {
		packet := append([]byte{8, 0, 0, 0, 0x57, 0x4e, 0, 1}, message...)
		binary.BigEndian.PutUint16(packet[2:], checksum(packet))
		return packet
	})
}

func newIPSender(address string, protocol int, wrap func([]byte) []byte) (func([]byte) error, error) {
	ip, _, err := parseIPv4Address(address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	to := &unix.SockaddrInet4{Addr: [4]byte(ip)}
	return func(message []byte) error {
		if wrap != nil {
			message = wrap(message)
		}
		return unix.Sendto(fd, message, 0, to)
	}, nil
}

// newPacketSender returns a sender that writes complete Ethernet frames with a UDP datagram to the address, bypassing
// the kernel's IP stack.
func newPacketSender(address string) (func([]byte) error, error) {
	ip, port, err := parseIPv4Address(address)
	if err != nil {
		return nil, err
	}
	device, source, err := firstInterface()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	to := &unix.SockaddrLinklayer{Ifindex: device.Index, Halen: 6}
	return func(message []byte) error {
		return unix.Sendto(fd, buildUDPFrame(device, source, ip, port, message), 0, to)
	}, nil
}

func buildUDPFrame(device *net.Interface, source, ip net.IP, port uint16, message []byte) []byte {
	f := append(neighborMAC(), device.HardwareAddr...)
	f = append(f, 0x08, 0x00)
	header := make([]byte, 20, 28+len(message))
	header[0], header[8], header[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(header[2:], uint16(28+len(message)))
	copy(header[12:], source)
	copy(header[16:], ip)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	udp := binary.BigEndian.AppendUint16(header, 4444)
	udp = binary.BigEndian.AppendUint16(udp, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(message)))
	udp = binary.BigEndian.AppendUint16(udp, 0) // no checksum: allowed over IPv4
	return append(f, append(udp, message...)...)
}

// neighborMAC returns the MAC address of a known neighbor, usually the gateway, or the broadcast address.
func neighborMAC() net.HardwareAddr {
	table, _ := os.ReadFile("/proc/net/arp")
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 3 {
			if mac, err := net.ParseMAC(f[3]); err == nil && len(mac) == 6 && f[2] == "0x2" {
				return mac
			}
		}
	}
	return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
}

// firstInterface returns the first interface that is up and not the loopback, with its IPv4 address.
func firstInterface() (*net.Interface, net.IP, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, nil, err
	}
	for _, device := range all {
		if device.Flags&net.FlagUp == 0 || len(device.HardwareAddr) != 6 {
			continue
		}
		addresses, err := device.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			if network, ok := a.(*net.IPNet); ok && network.IP.To4() != nil {
				return &device, network.IP.To4(), nil
			}
		}
	}
	return nil, nil, fmt.Errorf("no interface with an IPv4 address and a link address")
}

// parseIPv4Address parses an IPv4 address with or without a port.
func parseIPv4Address(address string) (net.IP, uint16, error) {
	host, port := address, "9"
	if h, p, err := net.SplitHostPort(address); err == nil {
		host, port = h, p
	}
	ip := net.ParseIP(host).To4()
	if ip == nil {
		return nil, 0, fmt.Errorf("%q is not an IPv4 address", host)
	}
	n, err := net.LookupPort("udp", port)
	return ip, uint16(n), err
}

// checksum returns the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
