// Package thread keeps one incident's message in front of people: it looks whenever something happened and brings the
// message to what is so. Its one activity is tried until it succeeds, so that nothing is lost while the chat is away.
//
// It refuses to carry answers: those go from the gateway to the playbook that asks. It holds nothing up: a chat that
// is away for hours delays no containment and no undo.
package chatmessage

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/workflows"
)

// Input starts a thread, or goes on with one.
type Input struct {
	IncidentID string                  `json:"incident"` // its id
	State      activities.MessageState `json:"state"`
	// MayExistAlready: there was a thread before, whose message is to be found.
	MayExistAlready bool `json:"may_exist_already,omitempty"`
}

// Timing of looking.
const (
	batchDelay   = time.Second      // what happens at once is shown at once
	syncInterval = 10 * time.Minute // a look that nothing asked for
	retryDelay   = time.Minute      // after an error that trying again does not mend
)

// ChatMessage keeps one incident's message until the incident has ended.
func ChatMessage(ctx workflow.Context, in Input) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	looked := workflow.GetSignalChannel(ctx, workflows.SignalSyncMessage)
	state := in.State
	for {
		for looked.ReceiveAsync(nil) {
			continue
		}
		next := syncMessage(ctx, in, &state)
		if next == 0 {
			return nil
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			return workflow.NewContinueAsNewError(ctx, ChatMessage, Input{IncidentID: in.IncidentID, State: state})
		}
		timerCtx, cancel := workflow.WithCancel(ctx)
		workflow.NewSelector(ctx).
			AddReceive(looked, func(workflow.ReceiveChannel, bool) {}).
			AddFuture(workflow.NewTimer(timerCtx, next), func(workflow.Future) {}).
			Select(ctx)
		cancel()
		if err := workflow.Sleep(ctx, batchDelay); err != nil {
			return err //nolint:wrapcheck // only the end of the workflow
		}
	}
}

// syncMessage brings the message up to date and says when to look again; 0 is never.
func syncMessage(ctx workflow.Context, in Input, state *activities.MessageState) time.Duration {
	var set *activities.Activities
	var out activities.SyncMessageResult
	o := workflow.ActivityOptions{
		TaskQueue: workflows.TaskQueue, StartToCloseTimeout: 45 * time.Second, HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: 30 * time.Second},
	}
	if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.SyncMessage, activities.SyncMessageInput{IncidentID: in.IncidentID, State: *state, MayExistAlready: in.MayExistAlready}).Get(ctx, &out); err != nil {
		workflow.GetLogger(ctx).Error("an incident's message cannot be kept", "error", err)
		return retryDelay
	}
	*state = out.State
	switch {
	case out.Done:
		return 0
	case out.NextSyncIn > 0:
		return min(out.NextSyncIn, syncInterval)
	}
	return syncInterval
}
