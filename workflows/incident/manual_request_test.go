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

func newManualRequest(id string, at time.Time) AttestedDetection {
	a := newAttestedDetection(id, "Requested by alice", "high", 1, sensors.ObjectiveManualRequest, at)
	a.Detection.Rule, a.Detection.Reasons = sensors.RuleManualRequest, []string{"alice asked for it"}
	a.Detection.ManualRequest, a.Attestation = &sensors.ManualRequest{Person: "alice", Playbook: "mine"},
		attestation.Envelope{KeyID: id}
	return a
}

// A person who repeats a request every hour keeps an incident open: an attack on the same target is still detected and
// handled.
func TestRequestsNeverBlockDetections(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	s := &incidentState{Attestations: map[string][]attestation.Envelope{}}
	for i := range 3 * maxDetectionSummaries {
		s.addDetection(newManualRequest(fmt.Sprint(i), at.Add(time.Duration(i)*time.Hour)), at)
	}
	s.recompute()
	require.True(t, s.isManualOnly())
	require.Len(t, s.Incident.Detections, maxManualRequestSummaries)
	require.Equal(t, fmt.Sprint(3*maxDetectionSummaries-1), s.Incident.Detections[maxManualRequestSummaries-1].ID,
		"the newest are kept")
	s.addDetection(newAttestedDetection("shell", "Reverse shell", "critical", 0.9, "execution", at), at)
	s.recompute()
	require.False(t, s.isManualOnly(), "playbooks start")
	require.Equal(t, sensors.Objective("execution"), s.Incident.Objective)
}

// A request permits only its own run, and runs the current version of the playbook.
func TestRequestPermitsOnlyItsOwnRun(t *testing.T) {
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	plays := &playbook.Workflows{Catalog: playbooks.Catalog{}}
	w := &Workflows{Playbooks: plays}
	env.RegisterWorkflow(w.Incident)
	env.RegisterWorkflow(plays.Playbook)
	var set *activities.Activities
	env.RegisterActivity(set.Observe)
	text := "first"
	env.RegisterActivityWithOptions(func(_ context.Context, in playbooks.Incident) ([]SelectedPlaybook, error) {
		name := "mine"
		if in.Severity == "critical" {
			name = "worse"
		}
		return []SelectedPlaybook{{Name: name, Source: []byte(text)}}, nil
	}, activity.RegisterOptions{Name: MatchPlaybooksActivity})
	env.RegisterActivityWithOptions(func(context.Context, sensors.ManualRequest) (SelectedPlaybook, error) {
		return SelectedPlaybook{Name: "mine", Source: []byte(text)}, nil
	}, activity.RegisterOptions{Name: MatchManualRequestActivity})
	env.OnActivity(set.Observe, mock.Anything, mock.Anything).Return(activities.Result{}, nil)
	var started []playbook.Input
	env.OnWorkflow(plays.Playbook, mock.Anything, mock.Anything).Return(func(_ workflow.Context,
		in playbook.Input,
	) (playbook.Report, error) {
		started = append(started, in)
		return playbook.Report{}, errors.New("ended")
	})
	signal := func(after time.Duration, a AttestedDetection) {
		env.RegisterDelayedCallback(func() { env.SignalWorkflow(workflows.SignalDetections, []AttestedDetection{a}) }, after)
	}
	miner := newAttestedDetection("miner", "Miner", "high", 0.5, "crypto-mining", time.Now())
	miner.Attestation = attestation.Envelope{KeyID: "miner"}
	shell := newAttestedDetection("shell", "Reverse shell", "critical", 0.5, "execution", time.Now())
	shell.Attestation = attestation.Envelope{KeyID: "shell"}
	signal(time.Second, miner)
	env.RegisterDelayedCallback(func() { text = "corrected" }, 2*time.Second)
	signal(3*time.Second, newManualRequest("request", time.Now()))
	signal(4*time.Second, shell)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{
		ID:        workflows.IncidentWorkflowID("key"),
		TaskQueue: workflows.TaskQueue,
	})
	env.ExecuteWorkflow(w.Incident, Input{ID: "INC-1", GroupingKey: "key"})
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
