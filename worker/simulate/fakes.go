package simulate

import (
	"context"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	enumspb "go.temporal.io/api/enums/v1"

	"stanch/activities"
	"stanch/playbooks/recording"
)

// Call is one operation that an action is asked for.
type Call struct {
	Operation recording.Operation
	Request   activities.Request
	Attempt   int // from 1: Temporal's, of this one activity
	AtMS      int64
}

// Fakes answer in place of the recording; false lets the recording answer. They are asked for observations, plans and
// effects, from many goroutines at once. What took time takes it, by the skipped clock.
type Fakes func(Call) (recording.ActionResult, bool)

// answer is the faked one, or the recording's next.
func (t *tape) answer(ctx context.Context, op recording.Operation, r activities.Request) (recording.ActionResult, bool) {
	if a, ok := t.faked(ctx, op, r); ok {
		return a, true
	}
	return t.give(op, r)
}

// signalWake is read by no workflow.
const signalWake = "simulation-wake"

type tookKey struct{}

func (t *tape) faked(ctx context.Context, op recording.Operation, r activities.Request) (recording.ActionResult, bool) {
	if t.sim.o.Fakes == nil {
		return recording.ActionResult{}, false
	}
	call := Call{Operation: op, Request: r, Attempt: 1, AtMS: t.sim.after()}
	if activity.IsActivity(ctx) {
		call.Attempt = int(activity.GetInfo(ctx).Attempt)
	}
	a, ok := t.sim.o.Fakes(call)
	if took, asked := ctx.Value(tookKey{}).(*time.Duration); asked && ok {
		*took = time.Duration(a.DurationMS) * time.Millisecond
	}
	return a, ok
}

// timed are the activities, of which those that a fake says take time do.
type timed struct {
	*activities.Activities
	sim *sim
}

// Observe observes, and answers when its time is over.
func (t *timed) Observe(ctx context.Context, in activities.ObserveInput) (activities.Result, error) {
	var took time.Duration
	result, err := t.Activities.Observe(context.WithValue(ctx, tookKey{}, &took), in)
	if err != nil {
		return result, err //nolint:wrapcheck // it is the activity's own
	}
	return result, t.later(ctx, took, result)
}

// Apply applies, and answers when its time is over.
func (t *timed) Apply(ctx context.Context, in activities.ApplyInput) (activities.ApplyResult, error) {
	var took time.Duration
	result, err := t.Activities.Apply(context.WithValue(ctx, tookKey{}, &took), in)
	if err != nil {
		return result, err //nolint:wrapcheck // it is the activity's own
	}
	return result, t.later(ctx, took, result)
}

// later completes the activity when it took its time, or its limit was over. An attempt that fails does so at once.
func (t *timed) later(ctx context.Context, took time.Duration, result any) error {
	if took <= 0 {
		return nil
	}
	info := activity.GetInfo(ctx)
	var failure error
	if limit := info.StartToCloseTimeout; limit > 0 && took > limit {
		// Temporal tries again for as long as the whole may take.
		result, failure = nil, temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_START_TO_CLOSE, nil)
		took = max(limit, info.ScheduleToCloseTimeout)
	}
	t.sim.env.RegisterDelayedCallback(func() {
		if err := t.sim.env.CompleteActivity(info.TaskToken, result, failure); err != nil {
			t.sim.event("error", "%v", err)
		}
		// The test environment wakes only the outermost workflow; a signal that nobody reads wakes this one.
		_ = t.sim.env.SignalWorkflowByID(info.WorkflowExecution.ID, signalWake, nil)
	}, took)
	return activity.ErrResultPending
}
