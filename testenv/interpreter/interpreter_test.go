// Package interpreter runs playbooks through the production workflows on a real Temporal, with actions of its own
// whose answers a scenario chooses: the outcome table of the language, line by line.
package interpreter

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker"
	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
	"stanch/workflows"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
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

// testScenario is one playbook and what the world answers.
type testScenario struct {
	changePlans       bool // plans change after they were shown
	quorum            int
	afterStart        func(t *testing.T, c client.Client, id string, away func(func()))
	stepsYAML         string
	headerYAML        string                  // what stands before `steps`
	callablePlaybooks []string                // playbooks that it may call
	checkError        func(*testing.T, error) // where the run does not end by itself
	languageVersion   int                     // of the language that the run began with; 0 is this one's
	errorsByAction    map[string][]error
	decisionsByAction map[string]activities.GuardDecision
	approverVote      *bool // what the approver says; nil says nothing
	wantLines         []string
	check             func(*testing.T, *fakeBackend)
}

func voteYes() *bool { v := true; return &v }
func voteNo() *bool  { v := false; return &v }

var errUnavailable = errors.New("it is away")

func TestStepOutcomes(t *testing.T) {
	const approval = `
  - evidence: snapshot
  - approval: sure
    from: { groups: [people] }
    timeout: 5s
    on_timeout: deny
    steps:
      - contain: scale
        for: 1h
    on_denied:
      - notify: tell
`
	for name, s := range map[string]testScenario{
		"a containment that holds": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    on_failure:\n      - notify: tell\n",
			wantLines: []string{"snapshot a succeeded", "snapshot b succeeded", "isolate a changed", "isolate b changed"},
		},
		"a refusal runs on_failure": {
			stepsYAML:      "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n    on_failure:\n      - notify: tell\n",
			errorsByAction: map[string][]error{"isolate": {activities.Refusef("host network")}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "isolate a refused (host network)",
				"tell a succeeded", "tell b succeeded",
			},
		},
		"one target that fails makes the step fail, the other is held": {
			stepsYAML:      "\n  - evidence: snapshot\n  - contain: isolate\n    id: i\n    for: 1h\n  - notify: tell\n    if: i.outcome == \"refused\" && i.targets == 2\n",
			errorsByAction: map[string][]error{"isolate": {activities.Refusef("no"), nil}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "isolate ? refused (no)",
				"isolate ? changed", "tell a succeeded", "tell b succeeded",
			},
		},
		"evidence that fails does not stop the containment": {
			stepsYAML: "\n  - evidence: snapshot\n    timeout: 2s\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			errorsByAction: map[string][]error{"snapshot": {
				errUnavailable, errUnavailable, errUnavailable, errUnavailable,
				errUnavailable, errUnavailable, errUnavailable, errUnavailable,
			}},
			wantLines: []string{"snapshot a failed", "snapshot b failed", "isolate a changed"},
		},
		"what the phase does not let run is proposed, and on_failure does not run": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n    on_failure:\n      - notify: tell\n",
			decisionsByAction: map[string]activities.GuardDecision{"isolate": {
				Verdict: activities.VerdictPropose,
				Reason:  "phase 1",
			}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded",
				"isolate a proposed (would isolate a (phase 1))",
			},
		},
		"an if that is false skips": {
			stepsYAML: "\n  - enrich: ctx\n    id: c\n  - notify: tell\n    if: c.count > 100\n  - notify: tell\n    if: c.count == 7\n",
			wantLines: []string{
				"ctx a succeeded", "ctx b succeeded", "tell  skipped (`if` is false)", "tell a succeeded",
				"tell b succeeded",
			},
		},
		"a retry tries again": {
			stepsYAML:      "\n  - enrich: ctx\n    target: incident.targets[0]\n    retry: { attempts: 2, backoff: 10ms }\n",
			errorsByAction: map[string][]error{"ctx": {errUnavailable, errUnavailable, errUnavailable, nil}},
			wantLines:      []string{"ctx a failed", "ctx a succeeded"},
		},
		"parallel branches are joined before what follows": {
			stepsYAML: "\n  - parallel:\n      - enrich: ctx\n        id: c\n      - evidence: snapshot\n  - notify: tell\n    if: c.count == 7\n",
			wantLines: []string{
				"ctx a succeeded", "ctx b succeeded", "snapshot a succeeded", "snapshot b succeeded",
				"tell a succeeded", "tell b succeeded",
			},
		},
		"an approval that is given runs its steps": {
			stepsYAML:         approval,
			decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			approverVote:      voteYes(),
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "approval  succeeded", "scale a changed",
				"scale b changed",
			},
		},
		"an approval that is refused runs on_denied and nothing else": {
			stepsYAML:         approval,
			decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			approverVote:      voteNo(),
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "approval  denied", "tell a succeeded",
				"tell b succeeded",
			},
			check: func(t *testing.T, w *fakeBackend) { require.Zero(t, w.countCalls("scale a")) },
		},
		"silence denies": {
			stepsYAML:         approval,
			decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded", "approval  denied", "tell a succeeded",
				"tell b succeeded",
			},
		},
		"where the phase lets nothing run nobody is asked": {
			stepsYAML: approval,
			decisionsByAction: map[string]activities.GuardDecision{
				"scale": {Verdict: activities.VerdictPropose, Reason: "phase 2"},
			},
			approverVote: voteYes(),
			wantLines: []string{
				"snapshot a succeeded", "snapshot b succeeded",
				"approval  proposed (would request approval: phase 2)", "scale a proposed", "scale b proposed",
			},
			check: func(t *testing.T, w *fakeBackend) { require.Zero(t, w.countCalls("scale a")) },
		},
		"a scope that wants its approvers asked asks them": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			decisionsByAction: map[string]activities.GuardDecision{"isolate": {
				Verdict:   activities.VerdictAskApproval,
				Approvers: playbooks.Approvers{Groups: []string{"people"}, Quorum: 1, Timeout: 5 * time.Second},
			}},
			approverVote: voteYes(),
			wantLines:    []string{"snapshot a succeeded", "snapshot b succeeded", "isolate a changed (approved by "},
		},
		"a scope without approvers denies": {
			stepsYAML: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			decisionsByAction: map[string]activities.GuardDecision{"isolate": {
				Verdict:   activities.VerdictAskApproval,
				Approvers: playbooks.Approvers{Quorum: 1, Timeout: 5 * time.Second},
			}},
			wantLines: []string{"snapshot a succeeded", "snapshot b succeeded", "isolate a denied (the scope has no approvers"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, report := runScenario(t, s)
			got := make([]string, 0, len(report.Steps))
			names := map[string]string{"pod:" + t.Name() + "/a": "a", "pod:" + t.Name() + "/b": "b"}
			for _, step := range report.Steps {
				got = append(got, strings.TrimSuffix(fmt.Sprintf("%s %s %s (%s)", step.Action, names[step.Target], step.Outcome,
					step.Reason), " ()"))
			}
			compareLines(t, s.wantLines, got)
			if s.check != nil {
				s.check(t, w)
			}
		})
	}
}

// An approved plan has changed before its effect: approval is requested again, with the differences.
func TestChangedPlanIsRequestedAgain(t *testing.T) {
	t.Parallel()
	_, report := runScenario(t, testScenario{
		changePlans:       true,
		decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
		approverVote:      voteYes(),
		stepsYAML: "\n  - evidence: snapshot\n  - approval: sure\n    from: { groups: [people] }\n    timeout: 5s\n    on_timeout: deny\n    steps:\n" +
			"      - contain: scale\n        for: 1h\n        target: incident.targets[0]\n",
		afterStart: func(t *testing.T, c client.Client, id string, _ func(func())) {
			var again playbook.ApprovalRequest
			require.Eventually(t, func() bool {
				var open []playbook.ApprovalRequest
				value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
				if err != nil || value.Get(&open) != nil || len(open) != 1 || open[0].ReplacesHash == "" {
					return false
				}
				again = open[0]
				return true
			}, 20*time.Second, 20*time.Millisecond, "it is asked again")
			require.Equal(t, []string{"no longer planned: scale a", "now: scale a and its neighbors"},
				again.ChangesSinceReplaced)
			require.NotEqual(t, again.ReplacesHash, again.PlansHash)
			// The old yes is worth nothing for the new plan.
			stale, err := sharedTemporal.key.Sign(attestation.PayloadTypeVote, attestation.Vote{
				IncidentID: again.IncidentID,
				WorkflowID: again.WorkflowID, Step: again.ID, PlanHash: again.ReplacesHash, Person: "bob",
				Groups: []string{"people"}, Approved: true, DecidedAt: time.Now(),
			})
			require.NoError(t, err)
			require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalVote, stale))
			answerWhenAsked(t, c, id, true)
		},
	})
	last := report.Steps[len(report.Steps)-1]
	require.Equal(t, playbooks.OutcomeChanged, last.Outcome, report.Steps)
}

// waitForApprovalRequest waits for the run's open question.
func waitForApprovalRequest(t *testing.T, c client.Client, id string) playbook.ApprovalRequest {
	t.Helper()
	var open []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
		return err == nil && value.Get(&open) == nil && len(open) == 1
	}, 20*time.Second, 20*time.Millisecond, "it is asked")
	return open[0]
}

// sendVote signs and sends a vote as the gateway does.
func sendVote(t *testing.T, c client.Client, p playbook.ApprovalRequest, person string, approve bool) {
	t.Helper()
	signed, err := sharedTemporal.key.Sign(attestation.PayloadTypeVote, attestation.Vote{
		IncidentID: p.IncidentID,
		WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: person, Groups: []string{"people"},
		Approved: approve, DecidedAt: time.Now(),
	})
	require.NoError(t, err)
	require.NoError(t, c.SignalWorkflow(t.Context(), p.WorkflowID, "", workflows.SignalVote, signed))
}

func approvalScenario(steps string) testScenario {
	return testScenario{
		decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
		stepsYAML: "\n  - evidence: snapshot\n  - approval: sure\n    from: { groups: [people] }\n    timeout: 5s\n    on_timeout: deny\n    steps:\n" +
			"      - contain: scale\n        for: 1h\n        target: incident.targets[0]\n" + steps,
	}
}

// A vote before the deadline counts, even if no worker could count it before the deadline.
func TestVoteBeforeDeadlineIsCountedAfterOutage(t *testing.T) {
	t.Parallel()
	s := approvalScenario("")
	s.afterStart = func(t *testing.T, c client.Client, id string, away func(func())) {
		q := waitForApprovalRequest(t, c, id)
		away(func() {
			sendVote(t, c, q, "alice", true)
			require.Less(t, time.Now(), q.Deadline)
			require.Eventually(t, func() bool { return time.Now().After(q.Deadline.Add(time.Second)) }, 20*time.Second,
				50*time.Millisecond)
		})
	}
	_, report := runScenario(t, s)
	require.Equal(t, playbooks.OutcomeChanged, report.Steps[len(report.Steps)-1].Outcome, report.Steps)
}

// A person who votes repeatedly does not crowd out the votes of others.
func TestRepeatedVotesDoNotCrowdOutOthers(t *testing.T) {
	t.Parallel()
	s := approvalScenario("")
	s.quorum = 2
	s.afterStart = func(t *testing.T, c client.Client, id string, _ func(func())) {
		q := waitForApprovalRequest(t, c, id)
		for range 120 {
			sendVote(t, c, q, "alice", true)
		}
		sendVote(t, c, q, "bob", false)
	}
	_, report := runScenario(t, s)
	last := report.Steps[len(report.Steps)-1]
	require.Equal(t, playbooks.OutcomeDenied, last.Outcome, report.Steps)
	require.Contains(t, last.Reason, "bob denied it")
}

// A disposition as false positive suspends running playbooks: they request no further approvals and contain nothing.
func TestFalsePositiveSuspendsRunningPlaybook(t *testing.T) {
	t.Parallel()
	s := approvalScenario("  - contain: isolate\n    for: 1h\n")
	s.afterStart = func(t *testing.T, c client.Client, id string, _ func(func())) {
		q := waitForApprovalRequest(t, c, id)
		require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalSuspend,
			"bob says that it is a false positive"))
		sendVote(t, c, q, "alice", true)
	}
	w, report := runScenario(t, s)
	require.Zero(t, w.countCalls("scale a")+w.countCalls("isolate a")+w.countCalls("isolate b"))
	for _, step := range report.Steps[2:] {
		require.Equal(t, playbooks.OutcomeDenied, step.Outcome, report.Steps)
		require.Contains(t, step.Reason, "false positive")
	}
}

// compareLines wants each line to be there, in the order of the steps; targets and branches of one step may change
// places.
func compareLines(t *testing.T, want, got []string) {
	t.Helper()
	require.Len(t, got, len(want), strings.Join(got, "\n"))
	left := slices.Clone(got)
	for _, line := range want {
		i := slices.IndexFunc(left, func(g string) bool {
			if action, outcome, ok := strings.Cut(line, " ? "); ok {
				return strings.HasPrefix(g, action+" ") && strings.Contains(g, " "+outcome)
			}
			return strings.HasPrefix(g, line)
		})
		require.GreaterOrEqual(t, i, 0, "no line %q in\n%s", line, strings.Join(got, "\n"))
		left = slices.Delete(left, i, i+1)
	}
}

// ApproversForNamespace are those whom the scenarios ask.
func (w *fakeBackend) ApproversForNamespace(string, bool) playbooks.Approvers {
	return playbooks.Approvers{Groups: []string{"people"}, Quorum: max(w.quorum, 1), Timeout: 5 * time.Second}
}

// runScenario runs a scenario's playbook on a task queue of its own.
func runScenario(t *testing.T, s testScenario) (*fakeBackend, playbook.Report) {
	t.Helper()
	w := &fakeBackend{
		errorsByAction: s.errorsByAction, heldTargets: map[string]bool{},
		decisionsByAction: s.decisionsByAction, planCounts: map[string]int{}, changePlans: s.changePlans, quorum: s.quorum,
	}
	if w.errorsByAction == nil {
		w.errorsByAction = map[string][]error{}
	}
	set := activities.NewActivities(w.fakeActions()...)
	set.Guards, set.ScopeApprovers, set.Authority, set.Evidence = w, w, sharedTemporal.key,
		&activities.EvidenceStore{Dir: t.TempDir(), Authority: sharedTemporal.key}

	options := sharedTemporal.options
	options.Logger = discardLogger{}
	c, err := client.Dial(options)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	// Scenarios share Temporal and run at once: each has a namespace of queues by its own client's identity.
	queue := workflows.TaskQueue + "/" + t.Name()
	catalog := set.Catalog()
	leases := &lease.Workflows{Catalog: catalog}
	plays := &playbook.Workflows{Catalog: catalog, Leases: leases}
	serve := func() sdkworker.Worker {
		work := sdkworker.New(c, queue, sdkworker.Options{})
		work.RegisterWorkflow(leases.Lease)
		work.RegisterWorkflow(plays.Playbook)
		work.RegisterActivityWithOptions(set, activity.RegisterOptions{SkipInvalidStructFunctions: true})
		require.NoError(t, work.Start())
		return work
	}
	work := serve()
	t.Cleanup(func() { work.Stop() })

	target := func(name string) playbooks.Target {
		return playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: name, UID: t.Name() + "/" + name}
	}
	in := playbook.Input{
		LanguageVersion: cmp.Or(s.languageVersion, playbooks.LanguageVersion), File: "scenario.yaml",
		Source: []byte("playbook: scenario\nmatch: { when: \"true\" }\n" + s.headerYAML + "steps:" +
			strings.ReplaceAll(s.stepsYAML, "{ groups: [people] }", fmt.Sprintf("{ groups: [people], quorum: %d }",
				max(s.quorum, 1)))),
		Incident: playbooks.Incident{ID: "INC-01JAAAAAAAAAAAAAAAAAAAAAAA", Targets: []playbooks.Target{
			target("a"),
			target("b"),
		}},
		IncidentRef: activities.IncidentRef{ID: "INC-01JAAAAAAAAAAAAAAAAAAAAAAA", GroupingKey: t.Name(), Cluster: t.Name()},
		LeaseTiming: lease.Timing{Route: workflows.ActivityRoute{QueueOverride: queue}},
	}
	for _, source := range s.callablePlaybooks {
		in.Callees = append(in.Callees, playbooks.SourceFile{File: "called.yaml", Content: []byte(source)})
	}
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "playbook/" + t.Name(), TaskQueue: queue},
		plays.Playbook, in)
	require.NoError(t, err)
	if s.approverVote != nil {
		answerWhenAsked(t, c, run.GetID(), *s.approverVote)
	}
	if s.afterStart != nil {
		s.afterStart(t, c, run.GetID(), func(meanwhile func()) {
			work.Stop()
			meanwhile()
			work = serve()
		})
	}
	var report playbook.Report
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err = run.Get(ctx, &report)
	if s.checkError != nil {
		s.checkError(t, err)
		return w, report
	}
	require.NoError(t, err)
	require.Empty(t, report.Error)
	storeHistory(t, c, run.GetID())
	return w, report
}

// answerWhenAsked votes as the gateway would, when a question is open or the run has ended without one.
func answerWhenAsked(t *testing.T, c client.Client, id string, approve bool) {
	t.Helper()
	var open []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
		if err != nil || value.Get(&open) != nil {
			return false
		}
		d, err := c.DescribeWorkflowExecution(t.Context(), id, "")
		return len(open) > 0 ||
			err == nil && d.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
	}, 30*time.Second, 20*time.Millisecond)
	for _, p := range open {
		signed, err := sharedTemporal.key.Sign(attestation.PayloadTypeVote, attestation.Vote{
			IncidentID: p.IncidentID,
			WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: "alice", Groups: []string{"people"},
			Approved: approve, DecidedAt: time.Now(),
		})
		require.NoError(t, err)
		require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalVote, signed))
	}
}

type discardLogger struct{}

func (discardLogger) Debug(string, ...any) {}
func (discardLogger) Info(string, ...any)  {}
func (discardLogger) Warn(string, ...any)  {}
func (discardLogger) Error(string, ...any) {}
