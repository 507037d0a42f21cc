package decisions_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/testenv/temporal"
	"stanch/testenv/voters"
	"stanch/worker/decisions"
)

func TestVoteFindsRequestAndReportsResult(t *testing.T) {
	s := temporal.Start(t, map[string]any{"Incident": voters.OpenIncident, "Playbook": voters.Workflow})
	d, who := voters.NewResponders(t, s)
	s.StartWorkflow("Incident", "incident/a", voters.IncidentID, true)
	s.StartWorkflow("Playbook", "playbook/a/1", voters.IncidentID, []voters.Request{
		{ID: "steps[2]#1", Step: "steps[2]", Title: "isolate the pod", Action: "pod.isolate"},
		{ID: "each[0]/cut#2", Step: "each[0]/cut", Title: "cut it off", Action: "pod.isolate"},
		{ID: "steps[4]#3", Step: "steps[4]", Title: "stop the workload", Action: "workload.scale"},
	})
	s.WaitUntilListed("Incident", "Running", 1)
	s.WaitUntilListed("Playbook", "Running", 1)
	vote := func(name string, approve bool, step string) (*decisions.VoteResult, error) {
		return d.Vote(t.Context(), who(name), decisions.VoteRequest{
			IncidentID: voters.IncidentID, RequestID: step,
			Approve: approve, WaitForResult: true,
		})
	}
	requireVoteResult := func(want string, result decisions.VoteResultKind, name string, approve bool, step string) {
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
	fails("has 3 pending approval requests; choose one:\n  stanch approve "+voters.IncidentID+
		" 'steps[2]#1'   isolate the pod "+
		"for 1h\n", "alice", true, "")
	fails(`"pod.isolate" matches 2 pending approval requests`, "alice", true, "pod.isolate")
	fails("unknown approval request \"isolate\" in incident "+voters.IncidentID+"; pending requests:\n  stanch deny "+
		voters.IncidentID+
		" 'steps[2]#1'   isolate the pod for 1h\n", "alice", false, "isolate")

	// By title, in any case and spacing, by step, and by action.
	requireVoteResult(`alice approved "isolate the pod" for 1h: 1 of 2 approved (alice); waiting for 1 more from responders`,
		decisions.ResultCounted, "alice", true, " Isolate  the pod")
	requireVoteResult(
		`the approval by alice for "isolate the pod" for 1h was already counted: 1 of 2 approved (alice); waiting for 1 more from responders`,
		decisions.ResultAlreadyCounted,
		"alice",
		true,
		"steps[2]",
	)
	fails("eve is not allowed to vote on this; allowed: responders", "eve", true, "steps[2]")
	requireVoteResult(`bob approved "isolate the pod" for 1h: 2 of 2 approved (alice, bob); it runs now`,
		decisions.ResultApproved,
		"bob", true, "steps[2]#1")
	requireVoteResult(`bob denied "stop the workload" for 1h: it will not run`, decisions.ResultDenied, "bob", false,
		"workload.scale")
	requireVoteResult(`alice approved "cut it off" for 1h: 1 of 2 approved (alice); waiting for 1 more from responders`,
		decisions.ResultCounted, "alice", true, "cut")

	// Break-glass is possible after a normal approval.
	a, err := d.Vote(t.Context(), who("alice"), decisions.VoteRequest{
		IncidentID: voters.IncidentID, Approve: true,
		BreakGlass: true, Reason: "nobody else is awake", WaitForResult: true,
	})
	require.NoError(t, err)
	require.Equal(t, `alice approved "cut it off" for 1h alone with break-glass, in place of the full quorum; it runs now`,
		a.Message)
	fails("has no pending approval request", "bob", true, "cut")
	require.False(t, strings.Contains(a.Message, "\n"))
}
