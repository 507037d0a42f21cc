package gateway_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/temporal"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/workflows"
)

// testRequest is an approval request of a playbook in a test.
type testRequest struct{ ID, Step, Title, Action string }

func (a testRequest) approvalRequest(run string) activities.ApprovalRequest {
	target := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "1"}
	plan := activities.Plan{
		Action: a.Action, TargetID: target.ID(), Duration: time.Hour,
		Changes: []string{"isolate it: " + a.ID},
	}
	q := activities.ApprovalRequest{
		ID: a.ID, WorkflowID: run, IncidentID: testIncidentID, Step: a.Step, Title: a.Title,
		Plans: []activities.PlanResult{{Plan: plan, PlanHash: plan.Hash()}}, Targets: []playbooks.Target{target},
		Approvers: activities.Approvers{Groups: []string{"responders"}, Quorum: 2, Timeout: time.Hour},
		Deadline:  time.Now().Add(time.Hour),
	}
	q.PlansHash = activities.ApprovalRequestHash(q.Plans, q.Approvers)
	return q
}

// approvalWorkflow is a playbook that requests approvals and counts as the interpreter does: one denial denies, two
// approvals approve.
func approvalWorkflow(ctx workflow.Context, requests []testRequest) error {
	open, closed := []activities.ApprovalRequest{}, []activities.ApprovalOutcome{}
	for _, a := range requests {
		open = append(open, a.approvalRequest(workflow.GetInfo(ctx).WorkflowExecution.ID))
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

// newResponderFixture returns an installation with three entitled people and one who is not.
func newResponderFixture(t *testing.T, s *temporal.Server) (*gateway.ApprovalService, func(string) gateway.Principal) {
	t.Helper()
	d := newApprovalService(t, s)
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
	return d, func(name string) gateway.Principal {
		for _, p := range cfg.People {
			if p.Name == name {
				return gateway.Principal{Person: p, AuthenticatedBy: "a test", RateLimitKey: t.Name() + name}
			}
		}
		t.Fatal(name)
		return gateway.Principal{}
	}
}

// People name a request as the help and the list do, and each answer reports its result.
func TestVoteFindsRequestAndReportsResult(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": openIncidentWorkflow, "Playbook": approvalWorkflow})
	d, who := newResponderFixture(t, s)
	s.StartWorkflow("Incident", "incident/a", testIncidentID, true)
	s.StartWorkflow("Playbook", "playbook/a/1", testIncidentID, []testRequest{
		{"steps[2]#1", "steps[2]", "isolate the pod", "pod.isolate"}, {
			"each[0]/cut#2", "each[0]/cut", "cut it off",
			"pod.isolate",
		}, {"steps[4]#3", "steps[4]", "stop the workload", "workload.scale"},
	})
	s.WaitUntilListed("Incident", "Running", 1)
	s.WaitUntilListed("Playbook", "Running", 1)
	vote := func(name string, approve bool, step string) (*gateway.VoteResult, error) {
		return d.Vote(t.Context(), who(name), gateway.VoteRequest{
			IncidentID: testIncidentID, RequestID: step,
			Approve: approve, WaitForResult: true,
		})
	}
	requireVoteResult := func(want string, result gateway.VoteResultKind, name string, approve bool, step string) {
		t.Helper()
		a, err := vote(name, approve, step)
		require.NoError(t, err)
		require.Equal(t, want, a.Message)
		require.Equal(t, result, a.Result)
	}
	fails := func(want string, name string, approve bool, step string) {
		t.Helper()
		_, err := vote(name, approve, step)
		require.ErrorContains(t, err, want)
	}
	// An ambiguous name lists the candidates, with the command for each.
	fails("has 3 pending approval requests; choose one:\n  stanch approve "+testIncidentID+
		" 'steps[2]#1'   isolate the pod "+
		"for 1h\n", "alice", true, "")
	fails(`"pod.isolate" matches 2 pending approval requests`, "alice", true, "pod.isolate")
	fails("unknown approval request \"isolate\" in incident "+testIncidentID+"; pending requests:\n  stanch deny "+
		testIncidentID+
		" 'steps[2]#1'   isolate the pod for 1h\n", "alice", false, "isolate")

	// By title, in any case and spacing, by step, and by action.
	requireVoteResult(`alice approved "isolate the pod" for 1h: 1 of 2 approved (alice); waiting for 1 more from responders`,
		gateway.ResultCounted, "alice", true, " Isolate  the pod")
	requireVoteResult(
		`the approval by alice for "isolate the pod" for 1h was already counted: 1 of 2 approved (alice); waiting for 1 more from responders`,
		gateway.ResultAlreadyCounted,
		"alice",
		true,
		"steps[2]",
	)
	fails("eve is not allowed to vote on this; allowed: responders", "eve", true, "steps[2]")
	requireVoteResult(`bob approved "isolate the pod" for 1h: 2 of 2 approved (alice, bob); it runs now`,
		gateway.ResultApproved,
		"bob", true, "steps[2]#1")
	requireVoteResult(`bob denied "stop the workload" for 1h: it will not run`, gateway.ResultDenied, "bob", false,
		"workload.scale")
	requireVoteResult(`alice approved "cut it off" for 1h: 1 of 2 approved (alice); waiting for 1 more from responders`,
		gateway.ResultCounted, "alice", true, "cut")

	// Break-glass is possible after a normal approval.
	a, err := d.Vote(t.Context(), who("alice"), gateway.VoteRequest{
		IncidentID: testIncidentID, Approve: true,
		BreakGlass: true, Reason: "nobody else is awake", WaitForResult: true,
	})
	require.NoError(t, err)
	require.Equal(t, `alice approved "cut it off" for 1h alone with break-glass, in place of the full quorum; it runs now`,
		a.Message)
	fails("has no pending approval request", "bob", true, "cut")
	require.False(t, strings.Contains(a.Message, "\n"))
}
