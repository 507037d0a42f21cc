// Package slack shows incidents in Slack and carries references back: one message for each incident, kept at what is
// so, with its thread.
//
// It refuses to decide who may answer and what an answer does (worker/gateway does), to put anything but a sealed
// reference into a button, and to let text from elsewhere become markup: all of it is literal text of Slack's own
// structured blocks.
package slack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/slack-go/slack"
	"go.temporal.io/sdk/activity"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
)

// Reader reads what is to be shown.
type Reader interface {
	Incident(ctx context.Context, id string) (playbooks.Incident, error)
	Pending(ctx context.Context, incident string) ([]activities.Pending, error)
}

// Mentions finds whom to call for a question: member ids and user group ids.
type Mentions interface {
	Mention(groups, users []string) (members, userGroups []string)
}

// Desk keeps incidents' messages in one channel.
type Desk struct {
	API      *slack.Client
	Channel  string
	Reader   Reader
	Sealer   Sealer
	Mentions Mentions
	// Head is the head of an incident's manifest: kept here, outside of Stanch, it shows later what was cut off.
	Head func(incident string) string
	// BreakGlass: somebody may break the glass, so questions have a button for it.
	BreakGlass bool
	Log        *slog.Logger
	Now        func() time.Time // nil means time.Now
}

var _ activities.Desk = (*Desk)(nil)

func (d *Desk) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// again tells whether an attempt before this one may have written already.
func again(ctx context.Context) bool {
	return activity.IsActivity(ctx) && activity.GetInfo(ctx).Attempt > 1
}

// Look brings an incident's message to what is so now.
func (d *Desk) Look(ctx context.Context, in activities.LookInput) (activities.LookResult, error) {
	incident, err := d.Reader.Incident(ctx, in.Incident)
	if err != nil {
		return activities.LookResult{}, err //nolint:wrapcheck // it names the incident
	}
	pending, err := d.Reader.Pending(ctx, in.Incident)
	if err != nil {
		return activities.LookResult{}, err //nolint:wrapcheck // it names the incident
	}
	slices.SortFunc(pending, func(a, b activities.Pending) int { return a.Asked.Compare(b.Asked) })
	p := &page{Desk: d, in: incident, pending: pending, state: in.State, before: in.Again}
	if p.state.Said == nil {
		p.state.Said = map[string]bool{}
	}
	if err := p.recall(ctx); err != nil {
		return activities.LookResult{}, classify("find what was written before", err)
	}
	showErr := p.show(ctx)
	if showErr != nil && (p.state.TS == "" || asksToWait(showErr)) {
		return activities.LookResult{}, classify("show "+in.Incident, showErr)
	}
	// Who is asked is called even where the message cannot show the question.
	replyErr := p.reply(ctx)
	switch {
	case showErr != nil:
		return activities.LookResult{}, classify("show "+in.Incident, errors.Join(showErr, replyErr))
	case replyErr != nil:
		return activities.LookResult{}, classify("write into the thread of "+in.Incident, replyErr)
	}
	return activities.LookResult{State: p.state, Done: incident.Status == "closed", Next: p.next()}, nil
}

// classify says when to try again, and leaves out what an error of the library may carry of a request.
func classify(what string, err error) error {
	if limited, ok := errors.AsType[*slack.RateLimitedError](err); ok {
		return &activities.LaterError{After: max(limited.RetryAfter, time.Second), Err: fmt.Errorf("%s: Slack asks to wait %s", what, duration.Format(limited.RetryAfter))}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func asksToWait(err error) bool {
	_, is := errors.AsType[*slack.RateLimitedError](err)
	return is
}

// notTaken tells whether Slack refuses a message for what it holds, and what it says of that.
func notTaken(err error) (why string, is bool) {
	refused, ok := errors.AsType[slack.SlackErrorResponse](err)
	if !ok {
		return "", false
	}
	is = strings.HasPrefix(refused.Err, "invalid_blocks") || strings.HasPrefix(refused.Err, "msg_") && strings.HasSuffix(refused.Err, "too_long")
	return text(strings.Join(refused.ResponseMetadata.Messages, "; "), maxText), is
}

// page is one look at one incident.
type page struct {
	*Desk
	in      playbooks.Incident
	pending []activities.Pending
	state   activities.ThreadState
	before  bool // there was a thread before this one
}

// eventType marks Stanch's messages, so that one that was written by a process that died is found again.
const eventType = "stanch_incident"

func (p *page) metadata(key string) slack.MsgOption {
	return slack.MsgOptionMetadata(slack.SlackMetadata{EventType: eventType, EventPayload: map[string]any{"incident": p.in.ID, "key": key}})
}

func (p *page) keyOf(m slack.Message) (string, bool) {
	if m.Metadata.EventType != eventType || m.Metadata.EventPayload["incident"] != p.in.ID {
		return "", false
	}
	key, ok := m.Metadata.EventPayload["key"].(string)
	return key, ok
}

const (
	messageKey = "message"
	// maxPages bounds how far back a message is looked for.
	maxPages = 10
)

// recall finds what an attempt that died has written, or a thread before this one.
func (p *page) recall(ctx context.Context) error {
	if !again(ctx) && (!p.before || p.state.TS != "") {
		return nil
	}
	if p.state.TS == "" {
		if err := p.findMessage(ctx); err != nil || p.state.TS == "" {
			return err
		}
	}
	q := &slack.GetConversationRepliesParameters{ChannelID: p.Channel, Timestamp: p.state.TS, Limit: 200, IncludeAllMetadata: true}
	for range maxPages {
		replies, more, cursor, err := p.API.GetConversationRepliesContext(ctx, q)
		if err != nil {
			if err.Error() == "thread_not_found" {
				return nil
			}
			return err //nolint:wrapcheck // the caller says what was done
		}
		for _, m := range replies {
			if key, ok := p.keyOf(m); ok {
				p.state.Said[key] = true
			}
		}
		if !more {
			return nil
		}
		q.Cursor = cursor
	}
	return nil
}

func (p *page) findMessage(ctx context.Context) error {
	q := &slack.GetConversationHistoryParameters{
		ChannelID: p.Channel, Limit: 200, IncludeAllMetadata: true, Oldest: fmt.Sprintf("%d.000000", p.in.Opened.Add(-time.Minute).Unix()),
	}
	for range maxPages {
		history, err := p.API.GetConversationHistoryContext(ctx, q)
		if err != nil {
			return err //nolint:wrapcheck // the caller says what was done
		}
		for _, m := range history.Messages {
			if key, ok := p.keyOf(m); ok && key == messageKey {
				p.state.Channel, p.state.TS = p.Channel, m.Timestamp
				return nil
			}
		}
		if !history.HasMore {
			return nil
		}
		q.Cursor = history.ResponseMetaData.NextCursor
	}
	return nil
}

// show writes the message, or changes it if it shows something else than is so.
func (p *page) show(ctx context.Context) error {
	blocks := p.blocks()
	shown := hashOf(blocks)
	if p.state.TS != "" && p.state.Shown == shown {
		return nil
	}
	err := p.put(ctx, blocks)
	if why, is := notTaken(err); is {
		if p.Log != nil {
			p.Log.Error("Slack does not take an incident's message: only what is asked is shown", "incident", p.in.ID, "error", err, "why", why, "characters", sizes(blocks))
		}
		err = p.put(ctx, p.least())
	}
	if err != nil {
		return err
	}
	p.state.Shown = shown
	return nil
}

// put changes the message to these blocks, or writes it.
func (p *page) put(ctx context.Context, blocks []slack.Block) error {
	options := []slack.MsgOption{slack.MsgOptionText(p.line(), true), slack.MsgOptionBlocks(blocks...), p.metadata(messageKey), slack.MsgOptionDisableLinkUnfurl(), slack.MsgOptionDisableMediaUnfurl()}
	if p.state.TS != "" {
		_, _, _, err := p.API.UpdateMessageContext(ctx, p.state.Channel, p.state.TS, options...)
		if err == nil {
			return nil
		}
		if err.Error() != "message_not_found" {
			return err //nolint:wrapcheck // the caller says what was done
		}
		// Somebody deleted it: it is written anew.
		p.state = activities.ThreadState{Said: map[string]bool{}}
	}
	channel, ts, err := p.API.PostMessageContext(ctx, p.Channel, options...)
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was done
	}
	p.state.Channel, p.state.TS = channel, ts
	return nil
}

// next is when something changes by the clock alone: an escalation, a deadline.
func (p *page) next() time.Duration {
	var next time.Duration
	for _, q := range p.pending {
		times := []time.Time{q.Deadline}
		if e := q.Approvers.Escalate; e != nil {
			times = append(times, q.Asked.Add(e.After))
		}
		for _, t := range times {
			if left := t.Sub(p.now()); left > 0 && (next == 0 || left < next) {
				next = left
			}
		}
	}
	return next
}

// Say writes a reply into the incident's thread.
func (d *Desk) Say(ctx context.Context, incident activities.Brief, key, text string) error {
	p := &page{Desk: d, in: playbooks.Incident{ID: incident.ID, Opened: incident.Opened}, state: activities.ThreadState{Said: map[string]bool{}}}
	if err := p.findMessage(ctx); err != nil {
		return classify("find the message of "+incident.ID, err)
	}
	if p.state.TS == "" {
		return &activities.LaterError{After: 2 * time.Second, Err: fmt.Errorf("the message of %s is not written yet", incident.ID)}
	}
	if err := p.recall(ctx); err != nil {
		return classify("find what was written before", err)
	}
	if err := p.say(ctx, key, text, section(text)); err != nil {
		return classify("write into the thread of "+incident.ID, err)
	}
	return nil
}
