package guards

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"time"

	"stanch/playbooks"
)

// FileSwitch is a kill switch that is a file: there means stopped.
type FileSwitch struct{ Path string }

var _ Switch = FileSwitch{}

type stopped struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// Stopped tells whether the file is there.
func (s FileSwitch) Stopped(context.Context) (bool, string, error) {
	raw, err := os.ReadFile(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, "", nil
	}
	if err != nil {
		return true, "", fmt.Errorf("read the kill switch: %w", err)
	}
	var by stopped
	if json.Unmarshal(raw, &by) != nil || by.By == "" {
		return true, "the kill switch is set", nil
	}
	return true, fmt.Sprintf("by %s at %s", by.By, by.At.Format(time.RFC3339)), nil
}

// Stop sets the switch.
func (s FileSwitch) Stop(_ context.Context, by string) error {
	raw, err := json.Marshal(stopped{By: by, At: time.Now()})
	if err == nil {
		err = os.WriteFile(s.Path, raw, 0o600)
	}
	if err != nil {
		return fmt.Errorf("set the kill switch: %w", err)
	}
	return nil
}

// Resume takes it away.
func (s FileSwitch) Resume(context.Context) error {
	if err := os.Remove(s.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lift the kill switch: %w", err)
	}
	return nil
}

// Spent is one containment that the budget paid for.
type Spent struct {
	At       time.Time `json:"at"`
	Lease    string    `json:"lease"`
	Target   string    `json:"target"`
	Workload string    `json:"workload"`
	Until    time.Time `json:"until"`
}

// Window is the budget of the last hour.
type Window struct {
	mu     sync.Mutex
	spent  []Spent
	report func(Spent) // nil, or told of each spending so that it is kept durably
}

var _ Budget = (*Window)(nil)

// NewWindow starts with what was spent before.
func NewWindow(before []Spent, report func(Spent)) *Window {
	return &Window{spent: before, report: report}
}

// Merge takes over what other workers spent.
func (w *Window) Merge(all []Spent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	known := map[string]bool{}
	for _, s := range w.spent {
		known[s.Lease] = true
	}
	for _, s := range all {
		if !known[s.Lease] {
			w.spent = append(w.spent, s)
		}
	}
}

// Left says why there is no budget, or "".
func (w *Window) Left(f Facts) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left(f)
}

func (w *Window) left(f Facts) string {
	if f.Drill {
		return "" // a drill's targets are its own
	}
	w.forget(f.Now)
	b := f.Config.Budget
	hour, held := 0, map[string]bool{}
	workload := workloadOf(f)
	for _, s := range w.spent {
		if s.Lease == f.Request.Lease && s.Lease != "" {
			return "" // it was paid for
		}
		if f.Now.Sub(s.At) < time.Hour {
			hour++
		}
		if s.Workload == workload && f.Now.Before(s.Until) && s.Target != f.Request.Target.ID() {
			held[s.Target] = true
		}
	}
	if hour >= b.PerHour {
		return fmt.Sprintf("the budget of %d containments an hour is spent", b.PerHour)
	}
	replicas := f.Request.Incident.Replicas
	if f.Request.Target.Kind == playbooks.TargetPod && replicas > 1 {
		most := int(math.Max(1, math.Floor(b.Share*float64(replicas))))
		if len(held)+1 > most {
			return fmt.Sprintf("%d of %d pods of %s are held already; the budget allows %.0f%%", len(held), replicas, workload, b.Share*100)
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
	s := Spent{At: f.Now, Lease: f.Request.Lease, Target: f.Request.Target.ID(), Workload: workloadOf(f), Until: f.Request.Until}
	if f.Drill {
		return ""
	}
	w.spent = append(w.spent, s)
	if w.report != nil {
		w.report(s)
	}
	return ""
}

func (w *Window) forget(now time.Time) {
	kept := w.spent[:0]
	for _, s := range w.spent {
		if now.Sub(s.At) < time.Hour || now.Before(s.Until) {
			kept = append(kept, s)
		}
	}
	w.spent = kept
}

func workloadOf(f Facts) string {
	return f.Request.Incident.Workload.String()
}
