package slack

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"
)

// Button is a button of a message.
type Button struct {
	ActionID string `json:"action_id"`
	Value    string `json:"value"`
	BlockID  string `json:"-"`
}

// Buttons returns a message's buttons by action.
func (m Message) Buttons(t testing.TB) map[string][]Button {
	t.Helper()
	var blocks []struct {
		Type     string            `json:"type"`
		BlockID  string            `json:"block_id"`
		Elements []json.RawMessage `json:"elements"`
	}
	require.NoError(t, json.Unmarshal(m.Blocks, &blocks))
	out := map[string][]Button{}
	for _, b := range blocks {
		if b.Type != "actions" {
			continue
		}
		for _, e := range b.Elements {
			var button Button
			require.NoError(t, json.Unmarshal(e, &button))
			button.BlockID = b.BlockID
			out[button.ActionID] = append(out[button.ActionID], button)
		}
	}
	return out
}

// ButtonPayload returns what Slack sends when a member clicks a button. change, which can be nil, forges it.
func ButtonPayload(member string, m Message, b Button, change func(map[string]any)) []byte {
	p := map[string]any{
		"type": "block_actions", "trigger_id": fmt.Sprintf("trigger.%d", time.Now().UnixNano()), "api_app_id": "A0STANCH",
		"token": "deprecated",
		"team":  map[string]any{"id": TeamID}, "user": map[string]any{
			"id": member, "team_id": TeamID,
			"username": "whatever",
		},
		"channel": map[string]any{"id": m.Channel}, "container": map[string]any{
			"type": "message", "message_ts": m.TS,
			"channel_id": m.Channel,
		},
		"message": map[string]any{"ts": m.TS}, "response_url": "http://127.0.0.1:1/never",
		"actions": []any{map[string]any{
			"type": "button", "action_id": b.ActionID, "block_id": b.BlockID, "value": b.Value,
			"action_ts": fmt.Sprintf("%d.%06d", time.Now().Unix(), time.Now().Nanosecond()/1000),
		}},
	}
	if change != nil {
		change(p)
	}
	raw, _ := json.Marshal(p)
	return raw
}

// ViewSubmission returns what Slack sends when a member submits a modal.
func ViewSubmission(member string, v OpenedView, reason string) []byte {
	var view map[string]any
	_ = json.Unmarshal(v.Payload, &view)
	view["state"] = map[string]any{
		"values": map[string]any{
			"reason": map[string]any{"text": map[string]any{"type": "plain_text_input", "value": reason}},
		},
	}
	raw, _ := json.Marshal(map[string]any{
		"type": "view_submission", "team": map[string]any{"id": TeamID}, "user": map[string]any{
			"id":      member,
			"team_id": TeamID,
		}, "view": view, "trigger_id": "t",
	})
	return raw
}

// SignedRequest is a request signed as Slack signs it.
type SignedRequest struct {
	Body      string
	Timestamp string
	Signature string
}

// SignRequest signs a payload with a time and a secret.
func SignRequest(payload []byte, at time.Time, secret string) SignedRequest {
	r := SignedRequest{Body: url.Values{"payload": {string(payload)}}.Encode(), Timestamp: strconv.FormatInt(at.Unix(),
		10)}
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = fmt.Fprintf(mac, "v0:%s:%s", r.Timestamp, r.Body)
	r.Signature = "v0=" + hex.EncodeToString(mac.Sum(nil))
	return r
}

// Send sends a signed request and returns the status and body of the response.
func (r SignedRequest) Send(t testing.TB, to string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, bytes.NewBufferString(r.Body))
	require.NoError(t, err)
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	q.Header.Set("X-Slack-Request-Timestamp", r.Timestamp)
	q.Header.Set("X-Slack-Signature", r.Signature)
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// socketModeConn is one Socket Mode connection.
type socketModeConn struct {
	conn *websocket.Conn
	mu   sync.Mutex
	acks map[string]chan json.RawMessage
}

func (s *FakeSlack) acceptSocketMode(w http.ResponseWriter, r *http.Request) {
	conn, err := (&websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &socketModeConn{conn: conn, acks: map[string]chan json.RawMessage{}}
	_ = conn.WriteJSON(jsonObject{
		"type": "hello", "num_connections": 1,
		"connection_info": jsonObject{"app_id": "A0STANCH"},
	})
	s.mu.Lock()
	s.sockets[c] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.sockets, c)
		s.mu.Unlock()
		_ = conn.Close()
	}()
	for {
		var ack struct {
			Envelope string          `json:"envelope_id"`
			Payload  json.RawMessage `json:"payload"`
		}
		if err := conn.ReadJSON(&ack); err != nil {
			return
		}
		c.mu.Lock()
		if waiting := c.acks[ack.Envelope]; waiting != nil {
			waiting <- ack.Payload
		}
		c.mu.Unlock()
	}
}

// PushPayload sends a payload by Socket Mode and reports whether it was acknowledged within 3 s, as Slack requires.
func (s *FakeSlack) PushPayload(t testing.TB, payload []byte) (json.RawMessage, bool) {
	t.Helper()
	var c *socketModeConn
	s.mu.Lock()
	for one := range s.sockets {
		c = one
	}
	s.mu.Unlock()
	require.NotNil(t, c, "no Socket Mode connection")
	id := fmt.Sprintf("envelope-%d", time.Now().UnixNano())
	got := make(chan json.RawMessage, 1)
	c.mu.Lock()
	c.acks[id] = got
	err := c.conn.WriteJSON(jsonObject{
		"type": "interactive", "envelope_id": id, "accepts_response_payload": true,
		"payload": json.RawMessage(payload),
	})
	c.mu.Unlock()
	require.NoError(t, err)
	select {
	case answer := <-got:
		return answer, true
	case <-time.After(3 * time.Second):
		return nil, false
	}
}
