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
var unauthorizedClicks = []struct {
	name string
	do   func(t *testing.T, w *clickFixture)
}{
	{"no signature", func(t *testing.T, w *clickFixture) {
		r := w.signPayload(w.approvePayload(alice, nil))
		r.Signature = ""
		w.requireStatus(t, r, http.StatusUnauthorized)
	}},
	{"a signature with another secret", func(t *testing.T, w *clickFixture) {
		w.requireStatus(t, slack.SignRequest(w.approvePayload(alice, nil), time.Now(), "another"), http.StatusUnauthorized)
	}},
	{"a signature that is six minutes old", func(t *testing.T, w *clickFixture) {
		w.requireStatus(t, slack.SignRequest(w.approvePayload(alice, nil), time.Now().Add(-6*time.Minute),
			slack.SigningSecret), http.StatusUnauthorized)
	}},
	{"a signature from the future", func(t *testing.T, w *clickFixture) {
		w.requireStatus(t, slack.SignRequest(w.approvePayload(alice, nil), time.Now().Add(6*time.Minute),
			slack.SigningSecret), http.StatusUnauthorized)
	}},
	{"a time that was moved after signing", func(t *testing.T, w *clickFixture) {
		r := slack.SignRequest(w.approvePayload(alice, nil), time.Now().Add(-6*time.Minute), slack.SigningSecret)
		r.Timestamp = slack.SignRequest(nil, time.Now(), slack.SigningSecret).Timestamp
		w.requireStatus(t, r, http.StatusUnauthorized)
	}},
	{"a member that was changed after signing", func(t *testing.T, w *clickFixture) {
		r := w.signPayload(w.approvePayload(mallory, nil))
		require.Contains(t, r.Body, mallory)
		r.Body = strings.ReplaceAll(r.Body, mallory, alice)
		w.requireStatus(t, r, http.StatusUnauthorized)
	}},
	{"a request that is sent again", func(t *testing.T, w *clickFixture) {
		r := w.signPayload(w.approvePayload(mallory, nil))
		w.requireStatus(t, r, http.StatusOK)
		w.requireStatus(t, r, http.StatusConflict)
	}},
	{"a payload that is too large", func(t *testing.T, w *clickFixture) {
		w.requireStatus(t, w.signPayload(bytes.Repeat([]byte("x"), 2<<20)), http.StatusRequestEntityTooLarge)
	}},
	{"a payload that is none", func(t *testing.T, w *clickFixture) {
		w.requireStatus(t, w.signPayload([]byte("{")), http.StatusBadRequest)
	}},
	{"a member whom nobody knows", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, mallory, nil, "not in Stanch's configuration")
	}},
	{"a member with the name of another, in look-alike letters", func(t *testing.T, w *clickFixture) {
		w.fakeSlack.AddMember(slack.Member{ID: mallory, Name: "\u0430lice"})
		w.requireApprovalRejected(t, mallory, func(p map[string]any) {
			p["user"] = map[string]any{"id": mallory, "team_id": slack.TeamID, "username": "\u0430lice", "name": "alice"}
		}, "not in Stanch's configuration")
	}},
	{"a member of another group", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, dora, nil, "is not allowed to vote on this")
	}},
	{"a guest", func(t *testing.T, w *clickFixture) { w.requireApprovalRejected(t, guestMember, nil, "a guest") }},
	{"someone who has left", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, deactivatedMember, nil, "deactivated")
	}},
	{"a member of a connected organization", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, externalMember, nil, "another organization")
	}},
	{"a bot", func(t *testing.T, w *clickFixture) { w.requireApprovalRejected(t, botMember, nil, "a bot") }},
	{"another workspace", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, alice, func(p map[string]any) { p["team"] = map[string]any{"id": "T0OTHER"} },
			"another workspace")
	}},
	{"another channel", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, alice, func(p map[string]any) { p["channel"] = map[string]any{"id": "C0RANDOM"} },
			"only in its own channel")
	}},
	{"a button without a seal", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(t, alice, withActionValue(strings.Split(w.approveButton().Value, ".")[0]),
			"this button is invalid")
	}},
	{"a button with a seal of another button", func(t *testing.T, w *clickFixture) {
		_, seal, _ := strings.Cut(w.message.Buttons(t)["deny"][0].Value, ".")
		body, _, _ := strings.Cut(w.approveButton().Value, ".")
		w.requireApprovalRejected(t, alice, withActionValue(body+"."+seal), "this button is invalid")
	}},
	{"a deny button made into an approval", func(t *testing.T, w *clickFixture) {
		body, seal, _ := strings.Cut(w.message.Buttons(t)["deny"][0].Value, ".")
		raw, err := base64.RawURLEncoding.DecodeString(body)
		require.NoError(t, err)
		forged := base64.RawURLEncoding.EncodeToString(bytes.Replace(raw, []byte(`"deny"`), []byte(`"approve"`), 1))
		w.requireApprovalRejected(t, alice, withActionValue(forged+"."+seal), "this button is invalid")
	}},
	{"a button of another installation", func(t *testing.T, w *clickFixture) {
		w.requireApprovalRejected(
			t,
			alice,
			withActionValue(
				base64.RawURLEncoding.EncodeToString(
					[]byte(`{"k":"approve","i":"`+w.request.IncidentID+`"}`),
				)+".AAAAAAAAAAAAAAAAAAAAAA",
			),
			"this button is invalid",
		)
	}},
	{"an approval of the question of another incident", func(t *testing.T, w *clickFixture) {
		// Its genuine button answers its own question and never this one.
		w.requireApprovalRejected(t, alice, withActionValue(w.expiredButton.Value), "the approval request is closed")
	}},
	{"two buttons in one click", func(t *testing.T, w *clickFixture) {
		w.requireStatus(t, w.signPayload(w.approvePayload(alice, func(p map[string]any) {
			a := p["actions"].([]any)
			p["actions"] = append(a, a[0])
		})), http.StatusOK)
	}},
	{"a form that nobody opened", func(t *testing.T, w *clickFixture) {
		form := slack.OpenedView{Payload: json.RawMessage(`{"private_metadata":"` + w.approveButton().Value +
			`x","callback_id":"stanch"}`)}
		code, answer := w.signPayload(slack.ViewSubmission(alice, form, "because")).Send(t, w.interactionURL())
		require.Equal(t, http.StatusOK, code)
		require.Contains(t, answer, "this button is invalid")
	}},
	{"breaking the glass without the right", func(t *testing.T, w *clickFixture) {
		form := slack.OpenedView{Payload: json.RawMessage(`{"private_metadata":"` +
			w.message.Buttons(t)["break-glass"][0].Value + `"}`)}
		_, answer := w.signPayload(slack.ViewSubmission(alice, form, "because")).Send(t, w.interactionURL())
		require.Contains(t, answer, "is not allowed to use break-glass")
	}},
	{"taking over without the right", func(t *testing.T, w *clickFixture) {
		w.requireActionRejected(t, dora, "assign", "is not allowed to change containments")
	}},
	{"someone who left the user group a second ago", func(t *testing.T, w *clickFixture) {
		w.fakeSlack.SetGroup("S0ONCALL")
		w.requireApprovalRejected(t, carol, nil, "is not allowed to vote on this")
	}},
	{"someone who was taken off the list a second ago", func(t *testing.T, w *clickFixture) {
		file := filepath.Join(w.ConfigDir, "stanch.yaml")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, bytes.Replace(text,
			[]byte("  - { name: alice, slack: U0ALICE, groups: [responders] }\n"), nil, 1), 0o600))
		w.requireApprovalRejected(t, alice, nil, "not in Stanch's configuration")
		require.NoError(t, os.WriteFile(file, append(text, "\nphase: [oops"...), 0o600))
		w.requireApprovalRejected(t, bob, nil, "read the approvers")
		require.NoError(t, os.WriteFile(file, append(text, '\n'), 0o600))
	}},
	{"while Slack does not say who someone is", func(t *testing.T, w *clickFixture) {
		w.fakeSlack.SetUnavailable(true)
		defer w.fakeSlack.SetUnavailable(false)
		w.requireStatus(t, w.signPayload(w.approvePayload(alice, nil)), http.StatusServiceUnavailable)
	}},
	{"ten thousand clicks of someone without the right", func(t *testing.T, w *clickFixture) {
		var all sync.WaitGroup
		for sender := range 20 {
			all.Go(func() {
				for n := range 500 {
					r := slack.SignRequest(w.approvePayload(dora, nil), time.Now().Add(-time.Duration((sender*500+n)%200)*time.Second),
						slack.SigningSecret)
					if code, _ := r.Send(t, w.interactionURL()); code != http.StatusOK && code != http.StatusConflict {
						t.Errorf("answered with %d", code)
						return
					}
				}
			})
		}
		all.Wait()
		q := w.requireOpenRequest(t, w.request.IncidentID)
		require.LessOrEqual(t, len(q.Votes), 10, "the history is bounded")
		require.Less(t, len(w.fakeSlack.EphemeralMessages(dora)), 100, "and so are the answers")
	}},
}

// clickFixture is one open question that wants two people.
type clickFixture struct {
	*slackHarness
	t             *testing.T
	request       playbook.ApprovalRequest
	message       slack.Message
	expiredButton slack.Button // of a question that is closed
	signCount     int
}

func (w *clickFixture) approveButton() slack.Button {
	return w.message.Buttons(w.t)["approve"][0]
}

func (w *clickFixture) approvePayload(member string, change func(map[string]any)) []byte {
	return slack.ButtonPayload(member, w.message, w.approveButton(), change)
}

// signPayload signs a payload; each has a time of its own, so that none is taken for a repetition.
func (w *clickFixture) signPayload(payload []byte) slack.SignedRequest {
	w.signCount++
	return slack.SignRequest(payload, time.Now().Add(-time.Duration(w.signCount%200)*time.Second), slack.SigningSecret)
}

func (w *clickFixture) requireStatus(t *testing.T, r slack.SignedRequest, code int) {
	t.Helper()
	got, body := r.Send(t, w.interactionURL())
	if code == http.StatusRequestEntityTooLarge && got == 0 {
		return // the connection was closed on it
	}
	require.Equal(t, code, got, body)
}

// requireApprovalRejected clicks and wants the person to be told why it does not count.
func (w *clickFixture) requireApprovalRejected(t *testing.T, member string, change func(map[string]any), why string) {
	t.Helper()
	before := len(w.fakeSlack.EphemeralMessages(member))
	w.requireStatus(t, w.signPayload(w.approvePayload(member, change)), http.StatusOK)
	require.Eventually(t, func() bool {
		told := w.fakeSlack.EphemeralMessages(member)
		return len(told) > before && strings.Contains(string(told[len(told)-1].Blocks), why)
	}, 10*time.Second, 20*time.Millisecond, "%s is told %q: %v", member, why, w.fakeSlack.EphemeralMessages(member))
}

func (w *clickFixture) requireActionRejected(t *testing.T, member, kind, why string) {
	t.Helper()
	w.requireStatus(t, w.signPayload(slack.ButtonPayload(member, w.message, w.message.Buttons(t)[kind][0], nil)),
		http.StatusOK)
	w.waitForEphemeralMessage(t, member, why)
}

func withActionValue(v string) func(map[string]any) {
	return func(p map[string]any) { p["actions"].([]any)[0].(map[string]any)["value"] = v }
}

func TestUnauthorizedClicksAreRejected(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(2, "20m"))
	// An earlier question, which was answered: its buttons are genuine and spent.
	_, earlier, before := c.attackAndWaitForRequest(t)
	_, _ = c.pressButton(t, bob, before, "deny")
	require.Eventually(t, func() bool { return len(c.fakeSlack.OpenedViews()) == 1 }, 10*time.Second, 20*time.Millisecond)
	_, _ = slack.SignRequest(slack.ViewSubmission(bob, c.fakeSlack.OpenedViews()[0], "no"), time.Now(),
		slack.SigningSecret).Send(t, c.interactionURL())
	require.Eventually(t, func() bool { _, ok := c.findOpenRequest(t, earlier.IncidentID); return !ok }, 10*time.Second,
		50*time.Millisecond)

	box, q, m := c.attackAndWaitForRequest(t)
	w := &clickFixture{slackHarness: c, t: t, request: q, message: m, expiredButton: before.Buttons(t)["approve"][0]}
	for _, attack := range unauthorizedClicks {
		t.Run(attack.name, func(t *testing.T) {
			attack.do(t, w)
			now := c.requireOpenRequest(t, q.IncidentID)
			require.Empty(t, now.ApprovedBy, "it counts")
			require.False(t, box.IsSilent(60*time.Millisecond), "it is contained")
		})
	}
	// Whoever was refused stands in the record, with the reason.
	now := c.requireOpenRequest(t, q.IncidentID)
	require.Contains(t, strings.Join(now.IgnoredVotes, "\n"), "dora: dora is not allowed to vote on this")
	for _, member := range []string{alice, bob} {
		w.requireStatus(t, w.signPayload(w.approvePayload(member, nil)), http.StatusOK)
	}
	in := c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	m = c.waitForMessage(t, in.ID, "held", func(m slack.Message) bool { return len(m.Buttons(t)["release"]) == 1 })
	w.message = m
	for _, kind := range []string{"release", "extend"} {
		w.requireActionRejected(t, dora, kind, "is not allowed to change containments")
		w.requireActionRejected(t, mallory, kind, "not in Stanch's configuration")
	}
	require.True(t, box.IsSilent(500*time.Millisecond), "it holds")
	in = c.WaitForIncident(t, box.ID, 5*time.Second, "held", isIsolated)
	require.Less(t, time.Until(in.Leases[0].ExpiresAt), 21*time.Minute, "it was not extended")
}
