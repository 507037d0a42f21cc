package worker_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/worker/budgetclient"
	"stanch/worker/config"
	"stanch/worker/guards"
	"stanch/worker/metrics"
	"stanch/workflows/budget"
)

// What was contained just before a stop counts after the next start.
func TestLastUsagesOfBudgetAreStoredWhenWorkerStops(t *testing.T) {
	const cluster = "budget-test"
	w := startInstallation(t, config.Default(), metrics.NewTemporalMetrics(), nil)
	client, stop, err := budgetclient.Open(t.Context(), w.TemporalClient, cluster, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	for _, uid := range []string{"1", "2", "3"} {
		in := guards.Input{Config: config.Default(), ResolvedTarget: &activities.TargetFacts{Replicas: 9}}
		in.Now = time.Now()
		in.Request = activities.Request{
			LeaseID: "LSE-" + uid, ExpiresAt: in.Now.Add(time.Hour),
			Target: playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", UID: uid},
		}
		require.Empty(t, client.BudgetWindow.Spend(in))
	}
	stop()

	stored, err := w.TemporalClient.QueryWorkflow(t.Context(), budget.WorkflowID(cluster), "", budget.QueryUsage)
	require.NoError(t, err)
	var usages []budget.Usage
	require.NoError(t, stored.Get(&usages))
	require.Len(t, usages, 3)
}
