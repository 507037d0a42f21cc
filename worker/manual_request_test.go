package worker_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/worker"
	"stanch/worker/actions"
	"stanch/worker/archive"
	"stanch/worker/auditor"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/metrics"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
	"stanch/worker/tracing"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

// fakeLockingNode is a node that verifies a lock's token as the sensor does, and stores what it permits.
type fakeLockingNode struct {
	mu             sync.Mutex
	containerIDs   []string // containers of this node
	containments   map[string]gatewayrpc.ContainmentState
	lockedLeases   []string                   // leases that were locked, in order
	networkSharers []gatewayrpc.NetworkSharer // other containers in the network namespace, by container
}

func (o *fakeLockingNode) Handle(_ context.Context, kind gatewayrpc.CommandKind, body []byte,
	keys attestation.Keyring,
) (any, []gatewayrpc.Attachment, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var c gatewayrpc.ContainmentCommand
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, nil, err
	}
	id := c.Target.ContainerID
	if !slices.Contains(o.containerIDs, id) {
		return gatewayrpc.ContainmentState{TargetGone: true}, nil, nil
	}
	switch kind {
	case gatewayrpc.CommandSnapshot:
		return map[string]any{"processes": []string{}}, nil, nil
	case gatewayrpc.CommandLock:
		if _, err := keys.VerifyLeaseToken(c.Token, c.Action, c.Target.ID(), time.Now()); err != nil {
			return nil, nil, gatewayrpc.ErrRefused
		}
		if o.containments[id].LeaseID != c.LeaseID {
			o.lockedLeases = append(o.lockedLeases, c.LeaseID)
		}
		o.containments[id] = gatewayrpc.ContainmentState{
			Active: true, VethLocked: true, LeaseID: c.LeaseID,
			ExpiresAt: c.ExpiresAt, AppliedAt: time.Now(),
		}
	case gatewayrpc.CommandUnlock:
		delete(o.containments, id)
	case gatewayrpc.CommandLockState, gatewayrpc.CommandFreezeState, gatewayrpc.CommandFreeze, gatewayrpc.CommandThaw:
	}
	state := o.containments[id]
	state.NetworkSharers = o.networkSharers
	return state, nil, nil
}

func (o *fakeLockingNode) lockedLeaseIDs() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.lockedLeases)
}

const testContainerID = "b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0"

const manualRequestConfig = `
phase: 2
idle_timeout: 2s
library: {enabled: false}
budget: {max_duration: 2h}
scopes: [{ name: host, namespaces: [""], phase: 2, approvers: { groups: [responders], timeout: 1m } }]
people:
  - { name: alice, uid: 1001, groups: [responders] }
  - { name: bob, uid: 1002, groups: [responders] }
  - { name: mallory, uid: 1003, groups: [others] }
`

// startRequestInstallation returns an installation with one node and one container, and a function that sends a request
// as a person.
func startRequestInstallation(t *testing.T, text string) (*worker.Worker, *fakeLockingNode,
	func(person string, q decisions.ContainRequest) (*decisions.ContainResponse, error),
) {
	t.Helper()
	cfg, problems := config.Parse("stanch.yaml", []byte(text))
	require.NoError(t, problems.Err())
	traces, err := tracing.Open(t.Context(), "test", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(traces.Close)
	w := startInstallation(t, cfg, metrics.NewTemporalMetrics(), traces)
	node := &fakeLockingNode{
		containerIDs: []string{testContainerID},
		containments: map[string]gatewayrpc.ContainmentState{},
	}
	connectNodeWithHandler(t, w, agent.Health{Node: "node-1"}, node)
	require.Eventually(t, func() bool { return len(w.NodeServer.ConnectedNodes()) == 1 }, 10*time.Second,
		20*time.Millisecond)
	return w, node, func(person string, q decisions.ContainRequest) (*decisions.ContainResponse, error) {
		return w.Decisions.Contain(t.Context(), principalByName(cfg, person), q)
	}
}

func principalByName(cfg *config.Config, name string) decisions.Principal {
	p, _ := cfg.FindPerson(func(p config.Person) bool { return p.Name == name })
	return decisions.Principal{Person: p, AuthenticatedBy: "uid of " + name, RateLimitKey: name}
}

// waitForPlaybookRun waits until the playbook of a request has ended.
func waitForPlaybookRun(t *testing.T, w *worker.Worker, a *decisions.ContainResponse) (playbooks.Incident,
	playbooks.PlaybookRun,
) {
	t.Helper()
	var in playbooks.Incident
	var run playbooks.PlaybookRun
	require.Eventually(t, func() bool {
		var err error
		if in, err = w.Queries.Incident(t.Context(), a.IncidentID); err != nil {
			return false
		}
		i := slices.IndexFunc(
			in.Playbooks,
			func(p playbooks.PlaybookRun) bool { return p.RequestID == a.Targets[0].RequestID && !p.Ended.IsZero() },
		)
		if i >= 0 {
			run = in.Playbooks[i]
		}
		return i >= 0
	}, 30*time.Second, 50*time.Millisecond, "%+v", &in)
	return in, run
}

func outcomesByAction(run playbooks.PlaybookRun) map[string]playbooks.Outcome {
	out := map[string]playbooks.Outcome{}
	for _, s := range run.Steps {
		out[s.Action] = s.Outcome
	}
	return out
}

// A responder contains a target without a detection, with the same evidence, guards and lease. Incident, audit and
// recording contain it, and the simulation gives the same result.
func TestManualRequestContainsTarget(t *testing.T) {
	w, node, ask := startRequestInstallation(t, manualRequestConfig)
	q := decisions.ContainRequest{
		ID: "one", Target: testContainerID, Action: "pod.isolate", Duration: time.Hour,
		Reason: "beacons to 203.0.113.9",
	}

	_, err := ask("mallory", q)
	require.ErrorContains(t, err, "mallory is not allowed to contain container b0b0b0b0b0b0; allowed: responders")
	nothing := q
	nothing.Reason = " "
	_, err = ask("alice", nothing)
	require.ErrorContains(t, err, "missing reason")
	for action, want := range map[string]string{
		"workload.scale": "pod.isolate", "pod.restart": "pod.isolate",
		"process.snapshot": "pod.isolate", "nothing": "pod.isolate",
	} {
		other := q
		other.Action = action
		_, err = ask("alice", other)
		require.ErrorContains(t, err, `contain a pod or container: action "`+action+
			`" cannot be requested for it; use one of `)
		require.ErrorContains(t, err, want)
	}
	gone := q
	gone.Target = strings.Repeat("a", 64)
	_, err = ask("alice", gone)
	require.ErrorContains(t, err, "not running on any connected node")

	// A dry run returns the plan and the guards' decision, and has no effects.
	dry := q
	dry.DryRun = true
	planned, err := ask("alice", dry)
	require.NoError(t, err)
	require.Equal(t, activities.VerdictRun, planned.Targets[0].Plans[0].Decision.Verdict)
	require.Contains(t, planned.Targets[0].Plans[0].Decision.Reason,
		"requested by alice (uid of alice): beacons to 203.0.113.9")
	require.NotEmpty(t, planned.Targets[0].Plans[0].Plan.Changes)
	open, err := w.Queries.Incidents(t.Context())
	require.NoError(t, err)
	require.Empty(t, open)
	require.Empty(t, node.lockedLeaseIDs())

	answer, err := ask("alice", q)
	require.NoError(t, err)
	in, run := waitForPlaybookRun(t, w, answer)
	require.Equal(t, map[string]playbooks.Outcome{
		"process.snapshot": playbooks.OutcomeSucceeded,
		"pod.isolate":      playbooks.OutcomeChanged,
	}, outcomesByAction(run), "%+v", run)
	require.Len(t, node.lockedLeaseIDs(), 1)
	require.Equal(t, []string{"person:alice"}, in.Actors)
	require.Contains(t, in.Summary, "beacons to 203.0.113.9")
	require.True(t, slices.ContainsFunc(in.Timeline, func(l playbooks.TimelineEntry) bool {
		return strings.Contains(l.Text, "alice (uid of alice) requested pod.isolate for 1h: beacons")
	}))

	// A repeated request has no further effect; another request joins the lease.
	again, err := ask("alice", q)
	require.NoError(t, err)
	require.Equal(t, answer, again)
	second := q
	second.ID, second.Duration = "two", 30*time.Minute
	joined, err := ask("bob", second)
	require.NoError(t, err)
	require.Equal(t, answer.IncidentID, joined.IncidentID)
	in, run = waitForPlaybookRun(t, w, joined)
	require.Len(t, in.Playbooks, 2, "the repeated request starts nothing")
	require.Equal(t, "contain-pod-isolate-30m", run.Playbook)
	require.Len(t, node.lockedLeaseIDs(), 1, "two requests, one lock")

	_, err = w.Decisions.Release(t.Context(), principalByName(w.Config, "alice"),
		decisions.LeaseRequest{IncidentID: in.ID})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		in, err = w.Queries.Incident(t.Context(), in.ID)
		return err == nil && in.Status == "closed"
	}, 60*time.Second, 100*time.Millisecond)

	auditor := &auditor.Auditor{
		HistoryExporter: &archive.HistoryExporter{Temporal: w.TemporalClient, DataConverter: w.DataConverter},
		Archive:         archive.Store{Dir: filepath.Join(w.DataDir, "archive")},
		Converter:       w.DataConverter, Keyring: w.Authority.Keyring(), Catalog: w.Activities.Catalog(),
		Evidence: w.Activities.Evidence,
	}
	timeline, err := auditor.Audit(t.Context(), in.ID, true)
	require.NoError(t, err)
	require.Empty(t, timeline.Verification.Differences)
	require.Equal(t, "alice", timeline.People[0].Name)
	require.Contains(t, timeline.People[0].Actions,
		"requested pod.isolate for 1h on container b0b0b0b0b0b0: beacons to 203.0.113.9")

	raw, err := auditor.BuildRecording(t.Context(), in.ID, false)
	require.NoError(t, err)
	rec, err := recording.Decode(raw)
	require.NoError(t, err)
	o := simulate.Options{Catalog: actions.Catalog()}
	o.NewMatchFunc = func(a activities.Authority) simulate.MatchFunc { return playbookstore.NewFixed(a).MatchPlaybooks }
	o.NewRequestMatcher = func(a activities.Authority) simulate.ManualRequestMatcher { return playbookstore.NewFixed(a) }
	again2 := simulate.Run(t.Context(), "one", rec, o)
	require.Empty(t, again2.Error)
	require.Equal(t, len(rec.Steps), len(again2.Steps))
	for i, s := range again2.Steps {
		require.Equal(t, rec.Steps[i].Action+" "+string(rec.Steps[i].Outcome)+" "+rec.Steps[i].Reason,
			s.Action+" "+string(s.Outcome)+" "+s.Reason)
	}
}

// Lists show a prefix of a container's id. A unique prefix is accepted, and the complete id is signed.
func TestContainerIDPrefixIsAccepted(t *testing.T) {
	w, node, ask := startRequestInstallation(t, manualRequestConfig)
	const twin = "b0b0b0b0b0b0ffffffffffffffffffffffffffffffffffffffffffffffffffff"
	node.containerIDs = append(node.containerIDs, twin)
	q := decisions.ContainRequest{
		ID: "one", Target: testContainerID[:12], Action: "pod.isolate", Duration: time.Hour,
		Reason: "beacons",
	}
	_, err := ask("alice", q)
	require.ErrorContains(t, err, "find container b0b0b0b0b0b0: not running on any connected node; use the complete id")
	q.Target = testContainerID
	answer, err := ask("alice", q)
	require.NoError(t, err)
	waitForPlaybookRun(t, w, answer)
	q.ID, q.DryRun = "two", true
	for _, target := range []string{testContainerID[:12], "container/" + testContainerID[:20]} {
		q.Target = target
		planned, err := ask("alice", q)
		require.NoError(t, err)
		require.Equal(t, "container:"+testContainerID, planned.Targets[0].Target.ID())
	}
	q.Target = testContainerID[:11]
	_, err = ask("alice", q)
	require.ErrorContains(t, err, "not running on any connected node")

	q.Target, q.DryRun = twin, false
	answer, err = ask("alice", q)
	require.NoError(t, err)
	waitForPlaybookRun(t, w, answer)
	q.Target = testContainerID[:12]
	_, err = ask("alice", q)
	require.ErrorContains(t, err, "container id b0b0b0b0b0b0 matches 2 containers; use the complete id of one:\n  "+
		"container/"+testContainerID+"\n  container/"+twin)
}

// A true positive changes no lease and no approval request; a false positive lists what it released and denied. A dry
// run warns if a freeze is longer than recommended.
func TestDispositionListsReleasedLeasesAndDeniedRequests(t *testing.T) {
	w, _, ask := startRequestInstallation(t, manualRequestConfig)
	q := decisions.ContainRequest{
		ID: "short", Target: testContainerID, Action: "pod.isolate", Duration: 5 * time.Minute,
		Reason: "beacons",
	}
	answer, err := ask("alice", q)
	require.NoError(t, err)
	waitForPlaybookRun(t, w, answer)
	q.ID, q.Duration = "long", 3*time.Hour
	_, err = ask("alice", q)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		asked, err := w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
		return err == nil && len(asked) == 1
	}, 30*time.Second, 50*time.Millisecond)
	resolve := func(kind incident.TriageKind) (*decisions.TriageResult, error) {
		return w.Decisions.Triage(t.Context(), principalByName(w.Config, "bob"),
			decisions.TriageRequest{IncidentID: answer.IncidentID, Kind: kind})
	}
	_, err = resolve("nonsense")
	require.ErrorContains(t, err, `invalid disposition "nonsense"; use false-positive, true-positive or benign`)
	done, err := resolve(incident.TriageTruePositive)
	require.NoError(t, err)
	require.Empty(t, done.ReleasedLeases)
	require.Empty(t, done.DeniedRequests)
	require.Eventually(t, func() bool {
		in, err := w.Queries.Incident(t.Context(), answer.IncidentID)
		return err == nil && in.Disposition == "true-positive" && in.DispositionBy == "bob"
	}, 30*time.Second, 50*time.Millisecond)
	asked, err := w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
	require.NoError(t, err)
	require.Len(t, asked, 1, "a true positive denies no approval request")
	done, err = resolve(incident.TriageFalsePositive)
	require.NoError(t, err)
	require.Equal(t, []string{"pod.isolate on container b0b0b0b0b0b0 for 3h"}, done.DeniedRequests)
	require.Len(t, done.ReleasedLeases, 1)
	require.Equal(t, "pod.isolate", done.ReleasedLeases[0].Action)

	q.DryRun, q.Action, q.Duration = true, "pod.freeze", 30*time.Minute
	planned, err := ask("alice", q)
	require.NoError(t, err)
	require.Contains(t, strings.Join(planned.Targets[0].Plans[0].Plan.Warnings, "; "),
		"pod.freeze is limited to 2m: Freeze every process")
}

// A container in the target's network namespace is isolated too: the dry run, the lease and the audit say so. A dry run
// next to a lease says that the target is leased, and until when.
func TestContainersInSharedNetworkNamespaceAreRecorded(t *testing.T) {
	w, node, ask := startRequestInstallation(t, manualRequestConfig)
	node.networkSharers = []gatewayrpc.NetworkSharer{{ContainerID: "a3dfa3dfa3df"}}
	const warning = "container a3dfa3dfa3df joined its network namespace after it started and is isolated too"
	q := decisions.ContainRequest{
		ID: "one", Target: testContainerID, Action: "pod.isolate", Duration: time.Hour,
		Reason: "beacons",
	}
	dry := q
	dry.DryRun = true
	planned, err := ask("alice", dry)
	require.NoError(t, err)
	require.Equal(t, []string{warning}, planned.Targets[0].Plans[0].Plan.Warnings)
	require.False(t, planned.Targets[0].Plans[0].Plan.AlreadyHeld)
	answer, err := ask("alice", q)
	require.NoError(t, err)
	in, _ := waitForPlaybookRun(t, w, answer)
	require.Len(t, in.Leases, 1)
	require.Equal(t, []string{warning}, in.Leases[0].Warnings)
	planned, err = ask("alice", dry)
	require.NoError(t, err)
	plan := planned.Targets[0].Plans[0].Plan
	require.Equal(t, []string{warning}, plan.Warnings)
	require.True(t, plan.AlreadyHeld)
	require.Equal(t, in.Leases[0].ID, plan.HeldByLease)
	require.WithinDuration(t, in.Leases[0].ExpiresAt, plan.HeldUntil, time.Second)

	auditor := &auditor.Auditor{
		HistoryExporter: &archive.HistoryExporter{Temporal: w.TemporalClient, DataConverter: w.DataConverter},
		Archive:         archive.Store{Dir: filepath.Join(w.DataDir, "archive")},
		Converter:       w.DataConverter, Keyring: w.Authority.Keyring(), Catalog: w.Activities.Catalog(),
		Evidence: w.Activities.Evidence,
	}
	timeline, err := auditor.Audit(t.Context(), in.ID, true)
	require.NoError(t, err)
	raw, err := json.Marshal(timeline)
	require.NoError(t, err)
	require.Contains(t, string(raw), "Warning: "+warning)
}

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

// A request about a detected target joins its incident, and does not change the incident's objective. A playbook that
// does not match runs by request, and others approve it.
func TestManualRequestJoinsIncidentOfTarget(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mine.yaml"), []byte(`playbook: mine
description: Ask, then hold it.
match: { objective: escape }
steps:
  - evidence: process.snapshot
  - approval: hold it
    ask: Hold it?
    from: { groups: [responders] }
    timeout: 1m
    on_timeout: deny
    steps:
      - contain: pod.isolate
        for: 30m
`), 0o600))
	w, node, ask := startRequestInstallation(t, manualRequestConfig+"playbooks: ['"+dir+"']\n")
	d := sensors.Detection{
		ID: "d-1", Rule: "miner", Title: "A miner", Severity: sensors.SeverityHigh, Confidence: 0.6,
		Objective: sensors.ObjectiveCryptoMining, Source: "stanch", Time: time.Now(), Node: "node-1",
		Event: sensors.Event{
			ID: "d-1", Kind: sensors.KindExec, Node: "node-1", Process: sensors.Process{Exe: "/tmp/xmrig"},
			Container: sensors.Container{ID: testContainerID, Name: "shop-web"},
		},
	}
	require.NoError(t, w.Ingester.Check(t.Context(), &d, "node-1"))
	require.NoError(t, w.Ingester.Accept(t.Context(), []sensors.Detection{d}))
	var before []playbooks.Incident
	require.Eventually(t, func() bool {
		var err error
		before, err = w.Queries.Incidents(t.Context())
		return err == nil && len(before) == 1
	}, 20*time.Second, 50*time.Millisecond)

	_, err := ask("alice", decisions.ContainRequest{ID: "x", Target: testContainerID, Playbook: "none", Reason: "spread"})
	require.ErrorContains(t, err, `unknown playbook "none"; `)
	planned, err := ask("alice", decisions.ContainRequest{
		Target: before[0].ID, Playbook: "mine", Reason: "spread",
		DryRun: true,
	})
	require.NoError(t, err)
	require.Equal(t, activities.VerdictAskApproval, planned.Targets[0].Plans[0].Decision.Verdict)
	answer, err := ask("alice", decisions.ContainRequest{
		ID: "x", Target: testContainerID, Playbook: "mine",
		Reason: "spread",
	})
	require.NoError(t, err)
	require.Equal(t, before[0].ID, answer.IncidentID)
	var asked []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		asked, err = w.Queries.PendingApprovals(t.Context(), answer.IncidentID)
		return err == nil && len(asked) == 1
	}, 30*time.Second, 50*time.Millisecond)
	vote := decisions.VoteRequest{IncidentID: answer.IncidentID, RequestID: asked[0].ID, Approve: true}
	_, err = w.Decisions.Vote(t.Context(), principalByName(w.Config, "alice"), vote)
	require.ErrorContains(t, err, "alice requested this")
	_, err = w.Decisions.Vote(t.Context(), principalByName(w.Config, "bob"), vote)
	require.NoError(t, err)
	in, run := waitForPlaybookRun(t, w, answer)
	require.Equal(t, playbooks.OutcomeChanged, outcomesByAction(run)["pod.isolate"])
	require.Len(t, node.lockedLeaseIDs(), 1)
	require.Equal(t, sensors.ObjectiveCryptoMining, in.Objective)
	require.InDelta(t, 0.6, in.Confidence, 0.001)
	require.Equal(t, "mine", run.Playbook)
}
