package activities

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
)

// ThreadState is what is remembered of an incident's message and its thread.
type ThreadState struct {
	Channel string `json:"channel,omitempty"`
	TS      string `json:"ts,omitempty"`    // names the message in its channel
	Shown   string `json:"shown,omitempty"` // hash of what it shows
	// Said are the replies that were written, by what they are about.
	Said map[string]bool `json:"said,omitempty"`
}

// LookInput is the input of Look.
type LookInput struct {
	Incident string      `json:"incident"`
	State    ThreadState `json:"state"`
	// Again: a message of the incident may be there that the state does not know.
	Again bool `json:"again,omitempty"`
}

// LookResult is what Look did.
type LookResult struct {
	State ThreadState `json:"state"`
	// Done: the incident is closed and its message shows that, or nothing can be shown of it any more.
	Done bool `json:"done,omitempty"`
	// Next is when to look again if nothing happens before; zero is for the workflow to choose.
	Next time.Duration `json:"next,omitempty"`
}

// Teller writes into an incident's thread.
type Teller interface {
	// Say writes a reply; key makes it safe to repeat.
	Say(ctx context.Context, incident Brief, key, text string) error
}

// Desk is where people read and answer.
type Desk interface {
	Teller
	// Look brings an incident's message to what is so now. It is safe to repeat: what was written by an attempt that
	// died is found and not written twice. An error wrapping a *LaterError says when to try again.
	Look(ctx context.Context, in LookInput) (LookResult, error)
}

// LaterError says that the other side wants to be asked later.
type LaterError struct {
	After time.Duration
	Err   error
}

func (e *LaterError) Error() string { return e.Err.Error() }
func (e *LaterError) Unwrap() error { return e.Err }

// Later makes an error of an activity that Temporal tries again when the other side said.
func Later(err error) error {
	if later, ok := errors.AsType[*LaterError](err); ok {
		return temporal.NewApplicationErrorWithOptions(err.Error(), errorTypeRetryable, temporal.ApplicationErrorOptions{NextRetryDelay: later.After, Cause: err})
	}
	return failed(err)
}

// Ending is how an incident's own workflow ended, from what lists workflows: that answers also where the incident itself
// cannot be read.
type Ending struct {
	Gone   bool      // there is none: it was deleted, or its retention is over
	At     time.Time // zero while it runs
	Broken bool      // it did not end by itself: somebody terminated it, or it failed
}

// Endings tells how incidents ended.
type Endings interface {
	Ending(ctx context.Context, incident string) (Ending, error)
}

// How long a message that cannot be kept is tried for.
const (
	keptWhenGone   = 10 * time.Minute // a list lags behind what was just started
	keptWhenClosed = 24 * time.Hour
)

// Look brings an incident's message to what is so now.
func (s *Set) Look(ctx context.Context, in LookInput) (LookResult, error) {
	defer beat(ctx)()
	out, err := LookResult{State: in.State, Next: 10 * time.Minute}, error(nil)
	if s.Desk != nil {
		out, err = s.Desk.Look(ctx, in)
	}
	if err == nil && out.Done {
		return out, nil
	}
	if s.over(ctx, in.Incident, err) {
		if err != nil {
			s.Log.Warn("an incident's message is given up: the incident is over, and its message cannot be kept", "incident", in.Incident, "error", err)
			out = LookResult{State: in.State}
		}
		out.Done = true
		return out, nil
	}
	if err != nil {
		return LookResult{}, Later(err)
	}
	return out, nil
}

// over tells whether there is nothing left to show of an incident. failed is what kept its message from being shown;
// that may pass, so it is given its time.
func (s *Set) over(ctx context.Context, incident string, failed error) bool {
	if s.Endings == nil {
		return false
	}
	e, err := s.Endings.Ending(ctx, incident)
	switch {
	case err != nil:
		return false
	case e.Gone && failed != nil:
		return activity.IsActivity(ctx) && s.now().Sub(activity.GetInfo(ctx).ScheduledTime) > keptWhenGone
	case e.Gone:
		return true
	case e.At.IsZero():
		return false
	case failed == nil && (e.Broken || s.Desk == nil):
		return true
	}
	return s.now().Sub(e.At) > keptWhenClosed
}
