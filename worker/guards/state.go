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
	"stanch/workflows/budget"
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
	if f.Drill {
		return "" // a drill's targets are its own
	}
	w.spent = budget.Add(w.spent, nil, f.Now)
	limit := f.Config.Budget
	hour, held := 0, map[string]bool{}
	workload := workloadOf(f)
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
	replicas := f.Request.Incident.Replicas
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
	s := budget.Spent{At: f.Now, Lease: f.Request.Lease, Target: f.Request.Target.ID(), Workload: workloadOf(f), Until: f.Request.Until}
	if f.Drill {
		return ""
	}
	w.spent = append(w.spent, s)
	if w.report != nil {
		w.report(s)
	}
	return ""
}

func workloadOf(f Facts) string {
	return f.Request.Incident.Workload.String()
}
