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

// Freezer freezes cgroups for leases. Every freeze has a thawer: a process that outlives the freezer and thaws the
// cgroup at the end of the freeze. The state of a freeze is stored on the cgroup itself, so a Freezer stores nothing:
// after a restart, RecoverFreezes finds all freezes. It is safe for concurrent use.
type Freezer struct {
	cgroupRoot    string
	thawerCommand []string
	log           *slog.Logger

	mu        sync.Mutex // serializes freezes, extensions and thaws
	closed    chan struct{}
	closeOnce sync.Once
}

// NewFreezer returns a freezer for the cgroups below root, the mount point of cgroup v2. program is the command line
// of a program that calls RunThawer with its last argument, which the freezer appends.
func NewFreezer(root string, log *slog.Logger, program ...string) *Freezer {
	return &Freezer{cgroupRoot: root, thawerCommand: program, log: log, closed: make(chan struct{})}
}

// ErrFrozenByOtherLease means that Stanch froze the cgroup for another lease.
var ErrFrozenByOtherLease = errors.New("already frozen by another lease")

// IsRefused reports whether an error means that freezing the cgroup is not allowed, as opposed to having failed.
func IsRefused(err error) bool {
	var r refusalError
	return errors.As(err, &r) || errors.Is(err, ErrFrozenByOtherLease)
}

// CgroupFreeze is the freeze of one cgroup for one lease.
type CgroupFreeze struct {
	LeaseID   string
	TargetID  string // the container or pod that the cgroup belongs to
	CgroupDir string // the cgroup's absolute v2 directory
	CgroupID  uint64 // the expected cgroup ID, because the path may be reused; 0 accepts any
	ExpiresAt time.Time
}

// Freeze freezes a cgroup until h.ExpiresAt, which must be in the future. A second call for the same lease moves the
// end. It returns an error for which IsRefused is true if another lease, another process or an ancestor has frozen the
// cgroup, or if 16 cgroups of the node are frozen already.
func (f *Freezer) Freeze(ctx context.Context, h CgroupFreeze) error {
	if h.LeaseID == "" {
		return errors.New("freeze the cgroup: missing lease ID")
	}
	o, err := newThawOrder(h)
	if err != nil {
		return err
	}
	dir, err := openCgroup(h.CgroupDir, h.CgroupID)
	if err != nil {
		return fmt.Errorf("freeze the cgroup: %w", err)
	}
	defer dir.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("freeze the cgroup: %w", err)
	}
	m, err := readFreezeMarker(dir)
	switch {
	case errors.Is(err, errNotFrozenByStanch):
	case err != nil:
		return fmt.Errorf("freeze the cgroup: %w", err)
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
		return fmt.Errorf("freeze the cgroup: %w", err)
	}
	return f.watchThawer(dir)
}

func newThawOrder(h CgroupFreeze) (thawOrder, error) {
	left := time.Until(h.ExpiresAt)
	if left <= 0 {
		return thawOrder{}, fmt.Errorf("freeze the cgroup: the expiry %s has passed", h.ExpiresAt.Format(time.RFC3339))
	}
	now, err := sinceBoot()
	if err != nil {
		return thawOrder{}, err
	}
	return thawOrder{
		LeaseID: h.LeaseID, TargetID: h.TargetID, ExpiresAt: h.ExpiresAt,
		ExpiryBootTimeNS: int64(now + left),
	}, nil
}

// replaceThawer starts a new thawer with the new end for a frozen cgroup, and kills the previous thawer without a
// thaw.
func (f *Freezer) replaceThawer(dir *os.File, m freezeMarker, o thawOrder) error {
	o.AdoptExisting = true
	if err := startThawer(f.cgroupRoot, f.thawerCommand, dir, o); err != nil {
		return fmt.Errorf("extend the freeze of the cgroup: %w", err)
	}
	if pidfd, ok := m.openThawerProcess(); ok {
		// Its marker is replaced, so it would not thaw and is no longer needed.
		err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = unix.Close(pidfd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			f.log.Warn("could not stop a replaced thawer", "pid", m.ThawerPID, "error", err)
		}
	}
	return f.watchThawer(dir)
}

// Thaw ends the freeze of a lease now, wherever its cgroup is. It is not an error if there is none, or if another
// process has frozen or thawed the cgroup since then.
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

// requestThaw makes the thawer thaw now. If the thawer is dead, this process thaws.
func (f *Freezer) requestThaw(dir *os.File, m freezeMarker) error {
	if pidfd, ok := m.openThawerProcess(); ok {
		defer unix.Close(pidfd)
		if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("thaw the cgroup: signal thawer %d: %w", m.ThawerPID, err)
		}
		if !waitForExit(pidfd, thawTimeout) {
			return fmt.Errorf("thaw the cgroup: thawer %d did not exit; thaw cgroup %s with `echo 0 > cgroup.freeze`",
				m.ThawerPID,
				dir.Name())
		}
	}
	if now, err := readFreezeMarker(dir); errors.Is(err, errNotFrozenByStanch) ||
		(err == nil && now.ThawerPID != m.ThawerPID) {
		return nil
	}
	return thawWithoutThawer(dir, m)
}

// thawTimeout limits the wait for a thawer to thaw.
const thawTimeout = 6 * time.Second

// thawWithoutThawer thaws a cgroup whose thawer is dead.
func thawWithoutThawer(dir *os.File, m freezeMarker) error {
	freeze, err := openCgroupFile(dir, "cgroup.freeze", unix.O_RDWR)
	if isCgroupRemoved(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("thaw the cgroup: %w", err)
	}
	defer freeze.Close()
	if err := writeFreeze(freeze, "0"); err != nil {
		return fmt.Errorf("thaw the cgroup: %w", err)
	}
	return removeFreezeMarker(dir, m.ThawerPID)
}

// FindFreeze returns the first freeze by Stanch among the given cgroups (absolute v2 directories). ok is false if
// there is none.
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
		return CgroupFreeze{LeaseID: m.LeaseID, TargetID: m.TargetID, CgroupDir: path, ExpiresAt: m.ExpiresAt}, err == nil,
			err
	}
	return CgroupFreeze{}, false, nil
}

// FreezeOfLease returns the freeze of a lease. ok is false if there is none.
func (f *Freezer) FreezeOfLease(lease string) (h CgroupFreeze, ok bool, err error) {
	err = f.forEachFrozen(func(dir *os.File, m freezeMarker) error {
		if m.LeaseID == lease {
			h, ok = CgroupFreeze{LeaseID: m.LeaseID, TargetID: m.TargetID, CgroupDir: dir.Name(), ExpiresAt: m.ExpiresAt}, true
		}
		return nil
	})
	return h, ok, err
}

// RecoverFreezes finds the freezes of earlier sensors. If a freeze has lost its thawer, it starts a new one, or thaws
// the cgroup if the freeze has expired.
func (f *Freezer) RecoverFreezes(context.Context) error {
	return f.forEachFrozen(func(dir *os.File, _ freezeMarker) error { return f.watchThawer(dir) })
}

// ThawAll ends every freeze by Stanch on this machine.
func (f *Freezer) ThawAll(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.forEachFrozen(f.requestThaw)
	_ = os.Remove(filepath.Join(f.cgroupRoot, thawerCgroup)) // fails while a thawer exits
	return err
}

// forEachFrozen calls do for every cgroup that Stanch froze.
func (f *Freezer) forEachFrozen(do func(*os.File, freezeMarker) error) error {
	var errs []error
	err := filepath.WalkDir(f.cgroupRoot, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if n, err := unix.Lgetxattr(path, freezeMarkerXattr, nil); err != nil || n == 0 {
			return nil
		}
		dir, err := openCgroup(path, 0)
		if err != nil {
			return nil
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

// watchThawer waits in the background for the thawer of a cgroup to exit. A thawer that is killed leaves its marker;
// the cgroup then gets a new thawer or is thawed.
func (f *Freezer) watchThawer(dir *os.File) error {
	m, err := readFreezeMarker(dir)
	if errors.Is(err, errNotFrozenByStanch) {
		return nil // it has exited already
	}
	if err != nil {
		return err
	}
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch a thawer: %w", err)
	}
	kept := os.NewFile(uintptr(fd), dir.Name())
	go func() {
		defer kept.Close()
		if pidfd, ok := m.openThawerProcess(); ok {
			over := f.waitForExit(pidfd)
			_ = unix.Close(pidfd)
			if !over {
				return // this process exits, the thawer continues
			}
		}
		if err := f.handleThawerExit(kept, m); err != nil {
			f.log.Error("the process that thaws a frozen cgroup at its expiry has died", "lease", m.LeaseID, "cgroup",
				kept.Name(), "error", err)
		}
	}()
	return nil
}

// waitForExit waits until a process exits. It returns false if the freezer is closed first.
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

// handleThawerExit handles a cgroup whose thawer has exited. Usually nothing is left to do.
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
	f.log.Warn("a thaw process was killed; a new one takes over", "lease", m.LeaseID, "pid", m.ThawerPID)
	err = f.replaceThawer(dir, m, thawOrder{
		LeaseID: m.LeaseID, TargetID: m.TargetID, ExpiresAt: m.ExpiresAt,
		ExpiryBootTimeNS: m.ExpiryBootTimeNS,
	})
	if errors.Is(err, errNotFrozenByStanch) {
		return nil
	}
	if err != nil { // nothing may stay frozen without a thawer
		return errors.Join(err, thawWithoutThawer(dir, m))
	}
	return nil
}

// Close stops watching the thawers. Freezes stay in force until their end.
func (f *Freezer) Close() error {
	f.closeOnce.Do(func() { close(f.closed) })
	return nil
}
