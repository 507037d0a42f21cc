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

// world is what the actions act on.
type world struct {
	planned map[string]int
	shifts  bool
	quorum  int
	mu      sync.Mutex
	answers map[string][]error // by action: the errors of its calls in turn, nil for success
	calls   []string
	held    map[string]bool // by target
	verdict map[string]activities.GuardDecision
}

func (w *world) call(action, what string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, action+" "+what)
	if len(w.answers[action]) == 0 {
		return nil
	}
	err := w.answers[action][0]
	w.answers[action] = w.answers[action][1:]
	return err
}

func (w *world) count(call string) int {
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
func (w *world) Decide(_ context.Context, q activities.GuardInput) (activities.GuardDecision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := q.Request.IncidentRef.MaxPhase; p == 1 && q.Spec.Class != playbooks.ClassObserve {
		return activities.GuardDecision{Verdict: activities.VerdictPropose, Reason: "the playbook's ceiling"}, nil
	}
	d, ok := w.verdict[q.Spec.Name]
	if q.Authorization.Grant != nil || !ok {
		return activities.GuardDecision{Verdict: activities.VerdictRun}, nil
	}
	return d, nil
}

type look struct {
	*world
	name string
	verb playbooks.Verb
}

type found struct {
	Count int `json:"count"`
}

func (l *look) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{Name: l.name, Verb: l.verb, Class: playbooks.ClassObserve, Targets: []playbooks.TargetKind{playbooks.TargetPod}, Outputs: found{}}
}

func (l *look) Observe(_ context.Context, r activities.Request) (activities.Observation, error) {
	return activities.Observation{Outputs: found{Count: 7}}, l.call(l.name, r.Target.Name)
}

type hold struct {
	*world
	name  string
	class playbooks.Class
}

func (h *hold) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{Name: h.name, Verb: playbooks.VerbContain, Class: h.class, Facet: playbooks.Facet(h.name), Targets: []playbooks.TargetKind{playbooks.TargetPod}, Reversible: true}
}

func (h *hold) Plan(_ context.Context, r activities.Request) (activities.Plan, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change := h.name + " " + r.Target.Name
	if h.planned[change]++; h.planned[change] > 1 && h.shifts {
		return activities.Plan{Changes: []string{change + " and its neighbours"}}, nil
	}
	return activities.Plan{Changes: []string{change}}, nil
}

func (h *hold) Apply(_ context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	if err := h.call(h.name, r.Target.Name); err != nil {
		return activities.Effect{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[r.Target.Name] = true
	return activities.Effect{Outcome: playbooks.OutcomeChanged}, nil
}

func (h *hold) Verify(_ context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[r.Target.Name], "", nil
}

func (h *hold) Undo(_ context.Context, r activities.Request, _ json.RawMessage, _ *attestation.Envelope) (*activities.Drift, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[r.Target.Name] = false
	return nil, nil
}

// actions are what the scenarios' playbooks call.
func (w *world) actions() []activities.Action {
	return []activities.Action{
		&look{w, "ctx", playbooks.VerbEnrich}, &look{w, "snapshot", playbooks.VerbEvidence}, &look{w, "tell", playbooks.VerbNotify},
		&hold{w, "isolate", playbooks.ClassContain}, &hold{w, "freeze", playbooks.ClassContain}, &hold{w, "scale", playbooks.ClassDisrupt},
	}
}

// lab is one Temporal for all scenarios.
type lab struct {
	dir     string
	options client.Options
	key     *authority.Authority
}

var shared lab

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "interpreter-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = shared.start(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func (l *lab) start(dir string) error {
	l.dir = dir
	pki, err := authority.OpenOrCreatePKI(filepath.Join(dir, "pki"))
	if err != nil {
		return err
	}
	if l.key, err = authority.OpenOrCreate(dir); err != nil {
		return err
	}
	server, err := embeddedtemporal.Start(context.Background(), embeddedtemporal.Options{
		DataDir: dir, PKI: pki, Log: slog.New(slog.DiscardHandler),
		SearchAttributes: map[string]enumspb.IndexedValueType{workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD},
	})
	if err != nil {
		return err
	}
	l.options, err = worker.SecureClientOptions(client.Options{HostPort: server.Address, Namespace: embeddedtemporal.Namespace, ConnectionOptions: client.ConnectionOptions{TLS: server.TLS}}, dir)
	return err
}

// scenario is one playbook and what the world answers.
type scenario struct {
	shifts  bool // plans change after they were shown
	quorum  int
	then    func(t *testing.T, c client.Client, id string, away func(func()))
	steps   string
	head    string                  // what stands before `steps`
	called  []string                // playbooks that it may call
	ends    func(*testing.T, error) // where the run does not end by itself
	version int                     // of the language that the run began with; 0 is this one's
	answers map[string][]error
	verdict map[string]activities.GuardDecision
	vote    *bool // what the approver says; nil says nothing
	want    []string
	check   func(*testing.T, *world)
}

func yes() *bool { v := true; return &v }
func no() *bool  { v := false; return &v }

var errAway = errors.New("it is away")

func TestTheOutcomeTable(t *testing.T) {
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
	for name, s := range map[string]scenario{
		"a containment that holds": {
			steps: "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    on_failure:\n      - notify: tell\n",
			want:  []string{"snapshot a changed", "snapshot b changed", "isolate a changed", "isolate b changed"},
		},
		"a refusal runs on_failure": {
			steps:   "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n    on_failure:\n      - notify: tell\n",
			answers: map[string][]error{"isolate": {activities.Refusef("host network")}},
			want:    []string{"snapshot a changed", "snapshot b changed", "isolate a refused (host network)", "tell a changed", "tell b changed"},
		},
		"one target that fails makes the step fail, the other is held": {
			steps:   "\n  - evidence: snapshot\n  - contain: isolate\n    id: i\n    for: 1h\n  - notify: tell\n    if: i.outcome == \"refused\" && i.targets == 2\n",
			answers: map[string][]error{"isolate": {activities.Refusef("no"), nil}},
			want:    []string{"snapshot a changed", "snapshot b changed", "isolate ? refused (no)", "isolate ? changed", "tell a changed", "tell b changed"},
		},
		"evidence that fails does not stop the containment": {
			steps:   "\n  - evidence: snapshot\n    timeout: 2s\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			answers: map[string][]error{"snapshot": {errAway, errAway, errAway, errAway, errAway, errAway, errAway, errAway}},
			want:    []string{"snapshot a failed", "snapshot b failed", "isolate a changed"},
		},
		"what the phase does not let run is proposed, and on_failure does not run": {
			steps:   "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n    on_failure:\n      - notify: tell\n",
			verdict: map[string]activities.GuardDecision{"isolate": {Verdict: activities.VerdictPropose, Reason: "phase 1"}},
			want:    []string{"snapshot a changed", "snapshot b changed", "isolate a proposed (would isolate a (phase 1))"},
		},
		"an if that is false skips": {
			steps: "\n  - enrich: ctx\n    id: c\n  - notify: tell\n    if: c.count > 100\n  - notify: tell\n    if: c.count == 7\n",
			want:  []string{"ctx a changed", "ctx b changed", "tell  skipped (`if` is false)", "tell a changed", "tell b changed"},
		},
		"a retry tries again": {
			steps:   "\n  - enrich: ctx\n    target: incident.targets[0]\n    retry: { attempts: 2, backoff: 10ms }\n",
			answers: map[string][]error{"ctx": {errAway, errAway, errAway, nil}},
			want:    []string{"ctx a failed", "ctx a changed"},
		},
		"parallel branches are joined before what follows": {
			steps: "\n  - parallel:\n      - enrich: ctx\n        id: c\n      - evidence: snapshot\n  - notify: tell\n    if: c.count == 7\n",
			want:  []string{"ctx a changed", "ctx b changed", "snapshot a changed", "snapshot b changed", "tell a changed", "tell b changed"},
		},
		"an approval that is given runs its steps": {
			steps: approval, verdict: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}}, vote: yes(),
			want: []string{"snapshot a changed", "snapshot b changed", "approval  changed", "scale a changed", "scale b changed"},
		},
		"an approval that is refused runs on_denied and nothing else": {
			steps: approval, verdict: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}}, vote: no(),
			want:  []string{"snapshot a changed", "snapshot b changed", "approval  denied", "tell a changed", "tell b changed"},
			check: func(t *testing.T, w *world) { require.Zero(t, w.count("scale a")) },
		},
		"silence denies": {
			steps: approval, verdict: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
			want: []string{"snapshot a changed", "snapshot b changed", "approval  denied", "tell a changed", "tell b changed"},
		},
		"where the phase lets nothing run nobody is asked": {
			steps: approval, verdict: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictPropose, Reason: "phase 2"}}, vote: yes(),
			want:  []string{"snapshot a changed", "snapshot b changed", "approval  proposed (would ask: phase 2)", "scale a proposed", "scale b proposed"},
			check: func(t *testing.T, w *world) { require.Zero(t, w.count("scale a")) },
		},
		"a scope that wants its approvers asked asks them": {
			steps:   "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			verdict: map[string]activities.GuardDecision{"isolate": {Verdict: activities.VerdictAskApproval, Approvers: activities.Approvers{Groups: []string{"people"}, Quorum: 1, Timeout: 5 * time.Second}}},
			vote:    yes(),
			want:    []string{"snapshot a changed", "snapshot b changed", "isolate a changed (approved by "},
		},
		"a scope without approvers denies": {
			steps:   "\n  - evidence: snapshot\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
			verdict: map[string]activities.GuardDecision{"isolate": {Verdict: activities.VerdictAskApproval, Approvers: activities.Approvers{Quorum: 1, Timeout: 5 * time.Second}}},
			want:    []string{"snapshot a changed", "snapshot b changed", "isolate a denied (nobody may approve"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, report := play(t, s)
			got := make([]string, 0, len(report.Steps))
			names := map[string]string{"pod:" + t.Name() + "/a": "a", "pod:" + t.Name() + "/b": "b"}
			for _, step := range report.Steps {
				got = append(got, strings.TrimSuffix(fmt.Sprintf("%s %s %s (%s)", step.Action, names[step.Target], step.Outcome, step.Reason), " ()"))
			}
			compare(t, s.want, got)
			if s.check != nil {
				s.check(t, w)
			}
		})
	}
}

// What was approved has changed when it is about to be done: it is asked anew, and says what is different.
func TestAStalePlanIsAskedAgain(t *testing.T) {
	t.Parallel()
	_, report := play(t, scenario{
		shifts: true, verdict: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}}, vote: yes(),
		steps: "\n  - evidence: snapshot\n  - approval: sure\n    from: { groups: [people] }\n    timeout: 5s\n    on_timeout: deny\n    steps:\n" +
			"      - contain: scale\n        for: 1h\n        target: incident.targets[0]\n",
		then: func(t *testing.T, c client.Client, id string, _ func(func())) {
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
			require.Equal(t, []string{"no longer: scale a", "now: scale a and its neighbours"}, again.ChangesSinceReplaced)
			require.NotEqual(t, again.ReplacesHash, again.PlansHash)
			// The old yes is worth nothing for the new plan.
			stale, err := shared.key.Sign(attestation.PayloadTypeVote, attestation.Vote{IncidentID: again.IncidentID, WorkflowID: again.WorkflowID, Step: again.ID, PlanHash: again.ReplacesHash, Person: "bob", Groups: []string{"people"}, Approved: true, DecidedAt: time.Now()})
			require.NoError(t, err)
			require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalVote, stale))
			answer(t, c, id, true)
		},
	})
	last := report.Steps[len(report.Steps)-1]
	require.Equal(t, playbooks.OutcomeChanged, last.Outcome, report.Steps)
}

// asked waits for the run's open question.
func asked(t *testing.T, c client.Client, id string) playbook.ApprovalRequest {
	t.Helper()
	var open []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
		return err == nil && value.Get(&open) == nil && len(open) == 1
	}, 20*time.Second, 20*time.Millisecond, "it is asked")
	return open[0]
}

// say signs and sends a vote as the gateway does.
func say(t *testing.T, c client.Client, p playbook.ApprovalRequest, person string, approve bool) {
	t.Helper()
	signed, err := shared.key.Sign(attestation.PayloadTypeVote, attestation.Vote{IncidentID: p.IncidentID, WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: person, Groups: []string{"people"}, Approved: approve, DecidedAt: time.Now()})
	require.NoError(t, err)
	require.NoError(t, c.SignalWorkflow(t.Context(), p.WorkflowID, "", workflows.SignalVote, signed))
}

func askingFor(steps string) scenario {
	return scenario{
		verdict: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
		steps: "\n  - evidence: snapshot\n  - approval: sure\n    from: { groups: [people] }\n    timeout: 5s\n    on_timeout: deny\n    steps:\n" +
			"      - contain: scale\n        for: 1h\n        target: incident.targets[0]\n" + steps,
	}
}

// What was given in time counts, though no worker was there to count it before the time was over.
func TestAnAnswerInTimeCountsLate(t *testing.T) {
	t.Parallel()
	s := askingFor("")
	s.then = func(t *testing.T, c client.Client, id string, away func(func())) {
		q := asked(t, c, id)
		away(func() {
			say(t, c, q, "alice", true)
			require.Less(t, time.Now(), q.Deadline)
			require.Eventually(t, func() bool { return time.Now().After(q.Deadline.Add(time.Second)) }, 20*time.Second, 50*time.Millisecond)
		})
	}
	_, report := play(t, s)
	require.Equal(t, playbooks.OutcomeChanged, report.Steps[len(report.Steps)-1].Outcome, report.Steps)
}

// One who says the same again and again fills nobody's place.
func TestNobodyMutesTheOthers(t *testing.T) {
	t.Parallel()
	s := askingFor("")
	s.quorum = 2
	s.then = func(t *testing.T, c client.Client, id string, _ func(func())) {
		q := asked(t, c, id)
		for range 120 {
			say(t, c, q, "alice", true)
		}
		say(t, c, q, "bob", false)
	}
	_, report := play(t, s)
	last := report.Steps[len(report.Steps)-1]
	require.Equal(t, playbooks.OutcomeDenied, last.Outcome, report.Steps)
	require.Contains(t, last.Reason, "bob said no")
}

// A person who says that it is a false positive is heard by what runs: it asks on for nothing and contains nothing.
func TestAHaltIsHeard(t *testing.T) {
	t.Parallel()
	s := askingFor("  - contain: isolate\n    for: 1h\n")
	s.then = func(t *testing.T, c client.Client, id string, _ func(func())) {
		q := asked(t, c, id)
		require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalSuspend, "bob says that it is a false positive"))
		say(t, c, q, "alice", true)
	}
	w, report := play(t, s)
	require.Zero(t, w.count("scale a")+w.count("isolate a")+w.count("isolate b"))
	for _, step := range report.Steps[2:] {
		require.Equal(t, playbooks.OutcomeDenied, step.Outcome, report.Steps)
		require.Contains(t, step.Reason, "false positive")
	}
}

// compare wants each line to be there, in the order of the steps; targets and branches of one step may change places.
func compare(t *testing.T, want, got []string) {
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
func (w *world) ApproversForNamespace(string, bool) activities.Approvers {
	return activities.Approvers{Groups: []string{"people"}, Quorum: max(w.quorum, 1), Timeout: 5 * time.Second}
}

// play runs a scenario's playbook on a task queue of its own.
func play(t *testing.T, s scenario) (*world, playbook.Report) {
	t.Helper()
	w := &world{answers: s.answers, held: map[string]bool{}, verdict: s.verdict, planned: map[string]int{}, shifts: s.shifts, quorum: s.quorum}
	if w.answers == nil {
		w.answers = map[string][]error{}
	}
	set := activities.NewActivities(w.actions()...)
	set.Guards, set.ScopeApprovers, set.Authority, set.Evidence = w, w, shared.key, &activities.EvidenceStore{Dir: t.TempDir(), Authority: shared.key}

	options := shared.options
	options.Logger = quiet{}
	c, err := client.Dial(options)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	// Scenarios share Temporal and run at once: each has a namespace of queues by its own client's identity.
	queue := workflows.TaskQueue + "/" + t.Name()
	catalogue := set.Catalog()
	leases := &lease.Workflows{Catalog: catalogue}
	plays := &playbook.Workflows{Catalog: catalogue, Leases: leases}
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
		LanguageVersion: cmp.Or(s.version, playbooks.LanguageVersion), File: "scenario.yaml", Source: []byte("playbook: scenario\nmatch: { when: \"true\" }\n" + s.head + "steps:" + strings.ReplaceAll(s.steps, "{ groups: [people] }", fmt.Sprintf("{ groups: [people], quorum: %d }", max(s.quorum, 1)))),
		Incident:    playbooks.Incident{ID: "INC-01JAAAAAAAAAAAAAAAAAAAAAAA", Targets: []playbooks.Target{target("a"), target("b")}},
		IncidentRef: activities.IncidentRef{ID: "INC-01JAAAAAAAAAAAAAAAAAAAAAAA", GroupingKey: t.Name(), Cluster: t.Name()}, LeaseTiming: lease.Timing{Route: workflows.ActivityRoute{QueueOverride: queue}},
	}
	for _, source := range s.called {
		in.Callees = append(in.Callees, playbooks.SourceFile{File: "called.yaml", Content: []byte(source)})
	}
	run, err := c.ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{ID: "playbook/" + t.Name(), TaskQueue: queue}, plays.Playbook, in)
	require.NoError(t, err)
	if s.vote != nil {
		answer(t, c, run.GetID(), *s.vote)
	}
	if s.then != nil {
		s.then(t, c, run.GetID(), func(meanwhile func()) {
			work.Stop()
			meanwhile()
			work = serve()
		})
	}
	var report playbook.Report
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err = run.Get(ctx, &report)
	if s.ends != nil {
		s.ends(t, err)
		return w, report
	}
	require.NoError(t, err)
	require.Empty(t, report.Error)
	store(t, c, run.GetID())
	return w, report
}

// answer votes as the gateway would, when a question is open or the run has ended without one.
func answer(t *testing.T, c client.Client, id string, approve bool) {
	t.Helper()
	var open []playbook.ApprovalRequest
	require.Eventually(t, func() bool {
		value, err := c.QueryWorkflow(t.Context(), id, "", workflows.QueryPendingApprovals)
		if err != nil || value.Get(&open) != nil {
			return false
		}
		d, err := c.DescribeWorkflowExecution(t.Context(), id, "")
		return len(open) > 0 || err == nil && d.GetWorkflowExecutionInfo().GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING
	}, 30*time.Second, 20*time.Millisecond)
	for _, p := range open {
		signed, err := shared.key.Sign(attestation.PayloadTypeVote, attestation.Vote{IncidentID: p.IncidentID, WorkflowID: p.WorkflowID, Step: p.ID, PlanHash: p.PlansHash, Person: "alice", Groups: []string{"people"}, Approved: approve, DecidedAt: time.Now()})
		require.NoError(t, err)
		require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalVote, signed))
	}
}

type quiet struct{}

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}
func (quiet) Warn(string, ...any)  {}
func (quiet) Error(string, ...any) {}
