package worker_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors"
	"stanch/sensors/gatewayrpc"
	"stanch/worker/actions"
	"stanch/worker/archive"
	"stanch/worker/auditor"
	"stanch/worker/decisions"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
	"stanch/workflows/incident"
	"stanch/workflows/playbook"
)

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
