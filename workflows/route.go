package workflows

import (
	"cmp"
	"errors"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
)

// nodeQueueTimeout is how long an activity may wait in a node's queue before it runs without the node's gateway.
const nodeQueueTimeout = 5 * time.Second

// ActivityRoute selects where activities run. The zero value runs activities for a node in the node's queue.
type ActivityRoute struct {
	// LocalOnly means that one process has every node's stream (`stanch up`). Activities for a node then run where the
	// workflow runs.
	LocalOnly bool `json:"local_only,omitempty"`
	// QueueOverride is the queue of all other activities; "" means TaskQueue.
	QueueOverride string `json:"queue,omitempty"`
}

// DefaultQueue returns the task queue of activities that need no node.
func (r ActivityRoute) DefaultQueue() string { return cmp.Or(r.QueueOverride, TaskQueue) }

// ActivityCall is one call of an activity.
type ActivityCall struct {
	Options  workflow.ActivityOptions
	Activity any // the function, or its name
	In, Out  any
}

// RunActivity runs an activity in the queue of the target's node, or in the default queue if no gateway has the node's
// stream.
func (r ActivityRoute) RunActivity(ctx workflow.Context, target playbooks.Target, call ActivityCall) error {
	o, activity, in, out := call.Options, call.Activity, call.In, call.Out
	o.TaskQueue = r.DefaultQueue()
	if target.Node == "" || !target.Kind.IsDetectable() || r.LocalOnly {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), activity, in).
			Get(ctx, out)
		//nolint:wrapcheck // the caller adds context
	}
	there := o
	there.TaskQueue, there.ScheduleToStartTimeout = NodeTaskQueue(target.Node), nodeQueueTimeout
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, there), activity, in).Get(ctx, out)
	var timeout *temporal.TimeoutError
	if errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), activity, in).
			Get(ctx, out)
		//nolint:wrapcheck // the caller adds context
	}
	return err //nolint:wrapcheck // the caller adds context
}

// RunShortActivity runs an activity that only reads and takes milliseconds: as a local activity if LocalOnly is set,
// otherwise as RunActivity does. name is the activity's name.
func (r ActivityRoute) RunShortActivity(ctx workflow.Context, target playbooks.Target, call ActivityCall) error {
	if !r.LocalOnly {
		return r.RunActivity(ctx, target, call)
	}
	local := workflow.LocalActivityOptions{
		StartToCloseTimeout: call.Options.StartToCloseTimeout, RetryPolicy: call.Options.RetryPolicy,
	}
	return workflow.ExecuteLocalActivity(workflow.WithLocalActivityOptions(ctx, local), call.Activity, call.In).
		Get(ctx, call.Out)
	//nolint:wrapcheck // the caller adds context
}
