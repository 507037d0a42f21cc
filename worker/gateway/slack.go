package gateway

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
	"stanch/worker/config"
	"stanch/workflows/incident"
)

// Slack takes clicks, by Socket Mode or by signed requests. What Slack proves is that Slack sent it and which member
// clicked; who that is and what they may is the configuration's to say.
//
// An answer is acknowledged once Temporal has it. If that does not happen in time the person sees that it failed, and
// clicks again.
type Slack struct {
	*Decider
	API     *slack.Client
	Channel string
	// Secret is the signing secret; "" takes no requests.
	Secret string

	seen seen
	team struct {
		sync.Mutex
		id string
	}
}

const (
	// clickLimit is within what Slack waits for an answer, 3 s.
	clickLimit = 2500 * time.Millisecond
	// maxPayload bounds a request.
	maxPayload = 1 << 20
	// reasonBlock and reasonInput name the one field of Stanch's forms.
	reasonBlock = "reason"
	reasonInput = "text"
)

var _ Membership = (*Slack)(nil)

// ServeHTTP takes a signed request.
func (s *Slack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "POST only", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
	if err != nil {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		return
	}
	verifier, err := slack.NewSecretsVerifier(r.Header, s.Secret)
	if err == nil {
		_, err = verifier.Write(body)
	}
	if err != nil || verifier.Ensure() != nil {
		// The library's error holds the right signature: it is neither shown nor logged.
		if s.limits.allow("slack: bad signature") {
			s.Log.Warn("a request is not signed as Slack signs", "from", hostOf(r.RemoteAddr))
		}
		http.Error(w, "not signed by Slack, or too old", http.StatusUnauthorized)
		return
	}
	sum := sha256.Sum256([]byte(r.Header.Get("X-Slack-Request-Timestamp") + ":" + string(body)))
	id := hex.EncodeToString(sum[:])
	if !s.seen.first(id, time.Now()) {
		http.Error(w, "this request was taken already", http.StatusConflict)
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		http.Error(w, "not a form", http.StatusBadRequest)
		return
	}
	var callback slack.InteractionCallback
	if err := json.Unmarshal([]byte(form.Get("payload")), &callback); err != nil {
		http.Error(w, "not an interaction", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), clickLimit)
	defer cancel()
	answer, err := s.take(ctx, callback)
	if err != nil {
		s.seen.forget(id)
		http.Error(w, "not recorded; click again", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// redial is how long at most it takes to dial Slack again once it is back.
const redial = 15 * time.Second

// Run takes clicks by Socket Mode until ctx ends. It dials again by itself.
func (s *Slack) Run(ctx context.Context) {
	for ctx.Err() == nil {
		s.connection(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(redial / 3):
		}
	}
}

// connection takes clicks until it is better to begin anew: the library waits for minutes where an outage lasts.
func (s *Slack) connection(ctx context.Context) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	client := socketmode.New(s.API, socketmode.OptionLog(slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug)))
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-client.Events:
				switch data := e.Data.(type) {
				case slack.InteractionCallback:
					go s.socket(ctx, client, e.Request, data)
				case *slack.ConnectionErrorEvent:
					s.Log.Warn("Slack cannot be dialled; it is tried again", "error", data.ErrorObj, "attempt", data.Attempt)
					if data.Backoff > redial {
						end()
					}
				}
			}
		}
	}()
	if err := client.RunContext(ctx); err != nil && ctx.Err() == nil {
		s.Log.Warn("the connection to Slack ended; it is dialled again", "error", err)
	}
}

func (s *Slack) socket(ctx context.Context, client *socketmode.Client, request *socketmode.Request, callback slack.InteractionCallback) {
	if request == nil || !s.seen.first(request.EnvelopeID, time.Now()) {
		return
	}
	inTime, cancel := context.WithTimeout(ctx, clickLimit)
	defer cancel()
	answer, err := s.take(inTime, callback)
	if err != nil {
		s.seen.forget(request.EnvelopeID) // not acknowledged: Slack says so to the person
		return
	}
	if err := client.AckCtx(ctx, request.EnvelopeID, answer); err != nil {
		s.Log.Warn("acknowledge a click", "error", err)
	}
}

// click is one thing that a member did.
type click struct {
	slack.InteractionCallback
	ref    view.ButtonReference
	value  string // of the button
	reason string
	form   bool
	at     time.Time
}

// take answers one interaction. An error means that it is not known whether it was recorded: it is not acknowledged.
func (s *Slack) take(ctx context.Context, callback slack.InteractionCallback) (any, error) {
	c := click{InteractionCallback: callback}
	switch callback.Type {
	case slack.InteractionTypeBlockActions:
		if len(callback.ActionCallback.BlockActions) != 1 {
			return nil, nil
		}
		action := callback.ActionCallback.BlockActions[0]
		c.value, c.at = action.Value, tsTime(action.ActionTs)
	case slack.InteractionTypeViewSubmission:
		c.value, c.form = callback.View.PrivateMetadata, true
		if callback.View.State != nil {
			c.reason = callback.View.State.Values[reasonBlock][reasonInput].Value
		}
	default:
		return nil, nil
	}
	what, err := s.do(ctx, &c)
	if err == nil {
		if what != "" {
			s.tell(ctx, c, what)
		}
		return nil, nil
	}
	var p *problem
	if !errors.As(err, &p) {
		s.Log.Error("a click could not be taken", "member", clip(callback.User.ID), "kind", c.ref.Kind, "incident", c.ref.IncidentID, "error", err)
		s.tell(ctx, c, "This was not recorded: Stanch is busy or something that it needs is away. Click again in a moment.")
		return nil, err
	}
	if c.form {
		return slack.NewErrorsViewSubmissionResponse(map[string]string{reasonBlock: cut(p.text, 140)}), nil
	}
	if s.limits.allow("slack: answers to " + c.User.ID) {
		s.tell(ctx, c, p.text)
	}
	return nil, nil
}

func tsTime(ts string) time.Time {
	var sec, micro int64
	if _, err := fmt.Sscanf(ts, "%d.%d", &sec, &micro); err != nil {
		return time.Time{}
	}
	return time.Unix(sec, micro*1000)
}

// do does what the button says, if the member may.
func (s *Slack) do(ctx context.Context, c *click) (string, error) {
	if !s.limits.allow("slack:" + c.User.ID) {
		return "", &problem{http.StatusTooManyRequests, "Too many clicks; wait a moment."}
	}
	ref, err := view.Verify(s.Authority, c.value)
	if err != nil {
		return "", deny("%v", err)
	}
	c.ref = ref
	if !c.form && c.Channel.ID != s.Channel {
		return "", deny("Stanch takes answers in its own channel only.")
	}
	if !c.form && asksReason(ref.Kind) {
		return "", s.open(ctx, c)
	}
	speaker, err := s.speaker(ctx, c.InteractionCallback)
	if err != nil {
		return "", err
	}
	switch ref.Kind {
	case view.ButtonApprove, view.ButtonDeny, view.ButtonBreakGlass:
		a, err := s.Vote(ctx, speaker, VoteRequest{
			Incident: ref.IncidentID, Step: ref.RequestID, Hash: ref.PlansHash, Approve: ref.Kind != view.ButtonDeny, Reason: c.reason, BreakGlass: ref.Kind == view.ButtonBreakGlass,
		})
		if err != nil {
			return "", err
		}
		return sentence(a.Says), nil
	case view.ButtonRelease:
		_, err = s.Release(ctx, speaker, LeaseRequest{Lease: ref.LeaseID})
		return "It is being released; the message shows when it is undone.", err
	case view.ButtonExtend:
		_, err = s.Extend(ctx, speaker, LeaseRequest{Lease: ref.LeaseID, For: time.Hour, From: c.at})
		return "It holds until an hour from now.", err
	case view.ButtonAssign:
		_, err = s.Mark(ctx, speaker, MarkRequest{Incident: ref.IncidentID, Kind: incident.TriageAssigned})
		return "It is yours: Stanch starts nothing new in it. What holds goes on to its end.", err
	case view.ButtonFalsePositive:
		_, err = s.Mark(ctx, speaker, MarkRequest{Incident: ref.IncidentID, Kind: incident.TriageFalsePositive, Reason: c.reason})
		return "What it holds is released, what it asks is denied.", err
	}
	return "", deny("this button does nothing")
}

// sentence is a clause as a message of its own.
func sentence(s string) string {
	r, size := utf8.DecodeRuneInString(s)
	return string(unicode.ToUpper(r)) + s[size:] + "."
}

// forms are the questions that a button opens instead of acting at once.
var forms = map[view.ButtonKind]struct{ title, submit, label, hint string }{
	view.ButtonDeny:          {"Deny", "Deny", "Why not?", "for the record and for who asks"},
	view.ButtonBreakGlass:    {"Break the glass", "Approve alone", "Why can this not wait for the others?", "you answer alone for the whole quorum; everybody sees it"},
	view.ButtonFalsePositive: {"False positive", "Release everything", "What was it really?", "what this incident holds is released, what it asks is denied"},
}

func asksReason(k view.ButtonKind) bool { _, ok := forms[k]; return ok }

// open asks for a reason. The form carries the button's own value and nothing else.
func (s *Slack) open(ctx context.Context, c *click) error {
	f := forms[c.ref.Kind]
	plain := func(text string) *slack.TextBlockObject {
		return slack.NewTextBlockObject(slack.PlainTextType, text, false, false)
	}
	input := slack.NewPlainTextInputBlockElement(plain(f.hint), reasonInput)
	input.Multiline, input.MaxLength = true, maxReasonLen
	block := slack.NewInputBlock(reasonBlock, plain(f.label), nil, input)
	_, err := s.API.OpenViewContext(ctx, c.TriggerID, slack.ModalViewRequest{
		Type: slack.VTModal, Title: plain(f.title), Submit: plain(f.submit), Close: plain("Go back"),
		PrivateMetadata: c.value, CallbackID: "stanch", Blocks: slack.Blocks{BlockSet: []slack.Block{block}},
	})
	if err != nil {
		return fmt.Errorf("open the form: %w", err)
	}
	return nil
}

// tell says something to the one who clicked, and to nobody else.
func (s *Slack) tell(ctx context.Context, c click, what string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	go func() {
		defer cancel()
		block := slack.NewRichTextBlock("", slack.NewRichTextSection(slack.NewRichTextSectionTextElement(cut(what, 600), nil)))
		if _, err := s.API.PostEphemeralContext(ctx, s.Channel, c.User.ID, slack.MsgOptionText("Stanch answers", true), slack.MsgOptionBlocks(block)); err != nil {
			s.Log.Warn("answer a member", "member", clip(c.User.ID), "error", err)
		}
	}()
}

// speaker finds who a member is. Members of other workspaces, guests, bots and people who have left are nobody.
func (s *Slack) speaker(ctx context.Context, c slack.InteractionCallback) (Speaker, error) {
	cfg, err := s.Roster.Current()
	if err != nil {
		return Speaker{}, deny("%v", err)
	}
	person, known := cfg.PersonBySlack(c.User.ID)
	if !known {
		return Speaker{}, deny("You are nobody in Stanch's configuration: ask for `slack: %s` under `people`.", clip(c.User.ID))
	}
	team, err := s.ownTeam(ctx)
	if err != nil {
		return Speaker{}, err
	}
	if c.Team.ID != team {
		return Speaker{}, deny("Stanch belongs to another workspace.")
	}
	user, err := s.API.GetUserInfoContext(ctx, c.User.ID)
	if err != nil {
		return Speaker{}, fmt.Errorf("ask Slack who %s is: %w", clip(c.User.ID), err)
	}
	for why, is := range map[string]bool{
		"deactivated": user.Deleted, "a bot": user.IsBot, "a guest": user.IsRestricted || user.IsUltraRestricted,
		"of another organisation": user.IsStranger || user.TeamID != "" && user.TeamID != team,
	} {
		if is || user.ID != c.User.ID {
			return Speaker{}, deny("Your account is %s: it may not answer.", why)
		}
	}
	return Speaker{Person: person, Proved: "Slack member " + c.User.ID, Key: "slack:" + c.User.ID}, nil
}

// ownTeam is the workspace of the bot's token.
func (s *Slack) ownTeam(ctx context.Context) (string, error) {
	s.team.Lock()
	defer s.team.Unlock()
	if s.team.id == "" {
		me, err := s.API.AuthTestContext(ctx)
		if err != nil {
			return "", fmt.Errorf("ask Slack for its own workspace: %w", err)
		}
		s.team.id = me.TeamID
	}
	return s.team.id, nil
}

// Groups asks Slack, now, in which of the user groups a person is.
func (s *Slack) Groups(ctx context.Context, p config.Person, wanted []config.Group) ([]string, error) {
	if p.Slack == "" {
		return nil, nil
	}
	var in []string
	for _, g := range wanted {
		members, err := s.API.GetUserGroupMembersContext(ctx, g.Slack)
		if err != nil {
			return nil, fmt.Errorf("ask Slack for the user group of %s: %w", g.Name, err)
		}
		if slices.Contains(members, p.Slack) {
			in = append(in, g.Name)
		}
	}
	return in, nil
}

// Callers finds whom a question calls.
type Callers struct{ Roster *config.Roster }

// ResolveMentions gives the members and user groups in Slack of groups and people.
func (c Callers) ResolveMentions(groups, users []string) (members, userGroups []string) {
	cfg, err := c.Roster.Current()
	if err != nil {
		return nil, nil
	}
	for _, g := range cfg.Groups {
		if g.Slack != "" && slices.Contains(groups, g.Name) {
			userGroups = append(userGroups, g.Slack)
		}
	}
	for _, p := range cfg.People {
		if p.Slack != "" && (slices.Contains(users, p.Name) || slices.ContainsFunc(p.Groups, func(g string) bool { return slices.Contains(groups, g) })) {
			members = append(members, p.Slack)
		}
	}
	return members, userGroups
}
