package incident

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// runWatchedIncident runs an incident whose playbook waits for enough detections. It returns the incident, the outcome
// of the wait, and the number of notifications that the incident sent.
func runWatchedIncident(t *testing.T, enough int, then string, detections []time.Duration) (in playbooks.Incident,
	wait playbooks.StepReport, spoken int,
) {
	t.Helper()
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	plays := &playbook.Workflows{Catalog: playbooks.Catalog{}}
	w := &Workflows{Playbooks: plays}
	env.RegisterWorkflow(w.Incident)
	env.RegisterWorkflow(plays.Playbook)
	var set *activities.Activities
	env.RegisterActivity(set.Observe)
	source := fmt.Appendf(
		nil,
		"playbook: p\ndescription: x\nmatch: { when: \"true\" }\nsteps:\n  - wait: { until: live.total_detections >= %d, timeout: 20m }\n%s",
		enough,
		then,
	)
	env.RegisterActivityWithOptions(func(context.Context, playbooks.Incident) ([]SelectedPlaybook, error) {
		return []SelectedPlaybook{{Name: "p", File: "p.yaml", Source: source}}, nil
	}, activity.RegisterOptions{Name: MatchPlaybooksActivity})
	env.OnActivity(set.Observe, mock.Anything, mock.Anything).Return(activities.Result{}, nil)
	for i, after := range detections {
		env.RegisterDelayedCallback(func() {
			d := sensors.Detection{ID: fmt.Sprint(i), Rule: "rule", Title: "title"}
			d.Event.Container.ID = "container"
			env.SignalWorkflow(workflows.SignalDetections, []AttestedDetection{{Detection: d}})
		}, after)
	}
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{
		ID:        workflows.IncidentWorkflowID("key"),
		TaskQueue: workflows.TaskQueue,
	})
	env.SetWorkerOptions(worker.Options{
		DeadlockDetectionTimeout: time.Minute,
		Interceptors: []interceptor.WorkerInterceptor{&signalInterceptor{beforeSignal: func(ctx workflow.Context) {
			if workflow.GetInfo(ctx).WorkflowType.Name == "Incident" {
				spoken++
			}
		}}},
	})
	env.ExecuteWorkflow(w.Incident, Input{ID: "INC-1", GroupingKey: "key"})
	require.NoError(t, env.GetWorkflowResult(&in))
	require.Len(t, in.Playbooks, 1)
	require.NotEmpty(t, in.Playbooks[0].Steps, in.Playbooks[0].Error)
	return in, in.Playbooks[0].Steps[0], spoken
}

// A playbook that waits for more detections is notified of them.
func TestWaitingPlaybookIsNotifiedOfDetections(t *testing.T) {
	in, wait, _ := runWatchedIncident(t, 5, "", []time.Duration{
		0, time.Minute, 2 * time.Minute, 3 * time.Minute,
		4 * time.Minute,
	})
	require.Equal(t, playbooks.OutcomeSucceeded, wait.Outcome, wait.Reason)
	require.WithinDuration(t, in.Opened.Add(4*time.Minute), wait.At, 10*time.Second)
}

// A wait that never becomes true ends at its timeout.
func TestWaitTimesOut(t *testing.T) {
	_, wait, _ := runWatchedIncident(t, 5, "", []time.Duration{0, time.Minute})
	require.Equal(t, playbooks.OutcomeFailed, wait.Outcome)
	require.Equal(t, "the condition was not true within 20m", wait.Reason)
}

// A flood of detections does not fill the history of a waiting playbook.
func TestDetectionFloodIsReportedInBatches(t *testing.T) {
	var storm []time.Duration
	for i := range 600 {
		storm = append(storm, time.Duration(i)*100*time.Millisecond)
	}
	_, wait, spoken := runWatchedIncident(t, len(storm), "", storm)
	require.Equal(t, playbooks.OutcomeSucceeded, wait.Outcome)
	require.LessOrEqual(t, spoken, 15, "a minute of it, told every five seconds at most")
}

// A playbook that no longer waits gets no notifications.
func TestUnwatchStopsNotifications(t *testing.T) {
	var often []time.Duration
	for i := range 100 {
		often = append(often, time.Duration(i)*6*time.Second)
	}
	_, wait, spoken := runWatchedIncident(t, 1, "  - wait: 11m\n", often)
	require.Equal(t, playbooks.OutcomeSucceeded, wait.Outcome)
	require.LessOrEqual(t, spoken, 4, "ten minutes of detections, after the wait was over")
}
