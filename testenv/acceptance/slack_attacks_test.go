package acceptance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/testenv/slack"
	"stanch/workflows/playbook"
)

// Ways to answer a question in Slack without the right. Each is tried on one open question; after each the question is
// as it was, and after all of them the right people can still answer it.
var clicks = []struct {
	name string
	do   func(t *testing.T, w *clickScene)
}{
	{"no signature", func(t *testing.T, w *clickScene) {
		r := w.sign(w.approve(alice, nil))
		r.Signature = ""
		w.refused(t, r, http.StatusUnauthorized)
	}},
	{"a signature with another secret", func(t *testing.T, w *clickScene) {
		w.refused(t, slack.Sign(w.approve(alice, nil), time.Now(), "another"), http.StatusUnauthorized)
	}},
	{"a signature that is six minutes old", func(t *testing.T, w *clickScene) {
		w.refused(t, slack.Sign(w.approve(alice, nil), time.Now().Add(-6*time.Minute), slack.Secret), http.StatusUnauthorized)
	}},
	{"a signature from the future", func(t *testing.T, w *clickScene) {
		w.refused(t, slack.Sign(w.approve(alice, nil), time.Now().Add(6*time.Minute), slack.Secret), http.StatusUnauthorized)
	}},
	{"a time that was moved after signing", func(t *testing.T, w *clickScene) {
		r := slack.Sign(w.approve(alice, nil), time.Now().Add(-6*time.Minute), slack.Secret)
		r.Timestamp = slack.Sign(nil, time.Now(), slack.Secret).Timestamp
		w.refused(t, r, http.StatusUnauthorized)
	}},
	{"a member that was changed after signing", func(t *testing.T, w *clickScene) {
		r := w.sign(w.approve(mallory, nil))
		require.Contains(t, r.Body, mallory)
		r.Body = strings.ReplaceAll(r.Body, mallory, alice)
		w.refused(t, r, http.StatusUnauthorized)
	}},
	{"a request that is sent again", func(t *testing.T, w *clickScene) {
		r := w.sign(w.approve(mallory, nil))
		w.refused(t, r, http.StatusOK)
		w.refused(t, r, http.StatusConflict)
	}},
	{"a payload that is too large", func(t *testing.T, w *clickScene) {
		w.refused(t, w.sign(bytes.Repeat([]byte("x"), 2<<20)), http.StatusRequestEntityTooLarge)
	}},
	{"a payload that is none", func(t *testing.T, w *clickScene) { w.refused(t, w.sign([]byte("{")), http.StatusBadRequest) }},
	{"a member whom nobody knows", func(t *testing.T, w *clickScene) { w.no(t, mallory, nil, "nobody in Stanch") }},
	{"a member with the name of another, in look-alike letters", func(t *testing.T, w *clickScene) {
		w.slack.Member(slack.Member{ID: mallory, Name: "\u0430lice"})
		w.no(t, mallory, func(p map[string]any) {
			p["user"] = map[string]any{"id": mallory, "team_id": slack.Team, "username": "\u0430lice", "name": "alice"}
		}, "nobody in Stanch")
	}},
	{"a member of another group", func(t *testing.T, w *clickScene) { w.no(t, dora, nil, "may not answer this") }},
	{"a guest", func(t *testing.T, w *clickScene) { w.no(t, guest, nil, "a guest") }},
	{"somebody who has left", func(t *testing.T, w *clickScene) { w.no(t, gone, nil, "deactivated") }},
	{"a member of a connected organisation", func(t *testing.T, w *clickScene) { w.no(t, foreign, nil, "another organisation") }},
	{"a bot", func(t *testing.T, w *clickScene) { w.no(t, robot, nil, "a bot") }},
	{"another workspace", func(t *testing.T, w *clickScene) {
		w.no(t, alice, func(p map[string]any) { p["team"] = map[string]any{"id": "T0OTHER"} }, "another workspace")
	}},
	{"another channel", func(t *testing.T, w *clickScene) {
		w.no(t, alice, func(p map[string]any) { p["channel"] = map[string]any{"id": "C0RANDOM"} }, "own channel only")
	}},
	{"a button without a seal", func(t *testing.T, w *clickScene) {
		w.no(t, alice, value(strings.Split(w.button().Value, ".")[0]), "not one of Stanch's")
	}},
	{"a button with a seal of another button", func(t *testing.T, w *clickScene) {
		_, seal, _ := strings.Cut(w.m.Buttons(t)["deny"][0].Value, ".")
		body, _, _ := strings.Cut(w.button().Value, ".")
		w.no(t, alice, value(body+"."+seal), "not one of Stanch's")
	}},
	{"a deny button made into an approval", func(t *testing.T, w *clickScene) {
		body, seal, _ := strings.Cut(w.m.Buttons(t)["deny"][0].Value, ".")
		raw, err := base64.RawURLEncoding.DecodeString(body)
		require.NoError(t, err)
		forged := base64.RawURLEncoding.EncodeToString(bytes.Replace(raw, []byte(`"deny"`), []byte(`"approve"`), 1))
		w.no(t, alice, value(forged+"."+seal), "not one of Stanch's")
	}},
	{"a button of another installation", func(t *testing.T, w *clickScene) {
		w.no(t, alice, value(base64.RawURLEncoding.EncodeToString([]byte(`{"k":"approve","i":"`+w.q.IncidentID+`"}`))+".AAAAAAAAAAAAAAAAAAAAAA"), "not one of Stanch's")
	}},
	{"an approval of the question of another incident", func(t *testing.T, w *clickScene) {
		// Its genuine button answers its own question and never this one.
		w.no(t, alice, value(w.old.Value), "this question is closed")
	}},
	{"two buttons in one click", func(t *testing.T, w *clickScene) {
		w.refused(t, w.sign(w.approve(alice, func(p map[string]any) {
			a := p["actions"].([]any)
			p["actions"] = append(a, a[0])
		})), http.StatusOK)
	}},
	{"a form that nobody opened", func(t *testing.T, w *clickScene) {
		form := slack.View{View: json.RawMessage(`{"private_metadata":"` + w.button().Value + `x","callback_id":"stanch"}`)}
		code, answer := w.sign(slack.Submit(alice, form, "because")).Send(t, w.url())
		require.Equal(t, http.StatusOK, code)
		require.Contains(t, answer, "not one of Stanch")
	}},
	{"breaking the glass without the right", func(t *testing.T, w *clickScene) {
		form := slack.View{View: json.RawMessage(`{"private_metadata":"` + w.m.Buttons(t)["break-glass"][0].Value + `"}`)}
		_, answer := w.sign(slack.Submit(alice, form, "because")).Send(t, w.url())
		require.Contains(t, answer, "may not break the glass")
	}},
	{"taking over without the right", func(t *testing.T, w *clickScene) { w.other(t, dora, "take-over", "may not change what is contained") }},
	{"somebody who left the user group a second ago", func(t *testing.T, w *clickScene) {
		w.slack.Group("S0ONCALL")
		w.no(t, carol, nil, "may not answer this")
	}},
	{"somebody who was taken off the list a second ago", func(t *testing.T, w *clickScene) {
		file := filepath.Join(w.Dir, "stanch.yaml")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, bytes.Replace(text, []byte("  - { name: alice, slack: U0ALICE, groups: [responders] }\n"), nil, 1), 0o600))
		w.no(t, alice, nil, "nobody in Stanch")
		require.NoError(t, os.WriteFile(file, append(text, "\nphase: [oops"...), 0o600))
		w.no(t, bob, nil, "who may answer is not known")
		require.NoError(t, os.WriteFile(file, append(text, '\n'), 0o600))
	}},
	{"while Slack does not say who somebody is", func(t *testing.T, w *clickScene) {
		w.slack.Away(true)
		defer w.slack.Away(false)
		w.refused(t, w.sign(w.approve(alice, nil)), http.StatusServiceUnavailable)
	}},
	{"ten thousand clicks of somebody without the right", func(t *testing.T, w *clickScene) {
		var all sync.WaitGroup
		for sender := range 20 {
			all.Go(func() {
				for n := range 500 {
					r := slack.Sign(w.approve(dora, nil), time.Now().Add(-time.Duration((sender*500+n)%200)*time.Second), slack.Secret)
					if code, _ := r.Send(t, w.url()); code != http.StatusOK && code != http.StatusConflict {
						t.Errorf("answered with %d", code)
						return
					}
				}
			})
		}
		all.Wait()
		q := w.question(t, w.q.IncidentID)
		require.LessOrEqual(t, len(q.Votes), 10, "the history is bounded")
		require.Less(t, len(w.slack.Whispers(dora)), 100, "and so are the answers")
	}},
}

// clickScene is one open question that wants two people.
type clickScene struct {
	*chat
	t   *testing.T
	q   playbook.ApprovalRequest
	m   slack.Message
	old slack.Button // of a question that is closed
	n   int
}

func (w *clickScene) button() slack.Button {
	return w.m.Buttons(w.t)["approve"][0]
}

func (w *clickScene) approve(member string, change func(map[string]any)) []byte {
	return slack.Payload(member, w.m, w.button(), change)
}

// sign signs a payload; each has a time of its own, so that none is taken for a repetition.
func (w *clickScene) sign(payload []byte) slack.Request {
	w.n++
	return slack.Sign(payload, time.Now().Add(-time.Duration(w.n%200)*time.Second), slack.Secret)
}

func (w *clickScene) refused(t *testing.T, r slack.Request, code int) {
	t.Helper()
	got, body := r.Send(t, w.url())
	if code == http.StatusRequestEntityTooLarge && got == 0 {
		return // the connection was closed on it
	}
	require.Equal(t, code, got, body)
}

// no clicks and wants the person to be told why it does not count.
func (w *clickScene) no(t *testing.T, member string, change func(map[string]any), why string) {
	t.Helper()
	before := len(w.slack.Whispers(member))
	w.refused(t, w.sign(w.approve(member, change)), http.StatusOK)
	require.Eventually(t, func() bool {
		told := w.slack.Whispers(member)
		return len(told) > before && strings.Contains(string(told[len(told)-1].Blocks), why)
	}, 10*time.Second, 20*time.Millisecond, "%s is told %q: %v", member, why, w.slack.Whispers(member))
}

func (w *clickScene) other(t *testing.T, member, kind, why string) {
	t.Helper()
	w.refused(t, w.sign(slack.Payload(member, w.m, w.m.Buttons(t)[kind][0], nil)), http.StatusOK)
	w.toldTo(t, member, why)
}

func value(v string) func(map[string]any) {
	return func(p map[string]any) { p["actions"].([]any)[0].(map[string]any)["value"] = v }
}

func TestNobodyAnswersWithoutTheRight(t *testing.T) {
	c := newChat(t, asking(2, "20m"))
	// An earlier question, which was answered: its buttons are genuine and spent.
	_, earlier, before := c.asked(t)
	_, _ = c.click(t, bob, before, "deny")
	require.Eventually(t, func() bool { return len(c.slack.Views()) == 1 }, 10*time.Second, 20*time.Millisecond)
	_, _ = slack.Sign(slack.Submit(bob, c.slack.Views()[0], "no"), time.Now(), slack.Secret).Send(t, c.url())
	require.Eventually(t, func() bool { _, ok := c.open(t, earlier.IncidentID); return !ok }, 10*time.Second, 50*time.Millisecond)

	box, q, m := c.asked(t)
	w := &clickScene{chat: c, t: t, q: q, m: m, old: before.Buttons(t)["approve"][0]}
	for _, attack := range clicks {
		t.Run(attack.name, func(t *testing.T) {
			attack.do(t, w)
			now := c.question(t, q.IncidentID)
			require.Empty(t, now.ApprovedBy, "it counts")
			require.False(t, box.Silent(60*time.Millisecond), "it is contained")
		})
	}
	// Whoever was refused stands in the record, with the reason.
	now := c.question(t, q.IncidentID)
	require.Contains(t, strings.Join(now.IgnoredVotes, "\n"), "dora: dora may not answer this")
	for _, member := range []string{alice, bob} {
		w.refused(t, w.sign(w.approve(member, nil)), http.StatusOK)
	}
	in := c.Incident(t, box.ID, 30*time.Second, "held", held)
	m = c.message(t, in.ID, "held", func(m slack.Message) bool { return len(m.Buttons(t)["release"]) == 1 })
	w.m = m
	for _, kind := range []string{"release", "extend"} {
		w.other(t, dora, kind, "may not change what is contained")
		w.other(t, mallory, kind, "nobody in Stanch")
	}
	require.True(t, box.Silent(500*time.Millisecond), "it holds")
	in = c.Incident(t, box.ID, 5*time.Second, "held", held)
	require.Less(t, time.Until(in.Leases[0].ExpiresAt), 21*time.Minute, "it was not extended")
}
