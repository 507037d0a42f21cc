package activities

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// MessageState is the stored state of an incident's chat message and its thread.
type MessageState struct {
	Channel     string `json:"channel,omitempty"`
	MessageTS   string `json:"ts,omitempty"`           // identifies the message in its channel
	ContentHash string `json:"content_hash,omitempty"` // hash of the displayed content
	// PostedReplies contains the keys of the replies that were posted.
	PostedReplies map[string]bool `json:"posted_replies,omitempty"`
}

// SyncMessageInput is the input of SyncMessage.
type SyncMessageInput struct {
	IncidentID string       `json:"incident"`
	State      MessageState `json:"state"`
	// MayExistAlready means that a message may exist that the state does not know.
	MayExistAlready bool `json:"may_exist_already,omitempty"`
}

// SyncMessageResult is the result of SyncMessage.
type SyncMessageResult struct {
	State MessageState `json:"state"`
	// Done means that no update is needed anymore: the incident is closed and its message shows that, or the incident
	// can no longer be shown.
	Done bool `json:"done,omitempty"`
	// NextSyncIn is when to sync again if nothing happens before; with zero, the workflow chooses.
	NextSyncIn time.Duration `json:"next_sync_in,omitempty"`
}

// Notifier posts into an incident's thread.
type Notifier interface {
	// Post posts a reply. A repeated call with the same key posts nothing.
	Post(ctx context.Context, incident IncidentRef, key, text string) error
}

// Messenger is the chat in which people read and answer.
type Messenger interface {
	Notifier
	// SyncMessage updates an incident's message to its current state. It is idempotent: a reply of an earlier attempt
	// that died is found and not posted twice. An error that wraps a *RetryAfterError says when to retry.
	SyncMessage(ctx context.Context, in SyncMessageInput) (SyncMessageResult, error)
}

// RetryAfterError means that a service asks to be called again later.
type RetryAfterError struct {
	Delay time.Duration
	Err   error
}

// Error implements error.
func (e *RetryAfterError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *RetryAfterError) Unwrap() error { return e.Err }

// RetryAfter returns err as an activity error that Temporal retries after the delay of a *RetryAfterError in its chain.
func RetryAfter(err error) error {
	if later, ok := errors.AsType[*RetryAfterError](err); ok {
		return temporal.NewApplicationErrorWithOptions(err.Error(), errorTypeRetryable,
			temporal.ApplicationErrorOptions{NextRetryDelay: later.Delay, Cause: err})
	}
	return retryableError(err)
}

// Closure is how an incident's workflow ended. It comes from Temporal's list of workflows, which answers even if the
// incident itself cannot be queried.
type Closure struct {
	NotFound bool      // deleted, or its retention is over
	ClosedAt time.Time // zero while it is running
	Abnormal bool      // it was terminated, or it failed
}

// ClosureReader reads how incidents ended.
type ClosureReader interface {
	Closure(ctx context.Context, incident string) (Closure, error)
}

// How long the update of a failing message is retried.
const (
	retryWindowWhenGone   = 10 * time.Minute // Temporal's list lags behind new workflows
	retryWindowWhenClosed = 24 * time.Hour
)

// SyncMessage updates an incident's message to its current state.
func (s *Activities) SyncMessage(ctx context.Context, in SyncMessageInput) (SyncMessageResult, error) {
	defer startHeartbeat(ctx)()
	out, err := SyncMessageResult{State: in.State, NextSyncIn: 10 * time.Minute}, error(nil)
	if s.Messenger != nil {
		out, err = s.Messenger.SyncMessage(ctx, in)
	}
	if err == nil && out.Done {
		return out, nil
	}
	if s.isIncidentOver(ctx, in.IncidentID, err) {
		if err != nil {
			s.Log.Warn("an incident's message is no longer updated: the incident is closed, and the update failed", "incident",
				in.IncidentID, "error", err)
			out = SyncMessageResult{State: in.State}
		}
		out.Done = true
		return out, nil
	}
	if err != nil {
		return SyncMessageResult{}, RetryAfter(err)
	}
	return out, nil
}

// isIncidentOver reports whether nothing is left to show of an incident. If failed, the error of the last update, may
// be temporary, updates are retried for the retry window first.
func (s *Activities) isIncidentOver(ctx context.Context, incident string, failed error) bool {
	if s.ClosureReader == nil {
		return false
	}
	e, err := s.ClosureReader.Closure(ctx, incident)
	switch {
	case err != nil:
		return false
	case e.NotFound && failed != nil:
		return activity.IsActivity(ctx) && s.now().Sub(activity.GetInfo(ctx).ScheduledTime) > retryWindowWhenGone
	case e.NotFound:
		return true
	case e.ClosedAt.IsZero():
		return false
	case failed == nil && (e.Abnormal || s.Messenger == nil):
		return true
	}
	return s.now().Sub(e.ClosedAt) > retryWindowWhenClosed
}
