// Package slack is a fake Slack: the API methods that Stanch calls, with members, user groups and messages in memory;
// clicks that are signed as Slack signs them or sent by Socket Mode; and outages on demand.
//
// It refuses what Slack refuses: unknown tokens, channels and messages, duplicate block_ids, too many blocks, too many
// characters in them, and empty texts.
package slack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The identities of the fake.
const (
	TeamID        = "T0STANCH"
	ChannelID     = "C0INCIDENTS"
	BotToken      = "xoxb-stand-in"
	AppToken      = "xapp-stand-in"
	SigningSecret = "8f742231b10e8888abcd99yyyzzz85a5"
)

// Member is a member of the workspace.
type Member struct {
	ID                 string
	Name               string
	Deleted            bool
	Bot                bool
	Guest              bool   // restricted
	SingleChannelGuest bool   // ultra restricted
	External           bool   // of a connected organization
	TeamID             string // "" is the workspace's own
}

// Message is one message.
type Message struct {
	Channel  string          `json:"channel"`
	TS       string          `json:"ts"`
	ThreadTS string          `json:"thread_ts,omitempty"`
	Text     string          `json:"text"`
	Blocks   json.RawMessage `json:"blocks,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
	User     string          `json:"user"`
	Type     string          `json:"type"`
	// EphemeralRecipient is the only member who sees an ephemeral message.
	EphemeralRecipient string `json:"-"`
	// EditCount is the number of its edits.
	EditCount int `json:"-"`
}

// FakeSlack is a fake Slack workspace.
type FakeSlack struct {
	*httptest.Server

	mu                sync.Mutex
	members           map[string]Member
	groups            map[string][]string
	messages          []*Message
	ephemeralMessages []Message
	views             []OpenedView
	unavailable       bool
	rateLimitedCalls  int // that many calls return 429
	maxBlockChars     int // maximum number of characters in blocks
	calls             map[string]int
	lastTimestamp     int64
	sockets           map[*socketModeConn]bool
	afterPost         func() // called once after a message is stored and before the response
}

// OpenedView is a modal that was opened.
type OpenedView struct {
	TriggerID string
	Payload   json.RawMessage
}

// Start starts a fake that stops with the test.
func Start(t testing.TB) *FakeSlack {
	t.Helper()
	s := &FakeSlack{
		members: map[string]Member{}, groups: map[string][]string{}, calls: map[string]int{},
		lastTimestamp: time.Now().Unix(), maxBlockChars: maxTotalChars, sockets: map[*socketModeConn]bool{},
	}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serveAPI))
	t.Cleanup(s.Close)
	return s
}

// APIURL returns the value of slack.api_url.
func (s *FakeSlack) APIURL() string { return s.URL + "/api/" }

// AddMember adds or updates a member.
func (s *FakeSlack) AddMember(m Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members[m.ID] = m
}

// SetGroup sets the members of a user group.
func (s *FakeSlack) SetGroup(id string, members ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[id] = members
}

// SetUnavailable makes the API unavailable, or available again.
func (s *FakeSlack) SetUnavailable(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unavailable = away
}

// RateLimitNext makes the next n calls return 429.
func (s *FakeSlack) RateLimitNext(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rateLimitedCalls = n
}

// SetMaxBlockChars sets the maximum number of characters in a message's blocks. How the real Slack counts is
// undocumented.
func (s *FakeSlack) SetMaxBlockChars(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maxBlockChars = n
}

// AfterPost calls f once, after the next message is stored and before the response.
func (s *FakeSlack) AfterPost(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.afterPost = f
}

// CallCount returns the number of calls of a method.
func (s *FakeSlack) CallCount(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Messages returns the channel's messages.
func (s *FakeSlack) Messages() []Message {
	return s.selectMessages(func(m *Message) bool { return m.ThreadTS == "" })
}

// ThreadMessages returns the replies to a message.
func (s *FakeSlack) ThreadMessages(ts string) []Message {
	return s.selectMessages(func(m *Message) bool { return m.ThreadTS == ts })
}

func (s *FakeSlack) selectMessages(is func(*Message) bool) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Message
	for _, m := range s.messages {
		if is(m) {
			out = append(out, *m)
		}
	}
	return out
}

// EphemeralMessages returns the ephemeral messages to one member.
func (s *FakeSlack) EphemeralMessages(member string) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.ephemeralMessages),
		func(m Message) bool { return m.EphemeralRecipient != member })
}

// OpenedViews returns the modals that were opened.
func (s *FakeSlack) OpenedViews() []OpenedView {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.views)
}

// AllReceivedText returns everything that Slack has received, for a search.
func (s *FakeSlack) AllReceivedText() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, _ := json.Marshal(struct {
		M []*Message
		W []Message
		V []OpenedView
	}{s.messages, s.ephemeralMessages, s.views})
	return string(raw)
}

type jsonObject map[string]any

func (s *FakeSlack) serveAPI(w http.ResponseWriter, r *http.Request) {
	method := strings.TrimPrefix(r.URL.Path, "/api/")
	if r.URL.Path == "/socket" {
		s.acceptSocketMode(w, r)
		return
	}
	if err := r.ParseMultipartForm(
		2 << 20,
	); err != nil &&
		err != http.ErrNotMultipart { //nolint:errorlint // as the library says
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.calls[method]++
	switch {
	case s.unavailable:
		s.mu.Unlock()
		http.Error(w, "away", http.StatusBadGateway)
		return
	case s.rateLimitedCalls > 0:
		s.rateLimitedCalls--
		s.mu.Unlock()
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		token = r.FormValue("token")
	}
	var out jsonObject
	switch {
	case method == "apps.connections.open" && token == AppToken:
		out = jsonObject{"url": "ws" + strings.TrimPrefix(s.URL, "http") + "/socket"}
	case token != BotToken:
		out = errorResponse("invalid_auth")
	default:
		out = s.callMethod(method, r)
	}
	hook := s.afterPost
	if method == "chat.postMessage" && hook != nil && out["error"] == nil {
		s.afterPost = nil
	} else {
		hook = nil
	}
	s.mu.Unlock()
	if hook != nil {
		hook()
	}
	if _, bad := out["error"]; !bad {
		out["ok"] = true
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func errorResponse(what string) jsonObject { return jsonObject{"ok": false, "error": what} }

// callMethod runs one API method. The caller holds the lock.
func (s *FakeSlack) callMethod(method string, r *http.Request) jsonObject {
	switch method {
	case "auth.test":
		return jsonObject{
			"team_id": TeamID, "user_id": "U0BOT", "bot_id": "B0BOT", "team": "stand-in", "user": "stanch",
			"url": s.URL,
		}
	case "chat.postMessage":
		return s.postMessage(r)
	case "chat.update":
		return s.updateMessage(r)
	case "chat.postEphemeral":
		s.ephemeralMessages = append(s.ephemeralMessages, Message{
			Channel: r.FormValue("channel"), Text: r.FormValue("text"),
			Blocks: json.RawMessage(r.FormValue("blocks")), EphemeralRecipient: r.FormValue("user"),
		})
		return jsonObject{"message_ts": s.nextTimestamp()}
	case "conversations.history":
		return s.listMessages(r, func(m *Message) bool { return m.ThreadTS == "" && m.TS >= r.FormValue("oldest") })
	case "conversations.replies":
		return s.listMessages(r, func(m *Message) bool {
			return m.ThreadTS == r.FormValue("ts") ||
				m.TS == r.FormValue("ts")
		})
	case "users.info":
		m, ok := s.members[r.FormValue("user")]
		if !ok {
			return errorResponse("user_not_found")
		}
		team := m.TeamID
		if team == "" {
			team = TeamID
		}
		return jsonObject{"user": jsonObject{
			"id": m.ID, "team_id": team, "name": m.Name, "deleted": m.Deleted,
			"is_bot": m.Bot, "is_restricted": m.Guest, "is_ultra_restricted": m.SingleChannelGuest, "is_stranger": m.External,
		}}
	case "usergroups.users.list":
		users, ok := s.groups[r.FormValue("usergroup")]
		if !ok {
			return errorResponse("no_such_subteam")
		}
		return jsonObject{"users": users}
	case "views.open":
		return s.openModal(r)
	}
	return errorResponse("unknown_method")
}

func (s *FakeSlack) nextTimestamp() string {
	s.lastTimestamp++
	return strconv.FormatInt(s.lastTimestamp, 10) + ".000100"
}

func (s *FakeSlack) postMessage(r *http.Request) jsonObject {
	if r.FormValue("channel") != ChannelID {
		return errorResponse("channel_not_found")
	}
	if refused := s.validateBlocks(r.FormValue("blocks")); refused != nil {
		return refused
	}
	m := &Message{
		Channel: ChannelID, TS: s.nextTimestamp(), ThreadTS: r.FormValue("thread_ts"), Text: r.FormValue("text"),
		Blocks: rawJSON(r.FormValue("blocks")), Metadata: rawJSON(r.FormValue("metadata")), User: "U0BOT", Type: "message",
	}
	s.messages = append(s.messages, m)
	return jsonObject{"channel": ChannelID, "ts": m.TS, "message": m}
}

func (s *FakeSlack) updateMessage(r *http.Request) jsonObject {
	if refused := s.validateBlocks(r.FormValue("blocks")); refused != nil {
		return refused
	}
	for _, m := range s.messages {
		if m.TS == r.FormValue("ts") && m.Channel == r.FormValue("channel") {
			m.Text, m.Blocks, m.EditCount = r.FormValue("text"), rawJSON(r.FormValue("blocks")), m.EditCount+1
			return jsonObject{"channel": ChannelID, "ts": m.TS, "text": m.Text}
		}
	}
	return errorResponse("message_not_found")
}

// DeleteMessage deletes a message, as a member can.
func (s *FakeSlack) DeleteMessage(ts string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = slices.DeleteFunc(s.messages, func(m *Message) bool { return m.TS == ts })
}

func rawJSON(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

// listMessages lists messages, newest first, with metadata only if requested.
func (s *FakeSlack) listMessages(r *http.Request, is func(*Message) bool) jsonObject {
	withMetadata := r.FormValue("include_all_metadata") == "1" || r.FormValue("include_all_metadata") == "true"
	out := []Message{}
	for _, m := range slices.Backward(s.messages) {
		if !is(m) || m.Channel != r.FormValue("channel") {
			continue
		}
		shown := *m
		if !withMetadata {
			shown.Metadata = nil
		}
		out = append(out, shown)
	}
	return jsonObject{"messages": out, "has_more": false}
}

func (s *FakeSlack) openModal(r *http.Request) jsonObject {
	var q struct {
		Trigger string          `json:"trigger_id"`
		View    json.RawMessage `json:"view"`
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		q.Trigger, q.View = r.FormValue("trigger_id"), rawJSON(r.FormValue("view"))
	}
	if q.Trigger == "" {
		return errorResponse("invalid_trigger_id")
	}
	s.views = append(s.views, OpenedView{q.Trigger, q.View})
	return jsonObject{"view": jsonObject{"id": fmt.Sprintf("V%d", len(s.views))}}
}
