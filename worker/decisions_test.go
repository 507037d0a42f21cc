package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	"stanch/worker"
	"stanch/worker/actions"
	"stanch/worker/archive"
	"stanch/worker/auditor"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/metrics"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
	"stanch/workflows/incident"
)

// fakeContainmentNode is a node that applies what it is asked, and records it.
type fakeContainmentNode struct {
	mu                sync.Mutex
	containments      map[string]gatewayrpc.ContainmentState
	refusedContainers map[string]bool // containers that it refuses to freeze
}

func (h *fakeContainmentNode) Handle(_ context.Context, kind gatewayrpc.CommandKind, body []byte,
	_ attestation.Keyring,
) (any, []gatewayrpc.Attachment, error) {
	var c gatewayrpc.ContainmentCommand
	if err := json.Unmarshal(body, &c); err != nil {
		return nil, nil, fmt.Errorf("decode: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	key := c.Target.ID()
	switch kind {
	case gatewayrpc.CommandSnapshot:
		return map[string]any{"processes": []any{}}, nil, nil
	case gatewayrpc.CommandLock, gatewayrpc.CommandFreeze:
		if kind == gatewayrpc.CommandFreeze && h.refusedContainers[key] {
			return nil, nil, fmt.Errorf("%w: it cannot be frozen", gatewayrpc.ErrRefused)
		}
		h.containments[key] = gatewayrpc.ContainmentState{
			Active: true, LeaseID: c.LeaseID, ExpiresAt: c.ExpiresAt,
			VethLocked: true, AppliedAt: time.Now(),
		}
	case gatewayrpc.CommandUnlock, gatewayrpc.CommandThaw:
		delete(h.containments, key)
	case gatewayrpc.CommandLockState, gatewayrpc.CommandFreezeState:
	}
	return h.containments[key], nil, nil
}

// decisionsConfig is the configuration of the decisions below: host is the scope of containers without a namespace.
const decisionsConfig = `phase: 3
idle_timeout: 1s
budget: { per_hour: 6 }
scopes: [{ name: host, namespaces: [""], phase: 3, confidence: 0.85, approvers: { groups: [leads], quorum: 1, timeout: 30s, escalate: { after: 4s, groups: [oncall] } } }]
people:
  - { name: alice, uid: 1001, groups: [responders] }
  - { name: bob, uid: 1002, groups: [responders] }
  - { name: carol, uid: 1003, groups: [REVOKED] }
  - { name: dave, uid: 1004, groups: [oncall] }
  - { name: grace, uid: 1005, break_glass: true }
  - { name: erin, uid: 1006, groups: [leads, responders] }
`

// approvalPlaybook returns a playbook for one case that asks two responders.
func approvalPlaybook(name, extra string) string {
	return fmt.Sprintf(`playbook: %s
description: For one case.
match: { objective: crypto-mining, when: incident.workload.name == "%s" }
steps:
  - evidence: process.snapshot
  - approval: cut its line
    ask: Really?
    from: { groups: [responders], quorum: 2 }
    timeout: %s
    on_timeout: deny
    steps:
      - contain: pod.isolate
        for: 5s
`, name, name, extra)
}

func actionPlaybook(name, head, match, action string) string {
	return fmt.Sprintf(
		"playbook: %s\ndescription: For one case.\n%smatch: { objective: crypto-mining, when: incident.workload.name == %q%s }\nsteps:\n  - evidence: process.snapshot\n  - contain: %s\n    for: 5s\n",
		strings.ReplaceAll(name, "/", "-"),
		head,
		strings.Split(name, "/")[0],
		match,
		action,
	)
}

// runningInstallation is a running installation in which people make decisions.
type runningInstallation struct {
	*worker.Worker
	t     *testing.T
	cfg   *config.Config
	file  string
	spool *gatewayrpc.Spool
}

// reportMiner reports a miner in a container with the name of the case.
func (l *runningInstallation) reportMiner(name string, confidence float64) {
	l.t.Helper()
	require.NoError(l.t, l.spool.Add(sensors.Detection{
		ID: "d-" + name, Rule: "miner-process", Title: "A miner", Severity: sensors.SeverityHigh, Confidence: confidence,
		Objective: sensors.ObjectiveCryptoMining, Source: "stanch", Time: time.Now(), Node: "node-1",
		Event: sensors.Event{
			ID: "d-" + name, Kind: sensors.KindExec, Time: time.Now(), Node: "node-1",
			Process: sensors.Process{Exe: "/tmp/miner"}, Container: sensors.Container{ID: "c-" + name, Name: name},
		},
	}))
}

// waitForIncident polls until the incident of a case meets a condition.
func (l *runningInstallation) waitForIncident(name, what string, ok func(playbooks.Incident) bool) playbooks.Incident {
	l.t.Helper()
	var last playbooks.Incident
	defer func() {
		if l.t.Failed() {
			l.t.Logf("%s as it is: %+v", name, last.Timeline)
		}
	}()
	require.Eventually(l.t, func() bool {
		all, err := l.Queries.Incidents(l.t.Context())
		if err != nil {
			return false
		}
		for _, in := range all {
			if in.Workload.Name == name {
				if last, err = l.Queries.Incident(l.t.Context(), in.ID); err == nil && ok(last) {
					return true
				}
			}
		}
		return false
	}, 40*time.Second, 50*time.Millisecond, "%s: %s", name, what)
	return last
}

// waitForApprovalRequest waits for the approval request of a case.
func (l *runningInstallation) waitForApprovalRequest(name string) string {
	l.t.Helper()
	var id string
	l.waitForIncident(name, "a question", func(in playbooks.Incident) bool {
		open, err := l.Queries.PendingApprovals(l.t.Context(), in.ID)
		id = in.ID
		return err == nil && len(open) > 0
	})
	return id
}

// castVote votes on the request of a case; with refused, the vote must not count.
func (l *runningInstallation) castVote(id, person string, approve, refused bool, more ...func(*decisions.VoteRequest)) {
	l.t.Helper()
	v := decisions.VoteRequest{IncidentID: id, Approve: approve}
	for _, change := range more {
		change(&v)
	}
	_, err := l.Decisions.Vote(l.t.Context(), l.principal(person), v)
	if refused {
		require.Error(l.t, err)
	} else {
		require.NoError(l.t, err)
	}
}

// principal returns a person with the current entitlement by the configuration.
func (l *runningInstallation) principal(name string) decisions.Principal {
	cfg, err := l.Decisions.Roster.Current()
	require.NoError(l.t, err)
	for _, p := range cfg.People {
		if p.Name == name {
			return decisions.Principal{
				Person: p, AuthenticatedBy: fmt.Sprintf("uid %d on the local socket", *p.UID),
				RateLimitKey: name,
			}
		}
	}
	return decisions.Principal{
		Person: config.Person{Name: name}, AuthenticatedBy: "uid 4242 on the local socket",
		RateLimitKey: name, IsOperator: name == "root",
	}
}

// recordIncident returns the recording of a case's incident.
func (l *runningInstallation) recordIncident(id string) recording.Recording {
	l.t.Helper()
	a := auditor.Auditor{
		HistoryExporter: &archive.HistoryExporter{Temporal: l.TemporalClient, DataConverter: l.DataConverter},
		Archive:         archive.Store{Dir: l.t.TempDir()}, Converter: l.DataConverter, Keyring: l.Authority.Keyring(),
		Catalog: actions.Catalog(), Evidence: l.Activities.Evidence,
	}
	raw, err := a.BuildRecording(l.t.Context(), id, false)
	require.NoError(l.t, err)
	rec, err := recording.Decode(raw)
	require.NoError(l.t, err)
	return rec
}

// A simulation makes the same decisions as the live installation: who may vote, whose vote did not count, break-glass,
// escalation, what the kill switch and the budget refused, and which playbook was selected.
func TestSimulationRepeatsLiveDecisions(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"glass", "quorum", "denial", "judged"} {
		writePlaybook(t, dir, name+".yaml", approvalPlaybook(name, "40s"))
	}
	writePlaybook(t, dir, "expiry.yaml", approvalPlaybook("expiry", "8s"))
	writePlaybook(t, dir, "revoked.yaml", approvalPlaybook("revoked", "40s"))
	for name, text := range map[string]string{
		"alone": actionPlaybook("alone", "", "", "pod.isolate"), "paused": actionPlaybook("paused", "", "", "pod.isolate"),
		"spent": actionPlaybook("spent", "", "", "pod.isolate"), "escalated": actionPlaybook("escalated", "", "",
			"pod.isolate"),
		"first-a": actionPlaybook("first/a", "", ", priority: 60", "pod.isolate"), "first-b": actionPlaybook("first/b", "",
			", priority: 70", "pod.isolate"),
		"let-go": strings.ReplaceAll(actionPlaybook("letgo", "", "", "pod.isolate"), "for: 5s", "for: 10m"),
		"next-a": actionPlaybook("next/a", "", ", priority: 70", "pod.freeze"), "next-b": actionPlaybook("next/b", "",
			", priority: 60", "pod.isolate"),
		"replacing": "playbook: replacing\ndescription: x\nreplaces: lateral-movement\nmatch: { objective: lateral-movement }\nsteps:\n  - evidence: process.snapshot\n",
	} {
		writePlaybook(t, dir, name+".yaml", text)
	}
	file := filepath.Join(t.TempDir(), "stanch.yaml")
	text := strings.ReplaceAll(decisionsConfig, "REVOKED", "responders") + "playbooks: ['" + dir + "']\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	cfg, problems := config.Parse(file, []byte(text))
	require.NoError(t, problems.Err())
	w := startInstallation(t, cfg, metrics.NewTemporalMetrics(), nil, func(o *worker.Options) {
		o.ConfigFile,
			o.LeaseTiming.VerifyInterval = file, time.Second
	})
	node := &fakeContainmentNode{
		containments:      map[string]gatewayrpc.ContainmentState{},
		refusedContainers: map[string]bool{"container:c-next": true},
	}
	l := &runningInstallation{
		Worker: w, t: t, cfg: cfg, file: file,
		spool: connectNode(t, w, agent.Health{Node: "node-1", ProbeStatus: probe.Status{LoadedAt: time.Now()}}, node),
	}

	// A pause refuses one containment, and nothing bypasses it.
	require.NoError(t, l.Decisions.Pause(t.Context(), l.principal("alice"), "a test"))
	l.reportMiner("paused", 0.9)
	l.waitForIncident("paused", "it ended", func(in playbooks.Incident) bool {
		return len(in.Playbooks) > 0 &&
			!in.Playbooks[0].Ended.IsZero()
	})
	require.NoError(t, l.Decisions.Resume(t.Context(), l.principal("root")))

	for _, name := range []string{"alone", "first", "next", "letgo"} {
		l.reportMiner(name, 0.9)
	}
	for _, name := range []string{"alone", "first", "next", "letgo"} {
		l.waitForIncident(name, "held", func(in playbooks.Incident) bool {
			return slices.ContainsFunc(in.Leases, func(r playbooks.LeaseReport) bool {
				return r.Action == "pod.isolate" &&
					r.State == "held"
			})
		})
	}
	letgo := l.waitForIncident("letgo", "held", func(in playbooks.Incident) bool { return len(in.Leases) > 0 })
	_, err := l.Decisions.Release(t.Context(), l.principal("root"), decisions.LeaseRequest{
		IncidentID: letgo.ID,
		Reason:     "a known job",
	})
	require.NoError(t, err)
	l.reportMiner("escalated", 0.8) // below the confidence for automatic actions
	for _, name := range []string{"glass", "quorum", "denial", "expiry", "revoked", "judged"} {
		l.reportMiner(name, 0.9)
	}
	moves := sensors.Detection{
		ID: "d-moves", Rule: "r", Title: "Moves", Severity: sensors.SeverityHigh, Confidence: 0.9,
		Objective: sensors.ObjectiveLateralMovement, Source: "stanch", Time: time.Now(), Node: "node-1",
		Event: sensors.Event{
			ID: "d-moves", Kind: sensors.KindExec, Time: time.Now(), Node: "node-1",
			Process: sensors.Process{Exe: "/bin/nc"}, Container: sensors.Container{ID: "c-replaced", Name: "replaced"},
		},
	}
	require.NoError(t, l.spool.Add(moves))

	id := l.waitForApprovalRequest("escalated")
	l.castVote(id, "dave", true, true) // not an approver before the escalation
	id = l.waitForApprovalRequest("glass")
	l.castVote(id, "eve", true, true)
	l.castVote(id, "grace", true, false, func(v *decisions.VoteRequest) {
		v.BreakGlass, v.Reason = true,
			"the others sleep"
	})
	id = l.waitForApprovalRequest("quorum")
	l.castVote(id, "alice", true, false)
	l.castVote(id, "eve", true, true)
	l.castVote(id, "bob", true, false)
	id = l.waitForApprovalRequest("denial")
	l.castVote(id, "alice", false, false, func(v *decisions.VoteRequest) { v.Reason = "a known job" })
	id = l.waitForApprovalRequest("expiry")
	l.castVote(id, "alice", true, false)
	id = l.waitForApprovalRequest("revoked")
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(decisionsConfig, "REVOKED", "visitors")+
		"playbooks: ['"+dir+"']\n"), 0o600))
	l.castVote(id, "carol", true, true)
	l.castVote(id, "alice", true, false)
	l.castVote(id, "bob", true, false)
	id = l.waitForApprovalRequest("judged")
	_, err = l.Decisions.Triage(t.Context(), l.principal("root"), decisions.TriageRequest{
		IncidentID: id,
		Kind:       incident.TriageFalsePositive, Reason: "a test",
	})
	require.NoError(t, err)
	id = l.waitForApprovalRequest("escalated")
	require.Eventually(t, func() bool {
		_, err := l.Decisions.Vote(t.Context(), l.principal("dave"), decisions.VoteRequest{IncidentID: id, Approve: true})
		return err == nil
	}, 20*time.Second, 200*time.Millisecond)

	// By now, more was contained than the budget allows in an hour.
	l.waitForIncident("escalated", "held", func(in playbooks.Incident) bool { return len(in.Leases) > 0 })
	l.waitForIncident("quorum", "held", func(in playbooks.Incident) bool { return len(in.Leases) > 0 })
	l.reportMiner("spent", 0.9)

	programs := l.Library.Programs()
	// the playbooks of the other cases
	runs := map[string][]string{"first": {"first-b"}, "next": {"next-a", "next-b"}, "replaced": {"replacing"}}
	for name, want := range map[string]struct {
		step, outcome, reason string
	}{
		"paused": {"pod.isolate", "refused", "new containments are paused"}, "alone": {"pod.isolate", "changed", ""},
		"letgo": {"pod.isolate", "changed", ""}, "spent": {
			"pod.isolate", "proposed",
			"the budget of 6 containments per hour is used up",
		},
		"escalated": {"pod.isolate", "changed", "approved by dave"}, "glass": {"approval", "succeeded", "used break-glass"},
		"quorum": {"approval", "succeeded", "approved by alice"},
		"denial": {"approval", "denied", "alice denied it"}, "expiry": {
			"approval", "denied",
			"1 of 2 required approvals within 8s",
		}, "revoked": {"approval", "succeeded", "approved by alice"},
		"judged": {"approval", "denied", "false positive"}, "first": {"pod.isolate", "changed", ""},
		"next": {"pod.freeze", "refused", "it cannot be frozen"}, "replaced": {"process.snapshot", "succeeded", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			in := l.waitForIncident(name, "closed", func(in playbooks.Incident) bool { return in.Status == "closed" })
			rec := l.recordIncident(in.ID)
			var ran []string
			for _, p := range in.Playbooks {
				ran = append(ran, p.Playbook)
			}
			if wanted, ok := runs[name]; ok {
				require.Equal(t, wanted, ran)
			} else {
				require.Equal(t, []string{name}, ran)
			}
			found := false
			for _, s := range rec.Steps {
				found = found || s.Action == want.step && string(s.Outcome) == want.outcome &&
					strings.Contains(s.Reason, want.reason)
			}
			require.True(t, found, "live: %+v", rec.Steps)
			r := simulate.Run(t.Context(), name, rec, simulate.Options{
				Catalog: actions.Catalog(), NewMatchFunc: func(a activities.Authority) simulate.MatchFunc {
					return playbookstore.NewFixed(a, programs...).MatchPlaybooks
				},
			})
			require.Empty(t, simulate.Divergences(rec, r))
			require.Empty(t, r.AssumedResults)
			for _, e := range r.Effects {
				require.Less(t, e.UndoneAtMS-e.AppliedAtMS, time.Minute.Milliseconds(),
					"each lease ends at its recorded end, also if people released it")
			}
		})
	}
}

func writePlaybook(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
}
