package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path"
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
	offCPU, offExitCode, offTarget, offValue        = 84, 88, 100, 104
	offNSPID, offCall, offDetailLen                 = 112, 116, 118
	offAddress, offComm, offTTY, offAncestor, eHead = 120, 136, 152, 168, 328

	ancestorSize = 20
	dataSize     = 8192
	maxArgs      = 512
)

const (
	flagUpper, flagMemfd, flagDeleted, flagArgsTruncated = 1 << 0, 1 << 1, 1 << 2, 1 << 3
	flagPathTruncated, flagWrite, flagIPv6               = 1 << 4, 1 << 5, 1 << 6
	flagOutside, flagSetid, flagGained                   = 1 << 8, 1 << 9, 1 << 10
	flagAsked, flagFailed, flagOwnExe                    = 1 << 11, 1 << 12, 1 << 13
)

// kinds are the kernel's numbers of kinds.
var kinds = map[int]sensors.Kind{
	1: sensors.KindExec, 2: sensors.KindExit, 3: sensors.KindConnect, 4: sensors.KindOpen, 5: sensors.KindDelete, 6: sensors.KindChmod,
	7: sensors.KindUnix, 8: sensors.KindListen, 9: sensors.KindDNS, 10: sensors.KindRawSocket, 11: sensors.KindMount, 12: sensors.KindNamespace,
	13: sensors.KindTrace, 14: sensors.KindBPF, 15: sensors.KindURing, 16: sensors.KindModule, 17: sensors.KindBurst, kindCgroup: "cgroup",
}

// kindCgroup is no event of anybody's: it tells the path of a new cgroup.
const kindCgroup = 18

var errMalformed = errors.New("malformed record")

// decoded is a record as the kernel wrote it, with times not yet on the wall clock.
type decoded struct {
	event sensors.Event
	boot  uint64 // CLOCK_BOOTTIME, ns
	cpu   uint32
	// made is the path of a cgroup that was made; then there is nothing else.
	made string
	// outside: the process's parent lives in a cgroup of the host.
	outside bool
	// ownExe: its program is from mounts of its own, which its parent does not have.
	ownExe bool
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
	d := decoded{boot: u64(offTime), cpu: u32(offCPU), outside: flags&flagOutside != 0, ownExe: flags&flagOwnExe != 0}
	e := &d.event
	p := &e.Process
	*p = sensors.Process{
		PID: u32(offPID), PPID: u32(offPPID), StartNS: u64(offStart), Name: text(b[offComm : offComm+16]),
		TTY: text(b[offTTY : offTTY+16]), UID: u32(offUID), EUID: u32(offEUID), GID: u32(offGID),
		Capabilities: u64(offCapabilities), StdioSockets: b[offStdio] & 7, Inode: u64(offInode), Device: device(u64(offDevice)),
		UpperLayer: flags&flagUpper != 0, Memfd: flags&flagMemfd != 0, Deleted: flags&flagDeleted != 0,
		ArgsTruncated: flags&flagArgsTruncated != 0, Setid: flags&flagSetid != 0, Gained: flags&flagGained != 0, NSPID: u32(offNSPID),
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
	detail, ok5 := part(offDetailLen)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return decoded{}, fmt.Errorf("%w: a part is longer than the record", errMalformed)
	}
	p.Exe = joinPath(exe, p.Memfd)
	p.Cwd = joinPath(cwd, false)
	var cut bool
	p.Args, cut = splitArgs(args)
	p.ArgsTruncated = p.ArgsTruncated || cut

	var known bool
	if e.Kind, known = kinds[u16(offKind)]; !known {
		return decoded{}, fmt.Errorf("%w: kind %d", errMalformed, u16(offKind))
	}
	if u16(offKind) == kindCgroup {
		d.made = text(file)
		return d, nil
	}
	if name, ok := callNames[u16(offCall)]; ok {
		e.Call = sensors.Call{Name: name, Failed: flags&flagFailed != 0}
	}
	switch e.Kind {
	case sensors.KindExit:
		e.ExitCode = exitCode(u32(offExitCode))
		p.Exe, p.Cwd = "", ""
	case sensors.KindConnect:
		e.Network = network(b[offAddress:offAddress+16], flags&flagIPv6 != 0, u16(offPort))
	case sensors.KindListen:
		e.Network = sensors.Network{Protocol: "tcp", Family: family(flags), Port: uint16(u16(offPort))} //nolint:gosec // read from 16 bits
	case sensors.KindDNS:
		e.Network = sensors.Network{Protocol: "udp", Port: dnsPort, Domain: domain(file)}
		file = nil
	case sensors.KindBurst:
		e.Count = int(u64(offValue) & 0xffffffff) //nolint:gosec // masked
	default:
		e.Call.Flags, e.Call.PID, e.Call.Detail = u64(offValue), u32(offTarget), text(detail)
	}
	e.File = sensors.File{Path: joinPath(file, false), Write: flags&flagWrite != 0, Asked: flags&flagAsked != 0}
	if e.File.Asked {
		e.File.Path = asked(text(file), p.Cwd)
	}
	if e.Kind == sensors.KindRawSocket {
		e.Call.Detail, e.Call.PID = socketFamily(e.Call.Flags), 0
	}
	return d, nil
}

// asked makes a path of what a caller said, as far as that can be known: links in it are not followed.
func asked(p, cwd string) string {
	switch {
	case p == "":
		return ""
	case path.IsAbs(p):
		return path.Clean(p)
	case path.IsAbs(cwd):
		return path.Join(cwd, p)
	}
	return p
}

func family(flags int) string {
	if flags&flagIPv6 != 0 {
		return "ipv6"
	}
	return "ipv4"
}

const dnsPort = 53

// domain reads the first name of a question as DNS writes it: a length, a label, and so on to a length of nothing. A name that
// is not complete is given as far as it goes.
func domain(b []byte) string {
	var labels []string
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 || n > 63 || n >= len(b) {
			break
		}
		labels = append(labels, strings.ToLower(strings.ToValidUTF8(string(b[1:1+n]), "\uFFFD")))
		b = b[1+n:]
	}
	return strings.Join(labels, ".")
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
