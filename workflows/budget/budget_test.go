package budget_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"stanch/workflows/budget"
)

func TestSpendingsAreRememberedOnceAndForgottenWhenTheyNoLongerCount(t *testing.T) {
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	begin := env.Now()
	spent := func(lease string, held time.Duration) budget.Spent {
		return budget.Spent{At: begin, Lease: lease, Until: begin.Add(held)}
	}
	send := func(after time.Duration, batch ...budget.Spent) {
		env.RegisterDelayedCallback(func() { env.SignalWorkflow(budget.Signal, batch) }, after)
	}
	send(time.Second, spent("a", time.Minute), spent("b", 3*time.Hour))
	send(2*time.Second, spent("a", time.Minute)) // another worker, or a retry
	count := func(after time.Duration, want int) {
		env.RegisterDelayedCallback(func() {
			value, err := env.QueryWorkflow(budget.Query)
			require.NoError(t, err)
			var got []budget.Spent
			require.NoError(t, value.Get(&got))
			require.Len(t, got, want, "after %s", after)
		}, after)
	}
	count(3*time.Second, 2)
	send(2 * time.Hour)
	count(2*time.Hour+time.Second, 1) // b is still held
	send(4 * time.Hour)
	count(4*time.Hour+time.Second, 0)
	env.RegisterDelayedCallback(env.CancelWorkflow, 5*time.Hour)
	env.ExecuteWorkflow(budget.Budget, budget.Input{})
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	var all []budget.Spent
	now := time.Now()
	for i := range 5000 {
		all = budget.Add(all, []budget.Spent{{At: now, Lease: fmt.Sprint(i)}}, now)
	}
	require.Len(t, all, 2000)
	require.Equal(t, "4999", all[len(all)-1].Lease)
}
