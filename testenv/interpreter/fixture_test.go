package interpreter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker"
	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
	"stanch/workflows"
)

// fakeBackend is what the actions act on.
type fakeBackend struct {
	planCounts        map[string]int
	changePlans       bool
	quorum            int
	mu                sync.Mutex
	errorsByAction    map[string][]error // by action: the errors of its calls in turn, nil for success
	calls             []string
	heldTargets       map[string]bool // by target
	decisionsByAction map[string]activities.GuardDecision
}

func (w *fakeBackend) recordCall(action, what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, action+" "+what)
	if len(w.errorsByAction[action]) == 0 {
		return nil
	}
	err := w.errorsByAction[action][0]
	w.errorsByAction[action] = w.errorsByAction[action][1:]
	return err
}

func (w *fakeBackend) countCalls(call string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.calls {
		if c == call {
			n++
		}
	}
	return n
}

// Decide lets everything run that the scenario does not decide otherwise.
func (w *fakeBackend) Decide(_ context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := q.Request.IncidentRef.MaxPhase; p == 1 && q.Spec.Class != playbooks.ClassObserve {
		return activities.GuardDecision{Verdict: activities.VerdictPropose, Reason: "the playbook's ceiling"}, nil
	}
	d, ok := w.decisionsByAction[q.Spec.Name]
	if q.Authorization.Grant != nil || !ok {
		return activities.GuardDecision{Verdict: activities.VerdictRun}, nil
	}
	return d, nil
}

type fakeObserver struct {
	*fakeBackend
	name string
	verb playbooks.Verb
}

type fakeObservation struct {
	Count int `json:"count"`
}

func (l *fakeObserver) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: l.name, Verb: l.verb, Class: playbooks.ClassObserve,
		Targets: []playbooks.TargetKind{playbooks.TargetPod}, Outputs: fakeObservation{},
	}
}

func (l *fakeObserver) Observe(_ context.Context, r activities.Request) (activities.Observation, error) {
	return activities.Observation{Outputs: fakeObservation{Count: 7}}, l.recordCall(l.name, r.Target.Name)
}

type fakeContainment struct {
	*fakeBackend
	name  string
	class playbooks.Class
}

func (h *fakeContainment) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: h.name, Verb: playbooks.VerbContain, Class: h.class, Facet: playbooks.Facet(h.name),
		Targets: []playbooks.TargetKind{playbooks.TargetPod}, Reversible: true,
	}
}

func (h *fakeContainment) Plan(_ context.Context, r activities.Request) (activities.Plan, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change := h.name + " " + r.Target.Name
	if h.planCounts[change]++; h.planCounts[change] > 1 && h.changePlans {
		return activities.Plan{Changes: []string{change + " and its neighbors"}}, nil
	}
	return activities.Plan{Changes: []string{change}}, nil
}

func (h *fakeContainment) Apply(_ context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	if err := h.recordCall(h.name, r.Target.Name); err != nil {
		return activities.Effect{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heldTargets[r.Target.Name] = true
	return activities.Effect{Outcome: playbooks.OutcomeChanged}, nil
}

func (h *fakeContainment) Verify(_ context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.heldTargets[r.Target.Name], "", nil
}

func (h *fakeContainment) Undo(_ context.Context, r activities.Request, _ json.RawMessage,
	_ *attestation.Envelope,
) (*activities.Drift, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heldTargets[r.Target.Name] = false
	return nil, nil
}

// fakeActions are what the scenarios' playbooks call.
func (w *fakeBackend) fakeActions() []activities.Action {
	return []activities.Action{
		&fakeObserver{w, "ctx", playbooks.VerbEnrich}, &fakeObserver{w, "snapshot", playbooks.VerbEvidence},
		&fakeObserver{w, "tell", playbooks.VerbNotify},
		&fakeContainment{w, "isolate", playbooks.ClassContain}, &fakeContainment{w, "freeze", playbooks.ClassContain},
		&fakeContainment{w, "scale", playbooks.ClassDisrupt},
	}
}

// temporalFixture is one Temporal for all scenarios.
type temporalFixture struct {
	dir     string
	options client.Options
	key     *authority.Authority
}

var sharedTemporal temporalFixture

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "interpreter-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = sharedTemporal.start(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func (l *temporalFixture) start(dir string) error {
	l.dir = dir
	pki, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	if err != nil {
		return err
	}
	if l.key, err = authority.OpenOrCreate(dir); err != nil {
		return err
	}
	server, err := embeddedtemporal.Start(context.Background(), embeddedtemporal.Options{
		DataDir: dir,
		PKI:     pki,
		Log:     slog.New(slog.DiscardHandler),
		SearchAttributes: map[string]enumspb.IndexedValueType{
			workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		},
	})
	if err != nil {
		return err
	}
	l.options, err = worker.SecureClientOptions(client.Options{
		HostPort:  server.Address,
		Namespace: embeddedtemporal.Namespace, ConnectionOptions: client.ConnectionOptions{TLS: server.TLS},
	}, dir)
	return err
}

var errUnavailable = errors.New("it is away")

// ApproversForNamespace are those whom the scenarios ask.
func (w *fakeBackend) ApproversForNamespace(string, bool) playbooks.Approvers {
	return playbooks.Approvers{Groups: []string{"people"}, Quorum: max(w.quorum, 1), Timeout: 5 * time.Second}
}

type discardLogger struct{}

func (discardLogger) Debug(string, ...any) {}

func (discardLogger) Info(string, ...any) {}

func (discardLogger) Warn(string, ...any) {}

func (discardLogger) Error(string, ...any) {}
