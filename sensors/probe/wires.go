package probe

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// iface is an interface as netlink describes it.
type iface struct {
	index, peer, master int
	peerNS              int // the number of the namespace that the other end is in; -1 if it is this one
	name, kind          string
	mac                 [6]byte
	loopback            bool
}

// FindWires gives the host-side ends of the network interfaces that processes can send on, over every network namespace
// that they, their threads, their open files and their mounts reach. It enters each in a thread of its own. Where some
// cannot be looked into, or have an interface whose other end is neither here nor in another of them, it gives an error
// together with the wires that were found: ErrNotSupported for such an interface, ErrHostNetwork where a process itself is
// in this process's network namespace.
func FindWires(pids ...int) ([]Wire, error) {
	here, err := interfaces()
	if err != nil {
		return nil, err
	}
	spaces, err := netSpaces(pids)
	errs := []error{err}
	for i := range spaces {
		defer spaces[i].file.Close()
	}
	for i := range spaces {
		if err := spaces[i].look(spaces); err != nil {
			errs = append(errs, fmt.Errorf("look into the network namespace of process %d: %w", spaces[i].pid, err))
		}
	}
	byIndex := map[int]iface{}
	for _, i := range here {
		byIndex[i.index] = i
	}
	var wires []Wire
	for _, space := range spaces {
		for _, i := range space.interfaces {
			host, ok := byIndex[i.peer]
			switch {
			case i.loopback:
			// The other end of a veth names this one and its namespace: indexes alone are whoever's makes the interface.
			case i.kind == "veth" && ok && host.kind == "veth" && host.peer == i.index && host.peerNS == space.id && space.id >= 0:
				if !slices.ContainsFunc(wires, func(w Wire) bool { return w.Index == host.index }) {
					wires = append(wires, space.wire(i, host))
				}
			case i.kind == "veth" && space.endsInside(spaces, i): // what goes through it leaves by a wire of the others'
			case i.kind != "" && i.kind != "veth" && len(space.addrs[i.index]) == 0: // an unused tunnel device, as kernels put into every namespace
			default:
				errs = append(errs, fmt.Errorf("interface %s (%s) of process %d has no end here that could be held: %w", i.name, i.kind, space.pid, ErrNotSupported))
			}
		}
	}
	return wires, errors.Join(errs...)
}

// endsInside reports whether the other end of a veth is in one of the namespaces, this one included.
func (n *netSpace) endsInside(all []netSpace, i iface) bool {
	inode := n.inode
	if i.peerNS >= 0 {
		inode = n.numbers[i.peerNS]
	}
	for _, other := range all {
		if other.inode == inode {
			return slices.ContainsFunc(other.interfaces, func(o iface) bool { return o.kind == "veth" && o.index == i.peer && o.peer == i.index })
		}
	}
	return false
}

// ownNetNS is the network namespace of this process. "self" would be that of its first thread, which may have entered
// another one in inNetNS.
const ownNetNS = "/proc/thread-self/ns/net"

// inNetNS runs f in a thread that has entered a network namespace. A thread that does not come back from it ends with its
// goroutine, or is never used again where it is the process's first.
func inNetNS(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open(ownNetNS)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open this thread's network namespace: %w", err)
			return
		}
		defer own.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("setns: %w", err)
			return
		}
		err = f()
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func interfaces() ([]iface, error) {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	msgs, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []iface
	for i := range msgs {
		if msgs[i].Header.Type != unix.RTM_NEWLINK || len(msgs[i].Data) < unix.SizeofIfInfomsg {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&msgs[i])
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		d := msgs[i].Data
		f := iface{
			index:    int(binary.NativeEndian.Uint32(d[4:])),
			peerNS:   -1,
			loopback: binary.NativeEndian.Uint32(d[8:])&unix.IFF_LOOPBACK != 0,
		}
		for _, a := range attrs {
			switch a.Attr.Type &^ unix.NLA_F_NESTED {
			case unix.IFLA_IFNAME:
				f.name = text(a.Value)
			case unix.IFLA_LINK:
				if len(a.Value) >= 4 {
					f.peer = int(binary.NativeEndian.Uint32(a.Value))
				}
			case unix.IFLA_LINK_NETNSID:
				if len(a.Value) >= 4 {
					f.peerNS = int(int32(binary.NativeEndian.Uint32(a.Value))) //nolint:gosec // the kernel's int
				}
			case unix.IFLA_MASTER:
				if len(a.Value) >= 4 {
					f.master = int(binary.NativeEndian.Uint32(a.Value))
				}
			case unix.IFLA_ADDRESS:
				copy(f.mac[:], a.Value)
			case unix.IFLA_LINKINFO:
				f.kind = linkKind(a.Value)
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// linkKind reads IFLA_INFO_KIND out of a nested attribute.
func linkKind(b []byte) string {
	for len(b) >= 4 {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < 4 || n > len(b) {
			return ""
		}
		if typ == unix.IFLA_INFO_KIND {
			return text(b[4:n])
		}
		if n = (n + 3) &^ 3; n > len(b) {
			return ""
		}
		b = b[n:]
	}
	return ""
}

func addresses() (map[int][]netip.Prefix, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[int][]netip.Prefix{}
	for _, i := range ifs {
		all, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", i.Name, err)
		}
		for _, a := range all {
			if n, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(n.IP); ok {
					ones, _ := n.Mask.Size()
					out[i.Index] = append(out[i.Index], netip.PrefixFrom(addr.Unmap(), ones))
				}
			}
		}
	}
	return out, nil
}

// gateways reads the next hops of a process's routes through an interface. Without them nothing is lost but replies on
// networks whose gateway is not an address of this node.
func gateways(pid int, name string) []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if !a.IsUnspecified() && !slices.Contains(out, a) && len(out) < 16 {
			out = append(out, a)
		}
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/net/"
	if b, err := os.ReadFile(dir + "route"); err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != name {
				continue
			}
			if v, err := strconv.ParseUint(f[2], 16, 32); err == nil {
				var a [4]byte
				binary.NativeEndian.PutUint32(a[:], uint32(v)) // the kernel prints its own byte order
				add(netip.AddrFrom4(a))
			}
		}
	}
	if b, err := os.ReadFile(dir + "ipv6_route"); err == nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 10 || f[9] != name || len(f[4]) != 32 {
				continue
			}
			if v, err := hex.DecodeString(f[4]); err == nil {
				add(netip.AddrFrom16([16]byte(v)))
			}
		}
	}
	return out
}
