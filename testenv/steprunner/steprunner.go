// Package steprunner runs an observe action as a playbook step does: as an activity, with the same retries, in skipped
// time.
//
// It refuses to run actions that change something: those require a lease.
package steprunner

import (
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
)

// IncidentID is the id of the incident of the steps.
const IncidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

// NewIncidentRef returns a sample incident.
func NewIncidentRef() activities.IncidentRef {
	return activities.IncidentRef{
		ID: IncidentID, GroupingKey: "test/shop/Deployment/web", Cluster: "test",
		Summary: "A miner was started in shop/Deployment/web.", Scope: "web", Confidence: 0.93, Replicas: 3,
		Workload: playbooks.WorkloadIdentity{
			Namespace: "shop", Kind: "Deployment", Name: "web",
			Image: "registry.example/web:1", ImageDigest: "sha256:1234", ServiceAccount: "web", Node: "node-a",
		},
		Opened: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
	}
}

// StepResult is the result of a step.
type StepResult struct {
	activities.Result
	Err error
	// RetryWait is the total waiting time between its attempts.
	RetryWait time.Duration
}

// Run runs an action once, with the retries of a step.
func Run(t testing.TB, action activities.Observer, in activities.IncidentRef, params any) StepResult {
	t.Helper()
	raw, err := json.Marshal(params)
	if err != nil {
		t.Fatal(err)
	}
	spec := action.Spec()
	set := activities.NewActivities(action)
	suite := &testsuite.WorkflowTestSuite{}
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestWorkflowEnvironment()
	env.RegisterActivity(set.Observe)
	var ran StepResult
	env.ExecuteWorkflow(func(ctx workflow.Context) error {
		ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
			StartToCloseTimeout: spec.AttemptTimeout, ScheduleToCloseTimeout: spec.AttemptTimeout + 5*time.Second,
			RetryPolicy: &temporal.RetryPolicy{
				InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2,
				MaximumInterval: 5 * time.Second, MaximumAttempts: 3,
			},
		})
		began := workflow.Now(ctx)
		ran.Err = workflow.ExecuteActivity(ctx, set.Observe, activities.ObserveInput{Request: activities.Request{
			Action: spec.Name, Params: raw, Target: playbooks.Target{Kind: playbooks.TargetIncident, Name: in.ID, UID: in.ID},
			IncidentRef: in,
		}}).Get(ctx, &ran.Result)
		ran.RetryWait = workflow.Now(ctx).Sub(began)
		return nil
	})
	if err := env.GetWorkflowError(); err != nil {
		t.Fatal(err)
	}
	return ran
}
