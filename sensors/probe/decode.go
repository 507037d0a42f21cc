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

// The layout of struct event in bpf/src/event.h. TestLayout compares it with the BTF of the compiled object.
const (
	offsetKind, offsetFlags, offsetExeLen, offsetCwdLen                   = 0, 2, 4, 6
	offsetArgsLen, offsetFileLen, offsetStdio, offsetAncestors            = 8, 10, 12, 13
	offsetPort, offsetTime, offsetCgroup, offsetStart                     = 14, 16, 24, 32
	offsetCapabilities, offsetInode, offsetDevice, offsetPID              = 40, 48, 56, 64
	offsetPPID, offsetUID, offsetEUID, offsetGID                          = 68, 72, 76, 80
	offsetCPU, offsetExitCode, offsetTarget, offsetValue                  = 84, 88, 100, 104
	offsetNSPID, offsetCall, offsetDetailLen                              = 112, 116, 118
	offsetAddress, offsetComm, offsetTTY, offsetAncestor, eventHeaderSize = 120, 136, 152, 168, 328

	ancestorSize      = 20
	maxEventDataBytes = 8192
	maxArgs           = 512
)

const (
	flagUpperLayer, flagMemfd, flagDeleted, flagArgsTruncated      = 1 << 0, 1 << 1, 1 << 2, 1 << 3
	flagPathTruncated, flagOpenedForWrite, flagIPv6                = 1 << 4, 1 << 5, 1 << 6
	flagParentOnHost, flagSetid, flagPrivilegesGained              = 1 << 8, 1 << 9, 1 << 10
	flagPathUnresolved, flagSyscallFailed, flagExeFromPrivateMount = 1 << 11, 1 << 12, 1 << 13
)

// kindByNumber maps the numbers of bpf/src/event.h to event kinds.
var kindByNumber = map[int]sensors.Kind{
	1: sensors.KindExec, 2: sensors.KindExit, 3: sensors.KindConnect, 4: sensors.KindFileOpen, 5: sensors.KindFileDelete,
	6: sensors.KindChmod,
	7: sensors.KindUnixConnect, 8: sensors.KindListen, 9: sensors.KindDNS, 10: sensors.KindRawSocket,
	11: sensors.KindMount, 12: sensors.KindNamespaceChange,
	13: sensors.KindProcessTrace, 14: sensors.KindBPF, 15: sensors.KindIOUring, 16: sensors.KindKernelModule,
	17: sensors.KindProcessBurst, kindCgroupCreated: "cgroup",
}

// kindCgroupCreated is an internal record with the path of a new cgroup. It is never delivered as an event.
const kindCgroupCreated = 18

var errMalformedRecord = errors.New("malformed record")

// decodedRecord is a decoded record of the kernel. Its times are not yet converted to wall-clock time.
type decodedRecord struct {
	event      sensors.Event
	bootTimeNS uint64 // CLOCK_BOOTTIME, ns
	cpu        uint32
	// newCgroupPath is the path of a new cgroup. If it is set, only the event's cgroup ID is set as well.
	newCgroupPath string
	// parentOnHost reports whether the parent process is in a cgroup of the host.
	parentOnHost bool
	// exeFromPrivateMount reports whether the executable is on a mount that the process has and its parent does not.
	exeFromPrivateMount bool
}

// decodeRecord decodes one record. It validates every length in it.
func decodeRecord(b []byte) (decodedRecord, error) {
	if len(b) < eventHeaderSize || len(b) > eventHeaderSize+maxEventDataBytes+8 {
		return decodedRecord{}, fmt.Errorf("%w: %d bytes", errMalformedRecord, len(b))
	}
	u16 := func(at int) int { return int(binary.NativeEndian.Uint16(b[at:])) }
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	u64 := func(at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }

	flags := u16(offsetFlags)
	d := decodedRecord{
		bootTimeNS: u64(offsetTime), cpu: u32(offsetCPU), parentOnHost: flags&flagParentOnHost != 0,
		exeFromPrivateMount: flags&flagExeFromPrivateMount != 0,
	}
	e := &d.event
	p := &e.Process
	*p = sensors.Process{
		PID: u32(offsetPID), PPID: u32(offsetPPID), StartNS: u64(offsetStart),
		Name: parseCString(b[offsetComm : offsetComm+16]),
		TTY:  parseCString(b[offsetTTY : offsetTTY+16]), UID: u32(offsetUID), EUID: u32(offsetEUID), GID: u32(offsetGID),
		Capabilities: u64(offsetCapabilities), StdioSockets: b[offsetStdio] & 7, ExeInode: u64(offsetInode),
		ExeDevice:       decodeDevice(u64(offsetDevice)),
		ExeInUpperLayer: flags&flagUpperLayer != 0, ExeIsMemfd: flags&flagMemfd != 0, ExeDeleted: flags&flagDeleted != 0,
		ArgsTruncated: flags&flagArgsTruncated != 0, HasSetIDBits: flags&flagSetid != 0,
		PrivilegesGained: flags&flagPrivilegesGained != 0, NSPID: u32(offsetNSPID),
	}
	e.Container.CgroupID = u64(offsetCgroup)

	n := int(b[offsetAncestors])
	if n > sensors.MaxAncestors {
		return decodedRecord{}, fmt.Errorf("%w: %d ancestors", errMalformedRecord, n)
	}
	for i := range n {
		at := offsetAncestor + i*ancestorSize
		p.Ancestors = append(p.Ancestors, sensors.Ancestor{PID: u32(at), Name: parseCString(b[at+4 : at+20])})
	}

	rest := b[eventHeaderSize:]
	part := func(at int) ([]byte, bool) {
		n := u16(at)
		if n > len(rest) {
			return nil, false
		}
		head := rest[:n]
		rest = rest[n:]
		return head, true
	}
	exe, ok1 := part(offsetExeLen)
	cwd, ok2 := part(offsetCwdLen)
	args, ok3 := part(offsetArgsLen)
	file, ok4 := part(offsetFileLen)
	detail, ok5 := part(offsetDetailLen)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return decodedRecord{}, fmt.Errorf("%w: a field is longer than the record", errMalformedRecord)
	}
	p.Exe = joinPath(exe, p.ExeIsMemfd)
	p.Cwd = joinPath(cwd, false)
	var cut bool
	p.Args, cut = splitArgs(args)
	p.ArgsTruncated = p.ArgsTruncated || cut

	var known bool
	if e.Kind, known = kindByNumber[u16(offsetKind)]; !known {
		return decodedRecord{}, fmt.Errorf("%w: kind %d", errMalformedRecord, u16(offsetKind))
	}
	if u16(offsetKind) == kindCgroupCreated {
		d.newCgroupPath = parseCString(file)
		return d, nil
	}
	if name, ok := syscallNames[u16(offsetCall)]; ok {
		e.Syscall = sensors.Syscall{Name: name, Failed: flags&flagSyscallFailed != 0}
	}
	switch e.Kind {
	case sensors.KindExit:
		e.ExitCode = exitCode(u32(offsetExitCode))
		p.Exe, p.Cwd = "", ""
	case sensors.KindConnect:
		e.Network = newNetwork(b[offsetAddress:offsetAddress+16], flags&flagIPv6 != 0, u16(offsetPort))
	case sensors.KindListen:
		e.Network = sensors.Network{
			Protocol: "tcp",
			Family:   familyName(flags),
			Port:     uint16(u16(offsetPort)),
		}
	case sensors.KindDNS:
		e.Network = sensors.Network{Protocol: "udp", Port: dnsPort, Domain: parseDNSName(file)}
		file = nil
	case sensors.KindProcessBurst:
		e.Count = int(u64(offsetValue) & 0xffffffff)
	default:
		e.Syscall.Flags, e.Syscall.PID, e.Syscall.Detail = u64(offsetValue), u32(offsetTarget), parseCString(detail)
	}
	e.File = sensors.File{
		Path: joinPath(file, false), OpenedForWrite: flags&flagOpenedForWrite != 0,
		PathUnresolved: flags&flagPathUnresolved != 0,
	}
	if e.File.PathUnresolved {
		e.File.Path = resolveRequestedPath(parseCString(file), p.Cwd)
	}
	if e.Kind == sensors.KindRawSocket {
		e.Syscall.Detail, e.Syscall.PID = socketFamilyName(e.Syscall.Flags), 0
	}
	return d, nil
}

// resolveRequestedPath returns the absolute path for the string that a caller passed, as far as it is known. It does
// not follow links.
func resolveRequestedPath(p, cwd string) string {
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

func familyName(flags int) string {
	if flags&flagIPv6 != 0 {
		return "ipv6"
	}
	return "ipv4"
}

const dnsPort = 53

// parseDNSName parses the first name of a DNS question: labels, each preceded by its length, up to a zero length. It
// returns the complete labels of a truncated name.
func parseDNSName(b []byte) string {
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

func newNetwork(b []byte, v6 bool, port int) sensors.Network {
	n := sensors.Network{Protocol: "tcp", Port: uint16(port)}
	if v6 {
		n.Family, n.Address = "ipv6", netip.AddrFrom16([16]byte(b)).String()
	} else {
		n.Family, n.Address = "ipv4", netip.AddrFrom4([4]byte(b[:4])).String()
	}
	return n
}

// exitCode returns the exit code that a shell would show: 128 plus the signal for a process that was killed.
func exitCode(status uint32) int {
	if signal := status & 0x7f; signal != 0 {
		return 128 + int(signal)
	}
	return int(status >> 8 & 0xff)
}

// decodeDevice converts the kernel's internal device number to the encoding of stat.
func decodeDevice(d uint64) uint64 {
	return unix.Mkdev(uint32(d>>20&0xfff), uint32(d&0xfffff))
}

// joinPath converts NUL-terminated names, the last path element first, to a path.
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

// splitArgs splits a NUL-separated command line, and reports whether it dropped arguments beyond maxArgs.
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

func parseCString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}

// bootClock converts the kernel's boot time to wall-clock time. It caches the offset for a second, so that the time
// between two close events is exact.
type bootClock struct {
	readClocks     func() (wall time.Time, boot time.Duration)
	wallTimeAtBoot time.Time // wall-clock time at boot
	offsetReadAt   time.Duration
}

func (c *bootClock) toWallTime(boot uint64) time.Time {
	t := time.Duration(boot)
	if c.wallTimeAtBoot.IsZero() || t-c.offsetReadAt > time.Second || c.offsetReadAt-t > time.Minute {
		wall, now := c.readClocks()
		c.wallTimeAtBoot, c.offsetReadAt = wall.Add(-now), now
	}
	return c.wallTimeAtBoot.Add(t).UTC()
}

func readClocks() (time.Time, time.Duration) {
	return time.Now().Round(0), sinceBoot()
}

// sinceBoot returns CLOCK_BOOTTIME, the clock that bpf_ktime_get_boot_ns reads.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail for this clock
	return time.Duration(ts.Nano())
}
