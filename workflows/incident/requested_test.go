package incident

import (
	"context"
	"errors"
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
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

func asked(id string, at time.Time) Attested {
	a := seen(id, "Requested by alice", "high", 1, sensors.ObjectiveManualRequest, at)
	a.Detection.Rule, a.Detection.Reasons = sensors.RuleManualRequest, []string{"alice asked for it"}
	a.Detection.ManualRequest, a.Attestation = &sensors.ManualRequest{Person: "alice", Playbook: "mine"}, attestation.Envelope{KeyID: id}
	return a
}

// Who asks again every hour keeps an incident open: an attack on the same target is still seen and handled.
func TestRequestsNeverKeepADetectionOut(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	s := &state{Attestations: map[string][]attestation.Envelope{}}
	for i := range 3 * maxSummaries {
		s.add(asked(fmt.Sprint(i), at.Add(time.Duration(i)*time.Hour)), at)
	}
	s.conclude()
	require.True(t, s.onlyRequested())
	require.Len(t, s.Incident.Detections, maxRequests)
	require.Equal(t, fmt.Sprint(3*maxSummaries-1), s.Incident.Detections[maxRequests-1].ID, "the newest are kept")
	s.add(seen("shell", "Reverse shell", "critical", 0.9, "execution", at), at)
	s.conclude()
	require.False(t, s.onlyRequested(), "playbooks start")
	require.Equal(t, sensors.Objective("execution"), s.Incident.Objective)
}

// A request permits the run that it started and no other, and runs the playbook as it is when it is asked for.
func TestARequestSpeaksForItsOwnRunAlone(t *testing.T) {
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	plays := &playbook.Workflows{Catalogue: playbooks.Catalog{}}
	w := &Workflows{Playbooks: plays}
	env.RegisterWorkflow(w.Incident)
	env.RegisterWorkflow(plays.Playbook)
	var set *activities.Activities
	env.RegisterActivity(set.Observe)
	text := "first"
	env.RegisterActivityWithOptions(func(_ context.Context, in playbooks.Incident) ([]Selected, error) {
		name := "mine"
		if in.Severity == "critical" {
			name = "worse"
		}
		return []Selected{{Name: name, Source: []byte(text)}}, nil
	}, activity.RegisterOptions{Name: Match})
	env.RegisterActivityWithOptions(func(context.Context, sensors.ManualRequest) (Selected, error) {
		return Selected{Name: "mine", Source: []byte(text)}, nil
	}, activity.RegisterOptions{Name: MatchRequested})
	env.OnActivity(set.Observe, mock.Anything, mock.Anything).Return(activities.Result{}, nil)
	var started []playbook.Input
	env.OnWorkflow(plays.Playbook, mock.Anything, mock.Anything).Return(func(_ workflow.Context, in playbook.Input) (playbook.Report, error) {
		started = append(started, in)
		return playbook.Report{}, errors.New("ended")
	})
	signal := func(after time.Duration, a Attested) {
		env.RegisterDelayedCallback(func() { env.SignalWorkflow(workflows.SignalDetections, []Attested{a}) }, after)
	}
	miner := seen("miner", "Miner", "high", 0.5, "crypto-mining", time.Now())
	miner.Attestation = attestation.Envelope{KeyID: "miner"}
	shell := seen("shell", "Reverse shell", "critical", 0.5, "execution", time.Now())
	shell.Attestation = attestation.Envelope{KeyID: "shell"}
	signal(time.Second, miner)
	env.RegisterDelayedCallback(func() { text = "corrected" }, 2*time.Second)
	signal(3*time.Second, asked("request", time.Now()))
	signal(4*time.Second, shell)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: workflows.IncidentID("key"), TaskQueue: workflows.TaskQueue})
	env.ExecuteWorkflow(w.Incident, Input{ID: "INC-1", Key: "key"})
	require.NoError(t, env.GetWorkflowError())

	var got []string
	for _, in := range started {
		line := string(in.Source) + ":"
		for _, a := range in.Attestations["container:c1"] {
			line += " " + a.KeyID
		}
		got = append(got, line)
	}
	require.Equal(t, []string{"first: miner", "corrected: miner request", "corrected: miner shell"}, got)
}
