package interpreter

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
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
	"stanch/workflows"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

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

func voteNo() *bool { v := false; return &v }

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
