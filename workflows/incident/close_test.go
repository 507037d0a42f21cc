package incident

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/workflows"
	"stanch/workflows/chatmessage"
	"stanch/workflows/playbook"
)

// signalInterceptor calls a function whenever a workflow is about to signal another workflow; the signal then takes a
// second.
type signalInterceptor struct {
	interceptor.WorkerInterceptorBase
	interceptor.WorkflowInboundInterceptorBase
	interceptor.WorkflowOutboundInterceptorBase
	beforeSignal func(ctx workflow.Context)
}

func (o *signalInterceptor) InterceptWorkflow(_ workflow.Context,
	next interceptor.WorkflowInboundInterceptor,
) interceptor.WorkflowInboundInterceptor {
	return &signalInterceptor{
		WorkflowInboundInterceptorBase: interceptor.WorkflowInboundInterceptorBase{Next: next},
		beforeSignal:                   o.beforeSignal,
	}
}

func (o *signalInterceptor) Init(next interceptor.WorkflowOutboundInterceptor) error {
	return o.WorkflowInboundInterceptorBase.Next.Init(
		&signalInterceptor{
			WorkflowOutboundInterceptorBase: interceptor.WorkflowOutboundInterceptorBase{Next: next},
			beforeSignal:                    o.beforeSignal,
		},
	) //nolint:wrapcheck // the library's error
}

func (o *signalInterceptor) SignalExternalWorkflow(ctx workflow.Context, id, run, name string,
	arg any,
) workflow.Future {
	o.beforeSignal(ctx)
	sent, set := workflow.NewFuture(ctx)
	workflow.Go(ctx, func(ctx workflow.Context) {
		_ = workflow.Sleep(ctx, time.Second)
		set.Chain(o.WorkflowOutboundInterceptorBase.Next.SignalExternalWorkflow(ctx, id, run, name, arg))
	})
	return sent
}

// A detection that arrives during the final sync is not lost: the incident opens again.
func TestDetectionDuringCloseReopensIncident(t *testing.T) {
	env := (&testsuite.WorkflowTestSuite{}).NewTestWorkflowEnvironment()
	w := &Workflows{Playbooks: &playbook.Workflows{}}
	env.RegisterWorkflow(w.Incident)
	env.RegisterWorkflow(chatmessage.ChatMessage)
	var set *activities.Activities
	env.RegisterActivity(set.Observe)
	env.RegisterActivityWithOptions(func(context.Context, playbooks.Incident) ([]SelectedPlaybook, error) {
		return nil,
			nil
	}, activity.RegisterOptions{Name: MatchPlaybooksActivity})
	env.OnActivity(set.Observe, mock.Anything, mock.Anything).Return(activities.Result{}, nil)
	env.OnWorkflow(chatmessage.ChatMessage, mock.Anything, mock.Anything).After(1000 * time.Hour).Return(nil)
	detected := func(id string) {
		d := sensors.Detection{ID: id, Rule: "rule", Title: "title"}
		d.Event.Container.ID = "container"
		env.SignalWorkflow(workflows.SignalDetections, []AttestedDetection{{Detection: d}})
	}
	env.RegisterDelayedCallback(func() { detected("first") }, 0)
	begin, second := env.Now(), false
	env.SetWorkerOptions(worker.Options{
		DeadlockDetectionTimeout: time.Minute,
		Interceptors: []interceptor.WorkerInterceptor{&signalInterceptor{beforeSignal: func(ctx workflow.Context) {
			if quiet := workflow.Now(ctx).Sub(begin) >= 15*time.Minute; quiet && !second &&
				workflow.GetInfo(ctx).WorkflowType.Name == "Incident" {
				second = true
				detected("second")
			}
		}}},
	})
	env.ExecuteWorkflow(w.Incident, Input{ID: "INC-1", GroupingKey: "key", ChatEnabled: true})
	var in playbooks.Incident
	require.NoError(t, env.GetWorkflowResult(&in))
	require.True(t, second, "the scenario did not happen")
	require.Equal(t, 2, in.TotalDetections)
	require.Equal(t, "closed", in.Status)
	require.GreaterOrEqual(t, in.Closed.Sub(begin), 30*time.Minute, "it was quiet for its whole window again")
}
