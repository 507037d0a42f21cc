// Package slack shows incidents in Slack and forwards button presses: each incident is one message, updated in place,
// with its thread.
//
// It never decides who may answer or what an answer does (worker/slackendpoint and worker/decisions do). Buttons
// contain only signed references, and text from elsewhere never becomes markup: it is always literal text in Slack's
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

// IncidentReader returns the incident and the approval requests to show.
type IncidentReader interface {
	Incident(ctx context.Context, id string) (playbooks.Incident, error)
	PendingApprovals(ctx context.Context, incident string) ([]activities.ApprovalRequest, error)
}

// MentionResolver returns the member ids and user group ids to mention for an approval request.
type MentionResolver interface {
	ResolveMentions(groups, users []string) (members, userGroups []string)
}

// Messenger updates the messages of incidents in one channel. It is safe for concurrent use.
type Messenger struct {
	SlackClient     *slack.Client
	Channel         string
	Reader          IncidentReader
	Signer          Signer
	MentionResolver MentionResolver
	// ManifestHead returns the last line's hash of an incident's manifest. Stored in Slack, it reveals later whether
	// lines were removed.
	ManifestHead func(incident string) string
	// BreakGlassEnabled adds a break-glass button to approval requests.
	BreakGlassEnabled bool
	Log               *slog.Logger
	Now               func() time.Time // nil means time.Now
}

var _ activities.Messenger = (*Messenger)(nil)

func (d *Messenger) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// isRetry reports whether an earlier attempt may have written already.
func isRetry(ctx context.Context) bool {
	return activity.IsActivity(ctx) && activity.GetInfo(ctx).Attempt > 1
}

// SyncMessage updates an incident's message to its current state.
func (d *Messenger) SyncMessage(ctx context.Context, in activities.SyncMessageInput) (activities.SyncMessageResult,
	error,
) {
	incident, err := d.Reader.Incident(ctx, in.IncidentID)
	if err != nil {
		return activities.SyncMessageResult{}, err //nolint:wrapcheck // the error names the incident
	}
	pending, err := d.Reader.PendingApprovals(ctx, in.IncidentID)
	if err != nil {
		return activities.SyncMessageResult{}, err //nolint:wrapcheck // the error names the incident
	}
	slices.SortFunc(pending, func(a, b activities.ApprovalRequest) int { return a.AskedAt.Compare(b.AskedAt) })
	p := &messageView{
		Messenger: d, incident: incident, approvalRequests: pending, state: in.State,
		hadEarlierMessage: in.MayExistAlready,
	}
	if p.state.PostedReplies == nil {
		p.state.PostedReplies = map[string]bool{}
	}
	if err := p.restoreState(ctx); err != nil {
		return activities.SyncMessageResult{}, classifyError("find the existing message", err)
	}
	showErr := p.syncMessage(ctx)
	if showErr != nil && (p.state.MessageTS == "" || isRateLimited(showErr)) {
		return activities.SyncMessageResult{}, classifyError("show "+in.IncidentID, showErr)
	}
	// Approvers are mentioned even if the message cannot show the request.
	replyErr := p.postReplies(ctx)
	switch {
	case showErr != nil:
		return activities.SyncMessageResult{}, classifyError("show "+in.IncidentID, errors.Join(showErr, replyErr))
	case replyErr != nil:
		return activities.SyncMessageResult{}, classifyError("post to the thread of "+in.IncidentID, replyErr)
	}
	return activities.SyncMessageResult{State: p.state, Done: incident.Status == "closed", NextSyncIn: p.nextChangeIn()},
		nil
}

// classifyError returns when to retry after an error.
func classifyError(what string, err error) error {
	if limited, ok := errors.AsType[*slack.RateLimitedError](err); ok {
		return &activities.RetryAfterError{
			Delay: max(limited.RetryAfter, time.Second),
			Err:   fmt.Errorf("%s: Slack asked Stanch to wait %s", what, duration.Format(limited.RetryAfter)),
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func isRateLimited(err error) bool {
	_, is := errors.AsType[*slack.RateLimitedError](err)
	return is
}

// isRejected reports whether Slack rejects a message because of its content, and returns Slack's reason.
func isRejected(err error) (why string, is bool) {
	refused, ok := errors.AsType[slack.SlackErrorResponse](err)
	if !ok {
		return "", false
	}
	is = strings.HasPrefix(refused.Err, "invalid_blocks") || strings.HasPrefix(refused.Err, "msg_") &&
		strings.HasSuffix(refused.Err, "too_long")
	return sanitizeText(strings.Join(refused.ResponseMetadata.Messages, "; "), maxTextWeight), is
}

// messageView is one rendering of one incident.
type messageView struct {
	*Messenger
	incident          playbooks.Incident
	approvalRequests  []activities.ApprovalRequest
	state             activities.MessageState
	hadEarlierMessage bool // an earlier message may exist
}

// metadataEventType marks Stanch's messages, so that a message of a process that died is found again.
const metadataEventType = "stanch_incident"

func (p *messageView) metadataOption(key string) slack.MsgOption {
	return slack.MsgOptionMetadata(slack.SlackMetadata{
		EventType:    metadataEventType,
		EventPayload: map[string]any{"incident": p.incident.ID, "key": key},
	})
}

func (p *messageView) metadataKey(m slack.Message) (string, bool) {
	if m.Metadata.EventType != metadataEventType || m.Metadata.EventPayload["incident"] != p.incident.ID {
		return "", false
	}
	key, ok := m.Metadata.EventPayload["key"].(string)
	return key, ok
}

const (
	incidentMessageKey = "message"
	// maxHistoryPages limits how far back a message is searched.
	maxHistoryPages = 10
)

// restoreState finds the message and the replies of an earlier attempt or an earlier workflow.
func (p *messageView) restoreState(ctx context.Context) error {
	if !isRetry(ctx) && (!p.hadEarlierMessage || p.state.MessageTS != "") {
		return nil
	}
	if p.state.MessageTS == "" {
		if err := p.findMessage(ctx); err != nil || p.state.MessageTS == "" {
			return err
		}
	}
	q := &slack.GetConversationRepliesParameters{
		ChannelID: p.Channel, Timestamp: p.state.MessageTS, Limit: 200,
		IncludeAllMetadata: true,
	}
	for range maxHistoryPages {
		replies, more, cursor, err := p.SlackClient.GetConversationRepliesContext(ctx, q)
		if err != nil {
			if err.Error() == "thread_not_found" {
				return nil
			}
			return err //nolint:wrapcheck // the caller adds context
		}
		for _, m := range replies {
			if key, ok := p.metadataKey(m); ok {
				p.state.PostedReplies[key] = true
			}
		}
		if !more {
			return nil
		}
		q.Cursor = cursor
	}
	return nil
}

func (p *messageView) findMessage(ctx context.Context) error {
	q := &slack.GetConversationHistoryParameters{
		ChannelID: p.Channel, Limit: 200, IncludeAllMetadata: true, Oldest: fmt.Sprintf("%d.000000",
			p.incident.Opened.Add(-time.Minute).Unix()),
	}
	for range maxHistoryPages {
		history, err := p.SlackClient.GetConversationHistoryContext(ctx, q)
		if err != nil {
			return err //nolint:wrapcheck // the caller adds context
		}
		for _, m := range history.Messages {
			if key, ok := p.metadataKey(m); ok && key == incidentMessageKey {
				p.state.Channel, p.state.MessageTS = p.Channel, m.Timestamp
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

// syncMessage posts the message, or updates it if its content has changed.
func (p *messageView) syncMessage(ctx context.Context) error {
	blocks := p.fullMessage()
	shown := hashBlocks(blocks)
	if p.state.MessageTS != "" && p.state.ContentHash == shown {
		return nil
	}
	err := p.postOrUpdateMessage(ctx, blocks)
	if why, is := isRejected(err); is {
		if p.Log != nil {
			p.Log.Error("Slack rejected an incident's message; only its approval requests are shown", "incident", p.incident.ID,
				"error", err, "reason", why, "characters", totalJSONSize(blocks))
		}
		err = p.postOrUpdateMessage(ctx, p.minimalMessage())
	}
	if err != nil {
		return err
	}
	p.state.ContentHash = shown
	return nil
}

// postOrUpdateMessage updates the message to these blocks, or posts it.
func (p *messageView) postOrUpdateMessage(ctx context.Context, blocks []slack.Block) error {
	options := []slack.MsgOption{
		slack.MsgOptionText(p.fallbackText(), true), slack.MsgOptionBlocks(blocks...),
		p.metadataOption(incidentMessageKey), slack.MsgOptionDisableLinkUnfurl(), slack.MsgOptionDisableMediaUnfurl(),
	}
	if p.state.MessageTS != "" {
		_, _, _, err := p.SlackClient.UpdateMessageContext(ctx, p.state.Channel, p.state.MessageTS, options...)
		if err == nil {
			return nil
		}
		if err.Error() != "message_not_found" {
			return err //nolint:wrapcheck // the caller adds context
		}
		// Someone deleted the message: it is posted again.
		p.state = activities.MessageState{PostedReplies: map[string]bool{}}
	}
	channel, ts, err := p.SlackClient.PostMessageContext(ctx, p.Channel, options...)
	if err != nil {
		return err //nolint:wrapcheck // the caller adds context
	}
	p.state.Channel, p.state.MessageTS = channel, ts
	return nil
}

// nextChangeIn returns when something changes by time alone: an escalation or a deadline.
func (p *messageView) nextChangeIn() time.Duration {
	var next time.Duration
	for _, q := range p.approvalRequests {
		times := []time.Time{q.Deadline}
		if e := q.Approvers.Escalate; e != nil {
			times = append(times, q.AskedAt.Add(e.After))
		}
		for _, t := range times {
			if left := t.Sub(p.now()); left > 0 && (next == 0 || left < next) {
				next = left
			}
		}
	}
	return next
}

// Post posts a reply into the incident's thread.
func (d *Messenger) Post(ctx context.Context, incident activities.IncidentRef, key, text string) error {
	p := &messageView{
		Messenger: d, incident: playbooks.Incident{ID: incident.ID, Opened: incident.Opened},
		state: activities.MessageState{PostedReplies: map[string]bool{}},
	}
	if err := p.findMessage(ctx); err != nil {
		return classifyError("find the message of "+incident.ID, err)
	}
	if p.state.MessageTS == "" {
		return &activities.RetryAfterError{Delay: 2 * time.Second, Err: fmt.Errorf("the message of %s is not posted yet",
			incident.ID)}
	}
	if err := p.restoreState(ctx); err != nil {
		return classifyError("find the existing message", err)
	}
	if err := p.postReplyOnce(ctx, key, text, textSection(text)); err != nil {
		return classifyError("post to the thread of "+incident.ID, err)
	}
	return nil
}
