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
	index, peer int
	name, kind  string
	mac         [6]byte
	loopback    bool
}

// FindWires gives the host-side ends of the network interfaces that a process can send on, entering its network
// namespace in a thread of its own. For a process in this process's own network namespace it gives ErrHostNetwork. An interface
// that is no veth with its other end here gives ErrNotSupported, together with the wires that were found.
func FindWires(pid int) ([]Wire, error) {
	ns := "/proc/" + strconv.Itoa(pid) + "/ns/net"
	theirs, err := os.Stat(ns)
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	ours, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	if os.SameFile(theirs, ours) {
		return nil, fmt.Errorf("process %d: %w", pid, ErrHostNetwork)
	}
	here, err := interfaces()
	if err != nil {
		return nil, err
	}
	var (
		there []iface
		addrs map[int][]netip.Addr
	)
	if err := inNetNS(ns, func() (err error) {
		if there, err = interfaces(); err != nil {
			return err
		}
		addrs, err = addresses()
		return err
	}); err != nil {
		return nil, fmt.Errorf("look into the network namespace of process %d: %w", pid, err)
	}
	byIndex := map[int]iface{}
	for _, i := range here {
		byIndex[i.index] = i
	}
	var wires []Wire
	var errs []error
	for _, i := range there {
		if i.loopback {
			continue
		}
		host, ok := byIndex[i.peer]
		// The other end of a veth names this one: an index alone may be that of another namespace.
		if i.kind != "veth" || !ok || host.kind != "veth" || host.peer != i.index {
			if i.kind != "" && i.kind != "veth" && len(addrs[i.index]) == 0 {
				continue // an unused tunnel device, as kernels put into every namespace
			}
			errs = append(errs, fmt.Errorf("interface %s (%s) of process %d has no end here that could be held: %w", i.name, i.kind, pid, ErrNotSupported))
			continue
		}
		wires = append(wires, Wire{Index: host.index, Name: host.name, Addrs: addrs[i.index], MAC: i.mac, Gateways: gateways(pid, i.name)})
	}
	return wires, errors.Join(errs...)
}

// inNetNS runs f in a thread that has entered a network namespace and ends with it.
func inNetNS(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("setns: %w", err)
			return
		}
		done <- f()
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

func addresses() (map[int][]netip.Addr, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[int][]netip.Addr{}
	for _, i := range ifs {
		all, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", i.Name, err)
		}
		for _, a := range all {
			if n, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(n.IP); ok {
					out[i.Index] = append(out[i.Index], addr.Unmap())
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
