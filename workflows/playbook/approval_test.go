package playbook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows"
)

func newVote(person string) attestation.Envelope {
	payload, err := json.Marshal(attestation.Vote{Step: "cut#1", Person: person, Approved: true})
	if err != nil {
		panic(err) // plain data
	}
	return attestation.Envelope{Payload: payload}
}

// approvalRun runs one approval request in Temporal's test environment, whose clock skips waiting.
type approvalRun struct {
	t        *testing.T
	env      *testsuite.TestWorkflowEnvironment
	run      *playbookRun
	request  ApprovalRequest
	counted  []activities.CountVotesInput
	countErr func(n int) error // of the n-th count, from 1
	count    func(in activities.CountVotesInput) activities.VoteCount
	start    time.Time
	ended    time.Time
	syncs    int // of the chat message
}

func newTestEnvironment() *testsuite.TestWorkflowEnvironment {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	return suite.NewTestWorkflowEnvironment()
}

func newApprovalRun(t *testing.T) *approvalRun {
	t.Helper()
	a := &approvalRun{
		t: t, env: newTestEnvironment(),
		run: &playbookRun{
			workflowID: "playbook/a/1", incidentRef: activities.IncidentRef{ID: "INC-1"},
			openRequests: map[string]*openRequest{},
		},
		request: ApprovalRequest{
			Step: "cut", Title: "isolate it",
			Approvers: playbooks.Approvers{Groups: []string{"oncall"}, Quorum: 2, Timeout: time.Hour},
		},
	}
	a.count = func(in activities.CountVotesInput) activities.VoteCount {
		c := activities.VoteCount{Granted: len(in.Votes) >= 2, Reason: fmt.Sprintf("%d votes", len(in.Votes))}
		for range in.Votes {
			c.ApprovedBy = append(c.ApprovedBy, "someone")
		}
		return c
	}
	a.env.RegisterActivityWithOptions(func(_ context.Context, in activities.CountVotesInput) (activities.VoteCount,
		error,
	) {
		a.counted = append(a.counted, in)
		if a.countErr != nil {
			if err := a.countErr(len(a.counted)); err != nil {
				return activities.VoteCount{}, err
			}
		}
		return a.count(in), nil
	}, activity.RegisterOptions{Name: "CountVotes"})
	return a
}

// voteAfter sends a person's vote some time after the request.
func (a *approvalRun) voteAfter(d time.Duration, person string) {
	a.env.RegisterDelayedCallback(func() { a.env.SignalWorkflow(workflows.SignalVote, newVote(person)) }, d)
}

// wait runs the request to its end.
func (a *approvalRun) wait() approvalResult {
	a.t.Helper()
	var got approvalResult
	a.env.ExecuteWorkflow(func(ctx workflow.Context) error {
		a.start = workflow.Now(ctx)
		workflow.Go(ctx, func(ctx workflow.Context) {
			for {
				var v attestation.Envelope
				workflow.GetSignalChannel(ctx, workflows.SignalVote).Receive(ctx, &v)
				a.run.receiveVote(v)
			}
		})
		got = a.run.waitForApproval(ctx, a.request)
		a.ended = workflow.Now(ctx)
		return workflow.Sleep(ctx, time.Second) // so that sent signals arrive
	})
	require.True(a.t, a.env.IsWorkflowCompleted())
	require.NoError(a.t, a.env.GetWorkflowError())
	require.Empty(a.t, a.run.openRequests, "a closed request takes no votes")
	return got
}

func TestApprovalIsGrantedByCountedVotes(t *testing.T) {
	a := newApprovalRun(t)
	a.count = func(in activities.CountVotesInput) activities.VoteCount {
		return activities.VoteCount{
			Granted: len(in.Votes) == 2, Reason: "approved by two", ApprovedBy: []string{"ann", "ben"}[:len(in.Votes)],
			GrantsByPlanHash: map[string]attestation.Envelope{"plan": {KeyID: "k"}},
		}
	}
	a.voteAfter(time.Minute, "ann")
	a.voteAfter(2*time.Minute, "ben")
	got := a.wait()
	require.True(t, got.granted)
	require.Equal(t, "approved by two", got.reason)
	require.Equal(t, "k", got.grants["plan"].KeyID)
	require.Equal(t, 2*time.Minute, a.ended.Sub(a.start))
	require.Len(t, a.counted, 2)
	in := a.counted[1]
	require.Equal(t, "cut#1", in.RequestID)
	require.Equal(t, "playbook/a/1", in.WorkflowID)
	require.Equal(t, "INC-1", in.IncidentID)
	require.Equal(t, activities.ApprovalRequestHash(nil, a.request.Approvers), in.PlansHash)
	require.Equal(t, time.Hour, in.Deadline.Sub(in.AskedAt))
	require.True(t, in.AskedAt.Equal(a.start))
	require.Len(t, a.run.answeredRequests, 1)
	require.Equal(t, activities.ApprovalOutcome{
		ID: "cut#1", Step: "cut", Title: "isolate it", Granted: true, Reason: "approved by two",
		ApprovedBy: []string{"ann", "ben"}, DecidedAt: a.ended,
	}, a.run.answeredRequests[0])
}

func TestApprovalIsDeniedAtOnce(t *testing.T) {
	a := newApprovalRun(t)
	a.count = func(activities.CountVotesInput) activities.VoteCount {
		return activities.VoteCount{Denied: true, Reason: "ann denied it"}
	}
	a.voteAfter(time.Minute, "ann")
	require.Equal(t, approvalResult{reason: "ann denied it"}, a.wait())
	require.Equal(t, time.Minute, a.ended.Sub(a.start))
}

func TestTimeoutNeverApproves(t *testing.T) {
	a := newApprovalRun(t)
	require.Equal(t, approvalResult{reason: "no approver voted within 1h"}, a.wait())
	require.Equal(t, time.Hour, a.ended.Sub(a.start))
	require.Empty(t, a.counted)

	a = newApprovalRun(t)
	a.voteAfter(time.Minute, "ann")
	require.Equal(t, approvalResult{reason: "1 of 2 required approvals within 1h"}, a.wait())
	require.Equal(t, time.Hour, a.ended.Sub(a.start))
	require.Len(t, a.counted, 1, "what is counted is not counted again")

	a = newApprovalRun(t)
	a.request.Approvers.Quorum = 0
	a.count = func(activities.CountVotesInput) activities.VoteCount {
		return activities.VoteCount{ApprovedBy: []string{"ann"}}
	}
	a.voteAfter(time.Minute, "ann")
	require.Equal(t, "1 of 1 required approvals within 1h", a.wait().reason)
}

func TestScopeWithoutApproversAsksNobody(t *testing.T) {
	a := newApprovalRun(t)
	a.request.Approvers.Groups = nil
	require.Equal(t, approvalResult{reason: "the scope has no approvers"}, a.wait())
	require.Equal(t, a.start, a.ended)
	require.Empty(t, a.run.answeredRequests)
	require.Equal(t, 1, a.run.requestCount)
}

// A vote that arrived in time counts, even if the run sees the deadline before the vote.
func TestUncountedVotesAreCountedAtTheDeadline(t *testing.T) {
	a := newApprovalRun(t)
	arrive := func(n int) {
		a.env.RegisterDelayedCallback(func() {
			for i := range n {
				p := a.run.openRequests["cut#1"]
				p.Votes = append(p.Votes, newVote(fmt.Sprint(i)))
			}
		}, 30*time.Minute)
	}
	arrive(2)
	require.True(t, a.wait().granted)
	require.Equal(t, time.Hour, a.ended.Sub(a.start))

	a = newApprovalRun(t)
	arrive(1)
	require.Equal(t, approvalResult{reason: "no approver voted within 1h"}, a.wait())
	require.Len(t, a.counted, 1)
	require.Equal(t, time.Hour, a.ended.Sub(a.start))
}

func TestVotesAreCountedAgainAfterAFailure(t *testing.T) {
	a := newApprovalRun(t)
	a.countErr = func(n int) error {
		if n < 3 {
			return temporal.NewNonRetryableApplicationError("the key is missing", "x", nil)
		}
		return nil
	}
	a.voteAfter(time.Minute, "ann")
	a.voteAfter(time.Minute, "ben")
	require.True(t, a.wait().granted)
	require.Len(t, a.counted, 3)
	require.Equal(t, time.Minute+2*recountInterval, a.ended.Sub(a.start))

	a = newApprovalRun(t)
	a.countErr = func(int) error {
		return temporal.NewNonRetryableApplicationError("the key is missing", "x", errors.New("gone"))
	}
	a.voteAfter(time.Minute, "ann")
	require.Equal(t, approvalResult{reason: "the votes could not be counted: the key is missing"}, a.wait())
	require.Equal(t, time.Hour+10*time.Minute, a.ended.Sub(a.start), "for ten minutes after the deadline")
	require.Len(t, a.counted, 1+int((69*time.Minute)/(5*time.Second)))
}

func TestVotesThatArriveTogetherLeaveTheRequestOpen(t *testing.T) {
	a := newApprovalRun(t)
	a.request.Approvers.Quorum = 3
	a.count = func(activities.CountVotesInput) activities.VoteCount {
		return activities.VoteCount{ApprovedBy: []string{"ann", "ben"}}
	}
	a.env.RegisterDelayedCallback(func() {
		a.run.receiveVote(newVote("ann"))
		a.run.receiveVote(newVote("ben"))
	}, time.Minute)
	require.Equal(t, "2 of 3 required approvals within 1h", a.wait().reason)
}

// The chat message shows a request when it opens, when a vote is counted, and when it is closed.
func TestChatMessageIsSyncedAtEveryChange(t *testing.T) {
	for _, enabled := range []bool{true, false} {
		a := newApprovalRun(t)
		a.run.input.ChatEnabled = enabled
		a.env.OnSignalExternalWorkflow(mock.Anything, workflows.ChatMessageWorkflowID("INC-1"), "",
			workflows.SignalSyncMessage, mock.Anything).Return(func(string, string, string, string, any) error {
			a.syncs++
			return nil
		})
		a.voteAfter(time.Minute, "ann")
		a.wait()
		require.Equal(t, map[bool]int{true: 3, false: 0}[enabled], a.syncs)
	}
}

func TestSuspendedRunStopsWaiting(t *testing.T) {
	a := newApprovalRun(t)
	a.env.RegisterDelayedCallback(func() {
		a.run.suspendedReason = "ann took it over"
		a.run.openRequests["cut#1"].wakeUp.SendAsync(true)
	}, time.Minute)
	require.Equal(t, approvalResult{reason: "ann took it over"}, a.wait())
	require.Equal(t, time.Minute, a.ended.Sub(a.start))
}

func TestRunRemembersItsLastAnsweredRequests(t *testing.T) {
	a := newApprovalRun(t)
	for range maxAnsweredRequests {
		a.run.answeredRequests = append(a.run.answeredRequests, activities.ApprovalOutcome{})
	}
	a.wait()
	require.Len(t, a.run.answeredRequests, 50)
	require.Equal(t, "cut#1", a.run.answeredRequests[49].ID)
}

func TestVoteIsReceivedOnce(t *testing.T) {
	a := newApprovalRun(t)
	env := newTestEnvironment()
	env.ExecuteWorkflow(func(ctx workflow.Context) error {
		p := &openRequest{wakeUp: workflow.NewBufferedChannel(ctx, 1000)}
		a.run.openRequests["cut#1"] = p
		a.run.receiveVote(newVote("ann"))
		a.run.receiveVote(newVote("ann"))
		a.run.receiveVote(attestation.Envelope{Payload: []byte("no JSON")})
		a.run.receiveVote(attestation.Envelope{Payload: []byte(`{"step":"cut#1","approved":"no boolean"}`)})
		unknown, _ := json.Marshal(attestation.Vote{Step: "cut#2", Person: "ann"})
		a.run.receiveVote(attestation.Envelope{Payload: unknown})
		require.Len(t, p.Votes, 1)
		require.Equal(t, 1, p.wakeUp.Len())
		for i := range 200 {
			a.run.receiveVote(newVote(fmt.Sprint(i)))
		}
		require.Len(t, p.Votes, 100, "a flood is limited")
		return nil
	})
	require.NoError(t, env.GetWorkflowError())
}

func TestVotesWithOtherContentAreDifferent(t *testing.T) {
	votes := []attestation.Vote{
		{}, {Step: "a"}, {PlanHash: "a"}, {Person: "a"}, {RejectionReason: "a"}, {Approved: true}, {BreakGlass: true},
	}
	seen := map[voteContent]bool{}
	for _, v := range votes {
		payload, err := json.Marshal(v)
		require.NoError(t, err)
		seen[voteContentOf(attestation.Envelope{Payload: payload})] = true
	}
	require.Len(t, seen, len(votes))
}

func TestOnlyRunnablePlansAreAskedFor(t *testing.T) {
	var all plannedActions
	for i, v := range []activities.Verdict{
		activities.VerdictRun, activities.VerdictPropose, activities.VerdictAskApproval, activities.VerdictRefuse,
	} {
		target := playbooks.Target{Kind: playbooks.TargetPod, UID: fmt.Sprint(i)}
		all.addPlan(activities.PlanResult{
			Plan: activities.Plan{TargetID: target.ID(), Action: "pod.isolate"}, Decision: activities.GuardDecision{Verdict: v},
		}, target)
	}
	runnable := all.runnableIfApproved()
	require.Equal(t, []activities.PlanResult{all.plans[0], all.plans[2]}, runnable.plans)
	require.Equal(t, []playbooks.Target{all.targets[0], all.targets[2]}, runnable.targets)
	got, ok := all.findPlan("pod:2", "pod.isolate")
	require.True(t, ok)
	require.Equal(t, all.plans[2], got)
	for _, c := range [][2]string{{"pod:2", "pod.delete"}, {"pod:9", "pod.isolate"}} {
		got, ok = all.findPlan(c[0], c[1])
		require.False(t, ok)
		require.Empty(t, got)
	}
}

func TestAttestationsOfWorkloadAreThoseOfItsPods(t *testing.T) {
	signed := func(n int) (out []attestation.Envelope) {
		for i := range n {
			out = append(out, attestation.Envelope{KeyID: fmt.Sprint(i)})
		}
		return out
	}
	r := &playbookRun{receipts: map[string][]attestation.Envelope{}}
	r.input.Attestations = map[string][]attestation.Envelope{}
	for i := range 10 {
		pod := playbooks.Target{Kind: playbooks.TargetPod, UID: fmt.Sprint(i)}
		r.input.Incident.Targets = append(r.input.Incident.Targets, pod)
		r.input.Attestations[pod.ID()], r.receipts[pod.ID()] = signed(i+1), signed(i+1)
	}
	require.Equal(t, signed(4), r.attestationsFor(r.input.Incident.Targets[3]))
	require.Equal(t, signed(10)[2:], r.attestationsFor(r.input.Incident.Targets[9]), "the newest 8")
	require.Equal(t, signed(10)[2:], r.attestationsFor(playbooks.Target{Kind: playbooks.TargetWorkload}),
		"the newest of each pod")
	require.Equal(t, signed(10), r.allEvidenceReceipts(), "the newest of each target")
}
