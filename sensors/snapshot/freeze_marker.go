package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FreezeState is how a cgroup stands.
type FreezeState struct {
	Requested bool `json:"requested"` // cgroup.freeze is 1
	Frozen    bool `json:"frozen"`    // the kernel says that all stand still
}

// ReadFreezeState reads how a cgroup stands.
func ReadFreezeState(cgroupDir string) (FreezeState, error) {
	asked, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.freeze"))
	if err != nil {
		return FreezeState{}, fmt.Errorf("read the freeze of cgroup %s: %w", cgroupDir, err)
	}
	events, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.events"))
	if err != nil {
		return FreezeState{}, fmt.Errorf("read the freeze of cgroup %s: %w", cgroupDir, err)
	}
	return FreezeState{
		Requested: strings.TrimSpace(string(asked)) == "1", Frozen: strings.Contains("\n"+string(events), "\nfrozen 1"),
	}, nil
}

// openCgroup opens the directory of a cgroup. Whatever is done through it is done to that cgroup: a path may be another
// cgroup's a moment later. id is the cgroup's id; 0 accepts any.
func openCgroup(path string, id uint64) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path) //nolint:gosec // a descriptor
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("open cgroup %s: %w", path, err), dir.Close())
	}
	if id != 0 && st.Ino != id {
		return nil, errors.Join(fmt.Errorf("open cgroup %s: it is cgroup %d now, and not %d", path, st.Ino, id), dir.Close())
	}
	return dir, nil
}

// openCgroupFile opens a file of a cgroup.
func openCgroupFile(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0) //nolint:gosec // a descriptor
	if err != nil {
		return nil, fmt.Errorf("open %s of cgroup %s: %w", name, dir.Name(), err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil //nolint:gosec // a descriptor
}

// readCgroupFile reads a file of the kernel's from its start.
func readCgroupFile(f *os.File) (string, error) {
	b := make([]byte, 256)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return string(b[:n]), nil
}

// isCgroupRemoved reports whether an error says that the cgroup was removed.
func isCgroupRemoved(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

// writeFreeze asks the kernel to freeze (1) or thaw (0) through an open cgroup.freeze. A removed cgroup is no error
// for a thaw: nothing is left to thaw.
func writeFreeze(f *os.File, value string) error {
	if _, err := f.WriteAt([]byte(value), 0); err != nil && (value != "0" || !isCgroupRemoved(err)) {
		return fmt.Errorf("write %s to %s: %w", value, f.Name(), err)
	}
	return nil
}

// freezeMarkerXattr is the extended attribute on a cgroup's directory that says for which lease Stanch froze it. Only
// CAP_SYS_ADMIN reads or writes attributes of this kind, and the attribute goes with the cgroup.
const freezeMarkerXattr = "trusted.stanch.freeze"

// freezeMarker is the attribute's value.
type freezeMarker struct {
	LeaseID          string    `json:"lease"`
	TargetID         string    `json:"target"` // whose cgroup it is
	ExpiresAt        time.Time `json:"until"`
	ExpiryBootTimeNS int64     `json:"expiry_boot_time_ns"` // the same instant, in nanoseconds of CLOCK_BOOTTIME
	ThawerPID        int       `json:"thawer_pid"`          // the thawer's
	ThawerStartTicks string    `json:"thawer_start_ticks"`
}

// errNotFrozenByStanch says that Stanch did not freeze a cgroup.
var errNotFrozenByStanch = errors.New("not frozen by Stanch")

func readFreezeMarker(dir *os.File) (freezeMarker, error) {
	var m freezeMarker
	b := make([]byte, 1024)
	n, err := unix.Fgetxattr(int(dir.Fd()), freezeMarkerXattr, b) //nolint:gosec // a descriptor
	if errors.Is(err, unix.ENODATA) || isCgroupRemoved(err) {
		return m, errNotFrozenByStanch
	}
	if err != nil {
		return m, fmt.Errorf("read %s of cgroup %s: %w", freezeMarkerXattr, dir.Name(), err)
	}
	if err := json.Unmarshal(b[:n], &m); err != nil {
		return m, fmt.Errorf("read %s of cgroup %s: %w; thaw it with `echo 0 > cgroup.freeze` and remove the attribute", freezeMarkerXattr, dir.Name(), err)
	}
	return m, nil
}

// writeFreezeMarker creates the mark (unix.XATTR_CREATE) or replaces the one that is there (unix.XATTR_REPLACE).
func writeFreezeMarker(dir *os.File, m freezeMarker, flag int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("mark cgroup %s: %w", dir.Name(), err)
	}
	if err := unix.Fsetxattr(int(dir.Fd()), freezeMarkerXattr, b, flag); err != nil { //nolint:gosec // a descriptor
		return fmt.Errorf("mark cgroup %s: %w", dir.Name(), err)
	}
	return nil
}

// removeFreezeMarker removes the mark if it is this thawer's.
func removeFreezeMarker(dir *os.File, pid int) error {
	if m, err := readFreezeMarker(dir); err != nil || m.ThawerPID != pid {
		return nil //nolint:nilerr // another thawer's, or none
	}
	err := unix.Fremovexattr(int(dir.Fd()), freezeMarkerXattr) //nolint:gosec // a descriptor
	if err != nil && !errors.Is(err, unix.ENODATA) && !isCgroupRemoved(err) {
		return fmt.Errorf("remove %s of cgroup %s: %w", freezeMarkerXattr, dir.Name(), err)
	}
	return nil
}

// openThawerProcess opens the thawer's process. ok is false if it has ended, also if another has its number now.
func (m freezeMarker) openThawerProcess() (pidfd int, ok bool) {
	fd, err := unix.PidfdOpen(m.ThawerPID, 0)
	if err != nil {
		return -1, false
	}
	if processStartTicks(m.ThawerPID) != m.ThawerStartTicks || waitForExit(fd, 0) {
		_ = unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// processStartTicks says when a process started, in the kernel's ticks since boot. "" if there is no such process.
func processStartTicks(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in parentheses, may hold blanks and parentheses; the start is the 20th field after it.
	rest := string(b)[strings.LastIndexByte(string(b), ')')+1:]
	if f := strings.Fields(rest); len(f) > 19 {
		return f[19]
	}
	return ""
}

// waitForExit waits at most so long for a process to end.
func waitForExit(pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())) //nolint:gosec // a descriptor
		if err == nil && n > 0 {
			return true
		}
		if (err != nil && !errors.Is(err, unix.EINTR)) || !time.Now().Before(deadline) {
			return false
		}
	}
}

// sinceBoot is CLOCK_BOOTTIME: nobody sets it, and it goes on while the machine sleeps.
func sinceBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
