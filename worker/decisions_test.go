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
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	"stanch/sensors/attestation"
	"stanch/worker"
	"stanch/worker/archive"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/worker/metrics"
	"stanch/worker/simulate"
	"stanch/workflows/incident"
)

// holding is a node that applies what it is asked and remembers it.
type holding struct {
	mu    sync.Mutex
	held  map[string]gatewayrpc.ContainmentState
	stuck map[string]bool // containers that it refuses to freeze
}

func (h *holding) Handle(_ context.Context, kind gatewayrpc.CommandKind, body []byte, _ attestation.Keyring) (any, []gatewayrpc.Attachment, error) {
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
		if kind == gatewayrpc.CommandFreeze && h.stuck[key] {
			return nil, nil, fmt.Errorf("%w: it cannot be frozen", gatewayrpc.ErrRefused)
		}
		h.held[key] = gatewayrpc.ContainmentState{Active: true, LeaseID: c.LeaseID, ExpiresAt: c.ExpiresAt, VethLocked: true, AppliedAt: time.Now()}
	case gatewayrpc.CommandUnlock, gatewayrpc.CommandThaw:
		delete(h.held, key)
	case gatewayrpc.CommandLockState, gatewayrpc.CommandFreezeState:
	}
	return h.held[key], nil, nil
}

// people is the configuration of the decisions below: host is the scope of containers without a namespace.
const people = `phase: 3
quiet: 1s
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

// asking is a playbook for one case that asks two responders.
func asking(name, extra string) string {
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

func acting(name, head, match, action string) string {
	return fmt.Sprintf("playbook: %s\ndescription: For one case.\n%smatch: { objective: crypto-mining, when: incident.workload.name == %q%s }\nsteps:\n  - evidence: process.snapshot\n  - contain: %s\n    for: 5s\n",
		strings.ReplaceAll(name, "/", "-"), head, strings.Split(name, "/")[0], match, action)
}

// live is a running installation of which people make decisions.
type live struct {
	*worker.Worker
	t     *testing.T
	cfg   *config.Config
	file  string
	spool *gatewayrpc.Spool
}

// attack reports a miner in a container with the name of the case.
func (l *live) attack(name string, confidence float64) {
	l.t.Helper()
	require.NoError(l.t, l.spool.Add(sensors.Detection{
		ID: "d-" + name, Rule: "miner-process", Title: "A miner", Severity: sensors.SeverityHigh, Confidence: confidence, Objective: sensors.ObjectiveCryptoMining, Source: "stanch", Time: time.Now(), Node: "node-1",
		Event: sensors.Event{ID: "d-" + name, Kind: sensors.KindExec, Time: time.Now(), Node: "node-1", Process: sensors.Process{Exe: "/tmp/miner"}, Container: sensors.Container{ID: "c-" + name, Name: name}},
	}))
}

// await polls until the incident of a case is as it should be.
func (l *live) await(name, what string, ok func(playbooks.Incident) bool) playbooks.Incident {
	l.t.Helper()
	var last playbooks.Incident
	defer func() {
		if l.t.Failed() {
			l.t.Logf("%s as it is: %+v", name, last.Timeline)
		}
	}()
	require.Eventually(l.t, func() bool {
		all, err := l.Reader.Incidents(l.t.Context())
		if err != nil {
			return false
		}
		for _, in := range all {
			if in.Workload.Name == name {
				if last, err = l.Reader.Incident(l.t.Context(), in.ID); err == nil && ok(last) {
					return true
				}
			}
		}
		return false
	}, 40*time.Second, 50*time.Millisecond, "%s: %s", name, what)
	return last
}

// asked waits for the question of a case.
func (l *live) asked(name string) string {
	l.t.Helper()
	var id string
	l.await(name, "a question", func(in playbooks.Incident) bool {
		open, err := l.Reader.PendingApprovals(l.t.Context(), in.ID)
		id = in.ID
		return err == nil && len(open) > 0
	})
	return id
}

// vote answers the question of a case; refused: it does not count.
func (l *live) vote(id, person string, approve, refused bool, more ...func(*gateway.VoteRequest)) {
	l.t.Helper()
	v := gateway.VoteRequest{Incident: id, Approve: approve}
	for _, change := range more {
		change(&v)
	}
	_, err := l.Decider.Vote(l.t.Context(), l.speaker(person), v)
	if refused {
		require.Error(l.t, err)
	} else {
		require.NoError(l.t, err)
	}
}

// speaker is a person with the rights that the configuration gives them now.
func (l *live) speaker(name string) gateway.Speaker {
	cfg, err := l.Decider.Roster.Current()
	require.NoError(l.t, err)
	for _, p := range cfg.People {
		if p.Name == name {
			return gateway.Speaker{Person: p, Proved: fmt.Sprintf("uid %d on the local socket", *p.UID), Key: name}
		}
	}
	return gateway.Speaker{Person: config.Person{Name: name}, Proved: "uid 4242 on the local socket", Key: name, Operator: name == "root"}
}

// recorded is the recording of a case's incident.
func (l *live) recorded(id string) recording.Recording {
	l.t.Helper()
	a := worker.Auditor{
		Collect: &archive.Collector{Temporal: l.Client, Converter: l.Converter}, Archive: archive.Store{Dir: l.t.TempDir()}, Converter: l.Converter, Keys: l.Authority.Keys(), Catalogue: worker.Catalogue(), Evidence: l.Set.Evidence,
	}
	raw, err := a.Record(l.t.Context(), id, false)
	require.NoError(l.t, err)
	rec, err := recording.Decode(raw)
	require.NoError(l.t, err)
	return rec
}

// What is decided live is decided when it is simulated: who may answer, who did not count, who answered alone, who was asked
// later, what the kill switch and the budget did not let run, and which playbook was chosen.
func TestSimulationDecidesAsItWasDecidedLive(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"glass", "quorum", "denial", "judged"} {
		write(t, dir, name+".yaml", asking(name, "40s"))
	}
	write(t, dir, "expiry.yaml", asking("expiry", "8s"))
	write(t, dir, "revoked.yaml", asking("revoked", "40s"))
	for name, text := range map[string]string{
		"alone": acting("alone", "", "", "pod.isolate"), "paused": acting("paused", "", "", "pod.isolate"), "spent": acting("spent", "", "", "pod.isolate"), "escalated": acting("escalated", "", "", "pod.isolate"),
		"first-a": acting("first/a", "", ", priority: 60", "pod.isolate"), "first-b": acting("first/b", "", ", priority: 70", "pod.isolate"),
		"let-go": strings.ReplaceAll(acting("letgo", "", "", "pod.isolate"), "for: 5s", "for: 10m"),
		"next-a": acting("next/a", "", ", priority: 70", "pod.freeze"), "next-b": acting("next/b", "", ", priority: 60", "pod.isolate"),
		"replacing": "playbook: replacing\ndescription: x\nreplaces: lateral-movement\nmatch: { objective: lateral-movement }\nsteps:\n  - evidence: process.snapshot\n",
	} {
		write(t, dir, name+".yaml", text)
	}
	file := filepath.Join(t.TempDir(), "stanch.yaml")
	text := strings.ReplaceAll(people, "REVOKED", "responders") + "playbooks: ['" + dir + "']\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	cfg, problems := config.Parse(file, []byte(text))
	require.NoError(t, problems.Err())
	w := installation(t, cfg, metrics.NewTemporal(), nil, func(o *worker.Options) { o.ConfigFile, o.Timing.VerifyInterval = file, time.Second })
	node := &holding{held: map[string]gatewayrpc.ContainmentState{}, stuck: map[string]bool{"container:c-next": true}}
	l := &live{Worker: w, t: t, cfg: cfg, file: file, spool: join(t, w, agent.Health{Node: "node-1", ProbeStatus: probe.Status{LoadedAt: time.Now()}}, node)}

	// The kill switch: one is refused, and nothing gets around it.
	require.NoError(t, l.Decider.Stop(t.Context(), l.speaker("alice"), "a test"))
	l.attack("paused", 0.9)
	l.await("paused", "it ended", func(in playbooks.Incident) bool { return len(in.Playbooks) > 0 && !in.Playbooks[0].Ended.IsZero() })
	require.NoError(t, l.Decider.Resume(t.Context(), l.speaker("root")))

	for _, name := range []string{"alone", "first", "next", "letgo"} {
		l.attack(name, 0.9)
	}
	for _, name := range []string{"alone", "first", "next", "letgo"} {
		l.await(name, "held", func(in playbooks.Incident) bool {
			return slices.ContainsFunc(in.Leases, func(r playbooks.LeaseReport) bool { return r.Action == "pod.isolate" && r.State == "held" })
		})
	}
	letgo := l.await("letgo", "held", func(in playbooks.Incident) bool { return len(in.Leases) > 0 })
	_, err := l.Decider.Release(t.Context(), l.speaker("root"), gateway.LeaseRequest{Incident: letgo.ID, Reason: "a known job"})
	require.NoError(t, err)
	l.attack("escalated", 0.8) // below what the scope lets run
	for _, name := range []string{"glass", "quorum", "denial", "expiry", "revoked", "judged"} {
		l.attack(name, 0.9)
	}
	moves := sensors.Detection{
		ID: "d-moves", Rule: "r", Title: "Moves", Severity: sensors.SeverityHigh, Confidence: 0.9, Objective: sensors.ObjectiveLateralMovement, Source: "stanch", Time: time.Now(), Node: "node-1",
		Event: sensors.Event{ID: "d-moves", Kind: sensors.KindExec, Time: time.Now(), Node: "node-1", Process: sensors.Process{Exe: "/bin/nc"}, Container: sensors.Container{ID: "c-replaced", Name: "replaced"}},
	}
	require.NoError(t, l.spool.Add(moves))

	id := l.asked("escalated")
	l.vote(id, "dave", true, true) // he is not asked yet
	id = l.asked("glass")
	l.vote(id, "eve", true, true)
	l.vote(id, "grace", true, false, func(v *gateway.VoteRequest) { v.BreakGlass, v.Reason = true, "the others sleep" })
	id = l.asked("quorum")
	l.vote(id, "alice", true, false)
	l.vote(id, "eve", true, true)
	l.vote(id, "bob", true, false)
	id = l.asked("denial")
	l.vote(id, "alice", false, false, func(v *gateway.VoteRequest) { v.Reason = "a known job" })
	id = l.asked("expiry")
	l.vote(id, "alice", true, false)
	id = l.asked("revoked")
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(people, "REVOKED", "visitors")+"playbooks: ['"+dir+"']\n"), 0o600))
	l.vote(id, "carol", true, true)
	l.vote(id, "alice", true, false)
	l.vote(id, "bob", true, false)
	id = l.asked("judged")
	_, err = l.Decider.Mark(t.Context(), l.speaker("root"), gateway.MarkRequest{Incident: id, Kind: incident.TriageFalsePositive, Reason: "a test"})
	require.NoError(t, err)
	id = l.asked("escalated")
	require.Eventually(t, func() bool {
		_, err := l.Decider.Vote(t.Context(), l.speaker("dave"), gateway.VoteRequest{Incident: id, Approve: true})
		return err == nil
	}, 20*time.Second, 200*time.Millisecond)

	// By now more was contained than the budget allows in an hour.
	l.await("escalated", "held", func(in playbooks.Incident) bool { return len(in.Leases) > 0 })
	l.await("quorum", "held", func(in playbooks.Incident) bool { return len(in.Leases) > 0 })
	l.attack("spent", 0.9)

	programs := l.Library.Programs()
	runs := map[string][]string{"first": {"first-b"}, "next": {"next-a", "next-b"}, "replaced": {"replacing"}} // of the others, their own
	for name, want := range map[string]struct {
		step, outcome, reason string
	}{
		"paused": {"pod.isolate", "refused", "new containments are paused"}, "alone": {"pod.isolate", "changed", ""}, "letgo": {"pod.isolate", "changed", ""}, "spent": {"pod.isolate", "proposed", "the budget of 6 containments an hour is spent"},
		"escalated": {"pod.isolate", "changed", "approved by dave"}, "glass": {"approval", "changed", "broke the glass"}, "quorum": {"approval", "changed", "approved by alice"},
		"denial": {"approval", "denied", "alice said no"}, "expiry": {"approval", "denied", "1 of the 2 who must agree did within 8s"}, "revoked": {"approval", "changed", "approved by alice"},
		"judged": {"approval", "denied", "false positive"}, "first": {"pod.isolate", "changed", ""}, "next": {"pod.freeze", "refused", "it cannot be frozen"}, "replaced": {"process.snapshot", "changed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			in := l.await(name, "closed", func(in playbooks.Incident) bool { return in.Status == "closed" })
			rec := l.recorded(in.ID)
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
				found = found || s.Action == want.step && string(s.Outcome) == want.outcome && strings.Contains(s.Reason, want.reason)
			}
			require.True(t, found, "live: %+v", rec.Steps)
			r := simulate.Run(t.Context(), name, rec, simulate.Options{
				Catalogue: worker.Catalogue(), Playbooks: func(a activities.Authority) simulate.Match { return worker.LibraryOf(a, programs...).Match },
			})
			require.Empty(t, simulate.Unlike(rec, r))
			require.Empty(t, r.Missing)
			for _, e := range r.Effects {
				require.Less(t, e.ToMS-e.FromMS, time.Minute.Milliseconds(), "it ends when it ended, also where people ended it")
			}
		})
	}
}
