package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FreezeState is how a cgroup stands.
type FreezeState struct {
	Asked  bool `json:"asked"`  // cgroup.freeze is 1
	Frozen bool `json:"frozen"` // the kernel says that all stand still
}

// Freeze stops every process of a cgroup (absolute path of its v2 directory) and waits until they stand still.
// Freezing is for seconds: probes of a frozen pod fail and the kubelet kills it.
func Freeze(ctx context.Context, cgroupDir string) error {
	return turn(ctx, cgroupDir, true)
}

// Thaw lets them go on. Thawing what is not frozen, or is gone, is no error.
func Thaw(ctx context.Context, cgroupDir string) error {
	err := turn(ctx, cgroupDir, false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func turn(ctx context.Context, dir string, freeze bool) error {
	word, what := "0", "thaw"
	if freeze {
		word, what = "1", "freeze"
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte(word), 0); err != nil {
		return fmt.Errorf("%s cgroup %s: %w", what, dir, err)
	}
	// The kernel says in cgroup.events when it is so, and wakes who polls for that.
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return fmt.Errorf("%s cgroup %s: %w", what, dir, err)
	}
	defer f.Close()
	for {
		st, err := readEvents(f)
		if err != nil {
			return fmt.Errorf("%s cgroup %s: %w", what, dir, err)
		}
		if st == freeze {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s cgroup %s: its processes do not follow: %w", what, dir, err)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}, 20) //nolint:gosec // a descriptor
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s cgroup %s: %w", what, dir, err)
		}
	}
}

func readEvents(f *os.File) (frozen bool, err error) {
	b := make([]byte, 256)
	n, err := f.ReadAt(b, 0)
	if n == 0 && err != nil {
		return false, err
	}
	return strings.Contains("\n"+string(b[:n]), "\nfrozen 1"), nil
}

// Frozen reads how a cgroup stands.
func Frozen(cgroupDir string) (FreezeState, error) {
	asked, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.freeze"))
	if err != nil {
		return FreezeState{}, fmt.Errorf("read the freeze of cgroup %s: %w", cgroupDir, err)
	}
	events, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.events"))
	if err != nil {
		return FreezeState{}, fmt.Errorf("read the freeze of cgroup %s: %w", cgroupDir, err)
	}
	return FreezeState{
		Asked: strings.TrimSpace(string(asked)) == "1", Frozen: strings.Contains("\n"+string(events), "\nfrozen 1"),
	}, nil
}

// thawTime bounds a thaw that nobody waits for.
const thawTime = 5 * time.Second
