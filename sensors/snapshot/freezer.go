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
	root    string
	program []string
	log     *slog.Logger

	mu      sync.Mutex // one freeze, extension or thaw at a time
	closed  chan struct{}
	closing sync.Once
}

// NewFreezer returns a freezer of the cgroups below root, where cgroup v2 is mounted. The program calls ServeThaw with
// its last argument, which is added to those given.
func NewFreezer(root string, log *slog.Logger, program ...string) *Freezer {
	return &Freezer{root: root, program: program, log: log, closed: make(chan struct{})}
}

// ErrFrozen says that Stanch froze a cgroup for another lease.
var ErrFrozen = errors.New("already frozen for another lease")

// Refused reports whether an error says that a cgroup is not to be frozen, as against could not be.
func Refused(err error) bool {
	var r refusal
	return errors.As(err, &r) || errors.Is(err, ErrFrozen)
}

// Hold is one freeze: which cgroup stands still, for which lease, until when.
type Hold struct {
	Lease  string
	Target string // the container or pod whose cgroup it is
	Path   string // of its v2 directory
	ID     uint64 // the cgroup's id; the path may be another's by now. 0: whichever has the path
	Until  time.Time
}

// Freeze freezes a cgroup until a time. Again with the same lease it moves the end.
func (f *Freezer) Freeze(ctx context.Context, h Hold) error {
	if h.Lease == "" {
		return errors.New("freeze: missing lease id")
	}
	o, err := orderOf(h)
	if err != nil {
		return err
	}
	dir, err := openCgroup(h.Path, h.ID)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	defer dir.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	m, err := readMark(dir)
	switch {
	case errors.Is(err, errNoMark):
	case err != nil:
		return fmt.Errorf("freeze: %w", err)
	case m.Lease != h.Lease && time.Now().Before(m.Until):
		return fmt.Errorf("%w: %s until %s", ErrFrozen, m.Lease, m.Until.Format(time.RFC3339))
	case m.Lease != h.Lease:
		if err := f.end(dir, m); err != nil {
			return err
		}
	default:
		err := f.replace(dir, m, o)
		if !errors.Is(err, errNoMark) {
			return err
		}
	}
	if err := startThawer(f.root, f.program, dir, o); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return f.watchMark(dir)
}

func orderOf(h Hold) (order, error) {
	left := time.Until(h.Until)
	if left <= 0 {
		return order{}, fmt.Errorf("freeze: the end %s has passed", h.Until.Format(time.RFC3339))
	}
	now, err := sinceBoot()
	if err != nil {
		return order{}, err
	}
	return order{Lease: h.Lease, Target: h.Target, Until: h.Until, End: int64(now + left)}, nil
}

// replace gives a frozen cgroup a new thawer, with the end of the order, and ends the one before without a thaw.
func (f *Freezer) replace(dir *os.File, m mark, o order) error {
	o.Adopt = true
	if err := startThawer(f.root, f.program, dir, o); err != nil {
		return fmt.Errorf("extend a freeze: %w", err)
	}
	if pidfd, ok := m.process(); ok {
		// Its mark is gone, so it would not thaw. It is only in the way.
		err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		_ = unix.Close(pidfd)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			f.log.Warn("end a thawer that was replaced", "pid", m.PID, "error", err)
		}
	}
	return f.watchMark(dir)
}

// Thaw ends a lease's freeze now, wherever it is. It is no error if there is none, or if another process has frozen or
// thawed the cgroup since.
func (f *Freezer) Thaw(_ context.Context, lease string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.each(func(dir *os.File, m mark) error {
		if m.Lease != lease {
			return nil
		}
		return f.end(dir, m)
	})
}

// end has the thawer thaw now. If it is dead, this process thaws.
func (f *Freezer) end(dir *os.File, m mark) error {
	if pidfd, ok := m.process(); ok {
		defer unix.Close(pidfd)
		if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("thaw: signal thawer %d: %w", m.PID, err)
		}
		if !ended(pidfd, thawTime) {
			return fmt.Errorf("thaw: thawer %d does not end; thaw the cgroup %s with `echo 0 > cgroup.freeze`", m.PID, dir.Name())
		}
	}
	if now, err := readMark(dir); errors.Is(err, errNoMark) || (err == nil && now.PID != m.PID) {
		return nil
	}
	return thawMarked(dir, m)
}

// thawTime bounds the wait for a thawer that was asked to thaw.
const thawTime = 6 * time.Second

// thawMarked thaws a cgroup whose thawer is dead.
func thawMarked(dir *os.File, m mark) error {
	freeze, err := openIn(dir, "cgroup.freeze", unix.O_RDWR)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	defer freeze.Close()
	if err := writeFreeze(freeze, "0"); err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return removeMark(dir, m.PID)
}

// Held returns what Stanch froze of the given cgroups (paths of their v2 directories); ok is false if nothing.
func (f *Freezer) Held(paths ...string) (h Hold, ok bool, err error) {
	for _, path := range paths {
		dir, err := openCgroup(path, 0)
		if gone(err) {
			continue
		}
		if err != nil {
			return Hold{}, false, err
		}
		m, err := readMark(dir)
		_ = dir.Close()
		if errors.Is(err, errNoMark) {
			continue
		}
		return Hold{Lease: m.Lease, Target: m.Target, Path: path, Until: m.Until}, err == nil, err
	}
	return Hold{}, false, nil
}

// Of returns what Stanch froze for a lease; ok is false if nothing.
func (f *Freezer) Of(lease string) (h Hold, ok bool, err error) {
	err = f.each(func(dir *os.File, m mark) error {
		if m.Lease == lease {
			h, ok = Hold{Lease: m.Lease, Target: m.Target, Path: dir.Name(), Until: m.Until}, true
		}
		return nil
	})
	return h, ok, err
}

// Sweep finds what an earlier sensor froze and thaws what lost its thawer too, if its end has passed.
func (f *Freezer) Sweep(context.Context) error {
	return f.each(func(dir *os.File, _ mark) error { return f.watchMark(dir) })
}

// ThawAll ends every freeze of Stanch's on this machine.
func (f *Freezer) ThawAll(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.each(f.end)
	_ = os.Remove(filepath.Join(f.root, thawerCgroup)) // it stays while a thawer ends
	return err
}

// each calls do with every cgroup that Stanch froze.
func (f *Freezer) each(do func(*os.File, mark) error) error {
	var errs []error
	err := filepath.WalkDir(f.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // removed meanwhile
		}
		if n, err := unix.Lgetxattr(path, markName, nil); err != nil || n == 0 {
			return nil //nolint:nilerr // the attribute is nowhere else
		}
		dir, err := openCgroup(path, 0)
		if err != nil {
			return nil //nolint:nilerr // removed meanwhile
		}
		defer dir.Close()
		m, err := readMark(dir)
		if errors.Is(err, errNoMark) {
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

// watchMark waits in the background for the thawer of a cgroup to end. A thawer that dies leaves its mark: then the
// cgroup gets another, or is thawed.
func (f *Freezer) watchMark(dir *os.File) error {
	m, err := readMark(dir)
	if errors.Is(err, errNoMark) {
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
		if pidfd, ok := m.process(); ok {
			over := f.waitFor(pidfd)
			_ = unix.Close(pidfd)
			if !over {
				return // this process ends, the thawer goes on
			}
		}
		if err := f.orphaned(kept, m); err != nil {
			f.log.Error("a frozen cgroup lost its thawer", "lease", m.Lease, "cgroup", kept.Name(), "error", err)
		}
	}()
	return nil
}

// waitFor waits until a process ends; false if the freezer is closed before.
func (f *Freezer) waitFor(pidfd int) bool {
	for !ended(pidfd, 250*time.Millisecond) {
		select {
		case <-f.closed:
			return false
		default:
		}
	}
	return true
}

// orphaned takes care of a cgroup whose thawer has ended. Usually nothing is left to do.
func (f *Freezer) orphaned(dir *os.File, m mark) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := readMark(dir)
	if errors.Is(err, errNoMark) || (err == nil && now.PID != m.PID) {
		return nil
	}
	if err != nil {
		return err
	}
	boot, err := sinceBoot()
	if err != nil {
		return errors.Join(err, thawMarked(dir, m))
	}
	if int64(boot) >= m.End {
		return thawMarked(dir, m)
	}
	f.log.Warn("a thawer was killed; another one replaces it", "lease", m.Lease, "pid", m.PID)
	err = f.replace(dir, m, order{Lease: m.Lease, Target: m.Target, Until: m.Until, End: m.End})
	if errors.Is(err, errNoMark) {
		return nil
	}
	if err != nil { // nothing is frozen without a thawer
		return errors.Join(err, thawMarked(dir, m))
	}
	return nil
}

// Close ends the freezer. What is frozen stays so until its end.
func (f *Freezer) Close() error {
	f.closing.Do(func() { close(f.closed) })
	return nil
}
