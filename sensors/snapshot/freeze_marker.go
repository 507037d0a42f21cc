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

// FreezeState is the freeze state of a cgroup.
type FreezeState struct {
	Requested bool `json:"requested"` // cgroup.freeze is 1
	Frozen    bool `json:"frozen"`    // the kernel reports that all processes are stopped
}

// ReadFreezeState reads the freeze state of a cgroup from its absolute v2 directory.
func ReadFreezeState(cgroupDir string) (FreezeState, error) {
	asked, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.freeze"))
	if err != nil {
		return FreezeState{}, fmt.Errorf("read the freeze state of cgroup %s: %w", cgroupDir, err)
	}
	events, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.events"))
	if err != nil {
		return FreezeState{}, fmt.Errorf("read the freeze state of cgroup %s: %w", cgroupDir, err)
	}
	return FreezeState{
		Requested: strings.TrimSpace(string(asked)) == "1", Frozen: strings.Contains("\n"+string(events), "\nfrozen 1"),
	}, nil
}

// openCgroup opens the directory of a cgroup. Later operations use the open directory and so the same cgroup, even if
// the path is reused. id is the expected cgroup ID; 0 accepts any.
func openCgroup(path string, id uint64) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("open cgroup %s: %w", path, err), dir.Close())
	}
	if id != 0 && st.Ino != id {
		return nil, errors.Join(fmt.Errorf("open cgroup %s: its ID is now %d instead of %d", path, st.Ino, id), dir.Close())
	}
	return dir, nil
}

// openCgroupFile opens a file in a cgroup directory.
func openCgroupFile(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of cgroup %s: %w", name, dir.Name(), err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

// readCgroupFile reads a small kernel file from its start.
func readCgroupFile(f *os.File) (string, error) {
	b := make([]byte, 256)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return string(b[:n]), nil
}

// isCgroupRemoved reports whether an error means that the cgroup was removed.
func isCgroupRemoved(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

// writeFreeze writes "1" (freeze) or "0" (thaw) to an open cgroup.freeze. A removed cgroup is not an error for a thaw,
// because nothing is left to thaw.
func writeFreeze(f *os.File, value string) error {
	if _, err := f.WriteAt([]byte(value), 0); err != nil && (value != "0" || !isCgroupRemoved(err)) {
		return fmt.Errorf("write %s to %s: %w", value, f.Name(), err)
	}
	return nil
}

// freezeMarkerXattr is the extended attribute of a cgroup directory that records for which lease Stanch froze it. Only
// a process with CAP_SYS_ADMIN can access it, and it is removed with the cgroup.
const freezeMarkerXattr = "trusted.stanch.freeze"

// freezeMarker is the value of the attribute.
type freezeMarker struct {
	LeaseID          string    `json:"lease"`
	TargetID         string    `json:"target"` // the pod or container that the cgroup belongs to
	ExpiresAt        time.Time `json:"until"`
	ExpiryBootTimeNS int64     `json:"expiry_boot_time_ns"` // ExpiresAt in nanoseconds of CLOCK_BOOTTIME
	ThawerPID        int       `json:"thawer_pid"`          // identifies the thawer together with its start
	ThawerStartTicks string    `json:"thawer_start_ticks"`
}

// errNotFrozenByStanch means that a cgroup has no freeze marker.
var errNotFrozenByStanch = errors.New("not frozen by Stanch")

func readFreezeMarker(dir *os.File) (freezeMarker, error) {
	var m freezeMarker
	b := make([]byte, 1024)
	n, err := unix.Fgetxattr(int(dir.Fd()), freezeMarkerXattr, b)
	if errors.Is(err, unix.ENODATA) || isCgroupRemoved(err) {
		return m, errNotFrozenByStanch
	}
	if err != nil {
		return m, fmt.Errorf("read %s of cgroup %s: %w", freezeMarkerXattr, dir.Name(), err)
	}
	if err := json.Unmarshal(b[:n], &m); err != nil {
		return m, fmt.Errorf("read %s of cgroup %s: %w; thaw it with `echo 0 > cgroup.freeze` and remove the attribute",
			freezeMarkerXattr, dir.Name(), err)
	}
	return m, nil
}

// writeFreezeMarker creates the marker (unix.XATTR_CREATE) or replaces the existing one (unix.XATTR_REPLACE).
func writeFreezeMarker(dir *os.File, m freezeMarker, flag int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("mark cgroup %s: %w", dir.Name(), err)
	}
	if err := unix.Fsetxattr(int(dir.Fd()), freezeMarkerXattr, b, flag); err != nil {
		return fmt.Errorf("mark cgroup %s: %w", dir.Name(), err)
	}
	return nil
}

// removeFreezeMarker removes the marker if it belongs to the thawer pid.
func removeFreezeMarker(dir *os.File, pid int) error {
	if m, err := readFreezeMarker(dir); err != nil || m.ThawerPID != pid {
		return nil
	}
	err := unix.Fremovexattr(int(dir.Fd()), freezeMarkerXattr)
	if err != nil && !errors.Is(err, unix.ENODATA) && !isCgroupRemoved(err) {
		return fmt.Errorf("remove %s of cgroup %s: %w", freezeMarkerXattr, dir.Name(), err)
	}
	return nil
}

// openThawerProcess opens the thawer's process. ok is false if the process has exited, even if its PID was reused.
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

// processStartTicks returns when a process started, in clock ticks since boot, or "" if there is no such process.
func processStartTicks(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in parentheses, may contain spaces and parentheses. The start time is the 20th field after it.
	rest := string(b)[strings.LastIndexByte(string(b), ')')+1:]
	if f := strings.Fields(rest); len(f) > 19 {
		return f[19]
	}
	return ""
}

// waitForExit waits at most limit for a process to exit, and reports whether it did.
func waitForExit(pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll(
			[]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}},
			int(left.Milliseconds()),
		)
		if err == nil && n > 0 {
			return true
		}
		if (err != nil && !errors.Is(err, unix.EINTR)) || !time.Now().Before(deadline) {
			return false
		}
	}
}

// sinceBoot returns CLOCK_BOOTTIME, which cannot be set and continues while the machine is suspended.
func sinceBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
