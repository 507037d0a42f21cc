package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// netNamespace is a network namespace that processes can reach.
type netNamespace struct {
	pid         int // a process that can reach it
	inode       uint64
	file        *os.File
	interfaces  []netInterface
	addrs       map[int][]netip.Prefix
	nsid        int            // its ID in this process's namespace; -1 without one
	inodeByNSID map[int]uint64 // the inodes of the other namespaces by their IDs in this one
}

// Limits of the search. A target that exceeds them may be hiding something, so the search reports it.
const (
	maxNamespaces      = 64
	maxSearchedHandles = 16384 // threads and open files
	// maxReportedProblems limits the number of errors in the result, because people read them.
	maxReportedProblems = 8
)

// namespaceSearch collects the network namespaces that processes can reach.
type namespaceSearch struct {
	ownInode      uint64 // inode of this process's network namespace
	nsfsDevice    uint64 // device of the nsfs file system
	namespaces    []netNamespace
	mountedInodes map[uint64]int  // inodes of mounted namespaces, and a process that sees the mount
	knownInodes   map[uint64]bool // inodes of namespaces
	withoutNSID   int             // number of namespaces without an ID here
	handles       int             // threads first, then open files
	reachesHost   bool
}

// findNetNamespaces opens every network namespace that processes reach through a thread or an open file. The error
// describes what could not be inspected. It wraps ErrHostNetwork if a thread is in this process's namespace. The
// caller must close the files.
func findNetNamespaces(pids []int) ([]netNamespace, error) {
	var st unix.Stat_t
	if err := unix.Stat(ownNetNS, &st); err != nil {
		return nil, fmt.Errorf("read this process's network namespace: %w", err)
	}
	own := st.Ino
	s := &namespaceSearch{
		ownInode: own, nsfsDevice: st.Dev, mountedInodes: map[uint64]int{},
		knownInodes: map[uint64]bool{},
	}
	var errs []error
	alive := 0
	// Inspect the namespaces of all processes before those of their threads and open files: a process that creates
	// many threads or files must not hide the network that the target uses.
	for n, part := range []func(pid int, dir string) error{s.addMainNamespace, s.addFromThreads, s.addFromOpenFiles} {
		for _, pid := range pids {
			switch err := part(pid, "/proc/"+strconv.Itoa(pid)); {
			case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH): // it exited in the meantime
				continue
			case err != nil && len(errs) < maxReportedProblems:
				errs = append(errs, fmt.Errorf("find the network namespaces of process %d: %w", pid, err))
			}
			if n == 0 {
				alive++
			}
		}
		s.handles = 0
	}
	if alive == 0 {
		errs = append(errs, errors.New("no process is left whose network could be inspected"))
	}
	if s.reachesHost {
		errs = append(errs, ErrHostNetwork)
	}
	// Mounts of the node itself are ignored: a process that shares the node's mounts sees the namespaces of all pods.
	ours := mountedNamespaces("/proc/1")
	for inode := range mountedNamespaces("/proc/self") {
		ours[inode] = true
	}
	for inode, pid := range s.mountedInodes {
		if len(errs) < maxReportedProblems && inode != own && !ours[inode] && !slices.ContainsFunc(s.namespaces,
			func(n netNamespace) bool { return n.inode == inode }) {
			errs = append(errs,
				fmt.Errorf("process %d has network namespace %d mounted, which was not inspected: %w", pid, inode, ErrNotSupported))
		}
	}
	return s.namespaces, errors.Join(errs...)
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// addMainNamespace adds the namespace of a process, and records the namespaces that it sees as mounts.
func (s *namespaceSearch) addMainNamespace(pid int, dir string) error {
	for inode := range mountedNamespaces(dir) {
		if len(s.mountedInodes) < maxNamespaces {
			s.mountedInodes[inode] = pid
		}
	}
	return s.addByPath(pid, dir+"/ns/net")
}

// addByPath adds the namespace at a path.
func (s *namespaceSearch) addByPath(pid int, path string) error {
	inode, err := inodeOf(path)
	if err != nil {
		return err
	}
	if s.reachesHost = s.reachesHost || inode == s.ownInode; inode == s.ownInode {
		return nil
	}
	return s.add(pid, inode, func() (*os.File, error) { return os.Open(path) })
}

// addFromThreads adds the namespaces of a process's threads.
func (s *namespaceSearch) addFromThreads(pid int, dir string) error {
	names, err := s.listProcDir(dir + "/task")
	for _, name := range names {
		if e := s.addByPath(pid, dir+"/task/"+name+"/ns/net"); e != nil && !errors.Is(e, fs.ErrNotExist) &&
			!errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, e)
			break
		}
	}
	return err
}

// listProcDir lists a directory in /proc, up to the limit of the search.
func (s *namespaceSearch) listProcDir(dir string) ([]string, error) {
	left := maxSearchedHandles - s.handles
	if left <= 0 {
		return nil, fmt.Errorf("more than %d network namespaces in %s and elsewhere", maxSearchedHandles, filepath.Base(dir))
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(left + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if s.handles += len(names); len(names) > left {
		return names[:left], fmt.Errorf("more than %d network namespaces in %s and elsewhere", maxSearchedHandles,
			filepath.Base(dir))
	}
	return names, nil
}

// addFromOpenFiles adds the namespaces that a process has open.
func (s *namespaceSearch) addFromOpenFiles(pid int, dir string) error {
	open, problem := s.listProcDir(dir + "/fd")
	for _, f := range open {
		name := dir + "/fd/" + f
		to, err := os.Readlink(name)
		if err != nil || strings.HasPrefix(to, "socket:[") || strings.HasPrefix(to, "pipe:[") ||
			strings.HasPrefix(to, "anon_inode:") {
			continue
		}
		file, inode, err := s.openNamespace(name)
		if err != nil {
			return errors.Join(problem, err)
		}
		if file == nil {
			continue
		}
		err = s.add(pid, inode, func() (*os.File, error) { return file, nil })
		if !slices.ContainsFunc(s.namespaces, func(n netNamespace) bool { return n.file == file }) {
			_ = file.Close() // already known, or over the limit
		}
		if err != nil {
			return errors.Join(problem, err)
		}
	}
	return problem
}

// mountedNamespaces returns the network namespaces in a process's mount table.
func mountedNamespaces(dir string) map[uint64]bool {
	found := map[uint64]bool{}
	b, err := os.ReadFile(dir + "/mountinfo")
	if err != nil {
		return found // the process exited, so it has no files either
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			if inode, ok := parseNamespaceInode(f[3]); ok {
				found[inode] = true
			}
		}
	}
	return found
}

// add adds a namespace. A namespace with an ID here has a veth whose other end is here, which only the node can
// create. The limit applies to the other namespaces, because a container can create any number of them.
func (s *namespaceSearch) add(pid int, inode uint64, open func() (*os.File, error)) error {
	if s.knownInodes[inode] {
		return nil
	}
	file, err := open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	number, err := namespaceID(file)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if number < 0 {
		if s.withoutNSID >= maxNamespaces {
			return errors.Join(fmt.Errorf("more than %d network namespaces", maxNamespaces), file.Close())
		}
		s.withoutNSID++
	}
	s.knownInodes[inode] = true
	s.namespaces = append(s.namespaces, netNamespace{
		pid: pid, inode: inode, file: file, nsid: number,
		inodeByNSID: map[int]uint64{},
	})
	return nil
}

// parseNamespaceInode parses the name of a network namespace in /proc: "net:[4026531840]".
func parseNamespaceInode(name string) (uint64, bool) {
	number, ok := strings.CutPrefix(name, "net:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// openNamespace opens a process's file if it is a network namespace other than this process's own; otherwise it
// returns nil. A container's file may be on a file system that never responds, so it uses only information that the
// kernel has cached.
func (s *namespaceSearch) openNamespace(name string) (*os.File, uint64, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, 0, nil // closed in the meantime
	}
	if err != nil {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return nil, 0, &fs.PathError{Op: "statx", Path: name, Err: err}
	}
	if unix.Mkdev(st.Dev_major, st.Dev_minor) != s.nsfsDevice || st.Ino == s.ownInode {
		return nil, 0, nil
	}
	file, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, 0, fmt.Errorf("open namespace %d: %w", st.Ino, err)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = file.Close()
		return nil, 0, nil
	}
	return file, st.Ino, nil
}

// readInterfaces reads the interfaces of a namespace, and the IDs of the other namespaces in it. ends are the indexes
// of interfaces whose other end is here; they are read even if there are too many other interfaces.
func (n *netNamespace) readInterfaces(all []netNamespace, ends []int) error {
	return runInNetNS(n.file, func() error {
		var err error
		if n.interfaces, err = listInterfaces(maxInterfaces); err != nil && !errors.Is(err, errTooManyEntries) {
			return err
		}
		tooMany := err
		for _, index := range ends {
			if slices.ContainsFunc(n.interfaces, func(i netInterface) bool { return i.index == index }) {
				continue
			}
			one, err := interfaceByIndex(index)
			if err != nil {
				return err
			}
			n.interfaces = append(n.interfaces, one...)
		}
		for i := range all {
			if number, err := namespaceID(all[i].file); err == nil && number >= 0 {
				n.inodeByNSID[number] = all[i].inode
			}
		}
		n.addrs, err = listAddresses(0, maxListedAddrs)
		if err != nil && !errors.Is(err, errTooManyEntries) {
			return err
		}
		for _, index := range ends {
			own, err := listAddresses(index, maxVethAddrs)
			if err != nil && !errors.Is(err, errTooManyEntries) {
				return err
			}
			n.addrs[index] = own[index]
		}
		return tooMany
	})
}

// toVeth returns the host-side end of an interface of the namespace.
func (n *netNamespace) toVeth(i, host netInterface) Veth {
	w := Veth{Index: host.index, Name: host.name, MAC: i.mac, Gateways: readGateways(n.pid, i.name)}
	for _, p := range n.addrs[i.index] {
		w.Addrs = append(w.Addrs, p.Addr())
		w.OnLinkPrefixes = append(w.OnLinkPrefixes, p.Masked())
	}
	return w
}

// namespaceID returns the ID of a network namespace in the current one, or -1 if it has none.
func namespaceID(f *os.File) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("read the ID of a network namespace: %w", err)
	}
	defer unix.Close(fd)
	const size = unix.NLMSG_HDRLEN + 4 + 8 // header, rtgenmsg with padding, one attribute
	ask := make([]byte, size)
	binary.NativeEndian.PutUint32(ask, size)
	binary.NativeEndian.PutUint16(ask[4:], unix.RTM_GETNSID)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint16(ask[20:], 8)
	binary.NativeEndian.PutUint16(ask[22:], unix.NETNSA_FD)
	binary.NativeEndian.PutUint32(ask[24:], uint32(f.Fd()))
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, fmt.Errorf("read the ID of a network namespace: %w", err)
	}
	answer := make([]byte, 4096)
	got, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return -1, fmt.Errorf("read the ID of a network namespace: %w", err)
	}
	if got < size || binary.NativeEndian.Uint16(answer[4:]) != unix.RTM_NEWNSID {
		return -1, errors.New("read the ID of a network namespace: the kernel returned an error")
	}
	for at := unix.NLMSG_HDRLEN + 4; at+8 <= got; {
		length := int(binary.NativeEndian.Uint16(answer[at:]))
		if binary.NativeEndian.Uint16(answer[at+2:]) == unix.NETNSA_NSID {
			return int(int32(binary.NativeEndian.Uint32(answer[at+4:]))), nil
		}
		at += max((length+3)&^3, 4)
	}
	return -1, nil
}
