package guards

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows/budget"
)

// FileSwitch is a kill switch that is a file with a signed state. No file means that nobody ever stopped.
type FileSwitch struct {
	Path      string
	Authority activities.Authority

	sealed sealed
}

var _ Switch = (*FileSwitch)(nil)

// Stopped reads the file.
func (s *FileSwitch) Stopped(context.Context) (bool, string, error) {
	state, err := s.read()
	if err != nil {
		return true, "", err
	}
	return state.Paused, said(state), nil
}

func (s *FileSwitch) read() (attestation.KillSwitchState, error) {
	raw, err := os.ReadFile(s.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return attestation.KillSwitchState{}, fmt.Errorf("read the kill switch: %w", err)
	}
	return s.sealed.open(string(raw), s.Authority.Keys()), nil
}

// State reads the switch. One that cannot be read counts as stopped.
func (s *FileSwitch) State(context.Context) (attestation.KillSwitchState, error) {
	state, err := s.read()
	state.Paused = state.Paused || err != nil
	return state, err
}

// Stop sets the switch.
func (s *FileSwitch) Stop(_ context.Context, by, reason string) error {
	return s.write("set", true, by, reason)
}

// Resume lifts it.
func (s *FileSwitch) Resume(_ context.Context, by string) error {
	return s.write("lift", false, by, "")
}

func (s *FileSwitch) write(what string, stopped bool, by, reason string) error {
	_, err := s.read()
	var text string
	if err == nil {
		text, err = s.sealed.next(s.Authority, stopped, by, reason, time.Now())
	}
	if err == nil {
		err = os.WriteFile(s.Path+".new", []byte(text), 0o600)
	}
	if err == nil {
		err = os.Rename(s.Path+".new", s.Path)
	}
	if err != nil {
		return fmt.Errorf("%s the kill switch: %w", what, err)
	}
	return nil
}

// Window is the budget of the last hour, as one worker knows it.
type Window struct {
	mu     sync.Mutex
	spent  []budget.Usage
	report func(budget.Usage)
}

var _ Budget = (*Window)(nil)

// NewWindow starts with nothing spent. report, which may be nil, hears of each spending, so that it is kept durably.
func NewWindow(report func(budget.Usage)) *Window { return &Window{report: report} }

// Merge takes over what is kept durably: what other workers spent, and this one before a restart.
func (w *Window) Merge(all []budget.Usage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent = budget.AddUsages(w.spent, all, time.Now())
}

// Left says why there is no budget, or "".
func (w *Window) Left(f Facts) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left(f)
}

func (w *Window) left(f Facts) string {
	if f.Drill != nil {
		return "" // a drill's targets are its own
	}
	w.spent = budget.AddUsages(w.spent, nil, f.Now)
	for _, s := range w.spent {
		if s.LeaseID == f.Request.LeaseID && s.LeaseID != "" {
			return "" // it was paid for
		}
	}
	hour, held := w.used(f)
	return Exceeded(f, hour, held)
}

// Used is how much was spent in the last hour, and how many other pods of the workload are contained.
func (w *Window) Used(f Facts) (hour, held int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.used(f)
}

func (w *Window) used(f Facts) (hour, held int) {
	targets := map[string]bool{}
	workload := f.workload()
	for _, s := range w.spent {
		if f.Now.Sub(s.AppliedAt) < budget.UsageWindow {
			hour++
		}
		if s.Workload == workload && f.Now.Before(s.ExpiresAt) && s.TargetID != f.Request.Target.ID() {
			targets[s.TargetID] = true
		}
	}
	return hour, len(targets)
}

// Exceeded says which limit of the budget one more containment would exceed, or "": hour is how many there were in the
// last hour, held how many other pods of the workload are contained.
func Exceeded(f Facts, hour, held int) string {
	limit := f.Config.Budget
	if hour >= limit.PerHour {
		return fmt.Sprintf("the budget of %d containments an hour is spent", limit.PerHour)
	}
	replicas := f.replicas()
	if f.Request.Target.Kind == playbooks.TargetPod && replicas <= 0 && held > 0 && (f.Known == nil || !f.Known.IgnoreReplicas) {
		return fmt.Sprintf("%d pods of %s are contained already and its number of replicas is unknown; the budget allows one until it is known", held, f.workload())
	}
	if f.Request.Target.Kind == playbooks.TargetPod && replicas > 1 {
		most := int(math.Max(1, math.Floor(limit.Share*float64(replicas))))
		if held+1 > most {
			return fmt.Sprintf("%d of %d pods of %s are held already; the budget allows %.0f%%", held, replicas, f.workload(), limit.Share*100)
		}
	}
	return ""
}

// Spend takes one containment out of the budget.
func (w *Window) Spend(f Facts) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if reason := w.left(f); reason != "" && f.Grant == nil {
		return reason
	}
	for _, s := range w.spent {
		if s.LeaseID == f.Request.LeaseID {
			return ""
		}
	}
	s := budget.Usage{AppliedAt: f.Now, LeaseID: f.Request.LeaseID, TargetID: f.Request.Target.ID(), Workload: f.workload(), ExpiresAt: f.Request.ExpiresAt}
	if f.Drill != nil {
		return ""
	}
	w.spent = append(w.spent, s)
	if w.report != nil {
		w.report(s)
	}
	return ""
}
