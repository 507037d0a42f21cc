// Package budget stores the automatic containments of a cluster, so that a restart does not forget how much of the
// budget is used. Each cluster has one workflow, which receives batched signals. It makes no decisions: the guards do,
// with this data.
package budget

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"
)

// WorkflowID returns the workflow id for a cluster.
func WorkflowID(cluster string) string { return "budget/" + cluster }

// The signal that adds usages and the query that reads them.
const (
	SignalUsage = "usage"
	QueryUsage  = "usage"
)

// Usage is one containment that uses the budget.
type Usage struct {
	AppliedAt time.Time `json:"at"`
	LeaseID   string    `json:"lease"`
	TargetID  string    `json:"target"`
	Workload  string    `json:"workload"`
	ExpiresAt time.Time `json:"until"`
}

// UsageWindow is how long a usage counts; one with an active lease counts longer.
const UsageWindow = time.Hour

// maxUsages is the maximum number of stored usages.
const maxUsages = 2000

// IsCounted reports whether a usage still counts.
func (s Usage) IsCounted(now time.Time) bool {
	return now.Sub(s.AppliedAt) < UsageWindow || now.Before(s.ExpiresAt)
}

// AddUsages adds new usages, each lease once, and removes those that no longer count.
func AddUsages(all, more []Usage, now time.Time) []Usage {
	for _, s := range more {
		if !slices.ContainsFunc(all, func(known Usage) bool { return known.LeaseID == s.LeaseID && s.LeaseID != "" }) {
			all = append(all, s)
		}
	}
	all = slices.DeleteFunc(all, func(s Usage) bool { return !s.IsCounted(now) })
	return all[max(0, len(all)-maxUsages):]
}

// Input carries the usages through continue-as-new.
type Input struct {
	Usages []Usage `json:"usages,omitempty"`
}

// Budget runs forever, with continue-as-new.
func Budget(ctx workflow.Context, in Input) error {
	spent := in.Usages
	if err := workflow.SetQueryHandler(ctx, QueryUsage, func() ([]Usage, error) { return spent, nil }); err != nil {
		return err //nolint:wrapcheck // a programming error
	}
	signals := workflow.GetSignalChannel(ctx, SignalUsage)
	for {
		var batch []Usage
		signals.Receive(ctx, &batch)
		spent = AddUsages(spent, batch, workflow.Now(ctx))
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			for signals.ReceiveAsync(&batch) {
				spent = AddUsages(spent, batch, workflow.Now(ctx))
			}
			return workflow.NewContinueAsNewError(ctx, Budget, Input{Usages: spent})
		}
	}
}
