// Package slackendpoint receives clicks of Slack members, by Socket Mode or by signed requests, and passes them to
// decisions.
//
// It trusts Slack for who clicked, and nothing else: buttons carry a signature of the authority, and the configuration
// says what the person may do.
package slackendpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/slack-go/slack"

	view "stanch/activities/slack"
	"stanch/sensors/truncate"
	"stanch/worker/decisions"
	"stanch/worker/httpserver"
	"stanch/workflows/incident"
)

// Endpoint receives clicks, by Socket Mode or by signed requests. Slack proves that it sent the request and
// which member clicked; the configuration says who that is and what they may do.
//
// An answer is acknowledged when Temporal has it. If that takes too long, the person sees an error and clicks again.
type Endpoint struct {
	*decisions.Service
	SlackClient *slack.Client
	Channel     string
	// SigningSecret is the signing secret; "" refuses all requests.
	SigningSecret string

	replayCache replayCache
	botTeam     struct {
		sync.Mutex
		id string
	}
}

const (
	// clickTimeout is less than Slack's own timeout of 3 s.
	clickTimeout = 2500 * time.Millisecond
	// maxPayloadBytes is the maximum size of a request.
	maxPayloadBytes = 1 << 20
	// reasonBlockID and reasonInputID identify the only field of Stanch's forms.
	reasonBlockID = "reason"
	reasonInputID = "text"
)

var _ decisions.GroupMembership = (*Endpoint)(nil)

// ServeHTTP handles a signed request.
func (s *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "method not allowed; use POST", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayloadBytes))
	if err != nil {
		http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
		return
	}
	verifier, err := slack.NewSecretsVerifier(r.Header, s.SigningSecret)
	if err == nil {
		_, err = verifier.Write(body)
	}
	if err != nil || verifier.Ensure() != nil {
		// The library's error contains the valid signature, so it is neither shown nor logged.
		if s.AllowRequest("slack: bad signature") {
			s.Log.Warn("refused a request without a valid Slack signature", "from", httpserver.PeerHost(r))
		}
		http.Error(w, "invalid or expired Slack signature", http.StatusUnauthorized)
		return
	}
	sum := sha256.Sum256([]byte(r.Header.Get("X-Slack-Request-Timestamp") + ":" + string(body)))
	id := hex.EncodeToString(sum[:])
	if !s.replayCache.isFirst(id, time.Now()) {
		http.Error(w, "this request was already received", http.StatusConflict)
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		http.Error(w, "invalid form", http.StatusBadRequest)
		return
	}
	var callback slack.InteractionCallback
	if err := json.Unmarshal([]byte(form.Get("payload")), &callback); err != nil {
		http.Error(w, "invalid interaction payload", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), clickTimeout)
	defer cancel()
	answer, err := s.handleInteraction(ctx, callback)
	if err != nil {
		s.replayCache.forget(id)
		http.Error(w, "not recorded; click again", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// slackClick is one action of a member.
type slackClick struct {
	slack.InteractionCallback
	reference   view.ButtonReference
	buttonValue string // value of the button
	reason      string
	isForm      bool
	clickedAt   time.Time
}

// handleInteraction handles one interaction. With an error, it is unknown whether it was recorded, and it is not
// acknowledged.
func (s *Endpoint) handleInteraction(ctx context.Context, callback slack.InteractionCallback) (any, error) {
	c := slackClick{InteractionCallback: callback}
	switch callback.Type {
	case slack.InteractionTypeBlockActions:
		if len(callback.ActionCallback.BlockActions) != 1 {
			return nil, nil
		}
		action := callback.ActionCallback.BlockActions[0]
		c.buttonValue, c.clickedAt = action.Value, parseSlackTimestamp(action.ActionTs)
	case slack.InteractionTypeViewSubmission:
		c.buttonValue, c.isForm = callback.View.PrivateMetadata, true
		if callback.View.State != nil {
			c.reason = callback.View.State.Values[reasonBlockID][reasonInputID].Value
		}
	default:
		return nil, nil
	}
	what, err := s.performClick(ctx, &c)
	if err == nil {
		if what != "" {
			s.replyPrivately(ctx, c, what)
		}
		return nil, nil
	}
	var p *httpserver.Error
	if !errors.As(err, &p) {
		s.Log.Error("process a click", "member", truncate.Name(callback.User.ID), "kind", c.reference.Kind, "incident",
			c.reference.IncidentID, "error", err)
		s.replyPrivately(ctx, c, "This was not recorded: Stanch is busy, or a service that it needs is unavailable. Click "+
			"again in a moment.")
		return nil, err
	}
	if c.isForm {
		return slack.NewErrorsViewSubmissionResponse(map[string]string{reasonBlockID: truncate.Runes(p.Message, 140)}), nil
	}
	if s.AllowRequest("slack: answers to " + c.User.ID) {
		s.replyPrivately(ctx, c, p.Message)
	}
	return nil, nil
}

func parseSlackTimestamp(ts string) time.Time {
	var sec, micro int64
	if _, err := fmt.Sscanf(ts, "%d.%d", &sec, &micro); err != nil {
		return time.Time{}
	}
	return time.Unix(sec, micro*1000)
}

// performClick performs the button's action, if the member may.
func (s *Endpoint) performClick(ctx context.Context, c *slackClick) (string, error) {
	if !s.AllowRequest("slack:" + c.User.ID) {
		return "", httpserver.TooManyRequests("Too many clicks; wait a moment.")
	}
	ref, err := view.Verify(s.Authority, c.buttonValue)
	if err != nil {
		return "", httpserver.Forbidden("%v", err)
	}
	c.reference = ref
	if !c.isForm && c.Channel.ID != s.Channel {
		return "", httpserver.Forbidden("Stanch accepts clicks only in its own channel.")
	}
	if !c.isForm && needsReason(ref.Kind) {
		return "", s.openReasonForm(ctx, c)
	}
	speaker, err := s.principalOf(ctx, c.InteractionCallback)
	if err != nil {
		return "", err
	}
	switch ref.Kind {
	case view.ButtonApprove, view.ButtonDeny, view.ButtonBreakGlass:
		a, err := s.Vote(ctx, speaker, decisions.VoteRequest{
			IncidentID: ref.IncidentID, RequestID: ref.RequestID, PlansHash: ref.PlansHash, Approve: ref.Kind != view.ButtonDeny,
			Reason: c.reason, BreakGlass: ref.Kind == view.ButtonBreakGlass,
		})
		if err != nil {
			return "", err
		}
		return toSentence(a.Message), nil
	case view.ButtonRelease:
		_, err = s.Release(ctx, speaker, decisions.LeaseRequest{LeaseID: ref.LeaseID})
		return "The lease is being released; the message shows when the containment is undone.", err
	case view.ButtonExtend:
		_, err = s.Extend(ctx, speaker, decisions.LeaseRequest{
			LeaseID: ref.LeaseID, Duration: time.Hour,
			CountFrom: c.clickedAt,
		})
		return "The lease now lasts until one hour from now.", err
	case view.ButtonAssign:
		_, err = s.Triage(ctx, speaker, decisions.TriageRequest{IncidentID: ref.IncidentID, Kind: incident.TriageAssigned})
		return "The incident is assigned to you. Stanch will not start anything new in this incident; its leases continue until they end.", err
	case view.ButtonFalsePositive:
		_, err = s.Triage(ctx, speaker, decisions.TriageRequest{
			IncidentID: ref.IncidentID, Kind: incident.TriageFalsePositive,
			Reason: c.reason,
		})
		return "The incident's leases are released, and its open approval requests are denied.", err
	}
	return "", httpserver.Forbidden("This button has no action.")
}

// toSentence returns a clause as a sentence.
func toSentence(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[size:] + "."
}

// replyPrivately sends a message that only the person who clicked sees.
func (s *Endpoint) replyPrivately(ctx context.Context, c slackClick, what string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	go func() {
		defer cancel()
		block := slack.NewRichTextBlock("", slack.NewRichTextSection(slack.NewRichTextSectionTextElement(truncate.Runes(what,
			600), nil)))
		if _, err := s.SlackClient.PostEphemeralContext(ctx, s.Channel, c.User.ID,
			slack.MsgOptionText("Reply from Stanch", true), slack.MsgOptionBlocks(block)); err != nil {
			s.Log.Warn("reply to a Slack member", "member", truncate.Name(c.User.ID), "error", err)
		}
	}()
}
