package worker_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors/agent"
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/worker"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/worker/metrics"
	"stanch/worker/tracing"
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
