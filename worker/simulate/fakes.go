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

// FakeCall is one call of an action's operation.
type FakeCall struct {
	Operation recording.Operation
	Request   activities.Request
	Attempt   int // Temporal's attempt of this activity, from 1
	AtMS      int64
}

// FakeFunc returns a fake result in place of the recording's; with false, the recording's is used. It is called for
// observations, plans and effects, from many goroutines. A result's duration passes in simulated time.
type FakeFunc func(FakeCall) (recording.ActionResult, bool)

// resultFor returns the fake result, or the recording's next one.
func (t *replayer) resultFor(ctx context.Context, op recording.Operation, r activities.Request) (recording.ActionResult,
	bool,
) {
	if a, ok := t.fakedResult(ctx, op, r); ok {
		return a, true
	}
	return t.nextResult(op, r)
}

// wakeSignal is a signal that no workflow reads.
const wakeSignal = "simulation-wake"

type durationContextKey struct{}

func (t *replayer) fakedResult(ctx context.Context, op recording.Operation,
	r activities.Request,
) (recording.ActionResult, bool) {
	if t.simulation.options.FakeResults == nil {
		return recording.ActionResult{}, false
	}
	call := FakeCall{Operation: op, Request: r, Attempt: 1, AtMS: t.simulation.elapsedMS()}
	if activity.IsActivity(ctx) {
		call.Attempt = int(activity.GetInfo(ctx).Attempt)
	}
	a, ok := t.simulation.options.FakeResults(call)
	if took, asked := ctx.Value(durationContextKey{}).(*time.Duration); asked && ok {
		*took = time.Duration(a.DurationMS) * time.Millisecond
	}
	return a, ok
}

// delayedActivities are the activities, with the durations of fake results.
type delayedActivities struct {
	*activities.Activities
	simulation *simulation
}

// Observe runs the observation, and completes when its duration is over.
func (t *delayedActivities) Observe(ctx context.Context, in activities.ObserveInput) (activities.Result, error) {
	var took time.Duration
	result, err := t.Activities.Observe(context.WithValue(ctx, durationContextKey{}, &took), in)
	if err != nil {
		return result, err //nolint:wrapcheck // the activity's own error
	}
	return result, t.completeLater(ctx, took, result)
}

// Apply applies, and completes when its duration is over.
func (t *delayedActivities) Apply(ctx context.Context, in activities.ApplyInput) (activities.ApplyResult, error) {
	var took time.Duration
	result, err := t.Activities.Apply(context.WithValue(ctx, durationContextKey{}, &took), in)
	if err != nil {
		return result, err //nolint:wrapcheck // the activity's own error
	}
	return result, t.completeLater(ctx, took, result)
}

// completeLater completes the activity after its duration, or at its timeout. A failed attempt completes at once.
func (t *delayedActivities) completeLater(ctx context.Context, took time.Duration, result any) error {
	if took <= 0 {
		return nil
	}
	info := activity.GetInfo(ctx)
	var failure error
	if limit := info.StartToCloseTimeout; limit > 0 && took > limit {
		// Temporal retries until the schedule-to-close timeout.
		result, failure = nil, temporal.NewTimeoutError(enumspb.TIMEOUT_TYPE_START_TO_CLOSE, nil)
		took = max(limit, info.ScheduleToCloseTimeout)
	}
	t.simulation.testEnvironment.RegisterDelayedCallback(func() {
		if err := t.simulation.testEnvironment.CompleteActivity(info.TaskToken, result, failure); err != nil {
			t.simulation.addEvent("error", "%v", err)
		}
		// The test environment wakes only the outermost workflow; this signal, which nobody reads, wakes the current
		// one.
		_ = t.simulation.testEnvironment.SignalWorkflowByID(info.WorkflowExecution.ID, wakeSignal, nil)
	}, took)
	return activity.ErrResultPending
}
