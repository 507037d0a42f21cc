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
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/slack-go/slack"
	"github.com/slack-go/slack/socketmode"

	view "stanch/activities/slack"
	"stanch/sensors/truncate"
	"stanch/worker/config"
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

// maxRedialDelay is the maximum delay before reconnecting to Slack.
const maxRedialDelay = 15 * time.Second

// Run receives clicks by Socket Mode until ctx ends. It reconnects automatically.
func (s *Endpoint) Run(ctx context.Context) {
	for ctx.Err() == nil {
		s.runConnection(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(maxRedialDelay / 3):
		}
	}
}

// runConnection receives clicks until a new connection is better: during an outage, the library waits for minutes.
func (s *Endpoint) runConnection(ctx context.Context) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	client := socketmode.New(s.SlackClient, socketmode.OptionLog(slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)))
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-client.Events:
				switch data := e.Data.(type) {
				case slack.InteractionCallback:
					go s.handleSocketRequest(ctx, client, e.Request, data)
				case *slack.ConnectionErrorEvent:
					s.Log.Warn("could not connect to Slack; retrying", "error", data.ErrorObj, "attempt", data.Attempt)
					if data.Backoff > maxRedialDelay {
						end()
					}
				}
			}
		}
	}()
	if err := client.RunContext(ctx); err != nil && ctx.Err() == nil {
		s.Log.Warn("the connection to Slack was closed; reconnecting", "error", err)
	}
}

func (s *Endpoint) handleSocketRequest(ctx context.Context, client *socketmode.Client,
	request *socketmode.Request, callback slack.InteractionCallback,
) {
	if request == nil || !s.replayCache.isFirst(request.EnvelopeID, time.Now()) {
		return
	}
	inTime, cancel := context.WithTimeout(ctx, clickTimeout)
	defer cancel()
	answer, err := s.handleInteraction(inTime, callback)
	if err != nil {
		s.replayCache.forget(request.EnvelopeID) // not acknowledged: Slack shows the person an error
		return
	}
	if err := client.AckCtx(ctx, request.EnvelopeID, answer); err != nil {
		s.Log.Warn("acknowledge a click", "error", err)
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
		_, err = s.Extend(ctx, speaker, decisions.LeaseRequest{LeaseID: ref.LeaseID, Duration: time.Hour, CountFrom: c.clickedAt})
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

// reasonForms are the forms of buttons that ask for a reason first.
var reasonForms = map[view.ButtonKind]struct{ title, submit, label, hint string }{
	view.ButtonDeny: {"Deny", "Deny", "Why not?", "shown to the requester and kept in the audit log"},
	view.ButtonBreakGlass: {
		"Use break-glass", "Approve alone", "Why can't this wait for the other approvers?",
		"you approve alone in place of the full quorum; everyone can see this",
	},
	view.ButtonFalsePositive: {
		"False positive", "Release everything", "What caused the detection?",
		"the incident's leases are released, and its open approval requests are denied",
	},
}

func needsReason(k view.ButtonKind) bool { _, ok := reasonForms[k]; return ok }

// openReasonForm opens a form that asks for a reason. It carries only the button's value.
func (s *Endpoint) openReasonForm(ctx context.Context, c *slackClick) error {
	f := reasonForms[c.reference.Kind]
	plain := func(text string) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, text, false, false)
	}
	input := slack.NewPlainTextInputBlockElement(plain(f.hint), reasonInputID)
	input.Multiline, input.MaxLength = true, decisions.MaxReasonRunes
	block := slack.NewInputBlock(reasonBlockID, plain(f.label), nil, input)
	_, err := s.SlackClient.OpenViewContext(ctx, c.TriggerID, slack.ModalViewRequest{
		Type: slack.VTModal, Title: plain(f.title), Submit: plain(f.submit), Close: plain("Go back"),
		PrivateMetadata: c.buttonValue, CallbackID: "stanch", Blocks: slack.Blocks{BlockSet: []slack.Block{block}},
	})
	if err != nil {
		return fmt.Errorf("open the form: %w", err)
	}
	return nil
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

// principalOf returns who a member is. Members of other workspaces, guests, bots and deactivated members are unknown.
func (s *Endpoint) principalOf(ctx context.Context, c slack.InteractionCallback) (decisions.Principal, error) {
	cfg, err := s.Roster.Current()
	if err != nil {
		return decisions.Principal{}, httpserver.Forbidden("%v", err)
	}
	person, known := cfg.PersonBySlack(c.User.ID)
	if !known {
		return decisions.Principal{}, httpserver.Forbidden(
			"You are not in Stanch's configuration. Ask for `slack: %s` to be added under `people`.", truncate.Name(c.User.ID))
	}
	team, err := s.botTeamID(ctx)
	if err != nil {
		return decisions.Principal{}, err
	}
	if c.Team.ID != team {
		return decisions.Principal{}, httpserver.Forbidden("Stanch belongs to another workspace.")
	}
	user, err := s.SlackClient.GetUserInfoContext(ctx, c.User.ID)
	if err != nil {
		return decisions.Principal{}, fmt.Errorf("get Slack member %s: %w", truncate.Name(c.User.ID), err)
	}
	for why, is := range map[string]bool{
		"deactivated": user.Deleted, "a bot": user.IsBot, "a guest": user.IsRestricted || user.IsUltraRestricted,
		"from another organization": user.IsStranger || user.TeamID != "" && user.TeamID != team,
	} {
		if is || user.ID != c.User.ID {
			return decisions.Principal{}, httpserver.Forbidden("Your account is %s and is not allowed to vote.", why)
		}
	}
	return decisions.Principal{Person: person, AuthenticatedBy: "Slack member " + c.User.ID, RateLimitKey: "slack:" + c.User.ID}, nil
}

// botTeamID returns the workspace of the bot's token.
func (s *Endpoint) botTeamID(ctx context.Context) (string, error) {
	s.botTeam.Lock()
	defer s.botTeam.Unlock()
	if s.botTeam.id == "" {
		me, err := s.SlackClient.AuthTestContext(ctx)
		if err != nil {
			return "", fmt.Errorf("get the workspace of the Slack bot: %w", err)
		}
		s.botTeam.id = me.TeamID
	}
	return s.botTeam.id, nil
}

// GroupsOfPerson asks Slack which of the user groups a person is in now.
func (s *Endpoint) GroupsOfPerson(ctx context.Context, p config.Person, wanted []config.Group) ([]string,
	error,
) {
	if p.SlackMemberID == "" {
		return nil, nil
	}
	var in []string
	for _, g := range wanted {
		members, err := s.SlackClient.GetUserGroupMembersContext(ctx, g.SlackUserGroup)
		if err != nil {
			return nil, fmt.Errorf("get the members of the Slack user group of %s: %w", g.Name, err)
		}
		if slices.Contains(members, p.SlackMemberID) {
			in = append(in, g.Name)
		}
	}
	return in, nil
}

// ApproverMentions returns the Slack mentions for an approval request.
type ApproverMentions struct{ Roster *config.Roster }

// ResolveMentions returns the Slack members and user groups of groups and people.
func (c ApproverMentions) ResolveMentions(groups, users []string) (members, userGroups []string) {
	cfg, err := c.Roster.Current()
	if err != nil {
		return nil, nil
	}
	for _, g := range cfg.Groups {
		if g.SlackUserGroup != "" && slices.Contains(groups, g.Name) {
			userGroups = append(userGroups, g.SlackUserGroup)
		}
	}
	for _, p := range cfg.People {
		if p.SlackMemberID != "" && (slices.Contains(users, p.Name) ||
			slices.ContainsFunc(p.Groups, func(g string) bool { return slices.Contains(groups, g) })) {
			members = append(members, p.SlackMemberID)
		}
	}
	return members, userGroups
}
