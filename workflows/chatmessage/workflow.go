// Package chatmessage keeps one incident's chat message up to date: it syncs the message whenever something happens.
// Its activity is retried until it succeeds, so that nothing is lost while the chat is unavailable.
//
// It carries no answers: the gateway sends them to the playbook that asks. It blocks nothing: a chat that is
// unavailable for hours delays no containment and no undo.
package chatmessage

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/workflows"
)

// Input starts the workflow of a chat message, or continues one.
type Input struct {
	IncidentID string                  `json:"incident"` // incident id
	State      activities.MessageState `json:"state"`
	// MayExistAlready means that an earlier workflow may have posted the message.
	MayExistAlready bool `json:"may_exist_already,omitempty"`
}

// Sync timing.
const (
	batchDelay   = time.Second      // changes within this time are shown together
	syncInterval = 10 * time.Minute // regular sync without a signal
	retryDelay   = time.Minute      // after an error that is not retryable
)

// ChatMessage keeps one incident's message up to date until the incident has ended.
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
			return err //nolint:wrapcheck // only when the workflow ends
		}
	}
}

// syncMessage updates the message and returns when to sync again; 0 means never.
func syncMessage(ctx workflow.Context, in Input, state *activities.MessageState) time.Duration {
	var set *activities.Activities
	var out activities.SyncMessageResult
	o := workflow.ActivityOptions{
		TaskQueue: workflows.TaskQueue, StartToCloseTimeout: 45 * time.Second, HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: time.Second, BackoffCoefficient: 2,
			MaximumInterval: 30 * time.Second,
		},
	}
	if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.SyncMessage,
		activities.SyncMessageInput{IncidentID: in.IncidentID, State: *state, MayExistAlready: in.MayExistAlready}).Get(ctx,
		&out); err != nil {
		workflow.GetLogger(ctx).Error("an incident's message cannot be updated", "error", err)
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
