package probe

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netInterface is a network interface as netlink describes it.
type netInterface struct {
	index, peer, master int
	peerNSID            int // the ID of the namespace that the other end is in; -1 for this namespace
	name, kind          string
	mac                 [6]byte
	loopback            bool
}

// FindVeths returns the host-side veths through which processes can send. It searches every network namespace that the
// processes reach through their threads, open files and mounts, and enters each in a separate thread. Together with
// the veths that it found, it returns an error for what could not be inspected or locked: ErrNotSupported for an
// interface whose other end is neither here nor in another of the namespaces, and ErrHostNetwork if a process is in
// this process's network namespace.
func FindVeths(pids ...int) ([]Veth, error) {
	here, err := listAllInterfaces()
	if err != nil {
		return nil, err
	}
	spaces, err := findNetNamespaces(pids)
	errs := []error{err}
	for i := range spaces {
		defer spaces[i].file.Close()
	}
	// Namespaces with an end here come first, because the others can use up the time limit.
	slices.SortStableFunc(spaces, func(a, b netNamespace) int { return cmp.Compare(min(b.nsid, 0), min(a.nsid, 0)) })
	deadline := time.Now().Add(namespaceSearchTimeout)
	for i := range spaces {
		if spaces[i].nsid < 0 && time.Now().After(deadline) {
			errs = append(errs,
				fmt.Errorf("%d network namespaces were not inspected within %s", len(spaces)-i, namespaceSearchTimeout))
			break
		}
		if err := spaces[i].readInterfaces(spaces, vethEndsIn(spaces[i].nsid, here)); err != nil &&
			len(errs) < maxReportedProblems {
			errs = append(errs, fmt.Errorf("inspect the network namespace of process %d: %w", spaces[i].pid, err))
		}
	}
	veths, problems := matchVeths(spaces, here)
	return veths, errors.Join(append(errs, problems...)...)
}

// matchVeths returns the host-side ends of the interfaces in namespaces, and an error for each interface that has none.
func matchVeths(spaces []netNamespace, here []netInterface) (veths []Veth, errs []error) {
	byIndex := map[int]netInterface{}
	for _, i := range here {
		byIndex[i.index] = i
	}
	unheld := 0
	for _, space := range spaces {
		for _, i := range space.interfaces {
			host, ok := byIndex[i.peer]
			switch {
			case i.loopback:
			// The host-side end of a veth must name this interface and its namespace, because anyone who creates an
			// interface can choose its index.
			case i.kind == "veth" && ok && host.kind == "veth" && host.peer == i.index && host.peerNSID == space.nsid &&
				space.nsid >= 0:
				if !slices.ContainsFunc(veths, func(w Veth) bool { return w.Index == host.index }) {
					veths = append(veths, space.toVeth(i, host))
				}
			// Its traffic leaves through a veth of another namespace.
			case i.kind == "veth" && space.isPeerInside(spaces, i):
			// An unused tunnel device, which kernels create in every namespace.
			case i.kind != "" && i.kind != "veth" && len(space.addrs[i.index]) == 0:
			default:
				if unheld++; unheld <= maxReportedProblems {
					errs = append(errs,
						fmt.Errorf("interface %q (%s) of process %d has no host-side veth that could be locked: %w", i.name, i.kind,
							space.pid, ErrNotSupported))
				}
			}
		}
	}
	if unheld > maxReportedProblems {
		errs = append(errs,
			fmt.Errorf("%d more interfaces have no host-side veth that could be locked: %w", unheld-maxReportedProblems,
				ErrNotSupported))
	}
	return veths, errs
}

const (
	// namespaceSearchTimeout limits the inspection of namespaces without an end here, because a lock waits for it.
	namespaceSearchTimeout = 2 * time.Second
	// maxVethAddrs is the maximum number of addresses of an interface in a lock. The pod may use each of them in ARP.
	maxVethAddrs = 16
	// maxInterfaces and maxListedAddrs limit how many interfaces and addresses of a namespace are read.
	maxInterfaces  = 1024
	maxListedAddrs = 4096
)

// vethEndsIn returns the indexes of the interfaces in a namespace whose other end is here, according to the node's own
// interfaces.
func vethEndsIn(id int, here []netInterface) []int {
	var ends []int
	for _, i := range here {
		if id >= 0 && i.kind == "veth" && i.peerNSID == id {
			ends = append(ends, i.peer)
		}
	}
	return ends
}

// isPeerInside reports whether the other end of a veth is in one of the namespaces, including this one.
func (n *netNamespace) isPeerInside(all []netNamespace, i netInterface) bool {
	inode := n.inode
	if i.peerNSID >= 0 {
		inode = n.inodeByNSID[i.peerNSID]
	}
	for _, other := range all {
		if other.inode == inode {
			return slices.ContainsFunc(other.interfaces, func(o netInterface) bool {
				return o.kind == "veth" &&
					o.index == i.peer && o.peer == i.index
			})
		}
	}
	return false
}

// ownNetNS is the network namespace of this thread. "self" would be the namespace of the first thread, which may have
// entered another one in runInNetNS.
const ownNetNS = "/proc/thread-self/ns/net"

// runInNetNS runs f in a thread that has entered a network namespace. If the thread cannot return to its own
// namespace, it ends with its goroutine, or is never used again if it is the first thread of the process.
func runInNetNS(ns *os.File, f func() error) error {
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

// listAllInterfaces lists the interfaces in this thread's network namespace.
func listAllInterfaces() ([]netInterface, error) { return listInterfaces(math.MaxInt) }

func listInterfaces(most int) ([]netInterface, error) {
	var out []netInterface
	err := dumpNetlink(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), unix.NLM_F_DUMP, most,
		func(m syscall.NetlinkMessage) error {
			return readInterface(m, &out)
		})
	if err != nil {
		return out, fmt.Errorf("list interfaces: %w", err)
	}
	return out, nil
}

// interfaceByIndex reads the interface with an index. The result is empty if it is gone.
func interfaceByIndex(index int) ([]netInterface, error) {
	var out []netInterface
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	err := dumpNetlink(unix.RTM_GETLINK, body, 0, 1, func(m syscall.NetlinkMessage) error {
		return readInterface(m,
			&out)
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("read interface %d: %w", index, err)
	}
	return out, nil
}

func readInterface(m syscall.NetlinkMessage, out *[]netInterface) error {
	if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return nil
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return err //nolint:wrapcheck // the caller adds the context
	}
	f := netInterface{
		index:    int(binary.NativeEndian.Uint32(m.Data[4:])),
		peerNSID: -1,
		loopback: binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_LOOPBACK != 0,
	}
	for _, a := range attrs {
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.IFLA_IFNAME:
			f.name = parseCString(a.Value)
		case unix.IFLA_LINK:
			if len(a.Value) >= 4 {
				f.peer = int(binary.NativeEndian.Uint32(a.Value))
			}
		case unix.IFLA_LINK_NETNSID:
			if len(a.Value) >= 4 {
				f.peerNSID = int(int32(binary.NativeEndian.Uint32(a.Value)))
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
	*out = append(*out, f)
	return nil
}

// linkKind returns IFLA_INFO_KIND from a nested attribute.
func linkKind(b []byte) string {
	for len(b) >= 4 {
		n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < 4 || n > len(b) {
			return ""
		}
		if typ == unix.IFLA_INFO_KIND {
			return parseCString(b[4:n])
		}
		if n = (n + 3) &^ 3; n > len(b) {
			return ""
		}
		b = b[n:]
	}
	return ""
}

// listAllAddresses lists the addresses in this thread's network namespace by interface index.
func listAllAddresses() (map[int][]netip.Prefix, error) { return listAddresses(0, math.MaxInt) }

// listAddresses lists the addresses of one interface, or of all interfaces if index is 0.
func listAddresses(index, most int) (map[int][]netip.Prefix, error) {
	out := map[int][]netip.Prefix{}
	body := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	err := dumpNetlink(unix.RTM_GETADDR, body, unix.NLM_F_DUMP, most, func(m syscall.NetlinkMessage) error {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			return nil
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return err //nolint:wrapcheck // the caller adds the context
		}
		var found netip.Addr
		for _, a := range attrs {
			// For a point-to-point address, IFA_LOCAL is the own address.
			if kind := a.Attr.Type; kind != unix.IFA_LOCAL && (kind != unix.IFA_ADDRESS || found.IsValid()) {
				continue
			}
			if addr, ok := netip.AddrFromSlice(a.Value); ok {
				found = addr.Unmap()
			}
		}
		if at := int(binary.NativeEndian.Uint32(m.Data[4:])); found.IsValid() {
			out[at] = append(out[at], netip.PrefixFrom(found, int(m.Data[1])))
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("list addresses: %w", err)
	}
	return out, nil
}

// readGateways returns the next hops of a process's routes through an interface. If some are missing, only replies
// through gateways that are not addresses of this node are blocked.
func readGateways(pid int, name string) []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if !a.IsUnspecified() && !slices.Contains(out, a) && len(out) < 16 {
			out = append(out, a)
		}
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/net/"
	if b := readLimited(dir + "route"); b != nil {
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != name {
				continue
			}
			if v, err := strconv.ParseUint(f[2], 16, 32); err == nil {
				var a [4]byte
				binary.NativeEndian.PutUint32(a[:], uint32(v)) // the kernel prints it in host byte order
				add(netip.AddrFrom4(a))
			}
		}
	}
	if b := readLimited(dir + "ipv6_route"); b != nil {
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

// readLimited reads a limited part of a route table, because a pod may have created millions of routes.
func readLimited(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRouteTableBytes))
	if err != nil {
		return nil
	}
	return b
}

const maxRouteTableBytes = 256 << 10 // bytes
