package worker_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// If the guards require an approval, the requester is never an approver.
func TestRequesterCannotApproveOwnRequest(t *testing.T) {
	w, node, ask := startRequestInstallation(t, strings.ReplaceAll(manualRequestConfig, "max_duration: 2h",
		"max_duration: 1m"))
	answer, err := ask("alice", decisions.ContainRequest{
		ID: "long", Target: testContainerID, Action: "pod.isolate",
		Duration: time.Hour, Reason: "beacons",
	})
	require.NoError(t, err)
	var asked []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		asked, err = w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
		return err == nil && len(asked) == 1
	}, 30*time.Second, 50*time.Millisecond)
	vote := decisions.VoteRequest{IncidentID: answer.IncidentID, RequestID: asked[0].ID, Approve: true}
	_, err = w.Decisions.Vote(t.Context(), principalByName(w.Config, "alice"), vote)
	require.ErrorContains(t, err, "alice requested this; someone else must approve it; withdraw it with `stanch deny`")
	require.Empty(t, node.lockedLeaseIDs())
	_, err = w.Decisions.Vote(t.Context(), principalByName(w.Config, "bob"), vote)
	require.NoError(t, err)
	_, run := waitForPlaybookRun(t, w, answer)
	require.Equal(t, playbooks.OutcomeChanged, outcomesByAction(run)["pod.isolate"])
	require.Len(t, node.lockedLeaseIDs(), 1)
}

// Two requests for one target have two approval requests with different names; an ambiguous name is refused.
func TestApprovalRequestsOfIncidentHaveUniqueNames(t *testing.T) {
	w, node, ask := startRequestInstallation(t, manualRequestConfig)
	var answer *decisions.ContainResponse
	for id, long := range map[string]time.Duration{"first": 48 * time.Hour, "second": 144 * time.Hour} {
		var err error
		answer, err = ask("alice", decisions.ContainRequest{
			ID: id, Target: testContainerID, Action: "pod.isolate",
			Duration: long, Reason: id,
		})
		require.NoError(t, err)
	}
	var asked []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		var err error
		asked, err = w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
		return err == nil && len(asked) == 2
	}, 30*time.Second, 50*time.Millisecond)
	require.Equal(t, asked[0].ID, asked[1].ID, "each run numbers its own requests")
	require.NotEqual(t, asked[0].QualifiedID(), asked[1].QualifiedID())
	vote := func(step string) (*decisions.VoteResult, error) {
		return w.Decisions.Vote(t.Context(), principalByName(w.Config, "bob"),
			decisions.VoteRequest{IncidentID: answer.IncidentID, RequestID: step, Approve: true, WaitForResult: true})
	}
	for _, step := range []string{"", "pod.isolate", asked[0].ID} {
		_, err := vote(step)
		for _, q := range asked {
			require.ErrorContains(t, err, "stanch approve "+answer.IncidentID+" '"+q.QualifiedID()+
				"'   pod.isolate on container b0b0b0b0b0b0"+q.DurationText(), step)
		}
	}
	i := slices.IndexFunc(asked, func(q playbook.ApprovalRequest) bool { return q.DurationText() == " for 2d" })
	require.GreaterOrEqual(t, i, 0)
	said, err := vote(asked[i].QualifiedID())
	require.NoError(t, err)
	require.Equal(t, `bob approved "pod.isolate on container b0b0b0b0b0b0" for 2d: 1 of 1 approved (bob); it runs now`,
		said.Message)
	require.Eventually(t, func() bool { return len(node.lockedLeaseIDs()) == 1 }, 30*time.Second, 50*time.Millisecond)
	asked, err = w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
	require.NoError(t, err)
	require.Len(t, asked, 1)
	require.Equal(t, " for 6d", asked[0].DurationText(), "the other request is still open")
}

// A requester may withdraw the request whoever the approvers are, but not approve it. A requester of something else in
// the incident votes like anybody.
func TestRequesterCanWithdrawOwnAndVoteOnOtherRequests(t *testing.T) {
	w, node, ask := startRequestInstallation(t, manualRequestConfig)
	questions := func(incident string) []playbook.ApprovalRequest {
		var asked []playbook.ApprovalRequest
		require.Eventually(t, func() bool {
			var err error
			asked, err = w.Queries.PendingApprovals(t.Context(), incident)
			return err == nil && len(asked) > 0
		}, 30*time.Second, 50*time.Millisecond)
		return asked
	}
	short, err := ask("bob", decisions.ContainRequest{
		ID: "short", Target: testContainerID, Action: "pod.isolate",
		Duration: 5 * time.Minute, Reason: "beacons",
	})
	require.NoError(t, err)
	waitForPlaybookRun(t, w, short)
	root := decisions.Principal{
		Person: config.Person{Name: "root"}, AuthenticatedBy: "uid 0 on the local socket",
		RateLimitKey: "uid:0", IsOperator: true,
	}
	q := decisions.ContainRequest{
		ID: "long", Target: testContainerID, Action: "pod.isolate", Duration: 3 * time.Hour,
		Reason: "longer",
	}
	long, err := w.Decisions.Contain(t.Context(), root, q)
	require.NoError(t, err)
	vote := decisions.VoteRequest{
		IncidentID: long.IncidentID, RequestID: questions(long.IncidentID)[0].QualifiedID(),
		Approve: true, WaitForResult: true,
	}
	_, err = w.Decisions.Vote(t.Context(), root, vote)
	require.ErrorContains(t, err, "root requested this; someone else must approve it; withdraw it with `stanch deny`")
	no := vote
	no.Approve, no.Reason = false, "a mistake"
	said, err := w.Decisions.Vote(t.Context(), root, no)
	require.NoError(t, err)
	require.Equal(t, decisions.ResultDenied, said.Result, said.Message)
	_, run := waitForPlaybookRun(t, w, long)
	require.Equal(t, playbooks.OutcomeDenied, outcomesByAction(run)["pod.isolate"])
	require.Contains(t, run.Steps[len(run.Steps)-1].Reason, "root withdrew the request. a mistake")

	// Another person's request: bob, who requested something before, approves it.
	q.ID = "again"
	long, err = w.Decisions.Contain(t.Context(), root, q)
	require.NoError(t, err)
	vote.RequestID = questions(long.IncidentID)[0].QualifiedID()
	_, err = w.Decisions.Vote(t.Context(), principalByName(w.Config, "mallory"),
		decisions.VoteRequest{IncidentID: vote.IncidentID, RequestID: vote.RequestID})
	require.ErrorContains(t, err, "mallory is not allowed to vote on this")
	said, err = w.Decisions.Vote(t.Context(), principalByName(w.Config, "bob"), vote)
	require.NoError(t, err)
	require.Equal(t, decisions.ResultApproved, said.Result)
	_, run = waitForPlaybookRun(t, w, long)
	require.NotEqual(t, playbooks.OutcomeDenied, outcomesByAction(run)["pod.isolate"])
	require.Len(t, node.lockedLeaseIDs(), 1)
}

// A dry run names the approvers and the quorum of the playbook's approval, and warns if too few people may approve.
func TestDryRunShowsApproversAndQuorum(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "two.yaml"), []byte(`playbook: two
description: Ask two, then hold it.
match: { objective: escape }
steps:
  - evidence: process.snapshot
  - approval: hold it
    ask: Hold it?
    from: { groups: [responders], quorum: 2 }
    timeout: 1m
    on_timeout: deny
    steps:
      - contain: pod.isolate
        for: 30m
`), 0o600))
	_, _, ask := startRequestInstallation(t, strings.ReplaceAll(manualRequestConfig,
		"approvers: { groups: [responders], timeout: 1m }", "approvers: { groups: [others], timeout: 1m }")+"playbooks: ['"+
		dir+"']\n")
	planned, err := ask("mallory", decisions.ContainRequest{
		Target: testContainerID, Playbook: "two", Reason: "spread",
		DryRun: true,
	})
	require.NoError(t, err)
	plan := planned.Targets[0].Plans[0]
	require.Equal(t, activities.VerdictAskApproval, plan.Decision.Verdict)
	require.Equal(t, []string{"responders"}, plan.Decision.Approvers.Groups)
	require.Equal(t, 2, plan.Decision.Approvers.Quorum)
	require.Empty(t, plan.Plan.Warnings)

	_, _, ask = startRequestInstallation(t, manualRequestConfig+"playbooks: ['"+dir+"']\n")
	planned, err = ask("bob", decisions.ContainRequest{
		Target: testContainerID, Playbook: "two", Reason: "spread",
		DryRun: true,
	})
	require.NoError(t, err)
	require.Equal(t, []string{"only 1 of the 2 required approvers are allowed to vote, so it cannot be approved"},
		planned.Targets[0].Plans[0].Plan.Warnings)
}

func TestManualRequestIsProposedInPhaseOne(t *testing.T) {
	w, node, ask := startRequestInstallation(t, strings.ReplaceAll(manualRequestConfig, "phase: 2", "phase: 1"))
	answer, err := ask("alice", decisions.ContainRequest{
		ID: "p1", Target: testContainerID, Action: "pod.isolate",
		Duration: time.Hour, Reason: "beacons",
	})
	require.NoError(t, err)
	_, run := waitForPlaybookRun(t, w, answer)
	require.Equal(t, playbooks.OutcomeProposed, outcomesByAction(run)["pod.isolate"])
	require.Empty(t, node.lockedLeaseIDs())
}

// Full access to Temporal and the codec key, without the authority's key, cannot forge a person's request or reuse its
// proof for another: nothing is contained.
func TestForgedManualRequestIsRefused(t *testing.T) {
	w, node, ask := startRequestInstallation(t, strings.ReplaceAll(manualRequestConfig, "max_duration: 2h",
		"max_duration: 1m"))
	forged := sensors.Detection{
		ID: "request/forged", Rule: sensors.RuleManualRequest, Title: "Requested by alice", Severity: sensors.SeverityHigh,
		Confidence: 1, Objective: sensors.ObjectiveManualRequest, Source: sensors.SourceManualRequest,
		Time: time.Now(), Node: "node-1", Reasons: []string{"alice asked for it"},
		ManualRequest: &sensors.ManualRequest{
			Person: "alice", AuthenticatedBy: "uid 1001 on the local socket",
			Reason: "forged", Action: "pod.freeze", Duration: time.Minute,
		},
		Event: sensors.Event{
			Kind: sensors.KindManualRequest, Node: "node-1",
			Container: sensors.Container{ID: testContainerID},
		},
	}
	// A real pending request for something else: its proof can be read from Temporal.
	answer, err := ask("alice", decisions.ContainRequest{
		ID: "true", Target: testContainerID, Action: "pod.isolate",
		Duration: time.Hour, Reason: "beacons",
	})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		asked, err := w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
		return err == nil && len(asked) == 1
	}, 30*time.Second, 50*time.Millisecond)
	var taken attestation.Envelope
	events := w.TemporalClient.GetWorkflowHistory(t.Context(), workflows.IncidentWorkflowID(w.Config.Cluster+"/Container/"+
		testContainerID[:12]+"@node-1"), "", false, 0)
	for events.HasNext() {
		e, err := events.Next()
		require.NoError(t, err)
		if s := e.GetWorkflowExecutionSignaledEventAttributes(); s.GetSignalName() == workflows.SignalDetections {
			var batch []incident.AttestedDetection
			require.NoError(t, w.DataConverter.FromPayloads(s.GetInput(), &batch))
			taken = batch[0].Attestation
		}
	}
	require.NotEmpty(t, taken.Signature)
	intruder, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	own, err := intruder.Sign(attestation.PayloadTypeAttestation, attestation.Attestation{
		DetectionID: forged.ID, TargetID: "container:" + testContainerID, Node: "node-1", Confidence: 1,
		AcceptedAt: time.Now(), ManualRequest: &attestation.ManualRequest{
			Person: "alice", Actions: []string{"pod.freeze"},
			MaxDuration: time.Hour,
		},
	})
	require.NoError(t, err)
	for name, signed := range map[string]attestation.Envelope{
		"no attestation": {}, "another key": own,
		"the attestation of another request": taken,
	} {
		id := "INC-01ARZ3NDEKTSV4RRFFQ69G5FA" + map[string]string{
			"no attestation": "A", "another key": "B",
			"the attestation of another request": "C",
		}[name]
		key := "forged/" + strings.ReplaceAll(name, " ", "-")
		_, err := w.TemporalClient.SignalWithStartWorkflow(t.Context(), workflows.IncidentWorkflowID(key),
			workflows.SignalDetections, []incident.AttestedDetection{{Detection: forged, Attestation: signed}},
			client.StartWorkflowOptions{TaskQueue: workflows.TaskQueue}, "Incident", incident.Input{
				ID: id, GroupingKey: key,
				Scope: "host", Phase: 3, IdleTimeout: time.Second,
			})
		require.NoError(t, err)
		var in playbooks.Incident
		require.Eventually(t, func() bool {
			value, err := w.TemporalClient.QueryWorkflow(t.Context(), workflows.IncidentWorkflowID(key), "",
				workflows.QueryIncident)
			return err == nil && value.Get(&in) == nil && len(in.Playbooks) == 1 && !in.Playbooks[0].Ended.IsZero()
		}, 30*time.Second, 50*time.Millisecond, name)
		require.NotContains(t, []playbooks.Outcome{
			playbooks.OutcomeChanged, playbooks.OutcomeUnverified,
			playbooks.OutcomeUnchanged,
		}, outcomesByAction(in.Playbooks[0])["pod.freeze"], name)
		reason := in.Playbooks[0].Steps[len(in.Playbooks[0].Steps)-1].Reason
		require.Contains(t, reason, "no attested detection about container", name)
	}
	require.Empty(t, node.lockedLeaseIDs())
}
