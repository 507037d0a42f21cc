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

// closeLinks detaches programs. Detaching one from a tracepoint waits until no CPU runs it, and the kernel does that
// one tracepoint after the other, some 25 ms each. If the last reference to a link is a file of a BPF file system, the
// kernel waits in the background instead. So the links are pinned in a file system that nobody else sees, and which is
// gone when this function returns or the process dies. Where that is not possible, closeLinks waits.
func closeLinks(links []link.Link) error {
	dir, release, err := openPrivateBPF()
	if err == nil {
		defer release()
	}
	closed := make([]error, len(links))
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() {
			if err == nil {
				_ = l.Pin(filepath.Join(dir, strconv.Itoa(i))) // not all kinds of links can be pinned
			}
			closed[i] = l.Close()
		})
	}
	wg.Wait()
	return errors.Join(closed...)
}

// openPrivateBPF returns the directory of a new BPF file system that is mounted nowhere. release ends it.
func openPrivateBPF() (dir string, release func(), err error) {
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", nil, fmt.Errorf("open a BPF file system: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return "", nil, fmt.Errorf("create a BPF file system: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("mount a BPF file system: %w", err)
	}
	root := os.NewFile(uintptr(fd), "bpf")
	return filepath.Join("/proc/self/fd", strconv.Itoa(fd)), func() { _ = root.Close() }, nil
}
