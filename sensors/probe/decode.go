package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stanch/sensors"
)

// The layout of struct event in bpf/src/event.h. TestLayout compares it with the object's BTF.
const (
	offKind, offFlags, offExeLen, offCwdLen         = 0, 2, 4, 6
	offArgsLen, offFileLen, offStdio, offAncestors  = 8, 10, 12, 13
	offPort, offTime, offCgroup, offStart           = 14, 16, 24, 32
	offCapabilities, offInode, offDevice, offPID    = 40, 48, 56, 64
	offPPID, offUID, offEUID, offGID                = 68, 72, 76, 80
	offCPU, offExitCode, offClass                   = 84, 88, 92
	offAddress, offComm, offTTY, offAncestor, eHead = 104, 120, 136, 152, 312

	ancestorSize = 20
	dataSize     = 8192
	maxArgs      = 512
)

const (
	kindExec, kindExit, kindConnect, kindOpen = 1, 2, 3, 4

	flagUpper, flagMemfd, flagDeleted, flagArgsTruncated = 1 << 0, 1 << 1, 1 << 2, 1 << 3
	flagPathTruncated, flagWrite, flagIPv6               = 1 << 4, 1 << 5, 1 << 6
)

var errMalformed = errors.New("malformed record")

// decoded is a record as the kernel wrote it, with times not yet on the wall clock.
type decoded struct {
	event sensors.Event
	boot  uint64 // CLOCK_BOOTTIME, ns
	cpu   uint32
}

// decode reads one record. It trusts no length in it.
func decode(b []byte) (decoded, error) {
	if len(b) < eHead || len(b) > eHead+dataSize+8 {
		return decoded{}, fmt.Errorf("%w: %d bytes", errMalformed, len(b))
	}
	u16 := func(at int) int { return int(binary.NativeEndian.Uint16(b[at:])) }
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }

	flags := u16(offFlags)
	d := decoded{boot: u64(offTime), cpu: u32(offCPU)}
	e := &d.event
	p := &e.Process
	*p = sensors.Process{
		PID: u32(offPID), PPID: u32(offPPID), StartNS: u64(offStart), Name: text(b[offComm : offComm+16]),
		TTY: text(b[offTTY : offTTY+16]), UID: u32(offUID), EUID: u32(offEUID), GID: u32(offGID),
		Capabilities: u64(offCapabilities), StdioSockets: b[offStdio] & 7, Inode: u64(offInode), Device: device(u64(offDevice)),
		UpperLayer: flags&flagUpper != 0, Memfd: flags&flagMemfd != 0, Deleted: flags&flagDeleted != 0,
		ArgsTruncated: flags&flagArgsTruncated != 0,
	}
	e.Container.CgroupID = u64(offCgroup)

	n := int(b[offAncestors])
	if n > sensors.MaxAncestors {
		return decoded{}, fmt.Errorf("%w: %d ancestors", errMalformed, n)
	}
	for i := range n {
		at := offAncestor + i*ancestorSize
		p.Ancestors = append(p.Ancestors, sensors.Ancestor{PID: u32(at), Name: text(b[at+4 : at+20])})
	}

	rest := b[eHead:]
	part := func(at int) ([]byte, bool) {
		n := u16(at)
		if n > len(rest) {
			return nil, false
		}
		head := rest[:n]
		rest = rest[n:]
		return head, true
	}
	exe, ok1 := part(offExeLen)
	cwd, ok2 := part(offCwdLen)
	args, ok3 := part(offArgsLen)
	file, ok4 := part(offFileLen)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return decoded{}, fmt.Errorf("%w: a part is longer than the record", errMalformed)
	}
	p.Exe = joinPath(exe, p.Memfd)
	p.Cwd = joinPath(cwd, false)
	var cut bool
	p.Args, cut = splitArgs(args)
	p.ArgsTruncated = p.ArgsTruncated || cut

	switch u16(offKind) {
	case kindExec:
		e.Kind = sensors.KindExec
	case kindExit:
		e.Kind = sensors.KindExit
		e.ExitCode = exitCode(u32(offExitCode))
		p.Exe, p.Cwd = "", ""
	case kindConnect:
		e.Kind = sensors.KindConnect
		e.Network = network(b[offAddress:offAddress+16], flags&flagIPv6 != 0, u16(offPort))
	case kindOpen:
		e.Kind = sensors.KindOpen
		e.File = sensors.File{Path: joinPath(file, false), Write: flags&flagWrite != 0}
	default:
		return decoded{}, fmt.Errorf("%w: kind %d", errMalformed, u16(offKind))
	}
	return d, nil
}

func network(b []byte, v6 bool, port int) sensors.Network {
	n := sensors.Network{Protocol: "tcp", Port: uint16(port)} //nolint:gosec // read from 16 bits
	if v6 {
		n.Family, n.Address = "ipv6", netip.AddrFrom16([16]byte(b)).String()
	} else {
		n.Family, n.Address = "ipv4", netip.AddrFrom4([4]byte(b[:4])).String()
	}
	return n
}

// exitCode is what a shell would show: 128 and the signal for a process that was killed.
func exitCode(status uint32) int {
	if signal := status & 0x7f; signal != 0 {
		return 128 + int(signal)
	}
	return int(status >> 8 & 0xff)
}

// device turns the kernel's own encoding of a device into that of stat.
func device(d uint64) uint64 {
	return unix.Mkdev(uint32(d>>20&0xfff), uint32(d&0xfffff)) //nolint:gosec // masked
}

// joinPath turns names, leaf first, each ended by a zero byte, into a path.
func joinPath(b []byte, memfd bool) string {
	if len(b) == 0 {
		return ""
	}
	names := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	if memfd && len(names) == 1 {
		return strings.ToValidUTF8(names[0], "\uFFFD")
	}
	slices.Reverse(names)
	return strings.ToValidUTF8("/"+strings.Join(names, "/"), "\uFFFD")
}

// splitArgs splits a command line as the kernel keeps it, and tells whether it left some out.
func splitArgs(b []byte) ([]string, bool) {
	if len(b) == 0 {
		return nil, false
	}
	all := strings.SplitN(strings.TrimSuffix(string(b), "\x00"), "\x00", maxArgs+1)
	cut := len(all) > maxArgs
	if cut {
		all = all[:maxArgs]
	}
	for i := range all {
		all[i] = strings.ToValidUTF8(all[i], "\uFFFD")
	}
	return all, cut
}

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}

// clock turns the kernel's boot time into the wall clock. It keeps its offset for a second, so that events that
// follow each other closely keep their distance.
type clock struct {
	read   func() (wall time.Time, boot time.Duration)
	offset time.Time // the wall clock's time at boot
	at     time.Duration
}

func (c *clock) wall(boot uint64) time.Time {
	t := time.Duration(boot) //nolint:gosec // 292 years
	if c.offset.IsZero() || t-c.at > time.Second || c.at-t > time.Minute {
		wall, now := c.read()
		c.offset, c.at = wall.Add(-now), now
	}
	return c.offset.Add(t).UTC()
}

func readClock() (time.Time, time.Duration) {
	return time.Now().Round(0), bootNow()
}

// bootNow is CLOCK_BOOTTIME, the clock that bpf_ktime_get_boot_ns reads.
func bootNow() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}
