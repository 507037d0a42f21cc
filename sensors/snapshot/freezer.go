package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Freezer freezes cgroups for leases. Every freeze has a thawer, a process that outlives this one and thaws at the end.
// What is frozen for which lease until when is written on the cgroup itself, so a Freezer keeps nothing: after a restart,
// Sweep finds it all. Its methods may be called from several goroutines.
type Freezer struct {
	cgroupRoot    string
	thawerCommand []string
	log           *slog.Logger

	mu        sync.Mutex // one freeze, extension or thaw at a time
	closed    chan struct{}
	closeOnce sync.Once
}

// NewFreezer returns a freezer of the cgroups below root, where cgroup v2 is mounted. The program calls RunThawer with
// its last argument, which is added to those given.
func NewFreezer(root string, log *slog.Logger, program ...string) *Freezer {
	return &Freezer{cgroupRoot: root, thawerCommand: program, log: log, closed: make(chan struct{})}
}

// ErrFrozenByOtherLease says that Stanch froze a cgroup for another lease.
var ErrFrozenByOtherLease = errors.New("already frozen for another lease")

// IsRefused reports whether an error says that a cgroup is not to be frozen, as against could not be.
func IsRefused(err error) bool {
	var r refusalError
	return errors.As(err, &r) || errors.Is(err, ErrFrozenByOtherLease)
}

// CgroupFreeze is one freeze: which cgroup stands still, for which lease, until when.
type CgroupFreeze struct {
	LeaseID   string
	TargetID  string // the container or pod whose cgroup it is
	CgroupDir string // of its v2 directory
	CgroupID  uint64 // the cgroup's id; the path may be another's by now. 0: whichever has the path
	ExpiresAt time.Time
}

// Freeze freezes a cgroup until a time. Again with the same lease it moves the end.
func (f *Freezer) Freeze(ctx context.Context, h CgroupFreeze) error {
	if h.LeaseID == "" {
		return errors.New("freeze: missing lease id")
	}
	o, err := newThawOrder(h)
	if err != nil {
		return err
	}
	dir, err := openCgroup(h.CgroupDir, h.CgroupID)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	defer dir.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	m, err := readFreezeMarker(dir)
	switch {
	case errors.Is(err, errNotFrozenByStanch):
	case err != nil:
		return fmt.Errorf("freeze: %w", err)
	case m.LeaseID != h.LeaseID && time.Now().Before(m.ExpiresAt):
		return fmt.Errorf("%w: %s until %s", ErrFrozenByOtherLease, m.LeaseID, m.ExpiresAt.Format(time.RFC3339))
	case m.LeaseID != h.LeaseID:
		if err := f.requestThaw(dir, m); err != nil {
			return err
		}
	default:
		err := f.replaceThawer(dir, m, o)
		if !errors.Is(err, errNotFrozenByStanch) {
			return err
		}
	}
	if err := startThawer(f.cgroupRoot, f.thawerCommand, dir, o); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return f.watchThawer(dir)
}

func newThawOrder(h CgroupFreeze) (thawOrder, error) {
	left := time.Until(h.ExpiresAt)
	if left <= 0 {
		return thawOrder{}, fmt.Errorf("freeze: the end %s has passed", h.ExpiresAt.Format(time.RFC3339))
	}
	now, err := sinceBoot()
	if err != nil {
		return thawOrder{}, err
	}
	return thawOrder{LeaseID: h.LeaseID, TargetID: h.TargetID, ExpiresAt: h.ExpiresAt, ExpiryBootTimeNS: int64(now + left)}, nil
}

// replaceThawer gives a frozen cgroup a new thawer, with the end of the order, and ends the one before without a thaw.
func (f *Freezer) replaceThawer(dir *os.File, m freezeMarker, o thawOrder) error {
	o.AdoptExisting = true
	if err := startThawer(f.cgroupRoot, f.thawerCommand, dir, o); err != nil {
		return fmt.Errorf("extend a freeze: %w", err)
	}
	if pidfd, ok := m.openThawerProcess(); ok {
		// Its mark is gone, so it would not thaw. It is only in the way.
		err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = unix.Close(pidfd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			f.log.Warn("end a thawer that was replaced", "pid", m.ThawerPID, "error", err)
		}
	}
	return f.watchThawer(dir)
}

// Thaw ends a lease's freeze now, wherever it is. It is no error if there is none, or if another process has frozen or
// thawed the cgroup since.
func (f *Freezer) Thaw(_ context.Context, lease string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.forEachFrozen(func(dir *os.File, m freezeMarker) error {
		if m.LeaseID != lease {
			return nil
		}
		return f.requestThaw(dir, m)
	})
}

// requestThaw has the thawer thaw now. If it is dead, this process thaws.
func (f *Freezer) requestThaw(dir *os.File, m freezeMarker) error {
	if pidfd, ok := m.openThawerProcess(); ok {
		defer unix.Close(pidfd)
		if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("thaw: signal thawer %d: %w", m.ThawerPID, err)
		}
		if !waitForExit(pidfd, thawTimeout) {
			return fmt.Errorf("thaw: thawer %d does not end; thaw the cgroup %s with `echo 0 > cgroup.freeze`", m.ThawerPID, dir.Name())
		}
	}
	if now, err := readFreezeMarker(dir); errors.Is(err, errNotFrozenByStanch) || (err == nil && now.ThawerPID != m.ThawerPID) {
		return nil
	}
	return thawWithoutThawer(dir, m)
}

// thawTimeout bounds the wait for a thawer that was asked to thaw.
const thawTimeout = 6 * time.Second

// thawWithoutThawer thaws a cgroup whose thawer is dead.
func thawWithoutThawer(dir *os.File, m freezeMarker) error {
	freeze, err := openCgroupFile(dir, "cgroup.freeze", unix.O_RDWR)
	if isCgroupRemoved(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	defer freeze.Close()
	if err := writeFreeze(freeze, "0"); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return removeFreezeMarker(dir, m.ThawerPID)
}

// FindFreeze returns what Stanch froze of the given cgroups (paths of their v2 directories); ok is false if nothing.
func (f *Freezer) FindFreeze(paths ...string) (h CgroupFreeze, ok bool, err error) {
	for _, path := range paths {
		dir, err := openCgroup(path, 0)
		if isCgroupRemoved(err) {
			continue
		}
		if err != nil {
			return CgroupFreeze{}, false, err
		}
		m, err := readFreezeMarker(dir)
		_ = dir.Close()
		if errors.Is(err, errNotFrozenByStanch) {
			continue
		}
		return CgroupFreeze{LeaseID: m.LeaseID, TargetID: m.TargetID, CgroupDir: path, ExpiresAt: m.ExpiresAt}, err == nil, err
	}
	return CgroupFreeze{}, false, nil
}

// FreezeOfLease returns what Stanch froze for a lease; ok is false if nothing.
func (f *Freezer) FreezeOfLease(lease string) (h CgroupFreeze, ok bool, err error) {
	err = f.forEachFrozen(func(dir *os.File, m freezeMarker) error {
		if m.LeaseID == lease {
			h, ok = CgroupFreeze{LeaseID: m.LeaseID, TargetID: m.TargetID, CgroupDir: dir.Name(), ExpiresAt: m.ExpiresAt}, true
		}
		return nil
	})
	return h, ok, err
}

// RecoverFreezes finds what an earlier sensor froze and thaws what lost its thawer too, if its end has passed.
func (f *Freezer) RecoverFreezes(context.Context) error {
	return f.forEachFrozen(func(dir *os.File, _ freezeMarker) error { return f.watchThawer(dir) })
}

// ThawAll ends every freeze of Stanch's on this machine.
func (f *Freezer) ThawAll(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.forEachFrozen(f.requestThaw)
	_ = os.Remove(filepath.Join(f.cgroupRoot, thawerCgroup)) // it stays while a thawer ends
	return err
}

// forEachFrozen calls do with every cgroup that Stanch froze.
func (f *Freezer) forEachFrozen(do func(*os.File, freezeMarker) error) error {
	var errs []error
	err := filepath.WalkDir(f.cgroupRoot, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // removed meanwhile
		}
		if n, err := unix.Lgetxattr(path, freezeMarkerXattr, nil); err != nil || n == 0 {
			return nil //nolint:nilerr // the attribute is nowhere else
		}
		dir, err := openCgroup(path, 0)
		if err != nil {
			return nil //nolint:nilerr // removed meanwhile
		}
		defer dir.Close()
		m, err := readFreezeMarker(dir)
		if errors.Is(err, errNotFrozenByStanch) {
			return nil
		}
		if err == nil {
			err = do(dir, m)
		}
		errs = append(errs, err)
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// watchThawer waits in the background for the thawer of a cgroup to end. A thawer that dies leaves its mark: then the
// cgroup gets another, or is thawed.
func (f *Freezer) watchThawer(dir *os.File) error {
	m, err := readFreezeMarker(dir)
	if errors.Is(err, errNotFrozenByStanch) {
		return nil // it has ended already
	}
	if err != nil {
		return err
	}
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch a thawer: %w", err)
	}
	kept := os.NewFile(uintptr(fd), dir.Name()) //nolint:gosec // a descriptor
	go func() {
		defer kept.Close()
		if pidfd, ok := m.openThawerProcess(); ok {
			over := f.waitForExit(pidfd)
			_ = unix.Close(pidfd)
			if !over {
				return // this process ends, the thawer goes on
			}
		}
		if err := f.handleThawerExit(kept, m); err != nil {
			f.log.Error("a frozen cgroup lost its thawer", "lease", m.LeaseID, "cgroup", kept.Name(), "error", err)
		}
	}()
	return nil
}

// waitForExit waits until a process ends; false if the freezer is closed before.
func (f *Freezer) waitForExit(pidfd int) bool {
	for !waitForExit(pidfd, 250*time.Millisecond) {
		select {
		case <-f.closed:
			return false
		default:
		}
	}
	return true
}

// handleThawerExit takes care of a cgroup whose thawer has ended. Usually nothing is left to do.
func (f *Freezer) handleThawerExit(dir *os.File, m freezeMarker) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := readFreezeMarker(dir)
	if errors.Is(err, errNotFrozenByStanch) || (err == nil && now.ThawerPID != m.ThawerPID) {
		return nil
	}
	if err != nil {
		return err
	}
	boot, err := sinceBoot()
	if err != nil {
		return errors.Join(err, thawWithoutThawer(dir, m))
	}
	if int64(boot) >= m.ExpiryBootTimeNS {
		return thawWithoutThawer(dir, m)
	}
	f.log.Warn("a thawer was killed; another one replaces it", "lease", m.LeaseID, "pid", m.ThawerPID)
	err = f.replaceThawer(dir, m, thawOrder{LeaseID: m.LeaseID, TargetID: m.TargetID, ExpiresAt: m.ExpiresAt, ExpiryBootTimeNS: m.ExpiryBootTimeNS})
	if errors.Is(err, errNotFrozenByStanch) {
		return nil
	}
	if err != nil { // nothing is frozen without a thawer
		return errors.Join(err, thawWithoutThawer(dir, m))
	}
	return nil
}

// Close ends the freezer. What is frozen stays so until its end.
func (f *Freezer) Close() error {
	f.closeOnce.Do(func() { close(f.closed) })
	return nil
}
