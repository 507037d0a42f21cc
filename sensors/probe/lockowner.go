package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"stanch/bpf"
)

// ErrInUse says that another process uses the pins of a directory: two that write the same maps lose each other's
// writes, and a lock that is reported as held would not be in force.
var ErrInUse = errors.New("another sensor uses it")

// inUseRemedy says what to do about ErrInUse.
const inUseRemedy = "; stop that one first, or run `stanch up` with --no-sensor"

// handoverTimeout is how long a process waits for one that is ending to let its pins go.
const handoverTimeout = 2 * time.Second

// acquirePinDir takes the exclusive right to change what is pinned under dir. It ends with the process, however that ends, or when
// the file is closed.
func acquirePinDir(dir string, wait time.Duration) (*os.File, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		f, err := os.Open(dir)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", dir, err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isSameFile(f, dir) {
			return f, nil
		}
		inUse := err == nil || errors.Is(err, unix.EWOULDBLOCK) // locked, and removed meanwhile
		if err != nil && !inUse {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		holder := describeOwner(f)
		_ = f.Close()
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lock %s: %w%s", dir, ErrInUse, holder)
		}
	}
}

func isSameFile(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}

// CheckNotInUse returns an error that wraps ErrInUse, and names the process, while another sensor of this machine has the
// pins under dir (empty: DefaultEgressLockDir). What cannot be opened here is free: OpenEgressLock says later what it lacks.
func CheckNotInUse(dir string) error {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	f, err := acquirePinDir(dir, handoverTimeout)
	if err == nil {
		return f.Close()
	}
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("start a sensor on this machine: %w%s", err, inUseRemedy)
	}
	return nil
}

// describeOwner names the process that has a file locked and its data directory, as far as they can be seen from here.
func describeOwner(f *os.File) string {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return ""
	}
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		// 1: FLOCK  ADVISORY  WRITE 1234 00:1b:5678 0 EOF
		at := strings.Fields(line)
		if len(at) < 6 || at[1] != "FLOCK" || !strings.HasSuffix(at[5], ":"+strconv.FormatUint(st.Ino, 10)) {
			continue
		}
		if pid, err := strconv.Atoi(at[4]); err == nil && pid > 0 {
			return fmt.Sprintf(" (process %d%s)", pid, dataDirOf(pid))
		}
	}
	return ""
}

// dataDirOf names the data directory of a Stanch process by the lock that it has open there, or the directory of a sensor's
// spool; "" if neither can be seen.
func dataDirOf(pid int) string {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	spool := ""
	for _, fd := range fds {
		switch path, err := os.Readlink(filepath.Join(dir, fd.Name())); {
		case err != nil:
		case filepath.Base(path) == "lock" && filepath.IsAbs(path):
			return ", data directory " + filepath.Dir(path)
		case strings.HasSuffix(path, ".spool") && filepath.IsAbs(path):
			spool = ", state directory " + filepath.Dir(path)
		}
	}
	return spool
}

// ReadLocks gives the locks in force that are pinned under dir (empty: DefaultEgressLockDir), without changing anything. It
// works beside a sensor, and gives none where nothing is pinned.
func ReadLocks(dir string) ([]EgressLockState, error) {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	l := &EgressLock{pinDir: dir + "/" + lockLayout, collection: &ebpf.Collection{Maps: map[string]*ebpf.Map{}}}
	defer l.collection.Close()
	for _, name := range []string{bpf.LockMapLocks, bpf.LockMapCounts, bpf.LockMapHolds} {
		m, err := ebpf.LoadPinnedMap(l.pinDir+"/"+name, &ebpf.LoadPinOptions{ReadOnly: true})
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the egress locks: %w", err)
		}
		l.collection.Maps[name] = m
	}
	return l.readActiveLocks()
}
