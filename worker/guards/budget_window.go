package guards

import (
	"fmt"
	"math"
	"sync"
	"time"

	"stanch/playbooks"
	"stanch/workflows/budget"
)

// BudgetWindow is the budget of the last hour, as known to one worker. It is safe for concurrent use.
type BudgetWindow struct {
	mu      sync.Mutex
	usages  []budget.Usage
	onUsage func(budget.Usage)
}

var _ ContainmentBudget = (*BudgetWindow)(nil)

// NewBudgetWindow returns an unused budget. It calls report, which may be nil, for each usage, to store it durably.
func NewBudgetWindow(report func(budget.Usage)) *BudgetWindow { return &BudgetWindow{onUsage: report} }

// Merge adds stored usages: those of other workers, and this worker's before a restart.
func (w *BudgetWindow) Merge(all []budget.Usage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.usages = budget.AddUsages(w.usages, all, time.Now())
}

// CheckLeft returns why the budget is used up, or "".
func (w *BudgetWindow) CheckLeft(f Input) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.checkLeft(f)
}

func (w *BudgetWindow) checkLeft(f Input) string {
	if f.DrillTarget != nil {
		return "" // drills use no budget
	}
	w.usages = budget.AddUsages(w.usages, nil, f.Now)
	for _, s := range w.usages {
		if s.LeaseID == f.Request.LeaseID && s.LeaseID != "" {
			return "" // this lease is already counted
		}
	}
	hour, held := w.usedCounts(f)
	return BudgetExceededReason(f, hour, held)
}

// UsedCounts returns how many containments were made in the last hour, and how many other pods of the workload are
// contained.
func (w *BudgetWindow) UsedCounts(f Input) (hour, held int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.usedCounts(f)
}

func (w *BudgetWindow) usedCounts(f Input) (hour, held int) {
	targets := map[string]bool{}
	workload := f.budgetWorkload()
	for _, s := range w.usages {
		if f.Now.Sub(s.AppliedAt) < budget.UsageWindow {
			hour++
		}
		if s.Workload == workload && f.Now.Before(s.ExpiresAt) && s.TargetID != f.Request.Target.ID() {
			targets[s.TargetID] = true
		}
	}
	return hour, len(targets)
}

// BudgetExceededReason returns which limit one more containment would exceed, or "". hour is the number of containments
// in the last hour, held the number of other contained pods of the workload.
func BudgetExceededReason(f Input, hour, held int) string {
	limit := f.Config.Budget
	if hour >= limit.MaxPerHour {
		return fmt.Sprintf("the budget of %d containments per hour is used up", limit.MaxPerHour)
	}
	replicas := f.workloadReplicas()
	if f.Request.Target.Kind == playbooks.TargetPod && replicas <= 0 && held > 0 &&
		(f.ResolvedTarget == nil || !f.ResolvedTarget.IgnoreReplicas) {
		return fmt.Sprintf(
			"%d pods of %s are already contained and its number of replicas is unknown; the budget allows one until it is known",
			held,
			f.budgetWorkload(),
		)
	}
	if f.Request.Target.Kind == playbooks.TargetPod && replicas > 1 {
		most := int(math.Max(1, math.Floor(limit.MaxFraction*float64(replicas))))
		if held+1 > most {
			return fmt.Sprintf("%d of %d pods of %s are already contained; the budget allows %.0f%%", held, replicas,
				f.budgetWorkload(), limit.MaxFraction*100)
		}
	}
	return ""
}

// Spend uses the budget for one containment. It returns why the budget is used up, or "".
func (w *BudgetWindow) Spend(f Input) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if reason := w.checkLeft(f); reason != "" && f.Grant == nil {
		return reason
	}
	for _, s := range w.usages {
		if s.LeaseID == f.Request.LeaseID {
			return ""
		}
	}
	s := budget.Usage{
		AppliedAt: f.Now, LeaseID: f.Request.LeaseID, TargetID: f.Request.Target.ID(),
		Workload: f.budgetWorkload(), ExpiresAt: f.Request.ExpiresAt,
	}
	if f.DrillTarget != nil {
		return ""
	}
	w.usages = append(w.usages, s)
	if w.onUsage != nil {
		w.onUsage(s)
	}
	return ""
}
