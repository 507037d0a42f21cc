package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// attachedLinks keep programs attached, until close is called or the process ends in any way.
//
// Detaching a program from a tracepoint waits until no CPU runs it, and the kernel does that for one tracepoint after
// the other, some 25 ms each. If the last reference to a link is a file of a BPF file system, the kernel waits in the
// background instead. So the links are in a file system that nobody else sees, and which ends with its mount.
type attachedLinks struct {
	mount *os.File    // nil if there is none
	open  []link.Link // that are not in the file system
}

// keepAttached takes over the links. Those that cannot be moved stay open, and closing them waits.
func keepAttached(links []link.Link) attachedLinks {
	mount, err := mountPrivateBPF()
	if err != nil {
		return attachedLinks{open: links}
	}
	kept := attachedLinks{mount: mount}
	dir := filepath.Join("/proc/self/fd", strconv.Itoa(int(mount.Fd())))
	for i, l := range links {
		if err := l.Pin(filepath.Join(dir, strconv.Itoa(i))); err != nil {
			kept.open = append(kept.open, l)
			continue
		}
		_ = l.Close() // not the last reference
	}
	return kept
}

// close detaches the programs.
func (a attachedLinks) close() error {
	closed := make([]error, len(a.open), len(a.open)+1)
	var wg sync.WaitGroup
	for i, l := range a.open {
		wg.Go(func() { closed[i] = l.Close() })
	}
	wg.Wait()
	if a.mount != nil {
		closed = append(closed, a.mount.Close())
	}
	return errors.Join(closed...)
}

// mountPrivateBPF returns the root of a new BPF file system that is in no directory. It ends when the file is closed.
func mountPrivateBPF() (*os.File, error) {
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a BPF file system: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create a BPF file system: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, fmt.Errorf("mount a BPF file system: %w", err)
	}
	return os.NewFile(uintptr(fd), "bpf"), nil
}
