package activities

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// MessageState is what is remembered of an incident's message and its thread.
type MessageState struct {
	Channel     string `json:"channel,omitempty"`
	MessageTS   string `json:"ts,omitempty"`           // names the message in its channel
	ContentHash string `json:"content_hash,omitempty"` // hash of what it shows
	// PostedReplies are the replies that were written, by what they are about.
	PostedReplies map[string]bool `json:"posted_replies,omitempty"`
}

// SyncMessageInput is the input of Look.
type SyncMessageInput struct {
	IncidentID string       `json:"incident"`
	State      MessageState `json:"state"`
	// MayExistAlready: a message of the incident may be there that the state does not know.
	MayExistAlready bool `json:"may_exist_already,omitempty"`
}

// SyncMessageResult is what Look did.
type SyncMessageResult struct {
	State MessageState `json:"state"`
	// Done: the incident is closed and its message shows that, or nothing can be shown of it any more.
	Done bool `json:"done,omitempty"`
	// NextSyncIn is when to look again if nothing happens before; zero is for the workflow to choose.
	NextSyncIn time.Duration `json:"next_sync_in,omitempty"`
}

// Notifier writes into an incident's thread.
type Notifier interface {
	// Post writes a reply; key makes it safe to repeat.
	Post(ctx context.Context, incident IncidentRef, key, text string) error
}

// Messenger is where people read and answer.
type Messenger interface {
	Notifier
	// SyncMessage brings an incident's message to what is so now. It is safe to repeat: what was written by an attempt that
	// died is found and not written twice. An error wrapping a *RetryAfterError says when to try again.
	SyncMessage(ctx context.Context, in SyncMessageInput) (SyncMessageResult, error)
}

// RetryAfterError says that the other side wants to be asked later.
type RetryAfterError struct {
	Delay time.Duration
	Err   error
}

func (e *RetryAfterError) Error() string { return e.Err.Error() }
func (e *RetryAfterError) Unwrap() error { return e.Err }

// RetryAfter makes an error of an activity that Temporal tries again when the other side said.
func RetryAfter(err error) error {
	if later, ok := errors.AsType[*RetryAfterError](err); ok {
		return temporal.NewApplicationErrorWithOptions(err.Error(), errorTypeRetryable, temporal.ApplicationErrorOptions{NextRetryDelay: later.Delay, Cause: err})
	}
	return retryableError(err)
}

// Closure is how an incident's own workflow ended, from what lists workflows: that answers also where the incident itself
// cannot be read.
type Closure struct {
	NotFound bool      // there is none: it was deleted, or its retention is over
	ClosedAt time.Time // zero while it runs
	Abnormal bool      // it did not end by itself: somebody terminated it, or it failed
}

// ClosureReader tells how incidents ended.
type ClosureReader interface {
	Closure(ctx context.Context, incident string) (Closure, error)
}

// How long a message that cannot be kept is tried for.
const (
	retryWindowWhenGone   = 10 * time.Minute // a list lags behind what was just started
	retryWindowWhenClosed = 24 * time.Hour
)

// SyncMessage brings an incident's message to what is so now.
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
			s.Log.Warn("an incident's message is given up: the incident is over, and its message cannot be kept", "incident", in.IncidentID, "error", err)
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

// isIncidentOver tells whether there is nothing left to show of an incident. failed is what kept its message from being shown;
// that may pass, so it is given its time.
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
