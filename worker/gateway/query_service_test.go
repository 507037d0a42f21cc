package gateway_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/workflows"
	"stanch/workflows/lease"
)

const testIncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

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

// openIncidentWorkflow is an incident that is open until a signal closes it.
func openIncidentWorkflow(ctx workflow.Context, readable bool) (playbooks.Incident, error) {
	in := playbooks.Incident{ID: testIncidentID, Status: "open"}
	if readable {
		if err := workflow.SetQueryHandler(ctx, workflows.QueryIncident, func() (playbooks.Incident, error) {
			return in,
				nil
		}); err != nil {
			return in, err
		}
	}
	workflow.GetSignalChannel(ctx, "close").Receive(ctx, nil)
	in.Status = "closed"
	return in, nil
}

func newApprovalService(t *testing.T, s *temporal.Server) *gateway.ApprovalService {
	t.Helper()
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "stanch.yaml")
	require.NoError(t, os.WriteFile(file, []byte("phase: 2\n"), 0o600))
	cfg, _, err := config.Load(file)
	require.NoError(t, err)
	return &gateway.ApprovalService{
		QueryService: &gateway.QueryService{Temporal: s}, Authority: auth,
		Roster: config.NewRoster(cfg, file), Log: slog.New(slog.DiscardHandler),
	}
}

func TestUnreadableLeaseDoesNotBlockOthers(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Lease": leaseWorkflow})
	d, operator := newApprovalService(t, s), gateway.Principal{
		Person:          config.Person{Name: "ann"},
		AuthenticatedBy: "uid 7", IsOperator: true,
	}
	one := s.StartWorkflow("Lease", "lease/prod/pod:1/network", "", "1", false)
	s.StartWorkflow("Lease", "lease/prod/pod:2/network", "", "2", false)
	damaged := s.StartWorkflow("Lease", "lease/prod/pod:3/network", "", "3", true)
	s.WaitUntilListed("Lease", "Running", 3)

	list, err := d.QueryService.Leases(t.Context(), false)
	require.NoError(t, err)
	require.Len(t, list, 3)
	states := map[string]lease.State{}
	for _, m := range list {
		states[m.LeaseID] = m.State
		require.NotPanics(t, func() { m.CurrentReport(time.Now()) })
	}
	require.EqualValues(t, "unreadable", states[lease.IDFromFirstRun(damaged.GetRunID())], "it is listed by its id")

	// A named lease is found, and a damaged one does not delay it.
	done, err := d.Release(t.Context(), operator, gateway.LeaseRequest{LeaseID: lease.IDFromFirstRun(one.GetRunID())})
	require.NoError(t, err)
	require.Len(t, done, 1)
	require.NoError(t, one.Get(t.Context(), nil))
	_, err = d.Release(t.Context(), operator, gateway.LeaseRequest{LeaseID: lease.IDFromFirstRun(damaged.GetRunID())})
	require.ErrorContains(t, err, "its state is corrupted")

	// All readable leases are released, and the error names the others.
	s.WaitUntilListed("Lease", "Running", 2)
	done, err = d.Release(t.Context(), operator, gateway.LeaseRequest{All: true})
	require.ErrorContains(t, err, "1 leases were changed; these were not: read the lease of prod/pod:3/network "+
		"("+lease.IDFromFirstRun(damaged.GetRunID())+")")
	require.Len(t, done, 1)
	require.Equal(t, "pod:2", done[0].Target)
	s.WaitUntilListed("Lease", "Running", 1)
}

func TestClosureOfUnreadableIncident(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": openIncidentWorkflow})
	r := &gateway.QueryService{Temporal: s}
	closure := func() activities.Closure {
		e, err := r.Closure(t.Context(), testIncidentID)
		require.NoError(t, err)
		return e
	}
	require.Equal(t, activities.Closure{NotFound: true}, closure())
	run := s.StartWorkflow("Incident", "incident/a", testIncidentID, true)
	s.WaitUntilListed("Incident", "Running", 1)
	require.Equal(t, activities.Closure{}, closure())
	_, err := r.Incident(t.Context(), testIncidentID)
	require.NoError(t, err, "it has run and can be queried later")

	require.NoError(t, s.TerminateWorkflow(t.Context(), run.GetID(), "", "by hand"))
	s.WaitUntilListed("Incident", "Terminated", 1)
	require.True(t, closure().Abnormal)
	require.WithinDuration(t, time.Now(), closure().ClosedAt, time.Minute)
	in, err := r.Incident(t.Context(), testIncidentID)
	require.NoError(t, err)
	require.Equal(t, "closed", in.Status, "its status before the termination is outdated")
}
