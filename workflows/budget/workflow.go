// Package budget remembers what was contained without a person, so that a restart does not forget how much was spent.
// One workflow for each cluster, fed by batched signals. It refuses to decide: the guards do, by what it remembers.
package budget

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"
)

// ID is the workflow's id in a cluster.
func ID(cluster string) string { return "budget/" + cluster }

// Signal and Query are how it is fed and read.
const (
	Signal = "spent"
	Query  = "spent"
)

// Spent is one containment that the budget paid for.
type Spent struct {
	At       time.Time `json:"at"`
	Lease    string    `json:"lease"`
	Target   string    `json:"target"`
	Workload string    `json:"workload"`
	Until    time.Time `json:"until"`
}

// Window is how long a spending counts; one whose lease still holds counts for longer.
const Window = time.Hour

// most bounds what is remembered.
const most = 2000

// Counts tells whether a spending still counts.
func (s Spent) Counts(now time.Time) bool { return now.Sub(s.At) < Window || now.Before(s.Until) }

// Add takes new spendings in, each lease once, and forgets what no longer counts.
func Add(all, more []Spent, now time.Time) []Spent {
	for _, s := range more {
		if !slices.ContainsFunc(all, func(known Spent) bool { return known.Lease == s.Lease && s.Lease != "" }) {
			all = append(all, s)
		}
	}
	all = slices.DeleteFunc(all, func(s Spent) bool { return !s.Counts(now) })
	return all[max(0, len(all)-most):]
}

// Input carries what is remembered through continue-as-new.
type Input struct {
	Spent []Spent `json:"spent,omitempty"`
}

// Budget runs for ever.
func Budget(ctx workflow.Context, in Input) error {
	spent := in.Spent
	if err := workflow.SetQueryHandler(ctx, Query, func() ([]Spent, error) { return spent, nil }); err != nil {
		return err //nolint:wrapcheck // a mistake of the program
	}
	signals := workflow.GetSignalChannel(ctx, Signal)
	for {
		var batch []Spent
		signals.Receive(ctx, &batch)
		spent = Add(spent, batch, workflow.Now(ctx))
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			for signals.ReceiveAsync(&batch) {
				spent = Add(spent, batch, workflow.Now(ctx))
			}
			return workflow.NewContinueAsNewError(ctx, Budget, Input{Spent: spent})
		}
	}
}
