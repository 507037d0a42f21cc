package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"stanch/bpf"
)

// lockLayout is the name of the pin directory. It changes with the layout of the maps: locks that an older version
// pinned stay in their own directory until they expire.
const lockLayout = "lock-3"

// IsBPFDir reports whether a pin directory (empty: DefaultEgressLockDir) or, before it exists, its parent directory is
// on a BPF file system.
func IsBPFDir(dir string) bool {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir)
	}
	return isBPF(dir)
}

func isBPF(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// ensureBPFMount creates dir and ensures that it is on a BPF file system.
func ensureBPFMount(dir string) error {
	const usual = "/sys/fs/bpf"
	at := dir
	if strings.HasPrefix(dir, usual+"/") {
		at = usual
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	if !isBPF(at) {
		if err := unix.Mount("bpf", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount the BPF file system at %s (mount -t bpf bpf %s): %w", at, at, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	return nil
}

var vethPrograms = []struct {
	pin     string
	program string
	at      ebpf.AttachType
}{
	{"egress", bpf.LockProgLockVethEgress, ebpf.AttachTCXEgress}, // first, because it records the node's connections
	{"ingress", bpf.LockProgLockVethIngress, ebpf.AttachTCXIngress},
}

func (l *EgressLock) vethPinPath(index int, pin string) string {
	return filepath.Join(l.pinDir, "veth-"+strconv.Itoa(index)+"-"+pin)
}

// attachVeth locks a host-side veth. Its programs run before all other programs there. It keeps programs that are
// already attached.
func (l *EgressLock) attachVeth(index int) error {
	for _, w := range vethPrograms {
		pin := l.vethPinPath(index, w.pin)
		if isLinkAttached(pin, index) {
			continue
		}
		_ = os.Remove(pin)
		made, err := link.AttachTCX(link.TCXOptions{
			Interface: index, Program: l.collection.Programs[w.program], Attach: w.at,
			Anchor: link.Head(),
		})
		if err != nil {
			return fmt.Errorf("attach to the veth: %w", err)
		}
		err = made.Pin(pin)
		_ = made.Close()
		if err != nil {
			return fmt.Errorf("pin the veth's program: %w", err)
		}
	}
	return nil
}

// isLinkAttached reports whether a pinned link is attached to the interface. It is not if the interface is gone.
func isLinkAttached(pin string, index int) bool {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil || info.TCX() == nil {
		return false
	}
	return int(info.TCX().Ifindex) == index
}

func (l *EgressLock) isVethLocked(index int) bool {
	for _, w := range vethPrograms {
		if !isLinkAttached(l.vethPinPath(index, w.pin), index) {
			return false
		}
	}
	return true
}

func (l *EgressLock) detachVeth(index int) {
	for _, w := range vethPrograms {
		detachAndUnpin(l.vethPinPath(index, w.pin))
	}
}

// detachAndUnpin detaches at once, even if another process has the link open.
func detachAndUnpin(pin string) {
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		_ = l.Detach()
		_ = l.Close()
	}
	_ = os.Remove(pin)
}

// adoptVeths replaces the programs of the links that an earlier process pinned. It removes links whose interface is
// gone or no longer locked.
func (l *EgressLock) adoptVeths() error {
	pins, err := os.ReadDir(l.pinDir)
	if err != nil {
		return fmt.Errorf("adopt pinned veths: %w", err)
	}
	for _, entry := range pins {
		index, which, ok := parseVethPin(entry.Name())
		if !ok {
			continue
		}
		pin := filepath.Join(l.pinDir, entry.Name())
		var v lockedObjectValue
		held := l.ebpfMap(bpf.LockMapLockedObjects).
			Lookup(lockedObjectKey{ID: uint64(index), Kind: objectVeth}, &v) ==
			nil
		if !held || !isLinkAttached(pin, index) {
			detachAndUnpin(pin)
			continue
		}
		for _, w := range vethPrograms {
			if w.pin != which {
				continue
			}
			old, err := link.LoadPinnedLink(pin, nil)
			if err == nil {
				err = errors.Join(old.Update(l.collection.Programs[w.program]), old.Close())
			}
			if err != nil {
				return fmt.Errorf("replace the program on veth %d: %w", index, err)
			}
		}
	}
	return nil
}

func parseVethPin(name string) (index int, which string, ok bool) {
	rest, ok := strings.CutPrefix(name, "veth-")
	if !ok {
		return 0, "", false
	}
	number, which, ok := strings.Cut(rest, "-")
	index, err := strconv.Atoi(number)
	return index, which, ok && err == nil
}

// Cleanup removes every lock, program and pin under dir (empty: DefaultEgressLockDir). It needs no open EgressLock,
// and it is not an error if nothing is pinned. It returns ErrInUse while a process has the lock open, because that
// process would continue to report the locks as active.
func Cleanup(dir string) error {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	owned, err := acquirePinDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("clean up this node: %w; stop that sensor first", err)
	}
	if err != nil {
		return fmt.Errorf("clean up this node: %w", err)
	}
	defer owned.Close()
	var errs []error
	layouts, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clean up this node: %w", err)
	}
	for _, layout := range layouts {
		if !layout.IsDir() || !strings.HasPrefix(layout.Name(), "lock-") {
			continue
		}
		at := filepath.Join(dir, layout.Name())
		pins, err := os.ReadDir(at)
		if err != nil {
			errs = append(errs, fmt.Errorf("clean up this node: %w", err))
			continue
		}
		for _, pin := range pins {
			if pin.Name() == "egress" || strings.HasPrefix(pin.Name(), "veth-") {
				detachAndUnpin(filepath.Join(at, pin.Name()))
			}
		}
		if err := os.RemoveAll(at); err != nil {
			errs = append(errs, fmt.Errorf("clean up this node: %w", err))
		}
	}
	_ = os.Remove(dir) // succeeds only if it is empty
	return errors.Join(errs...)
}
