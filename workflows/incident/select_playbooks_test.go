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
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// runSelection runs an incident with several containers, the first at 0 and each further one a minute later, and
// returns the inputs of the started runs. match returns the matching playbooks, report the report of each run.
func runSelection(t *testing.T, containers int, match func(in playbooks.Incident) []SelectedPlaybook,
	report func(playbook.Input) playbook.Report,
) (playbooks.Incident, []playbook.Input) {
	t.Helper()
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	w := &Workflows{Playbooks: &playbook.Workflows{Catalog: playbooks.Catalog{"pod.isolate": {
		Name: "pod.isolate",
		Verb: playbooks.VerbContain,
	}}}}
	env.RegisterWorkflow(w.Incident)
	env.RegisterWorkflow(w.Playbooks.Playbook)
	var set *activities.Activities
	env.RegisterActivity(set.Observe)
	env.RegisterActivityWithOptions(func(_ context.Context, in playbooks.Incident) ([]SelectedPlaybook,
		error,
	) {
		return match(in), nil
	}, activity.RegisterOptions{Name: MatchPlaybooksActivity})
	env.OnActivity(set.Observe, mock.Anything, mock.Anything).Return(activities.Result{}, nil)
	var runs []playbook.Input
	env.OnWorkflow(w.Playbooks.Playbook, mock.Anything, mock.Anything).Return(func(ctx workflow.Context,
		in playbook.Input,
	) (playbook.Report, error) {
		runs = append(runs, in)
		r := report(in)
		r.WorkflowID, r.Playbook, r.Ended = workflow.GetInfo(ctx).WorkflowExecution.ID, in.File, workflow.Now(ctx)
		return r, workflow.SignalExternalWorkflow(ctx, workflows.IncidentWorkflowID("key"), "",
			workflows.SignalPlaybookReport, r).Get(ctx, nil)
	})
	for i := range containers {
		env.RegisterDelayedCallback(func() {
			d := sensors.Detection{ID: fmt.Sprint(i), Rule: "rule", Title: "title"}
			d.Event.Container.ID = fmt.Sprintf("container-%d", i)
			env.SignalWorkflow(workflows.SignalDetections, []AttestedDetection{{Detection: d}})
		}, time.Duration(i)*time.Minute)
	}
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{
		ID:        workflows.IncidentWorkflowID("key"),
		TaskQueue: workflows.TaskQueue,
	})
	env.ExecuteWorkflow(w.Incident, Input{ID: "INC-1", GroupingKey: "key"})
	var in playbooks.Incident
	require.NoError(t, env.GetWorkflowResult(&in))
	return in, runs
}

func newStepReport(outcome playbooks.Outcome, guard string) playbooks.StepReport {
	return playbooks.StepReport{Step: "steps[0]", Action: "pod.isolate", Outcome: outcome, Guard: guard}
}

// An incident keeps the version of a playbook that it started first, even if the file changes meanwhile.
func TestIncidentKeepsVersionOfStartedPlaybook(t *testing.T) {
	version := 0
	_, runs := runSelection(t, 2, func(playbooks.Incident) []SelectedPlaybook {
		version++
		return []SelectedPlaybook{{Name: "p", File: "p", Source: fmt.Appendf(nil, "version %d", version)}}
	}, func(playbook.Input) playbook.Report { return playbook.Report{} })
	require.Len(t, runs, 2)
	require.Greater(t, version, 1)
	require.Equal(t, "version 1", string(runs[0].Source))
	require.Equal(t, "version 1", string(runs[1].Source))
}

// The next playbook contains if the first failed by itself. An answer of a person, a phase or a guard applies to all
// playbooks.
func TestOutcomesThatAllowNextPlaybookToContain(t *testing.T) {
	for name, c := range map[string]struct {
		steps []playbooks.StepReport
		err   string
		next  bool
	}{
		"refused by its action": {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeRefused,
			"action")}, next: true},
		"failed": {
			steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeFailed, "")},
			next:  true,
		},
		"could not run": {err: "it could not be started", next: true},
		"refused, and another step held": {steps: []playbooks.StepReport{
			newStepReport(playbooks.OutcomeRefused, "action"),
			newStepReport(playbooks.OutcomeChanged, ""),
		}},
		"held":              {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeChanged, "")}},
		"held, unverified":  {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeUnverified, "")}},
		"it was so already": {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeUnchanged, "")}},
		"denied by people":  {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeDenied, "")}},
		"an approval that was denied": {steps: []playbooks.StepReport{
			newStepReport(playbooks.OutcomeRefused, "action"),
			{Action: "approval", Outcome: playbooks.OutcomeDenied},
		}},
		"proposed by the phase": {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeProposed,
			"phase")}},
		"refused by the kill switch": {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeRefused,
			playbooks.GuardKillSwitch)}},
		"refused since it is protected": {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeRefused,
			"protected")}},
		"its condition was false": {steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeSkipped, "")}},
		"only something else was refused": {steps: []playbooks.StepReport{{
			Action:  "create",
			Outcome: playbooks.OutcomeRefused,
		}}},
		"nothing was contained or hindered": {},
	} {
		t.Run(name, func(t *testing.T) {
			both := []SelectedPlaybook{
				{Name: "mine", File: "mine", CanContain: true},
				{
					Name: "shipped", File: "shipped", CanContain: true, Shipped: true, NotSelectedReason: "mine comes first",
					IsFallback: true,
				},
			}
			in, runs := runSelection(t, 1, func(playbooks.Incident) []SelectedPlaybook { return both },
				func(in playbook.Input) playbook.Report {
					if in.File == "mine" {
						return playbook.Report{Steps: c.steps, Error: c.err}
					}
					return playbook.Report{Steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeChanged, "")}}
				})
			want := []string{"mine"}
			if c.next {
				want = append(want, "shipped")
			}
			var got []string
			for _, r := range runs {
				got = append(got, r.File)
			}
			require.Equal(t, want, got)
			require.Len(t, in.NotSelected, 1)
			require.Equal(t, "mine comes first", in.NotSelected[0].Reason)
		})
	}
}

// A user's playbook that matches after a shipped one contained does not contain the same target again.
func TestLatePlaybookDoesNotContainAgain(t *testing.T) {
	in, runs := runSelection(t, 2, func(in playbooks.Incident) []SelectedPlaybook {
		shipped := SelectedPlaybook{Name: "shipped", File: "shipped", CanContain: true, Shipped: true}
		if len(in.Targets) < 2 {
			return []SelectedPlaybook{shipped}
		}
		shipped.NotSelectedReason, shipped.IsFallback = "mine comes first", true
		return []SelectedPlaybook{{Name: "mine", File: "mine", CanContain: true}, shipped}
	}, func(playbook.Input) playbook.Report {
		return playbook.Report{Steps: []playbooks.StepReport{newStepReport(playbooks.OutcomeChanged, "")}}
	})
	require.Len(t, runs, 2)
	require.Equal(t, "shipped", runs[0].File)
	require.Equal(t, "mine", runs[1].File)
	require.Len(t, runs[1].Incident.Targets, 1)
	require.Equal(t, "container-1", runs[1].Incident.Targets[0].UID, "what nothing contains yet is the user's")
	require.Contains(t, in.NotSelected[0].Reason, "the shipped playbook shipped already contains container container-0")
}
