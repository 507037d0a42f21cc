package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"stanch/sensors/identity"
)

// Freezer freezes with an end: it thaws by itself. Close thaws everything. A sensor that is killed leaves cgroups
// frozen, so its next start calls Sweep. Its methods may be called from several goroutines.
type Freezer struct {
	file string

	mu     sync.Mutex
	held   map[string]*freeze // by lease
	closed bool
}

// freeze is one cgroup that stands still for a lease. Its JSON is what Sweep reads.
type freeze struct {
	Lease string    `json:"lease"`
	Dir   string    `json:"dir"`
	ID    uint64    `json:"id"` // of the cgroup: a directory's name may be reused
	Until time.Time `json:"until"`
	timer *time.Timer
}

// NewFreezer keeps its list of what is frozen until when in a file under stateDir, so that Sweep knows.
func NewFreezer(stateDir string) (*Freezer, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the freezer's directory: %w", err)
	}
	return &Freezer{file: filepath.Join(stateDir, "frozen.json"), held: map[string]*freeze{}}, nil
}

// ErrFrozen says that a cgroup stands still for another lease.
var ErrFrozen = errors.New("already frozen for another lease")

// Freeze freezes for a lease until the given time. Again with the same lease moves the end.
func (f *Freezer) Freeze(ctx context.Context, lease, cgroupDir string, until time.Time) error {
	if lease == "" {
		return errors.New("freeze: a lease id is needed")
	}
	if !until.After(time.Now()) {
		return fmt.Errorf("freeze: the end %s has passed", until.Format(time.RFC3339))
	}
	id, err := identity.CgroupID(cgroupDir)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("freeze: the freezer is closed")
	}
	for _, h := range f.held {
		if h.Lease != lease && h.ID == id {
			return fmt.Errorf("%w: %s until %s", ErrFrozen, h.Lease, h.Until.Format(time.RFC3339))
		}
	}
	if old, ok := f.held[lease]; ok && old.ID != id {
		return fmt.Errorf("freeze: lease %s holds cgroup %s", lease, old.Dir)
	}
	h := &freeze{Lease: lease, Dir: cgroupDir, ID: id, Until: until}
	f.hold(h)
	// The note comes before the effect: a crash between them costs a thaw of what runs.
	if err := f.save(); err != nil {
		f.letGo(lease)
		return err
	}
	if err := Freeze(ctx, cgroupDir); err != nil {
		f.letGo(lease)
		return errors.Join(err, f.thaw(h), f.save())
	}
	return nil
}

// hold notes a freeze and sets its end. The caller holds f.mu.
func (f *Freezer) hold(h *freeze) {
	f.letGo(h.Lease)
	f.held[h.Lease] = h
	h.timer = time.AfterFunc(time.Until(h.Until), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.held[h.Lease] != h {
			return // moved or ended meanwhile
		}
		f.letGo(h.Lease)
		if err := errors.Join(f.thaw(h), f.save()); err != nil {
			slog.Error("thaw at the end of a freeze", "lease", h.Lease, "cgroup", h.Dir, "err", err)
		}
	})
}

func (f *Freezer) letGo(lease string) {
	if h, ok := f.held[lease]; ok {
		if h.timer != nil {
			h.timer.Stop()
		}
		delete(f.held, lease)
	}
}

// thaw thaws the cgroup that was frozen, and not another that has its name now.
func (f *Freezer) thaw(h *freeze) error {
	if id, err := identity.CgroupID(h.Dir); err != nil || id != h.ID {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), thawTime)
	defer cancel()
	return Thaw(ctx, h.Dir)
}

// Thaw ends a lease's freeze now.
func (f *Freezer) Thaw(_ context.Context, lease string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, ok := f.held[lease]
	if !ok {
		return nil
	}
	if err := f.thaw(h); err != nil {
		return err
	}
	f.letGo(lease)
	return f.save()
}

// Held tells for which lease a cgroup (absolute path of its v2 directory) stands still, and until when; "" if for none.
func (f *Freezer) Held(cgroupDir string) (lease string, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.held {
		if filepath.Clean(h.Dir) == filepath.Clean(cgroupDir) {
			return h.Lease, h.Until
		}
	}
	return "", time.Time{}
}

// Sweep thaws what an earlier process left frozen past its end and takes over the rest.
func (f *Freezer) Sweep(_ context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := os.ReadFile(f.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what was frozen: %w", err)
	}
	var left []*freeze
	if err := json.Unmarshal(b, &left); err != nil {
		return fmt.Errorf("read what was frozen from %s (thaw by hand: echo 0 > <cgroup>/cgroup.freeze, then delete the file): %w", f.file, err)
	}
	var errs []error
	for _, h := range left {
		if _, ok := f.held[h.Lease]; ok {
			continue
		}
		if time.Now().Before(h.Until) {
			f.hold(h)
			continue
		}
		errs = append(errs, f.thaw(h))
	}
	errs = append(errs, f.save())
	return errors.Join(errs...)
}

// Close thaws everything that it holds.
func (f *Freezer) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	var errs []error
	for lease, h := range f.held {
		f.letGo(lease)
		errs = append(errs, f.thaw(h))
	}
	return errors.Join(append(errs, f.save())...)
}

// save writes the list so that it is whole or the old one. The caller holds f.mu.
func (f *Freezer) save() error {
	list := make([]*freeze, 0, len(f.held))
	for _, h := range f.held {
		list = append(list, h)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("write what is frozen: %w", err)
	}
	tmp := f.file + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write what is frozen: %w", err)
	}
	if err := os.Rename(tmp, f.file); err != nil {
		return fmt.Errorf("write what is frozen: %w", err)
	}
	return nil
}
