// Package voters has people who decide in tests: the service that takes their decisions, and a playbook that asks for
// approvals and counts votes. It signs as the real service does and checks no votes; the interpreter's tests do.
package voters

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/queries"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// IncidentID is the incident that the requests belong to.
const IncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

// Request is an approval request of a playbook in a test.
type Request struct{ ID, Step, Title, Action string }

// ApprovalRequest returns the request as the playbook run asks it.
func (a Request) ApprovalRequest(run string) activities.ApprovalRequest {
	target := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "1"}
	plan := activities.Plan{
		Action: a.Action, TargetID: target.ID(), Duration: time.Hour,
		Changes: []string{"isolate it: " + a.ID},
	}
	q := activities.ApprovalRequest{
		ID: a.ID, WorkflowID: run, IncidentID: IncidentID, Step: a.Step, Title: a.Title,
		Plans: []activities.PlanResult{{Plan: plan, PlanHash: plan.Hash()}}, Targets: []playbooks.Target{target},
		Approvers: playbooks.Approvers{Groups: []string{"responders"}, Quorum: 2, Timeout: time.Hour},
		Deadline:  time.Now().Add(time.Hour),
	}
	q.PlansHash = activities.ApprovalRequestHash(q.Plans, q.Approvers)
	return q
}

// Workflow is a playbook that requests approvals and counts as the interpreter does: one denial denies, two
// approvals approve.
func Workflow(ctx workflow.Context, requests []Request) error {
	open, closed := []activities.ApprovalRequest{}, []activities.ApprovalOutcome{}
	for _, a := range requests {
		open = append(open, a.ApprovalRequest(workflow.GetInfo(ctx).WorkflowExecution.ID))
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryPendingApprovals, func() ([]activities.ApprovalRequest,
		error,
	) {
		return open, nil
	}); err != nil {
		return err
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryAnsweredApprovals, func() ([]activities.ApprovalOutcome,
		error,
	) {
		return closed, nil
	}); err != nil {
		return err
	}
	for {
		var signed attestation.Envelope
		workflow.GetSignalChannel(ctx, workflows.SignalVote).Receive(ctx, &signed)
		var v attestation.Vote
		if err := json.Unmarshal(signed.Payload, &v); err != nil {
			return err
		}
		i := slices.IndexFunc(open, func(q activities.ApprovalRequest) bool { return q.ID == v.Step })
		if i < 0 {
			continue
		}
		q := &open[i]
		if v.BreakGlass { // counting takes some time
			if err := workflow.Sleep(ctx, 300*time.Millisecond); err != nil {
				return err
			}
		}
		switch {
		case v.RejectionReason != "":
			q.IgnoredVotes = append(q.IgnoredVotes, v.Person+": "+v.RejectionReason)
			continue
		case v.Approved:
			q.ApprovedBy = append(q.ApprovedBy, v.Person)
		}
		if !v.Approved || v.BreakGlass || len(q.ApprovedBy) >= 2 {
			reason := fmt.Sprintf("%s decided", v.Person)
			closed = append(closed, activities.ApprovalOutcome{
				ID: q.ID, Title: q.Title, Granted: v.Approved,
				ApprovedBy: q.ApprovedBy, Reason: reason,
			})
			open = slices.Delete(open, i, i+1)
		}
	}
}

// NewResponders returns an installation with three entitled people and one who is not.
func NewResponders(t *testing.T, s *temporal.Server) (*decisions.Service, func(string) decisions.Principal) {
	t.Helper()
	d := NewService(t, s)
	file := filepath.Join(t.TempDir(), "stanch.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`
phase: 2
people:
  - { name: alice, groups: [responders], break_glass: true }
  - { name: bob, groups: [responders] }
  - { name: eve, groups: [interns] }
`), 0o600))
	cfg, _, err := config.Load(file)
	require.NoError(t, err)
	d.Roster = config.NewRoster(cfg, file)
	return d, func(name string) decisions.Principal {
		for _, p := range cfg.People {
			if p.Name == name {
				return decisions.Principal{Person: p, AuthenticatedBy: "a test", RateLimitKey: t.Name() + name}
			}
		}
		t.Fatal(name)
		return decisions.Principal{}
	}
}

// People name a request as the help and the list do, and each answer reports its result.

// NewService returns the service of an installation without people.
func NewService(t *testing.T, s *temporal.Server) *decisions.Service {
	t.Helper()
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "stanch.yaml")
	require.NoError(t, os.WriteFile(file, []byte("phase: 2\n"), 0o600))
	cfg, _, err := config.Load(file)
	require.NoError(t, err)
	return &decisions.Service{
		Queries: &queries.Service{Temporal: s}, Authority: auth,
		Roster: config.NewRoster(cfg, file), Log: slog.New(slog.DiscardHandler),
	}
}

// ExtendableLease is a lease that runs for a time and accepts extensions.
func ExtendableLease(ctx workflow.Context, d time.Duration) error {
	m := &lease.Machine{
		LeaseID: lease.IDFromFirstRun(workflow.GetInfo(ctx).FirstRunID), State: lease.StateHeld,
		Action: "pod.isolate", Target: playbooks.Target{Kind: playbooks.TargetPod, UID: "1"},
	}
	m.Holders = map[string]*lease.Holder{"one": {ID: "one", ExpiresAt: workflow.Now(ctx).Add(d)}}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryLease, func() (*lease.Machine, error) {
		return m,
			nil
	}); err != nil {
		return err
	}
	for {
		var e lease.ExtendSignal
		workflow.GetSignalChannel(ctx, workflows.SignalExtendLease).Receive(ctx, &e)
		m.Extend(e.HolderID, e.ExpiresAt, e.Grant)
	}
}

// OpenIncident is an incident that is open until a signal closes it.
func OpenIncident(ctx workflow.Context, readable bool) (playbooks.Incident, error) {
	in := playbooks.Incident{ID: IncidentID, Status: "open"}
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
