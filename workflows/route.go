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

// nodeWait is how long a node's queue may let an activity lie before the work is done without the node.
const nodeWait = 5 * time.Second

// Route says where activities run. The zero value sends what concerns a node to the node's own queue.
type Route struct {
	// Here: one process alone holds every node's stream (`stanch up`). What concerns a node then runs wherever the
	// workflow does, and starts with the workflow task that asked for it.
	Here bool `json:"here,omitempty"`
	// Queue is where everything else runs; "" is TaskQueue.
	Queue string `json:"queue,omitempty"`
}

// Anywhere is the task queue of what needs no node.
func (r Route) Anywhere() string { return cmp.Or(r.Queue, TaskQueue) }

// Run runs an activity where the target's node is connected or, if no gateway holds the node's stream, anywhere.
func (r Route) Run(ctx workflow.Context, target playbooks.Target, o workflow.ActivityOptions, activity, in, out any) error {
	o.TaskQueue = r.Anywhere()
	if target.Node == "" || !target.Kind.IsDetectable() || r.Here {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), activity, in).Get(ctx, out) //nolint:wrapcheck // callers say what was done
	}
	there := o
	there.TaskQueue, there.ScheduleToStartTimeout = NodeQueue(target.Node), nodeWait
	err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, there), activity, in).Get(ctx, out)
	var timeout *temporal.TimeoutError
	if errors.As(err, &timeout) && timeout.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START {
		return workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), activity, in).Get(ctx, out) //nolint:wrapcheck // callers say what was done
	}
	return err //nolint:wrapcheck // callers say what was done
}

// RunShort runs an activity that only reads and takes milliseconds: inside of the workflow task where every node is
// at hand, else as Run does. name is the activity's.
func (r Route) RunShort(ctx workflow.Context, target playbooks.Target, o workflow.ActivityOptions, name string, in, out any) error {
	if !r.Here {
		return r.Run(ctx, target, o, name, in, out)
	}
	local := workflow.LocalActivityOptions{StartToCloseTimeout: o.StartToCloseTimeout, RetryPolicy: o.RetryPolicy}
	return workflow.ExecuteLocalActivity(workflow.WithLocalActivityOptions(ctx, local), name, in).Get(ctx, out) //nolint:wrapcheck // callers say what was done
}
