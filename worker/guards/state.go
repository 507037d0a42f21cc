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
	"stanch/sensors/proof"
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
	return state.Stopped, said(state), nil
}

func (s *FileSwitch) read() (proof.SwitchState, error) {
	raw, err := os.ReadFile(s.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return proof.SwitchState{}, fmt.Errorf("read the kill switch: %w", err)
	}
	return s.sealed.open(string(raw), s.Authority.Keys()), nil
}

// Stop sets the switch.
func (s *FileSwitch) Stop(_ context.Context, by string) error { return s.write("set", true, by) }

// Resume lifts it.
func (s *FileSwitch) Resume(_ context.Context, by string) error { return s.write("lift", false, by) }

func (s *FileSwitch) write(what string, stopped bool, by string) error {
	_, err := s.read()
	var text string
	if err == nil {
		text, err = s.sealed.next(s.Authority, stopped, by, time.Now())
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
	spent  []budget.Spent
	report func(budget.Spent)
}

var _ Budget = (*Window)(nil)

// NewWindow starts with nothing spent. report, which may be nil, hears of each spending, so that it is kept durably.
func NewWindow(report func(budget.Spent)) *Window { return &Window{report: report} }

// Merge takes over what is kept durably: what other workers spent, and this one before a restart.
func (w *Window) Merge(all []budget.Spent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent = budget.Add(w.spent, all, time.Now())
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
	w.spent = budget.Add(w.spent, nil, f.Now)
	limit := f.Config.Budget
	hour, held := 0, map[string]bool{}
	workload := f.workload()
	for _, s := range w.spent {
		if s.Lease == f.Request.Lease && s.Lease != "" {
			return "" // it was paid for
		}
		if f.Now.Sub(s.At) < budget.Window {
			hour++
		}
		if s.Workload == workload && f.Now.Before(s.Until) && s.Target != f.Request.Target.ID() {
			held[s.Target] = true
		}
	}
	if hour >= limit.PerHour {
		return fmt.Sprintf("the budget of %d containments an hour is spent", limit.PerHour)
	}
	replicas := f.replicas()
	if f.Request.Target.Kind == playbooks.TargetPod && replicas <= 0 && len(held) > 0 && (f.Known == nil || !f.Known.AnyReplicas) {
		return fmt.Sprintf("%d pods of %s are contained already and its number of replicas is unknown; the budget allows one until it is known", len(held), workload)
	}
	if f.Request.Target.Kind == playbooks.TargetPod && replicas > 1 {
		most := int(math.Max(1, math.Floor(limit.Share*float64(replicas))))
		if len(held)+1 > most {
			return fmt.Sprintf("%d of %d pods of %s are held already; the budget allows %.0f%%", len(held), replicas, workload, limit.Share*100)
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
		if s.Lease == f.Request.Lease {
			return ""
		}
	}
	s := budget.Spent{At: f.Now, Lease: f.Request.Lease, Target: f.Request.Target.ID(), Workload: f.workload(), Until: f.Request.Until}
	if f.Drill != nil {
		return ""
	}
	w.spent = append(w.spent, s)
	if w.report != nil {
		w.report(s)
	}
	return ""
}
