package snapshot

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"strconv"
)

// procNetTables are the files in /proc/<pid>/net and the field that contains the inode.
var procNetTables = []struct {
	file, protocol string
	inode          int
}{
	{"tcp", "tcp", 9},
	{"tcp6", "tcp6", 9},
	{"udp", "udp", 9},
	{"udp6", "udp6", 9},
	{"raw", "raw", 9},
	{"raw6", "raw6", 9},
	{"packet", "packet", 8},
	{"unix", "unix", 6},
}

// tcpStates are the names of the kernel's TCP states, by number.
var tcpStates = []string{
	"", "established", "syn-sent", "syn-received", "fin-wait-1", "fin-wait-2", "time-wait", "close", "close-wait",
	"last-ack",
	"listen", "closing", "new-syn-received",
}

// maxProcNetBytes limits what is read of one table, which can be long if the container shares the network of a busy
// node.
const maxProcNetBytes = 16 << 20

// collectSockets lists the sockets that the processes have open in each of their network namespaces.
func (k *collector) collectSockets(ctx context.Context) {
	seen := map[string]bool{}
	for i := range k.snapshot.Processes {
		pid := k.snapshot.Processes[i].PID
		ns, err := os.Readlink(procDir(pid) + "/ns/net")
		if err != nil || seen[ns] {
			continue
		}
		if ctx.Err() != nil {
			k.addMissing("sockets: timed out")
			return
		}
		seen[ns] = true
		for _, t := range procNetTables {
			b, cut, err := readLimited(procDir(pid)+"/net/"+t.file, maxProcNetBytes)
			if err != nil {
				if !os.IsNotExist(err) {
					k.addMissing("sockets of %s: %v", t.file, err)
				}
				continue
			}
			if cut {
				k.addMissing("sockets of %s: the table is longer than %d bytes", t.file, maxProcNetBytes)
			}
			for f := range splitLines(b) {
				if s, ok := parseSocketLine(f, t.protocol, t.inode); ok {
					k.addSocket(s)
				}
			}
		}
	}
}

// addSocket adds a socket if one of the processes has it open. A container that shares the node's network sees all
// sockets of the node, and those of other processes do not belong to it.
func (k *collector) addSocket(s Socket) {
	s.PIDs = k.pidsBySocket[s.Inode]
	if len(s.PIDs) == 0 {
		return
	}
	if len(k.snapshot.Sockets) >= k.limits.MaxSockets {
		k.addMissing("sockets: more than the limit of %d", k.limits.MaxSockets)
		return
	}
	k.snapshot.Sockets = append(k.snapshot.Sockets, s)
}

// parseSocketLine parses one line of a table. It returns false for the header and for a malformed line.
func parseSocketLine(f []string, protocol string, inodeAt int) (Socket, bool) {
	if len(f) <= inodeAt {
		return Socket{}, false
	}
	inode, err := strconv.ParseUint(f[inodeAt], 10, 64)
	if err != nil || inode == 0 {
		return Socket{}, false
	}
	s := Socket{Protocol: protocol, Inode: inode}
	switch protocol {
	case "packet":
		return s, true
	case "unix":
		if len(f) > 7 {
			s.Local = f[7]
		}
		return s, true
	}
	local, ok1 := parseHexAddress(f[1])
	remote, ok2 := parseHexAddress(f[2])
	if !ok1 || !ok2 {
		return Socket{}, false
	}
	s.Local = local.String()
	if remote.Port() != 0 || !remote.Addr().IsUnspecified() {
		s.Remote = remote.String()
	}
	if state, err := strconv.ParseUint(f[3], 16, 8); err == nil && (protocol == "tcp" || protocol == "tcp6") &&
		int(state) < len(tcpStates) {
		s.State = tcpStates[state]
	}
	return s, true
}

// parseHexAddress parses "0100007F:1F90": 32-bit words in host byte order, and a port.
func parseHexAddress(s string) (netip.AddrPort, bool) {
	i := len(s) - 5
	if i < 0 || s[i] != ':' {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(s[:i])
	if err != nil {
		return netip.AddrPort{}, false
	}
	for w := 0; w+4 <= len(b); w += 4 {
		binary.BigEndian.PutUint32(b[w:], binary.NativeEndian.Uint32(b[w:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	port, err := strconv.ParseUint(s[i+1:], 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), true
}
