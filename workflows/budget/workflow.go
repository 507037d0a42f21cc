// Package budget remembers what was contained without a person, so that a restart does not forget how much was spent.
// One workflow for each cluster, fed by batched signals. It refuses to decide: the guards do, by what it remembers.
package budget

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"
)

// WorkflowID is the workflow's id in a cluster.
func WorkflowID(cluster string) string { return "budget/" + cluster }

// Signal and Query are how it is fed and read.
const (
	SignalUsage = "usage"
	QueryUsage  = "usage"
)

// Usage is one containment that the budget paid for.
type Usage struct {
	AppliedAt time.Time `json:"at"`
	LeaseID   string    `json:"lease"`
	TargetID  string    `json:"target"`
	Workload  string    `json:"workload"`
	ExpiresAt time.Time `json:"until"`
}

// UsageWindow is how long a spending counts; one whose lease still holds counts for longer.
const UsageWindow = time.Hour

// maxUsages bounds what is remembered.
const maxUsages = 2000

// IsCounted tells whether a spending still counts.
func (s Usage) IsCounted(now time.Time) bool {
	return now.Sub(s.AppliedAt) < UsageWindow || now.Before(s.ExpiresAt)
}

// AddUsages takes new spendings in, each lease once, and forgets what no longer counts.
func AddUsages(all, more []Usage, now time.Time) []Usage {
	for _, s := range more {
		if !slices.ContainsFunc(all, func(known Usage) bool { return known.LeaseID == s.LeaseID && s.LeaseID != "" }) {
			all = append(all, s)
		}
	}
	all = slices.DeleteFunc(all, func(s Usage) bool { return !s.IsCounted(now) })
	return all[max(0, len(all)-maxUsages):]
}

// Input carries what is remembered through continue-as-new.
type Input struct {
	Usages []Usage `json:"usages,omitempty"`
}

// Budget runs for ever.
func Budget(ctx workflow.Context, in Input) error {
	spent := in.Usages
	if err := workflow.SetQueryHandler(ctx, QueryUsage, func() ([]Usage, error) { return spent, nil }); err != nil {
		return err //nolint:wrapcheck // a mistake of the program
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
