package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"stanch/bpf"
)

// ErrInUse means that another process uses the pin directory. Two processes that write the same maps would overwrite
// each other's changes, and a lock could be reported as active while it is not.
var ErrInUse = errors.New("in use by another sensor")

// inUseRemedy is the remedy in errors that wrap ErrInUse.
const inUseRemedy = "; stop that sensor first, or run `stanch up` with --no-sensor"

// handoverTimeout is how long a process waits for an exiting process to release the pin directory.
const handoverTimeout = 2 * time.Second

// acquirePinDir takes the exclusive right to change the pins under dir. The right ends when the returned file is
// closed or the process exits.
func acquirePinDir(dir string) (*os.File, error) {
	return backoff.Retry(context.Background(), func() (*os.File, error) {
		f, err := os.Open(dir)
		if err != nil {
			return nil, backoff.Permanent(fmt.Errorf("open %s: %w", dir, err))
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isSameFile(f, dir) {
			return f, nil
		}
		inUse := err == nil || errors.Is(err, unix.EWOULDBLOCK) // locked by another process, or removed in the meantime
		if err != nil && !inUse {
			return nil, backoff.Permanent(errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close()))
		}
		defer func() { _ = f.Close() }()
		return nil, fmt.Errorf("lock %s: %w%s", dir, ErrInUse, describeOwner(f))
	}, backoff.WithBackOff(backoff.NewConstantBackOff(20*time.Millisecond)), backoff.WithMaxElapsedTime(handoverTimeout))
}

func isSameFile(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}

// CheckNotInUse returns an error that wraps ErrInUse, and names the process, if another sensor of this machine uses
// the pins under dir (empty: DefaultEgressLockDir). A directory that cannot be opened counts as not in use;
// OpenEgressLock reports that problem later.
func CheckNotInUse(dir string) error {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	f, err := acquirePinDir(dir)
	if err == nil {
		return f.Close()
	}
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("start a sensor on this machine: %w%s", err, inUseRemedy)
	}
	return nil
}

// describeOwner names the process that has locked a file, and its data directory, as far as they are visible to this
// process.
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
		// Format: "1: FLOCK ADVISORY WRITE 1234 00:1b:5678 0 EOF".
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

// dataDirOf names the data directory of a Stanch process by the lock file that it has open, or the state directory of
// a sensor by its spool. It returns "" if neither is visible.
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

// ReadLocks returns the active locks that are pinned under dir (empty: DefaultEgressLockDir), sorted by expiry. It
// changes nothing and works while a sensor runs. It returns no locks if nothing is pinned.
func ReadLocks(dir string) ([]EgressLockState, error) {
	if dir == "" {
		dir = DefaultEgressLockDir
	}
	l := &EgressLock{pinDir: dir + "/" + lockLayout, collection: &ebpf.Collection{Maps: map[string]*ebpf.Map{}}}
	defer l.collection.Close()
	for _, name := range []string{bpf.LockMapLocks, bpf.LockMapCounts, bpf.LockMapLockedObjects} {
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
