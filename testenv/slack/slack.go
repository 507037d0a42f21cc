// Package slack is a stand-in for Slack: the methods of its API that Stanch calls, with members, user groups and
// messages in memory; clicks that are signed as Slack signs, or sent by Socket Mode; and outages on demand.
//
// It refuses what Slack refuses: unknown tokens, channels and messages, blocks with a block_id twice, too many
// blocks, too many characters in them, and texts that are empty.
package slack

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The identities of the stand-in.
const (
	Team     = "T0STANCH"
	Channel  = "C0INCIDENTS"
	Token    = "xoxb-stand-in"
	AppToken = "xapp-stand-in"
	Secret   = "8f742231b10e8888abcd99yyyzzz85a5"
)

// Member is a member of the workspace.
type Member struct {
	ID       string
	Name     string
	Deleted  bool
	Bot      bool
	Guest    bool   // restricted
	Single   bool   // ultra restricted
	Stranger bool   // of a connected organisation
	Team     string // "" is the workspace's own
}

// Message is one message.
type Message struct {
	Channel  string          `json:"channel"`
	TS       string          `json:"ts"`
	Thread   string          `json:"thread_ts,omitempty"`
	Text     string          `json:"text"`
	Blocks   json.RawMessage `json:"blocks,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
	User     string          `json:"user"`
	Type     string          `json:"type"`
	// To is the one member who sees an ephemeral message.
	To string `json:"-"`
	// Edits counts its changes.
	Edits int `json:"-"`
}

// Slack is the stand-in.
type Slack struct {
	*httptest.Server

	mu        sync.Mutex
	members   map[string]Member
	groups    map[string][]string
	messages  []*Message
	whispers  []Message
	views     []View
	away      bool
	limited   int // that many calls are answered with 429
	longest   int // how many characters of blocks are taken
	calls     map[string]int
	clock     int64
	sockets   map[*socket]bool
	afterPost func() // called once after a message was stored and before it is answered
}

// View is a form that was opened.
type View struct {
	Trigger string
	View    json.RawMessage
}

// Start starts a stand-in that ends with the test.
func Start(t testing.TB) *Slack {
	t.Helper()
	s := &Slack{members: map[string]Member{}, groups: map[string][]string{}, calls: map[string]int{}, clock: time.Now().Unix(), longest: maxTotal, sockets: map[*socket]bool{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

// API is the address for slack.api_url.
func (s *Slack) API() string { return s.URL + "/api/" }

// Member enters or changes a member.
func (s *Slack) Member(m Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members[m.ID] = m
}

// Group says who is in a user group.
func (s *Slack) Group(id string, members ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[id] = members
}

// Away takes the API down, or up again.
func (s *Slack) Away(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// Limit answers the next n calls with 429.
func (s *Slack) Limit(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limited = n
}

// Longest says how many characters of blocks a message may have: nobody knows exactly how the real one counts.
func (s *Slack) Longest(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest = n
}

// AfterPost is called once, after the next message is stored and before that is answered.
func (s *Slack) AfterPost(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.afterPost = f
}

// Calls counts the calls of a method.
func (s *Slack) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Messages are the channel's messages; Thread those of a message's thread.
func (s *Slack) Messages() []Message { return s.list(func(m *Message) bool { return m.Thread == "" }) }

// Thread are the replies to a message.
func (s *Slack) Thread(ts string) []Message {
	return s.list(func(m *Message) bool { return m.Thread == ts })
}

func (s *Slack) list(is func(*Message) bool) []Message {
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

// Whispers are what was said to one member alone.
func (s *Slack) Whispers(member string) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.whispers), func(m Message) bool { return m.To != member })
}

// Views are the forms that were opened.
func (s *Slack) Views() []View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.views)
}

// Everything is all that Slack was ever told, for a search.
func (s *Slack) Everything() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, _ := json.Marshal(struct {
		M []*Message
		W []Message
		V []View
	}{s.messages, s.whispers, s.views})
	return string(raw)
}

type object map[string]any

func (s *Slack) serve(w http.ResponseWriter, r *http.Request) {
	method := strings.TrimPrefix(r.URL.Path, "/api/")
	if r.URL.Path == "/socket" {
		s.upgrade(w, r)
		return
	}
	if err := r.ParseMultipartForm(2 << 20); err != nil && err != http.ErrNotMultipart { //nolint:errorlint // as the library says
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.calls[method]++
	switch {
	case s.away:
		s.mu.Unlock()
		http.Error(w, "away", http.StatusBadGateway)
		return
	case s.limited > 0:
		s.limited--
		s.mu.Unlock()
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token == "" {
		token = r.FormValue("token")
	}
	var out object
	switch {
	case method == "apps.connections.open" && token == AppToken:
		out = object{"url": "ws" + strings.TrimPrefix(s.URL, "http") + "/socket"}
	case token != Token:
		out = refuse("invalid_auth")
	default:
		out = s.do(method, r)
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

func refuse(what string) object { return object{"ok": false, "error": what} }

// do is one method, under the lock.
func (s *Slack) do(method string, r *http.Request) object {
	switch method {
	case "auth.test":
		return object{"team_id": Team, "user_id": "U0BOT", "bot_id": "B0BOT", "team": "stand-in", "user": "stanch", "url": s.URL}
	case "chat.postMessage":
		return s.post(r)
	case "chat.update":
		return s.update(r)
	case "chat.postEphemeral":
		s.whispers = append(s.whispers, Message{Channel: r.FormValue("channel"), Text: r.FormValue("text"), Blocks: json.RawMessage(r.FormValue("blocks")), To: r.FormValue("user")})
		return object{"message_ts": s.tick()}
	case "conversations.history":
		return s.page(r, func(m *Message) bool { return m.Thread == "" && m.TS >= r.FormValue("oldest") })
	case "conversations.replies":
		return s.page(r, func(m *Message) bool { return m.Thread == r.FormValue("ts") || m.TS == r.FormValue("ts") })
	case "users.info":
		m, ok := s.members[r.FormValue("user")]
		if !ok {
			return refuse("user_not_found")
		}
		team := m.Team
		if team == "" {
			team = Team
		}
		return object{"user": object{"id": m.ID, "team_id": team, "name": m.Name, "deleted": m.Deleted, "is_bot": m.Bot, "is_restricted": m.Guest, "is_ultra_restricted": m.Single, "is_stranger": m.Stranger}}
	case "usergroups.users.list":
		users, ok := s.groups[r.FormValue("usergroup")]
		if !ok {
			return refuse("no_such_subteam")
		}
		return object{"users": users}
	case "views.open":
		return s.openView(r)
	}
	return refuse("unknown_method")
}

func (s *Slack) tick() string {
	s.clock++
	return strconv.FormatInt(s.clock, 10) + ".000100"
}

func (s *Slack) post(r *http.Request) object {
	if r.FormValue("channel") != Channel {
		return refuse("channel_not_found")
	}
	if refused := s.badBlocks(r.FormValue("blocks")); refused != nil {
		return refused
	}
	m := &Message{Channel: Channel, TS: s.tick(), Thread: r.FormValue("thread_ts"), Text: r.FormValue("text"), Blocks: raw(r.FormValue("blocks")), Metadata: raw(r.FormValue("metadata")), User: "U0BOT", Type: "message"}
	s.messages = append(s.messages, m)
	return object{"channel": Channel, "ts": m.TS, "message": m}
}

func (s *Slack) update(r *http.Request) object {
	if refused := s.badBlocks(r.FormValue("blocks")); refused != nil {
		return refused
	}
	for _, m := range s.messages {
		if m.TS == r.FormValue("ts") && m.Channel == r.FormValue("channel") {
			m.Text, m.Blocks, m.Edits = r.FormValue("text"), raw(r.FormValue("blocks")), m.Edits+1
			return object{"channel": Channel, "ts": m.TS, "text": m.Text}
		}
	}
	return refuse("message_not_found")
}

// Delete takes a message away, as a member may.
func (s *Slack) Delete(ts string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = slices.DeleteFunc(s.messages, func(m *Message) bool { return m.TS == ts })
}

func raw(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

// page lists messages, the newest first, with metadata only where it is asked for.
func (s *Slack) page(r *http.Request, is func(*Message) bool) object {
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
	return object{"messages": out, "has_more": false}
}

func (s *Slack) openView(r *http.Request) object {
	var q struct {
		Trigger string          `json:"trigger_id"`
		View    json.RawMessage `json:"view"`
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		q.Trigger, q.View = r.FormValue("trigger_id"), raw(r.FormValue("view"))
	}
	if q.Trigger == "" {
		return refuse("invalid_trigger_id")
	}
	s.views = append(s.views, View{q.Trigger, q.View})
	return object{"view": object{"id": fmt.Sprintf("V%d", len(s.views))}}
}

// Members lists the ids of the members, in order.
func (s *Slack) Members() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.members))
}
