package budget_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"stanch/workflows/budget"
)

func TestBudgetCountsUsageOnceUntilItExpires(t *testing.T) {
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	begin := env.Now()
	spent := func(lease string, held time.Duration) budget.Usage {
		return budget.Usage{AppliedAt: begin, LeaseID: lease, ExpiresAt: begin.Add(held)}
	}
	send := func(after time.Duration, batch ...budget.Usage) {
		env.RegisterDelayedCallback(func() { env.SignalWorkflow(budget.SignalUsage, batch) }, after)
	}
	send(time.Second, spent("a", time.Minute), spent("b", 3*time.Hour))
	send(2*time.Second, spent("a", time.Minute)) // from another worker, or a retry
	count := func(after time.Duration, want int) {
		env.RegisterDelayedCallback(func() {
			value, err := env.QueryWorkflow(budget.QueryUsage)
			require.NoError(t, err)
			var got []budget.Usage
			require.NoError(t, value.Get(&got))
			require.Len(t, got, want, "after %s", after)
		}, after)
	}
	count(3*time.Second, 2)
	send(2 * time.Hour)
	count(2*time.Hour+time.Second, 1) // b is still active
	send(4 * time.Hour)
	count(4*time.Hour+time.Second, 0)
	env.RegisterDelayedCallback(env.CancelWorkflow, 5*time.Hour)
	env.ExecuteWorkflow(budget.Budget, budget.Input{})
}

func TestBudgetUsageIsBounded(t *testing.T) {
	var all []budget.Usage
	now := time.Now()
	for i := range 5000 {
		all = budget.AddUsages(all, []budget.Usage{{AppliedAt: now, LeaseID: fmt.Sprint(i)}}, now)
	}
	require.Len(t, all, 2000)
	require.Equal(t, "4999", all[len(all)-1].LeaseID)
}
