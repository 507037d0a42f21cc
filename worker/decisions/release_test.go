package decisions_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/testenv/temporal"
	"stanch/testenv/voters"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// leaseWorkflow is a lease that waits to be released. A damaged one fails queries.
func leaseWorkflow(ctx workflow.Context, name string, damaged bool) error {
	id := lease.IDFromFirstRun(workflow.GetInfo(ctx).FirstRunID)
	if err := workflow.SetQueryHandler(ctx, workflows.QueryLease, func() (*lease.Machine, error) {
		if damaged {
			return nil, errors.New("its state is corrupted")
		}
		return &lease.Machine{
			LeaseID: id, State: lease.StateHeld, Action: "pod.isolate",
			Target: playbooks.Target{Kind: playbooks.TargetPod, UID: name},
		}, nil
	}); err != nil {
		return err
	}
	workflow.GetSignalChannel(ctx, workflows.SignalReleaseLease).Receive(ctx, nil)
	return nil
}

func TestUnreadableLeaseDoesNotBlockOthers(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Lease": leaseWorkflow})
	d, operator := voters.NewService(t, s), decisions.Principal{
		Person:          config.Person{Name: "ann"},
		AuthenticatedBy: "uid 7", IsOperator: true,
	}
	one := s.StartWorkflow("Lease", "lease/prod/pod:1/network", "", "1", false)
	s.StartWorkflow("Lease", "lease/prod/pod:2/network", "", "2", false)
	damaged := s.StartWorkflow("Lease", "lease/prod/pod:3/network", "", "3", true)
	s.WaitUntilListed("Lease", "Running", 3)

	list, err := d.Queries.Leases(t.Context(), false)
	require.NoError(t, err)
	require.Len(t, list, 3)
	states := map[string]lease.State{}
	for _, m := range list {
		states[m.LeaseID] = m.State
		require.NotPanics(t, func() { m.CurrentReport(time.Now()) })
	}
	require.EqualValues(t, "unreadable", states[lease.IDFromFirstRun(damaged.GetRunID())], "it is listed by its id")

	// A named lease is found, and a damaged one does not delay it.
	done, err := d.Release(t.Context(), operator, decisions.LeaseRequest{LeaseID: lease.IDFromFirstRun(one.GetRunID())})
	require.NoError(t, err)
	require.Len(t, done, 1)
	require.NoError(t, one.Get(t.Context(), nil))
	_, err = d.Release(t.Context(), operator, decisions.LeaseRequest{LeaseID: lease.IDFromFirstRun(damaged.GetRunID())})
	require.ErrorContains(t, err, "its state is corrupted")

	// All readable leases are released, and the error names the others.
	s.WaitUntilListed("Lease", "Running", 2)
	done, err = d.Release(t.Context(), operator, decisions.LeaseRequest{All: true})
	require.ErrorContains(t, err, "1 leases were changed; these were not: read the lease of prod/pod:3/network "+
		"("+lease.IDFromFirstRun(damaged.GetRunID())+")")
	require.Len(t, done, 1)
	require.Equal(t, "pod:2", done[0].Target)
	s.WaitUntilListed("Lease", "Running", 1)
}
