// Package thread keeps one incident's message in front of people: it looks whenever something happened and brings the
// message to what is so. Its one activity is tried until it succeeds, so that nothing is lost while the chat is away.
//
// It refuses to carry answers: those go from the gateway to the playbook that asks. It holds nothing up: a chat that
// is away for hours delays no containment and no undo.
package thread

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/workflows"
)

// Input starts a thread, or goes on with one.
type Input struct {
	Incident string                 `json:"incident"` // its id
	State    activities.MessageState `json:"state"`
	// Again: there was a thread before, whose message is to be found.
	Again bool `json:"again,omitempty"`
}

// Timing of looking.
const (
	settle  = time.Second      // what happens at once is shown at once
	idle    = 10 * time.Minute // a look that nothing asked for
	restart = time.Minute      // after an error that trying again does not mend
)

// Thread keeps one incident's message until the incident has ended.
func Thread(ctx workflow.Context, in Input) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	looked := workflow.GetSignalChannel(ctx, workflows.SignalLook)
	state := in.State
	for {
		for looked.ReceiveAsync(nil) {
			continue
		}
		next := look(ctx, in, &state)
		if next == 0 {
			return nil
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			return workflow.NewContinueAsNewError(ctx, Thread, Input{Incident: in.Incident, State: state})
		}
		timerCtx, cancel := workflow.WithCancel(ctx)
		workflow.NewSelector(ctx).
			AddReceive(looked, func(workflow.ReceiveChannel, bool) {}).
			AddFuture(workflow.NewTimer(timerCtx, next), func(workflow.Future) {}).
			Select(ctx)
		cancel()
		if err := workflow.Sleep(ctx, settle); err != nil {
			return err //nolint:wrapcheck // only the end of the workflow
		}
	}
}

// look brings the message up to date and says when to look again; 0 is never.
func look(ctx workflow.Context, in Input, state *activities.MessageState) time.Duration {
	var set *activities.Activities
	var out activities.SyncMessageResult
	o := workflow.ActivityOptions{
		TaskQueue: workflows.TaskQueue, StartToCloseTimeout: 45 * time.Second, HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: 30 * time.Second},
	}
	if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.Look, activities.SyncMessageInput{IncidentID: in.Incident, State: *state, MayExistAlready: in.Again}).Get(ctx, &out); err != nil {
		workflow.GetLogger(ctx).Error("an incident's message cannot be kept", "error", err)
		return restart
	}
	*state = out.State
	switch {
	case out.Done:
		return 0
	case out.NextSyncIn > 0:
		return min(out.NextSyncIn, idle)
	}
	return idle
}
