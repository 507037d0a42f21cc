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

// nodeQueueTimeout is how long a node's queue may let an activity lie before the work is done without the node.
const nodeQueueTimeout = 5 * time.Second

// ActivityRoute says where activities run. The zero value sends what concerns a node to the node's own queue.
type ActivityRoute struct {
	// LocalOnly: one process alone holds every node's stream (`stanch up`). What concerns a node then runs wherever the
	// workflow does, and starts with the workflow task that asked for it.
	LocalOnly bool `json:"local_only,omitempty"`
	// QueueOverride is where everything else runs; "" is TaskQueue.
	QueueOverride string `json:"queue,omitempty"`
}

// DefaultQueue is the task queue of what needs no node.
func (r ActivityRoute) DefaultQueue() string { return cmp.Or(r.QueueOverride, TaskQueue) }

// RunActivity runs an activity where the target's node is connected or, if no gateway holds the node's stream, anywhere.
func (r ActivityRoute) RunActivity(ctx workflow.Context, target playbooks.Target, o workflow.ActivityOptions, activity, in, out any) error {
	o.TaskQueue = r.DefaultQueue()
	if target.Node == "" || !target.Kind.IsDetectable() || r.LocalOnly {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), activity, in).Get(ctx, out) //nolint:wrapcheck // callers say what was done
	}
	there := o
	there.TaskQueue, there.ScheduleToStartTimeout = NodeTaskQueue(target.Node), nodeQueueTimeout
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, there), activity, in).Get(ctx, out)
	var timeout *temporal.TimeoutError
	if errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), activity, in).Get(ctx, out) //nolint:wrapcheck // callers say what was done
	}
	return err //nolint:wrapcheck // callers say what was done
}

// RunShortActivity runs an activity that only reads and takes milliseconds: inside of the workflow task where every node is
// at hand, else as Run does. name is the activity's.
func (r ActivityRoute) RunShortActivity(ctx workflow.Context, target playbooks.Target, o workflow.ActivityOptions, name string, in, out any) error {
	if !r.LocalOnly {
		return r.RunActivity(ctx, target, o, name, in, out)
	}
	local := workflow.LocalActivityOptions{StartToCloseTimeout: o.StartToCloseTimeout, RetryPolicy: o.RetryPolicy}
	return workflow.ExecuteLocalActivity(workflow.WithLocalActivityOptions(ctx, local), name, in).Get(ctx, out) //nolint:wrapcheck // callers say what was done
}
