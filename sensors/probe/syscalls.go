package probe

import (
	"fmt"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"stanch/bpf"
)

// tracedSyscall is a system call that the program observe_call handles.
type tracedSyscall struct {
	code   uint32 // CALL_… of bpf/src/event.h
	name   string
	number uint32 // the number on this architecture; 0 if it does not exist
}

// tracedSyscalls lists every traced call by the name of its tracepoint. Similar calls (unlinkat and unlink) have
// different codes if their arguments differ.
var tracedSyscalls = []tracedSyscall{
	{1, "mount", unix.SYS_MOUNT},
	{2, "move_mount", unix.SYS_MOVE_MOUNT},
	{3, "pivot_root", unix.SYS_PIVOT_ROOT},
	{4, "fsmount", unix.SYS_FSMOUNT},
	{4, "open_tree", unix.SYS_OPEN_TREE},
	{5, "setns", unix.SYS_SETNS},
	{6, "unshare", unix.SYS_UNSHARE},
	{8, "ptrace", unix.SYS_PTRACE},
	{9, "process_vm_readv", unix.SYS_PROCESS_VM_READV},
	{10, "process_vm_writev", unix.SYS_PROCESS_VM_WRITEV},
	{11, "chmod", sysChmod},
	{12, "fchmod", unix.SYS_FCHMOD},
	{13, "fchmodat", unix.SYS_FCHMODAT},
	{13, "fchmodat2", unix.SYS_FCHMODAT2},
	{14, "setxattr", unix.SYS_SETXATTR},
	{14, "lsetxattr", unix.SYS_LSETXATTR},
	{15, "fsetxattr", unix.SYS_FSETXATTR},
	{16, "socket", unix.SYS_SOCKET},
	{17, "bpf", unix.SYS_BPF},
	{18, "io_uring_setup", unix.SYS_IO_URING_SETUP},
	{20, "unlink", sysUnlink},
	{21, "unlinkat", unix.SYS_UNLINKAT},
	{22, "truncate", unix.SYS_TRUNCATE},
	{23, "rename", sysRename},
	{24, "renameat", sysRenameat},
	{24, "renameat2", unix.SYS_RENAMEAT2},
	{26, "init_module", unix.SYS_INIT_MODULE},
	{26, "finit_module", unix.SYS_FINIT_MODULE},
	{27, "delete_module", unix.SYS_DELETE_MODULE},
	{28, "open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT},
	{34, "link", sysLink},
	{35, "linkat", unix.SYS_LINKAT},
}

// syscallNames maps codes to the names in events.
var syscallNames = func() map[int]string {
	names := map[int]string{
		7: "clone", 19: "listen", 25: "connect", 29: "openat", 30: "openat2", 31: "open", 32: "creat",
		33: "io_uring",
	}
	for _, c := range tracedSyscalls {
		if _, ok := names[int(c.code)]; !ok {
			names[int(c.code)] = c.name
		}
	}
	return names
}()

// attachTracedSyscalls attaches one program to the tracepoint of each call. It skips calls that this kernel does not
// have.
func attachTracedSyscalls(p *Probe, prog *ebpf.Program) ([]link.Link, error) {
	if err := mountTracefs(); err != nil {
		return nil, err
	}
	var links []link.Link
	var first error
	for _, c := range tracedSyscalls {
		if c.number == 0 {
			continue
		}
		if err := p.collection.Maps[bpf.ObserveMapCalls].Put(c.number, c.code); err != nil {
			return links, fmt.Errorf("load the number of %s into the kernel maps: %w", c.name, err)
		}
		l, err := link.Tracepoint("syscalls", "sys_exit_"+c.name, prog, nil)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		links = append(links, l)
	}
	if len(links) == 0 {
		return nil, first
	}
	return links, nil
}

func socketFamilyName(n uint64) string {
	switch n {
	case unix.AF_PACKET:
		return "packet"
	case unix.AF_INET:
		return "ipv4"
	case unix.AF_INET6:
		return "ipv6"
	}
	return strconv.FormatUint(n, 10)
}
