package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/testenv/harness"
	"stanch/testenv/slack"
	"stanch/workflows/playbook"
)

// The members of the fake's workspace.
const (
	alice             = "U0ALICE"
	bob               = "U0BOB"
	carol             = "U0CAROL"  // in the user group only
	dora              = "U0DORA"   // of the second group
	grace             = "U0GRACE"  // may break the glass
	mallory           = "U0MALLO"  // nobody in the configuration
	guestMember       = "U0GUEST"  // configured, and a guest in Slack
	deactivatedMember = "U0GONE"   // configured, and deactivated
	externalMember    = "U0FOREIG" // configured, and of a connected organization
	botMember         = "U0ROBOT"  // configured, and a bot
)

const slackConfig = `phase: 3
library: {enabled: false}
playbooks: [DIR/playbooks]
budget: {per_hour: 1000}
scopes:
  - { name: all, namespaces: ["*"], phase: 3, approvers: { groups: [responders], quorum: 1, timeout: 10m } }
people:
  - { name: alice, slack: U0ALICE, groups: [responders] }
  - { name: bob, slack: U0BOB, groups: [responders] }
  - { name: carol, slack: U0CAROL }
  - { name: dora, slack: U0DORA, groups: [managers] }
  - { name: grace, slack: U0GRACE, break_glass: true }
  - { name: guest, slack: U0GUEST, groups: [responders] }
  - { name: gone, slack: U0GONE, groups: [responders] }
  - { name: foreign, slack: U0FOREIG, groups: [responders] }
  - { name: robot, slack: U0ROBOT, groups: [responders] }
groups:
  - { name: responders, slack: S0ONCALL }
slack:
  channel: C0INCIDENTS
  api_url: API
  bot_token_file: DIR/bot
  app_token_file: DIR/app
  signing_secret_file: DIR/secret
`

// approvalPlaybook is a playbook that isolates only after so many people agreed.
func approvalPlaybook(quorum int, timeout string) map[string]string {
	return map[string]string{"ask.yaml": fmt.Sprintf(`playbook: ask
match:
  objective: crypto-mining
  when: incident.workload.name startsWith "MARK"
steps:
  - evidence: process.snapshot
  - approval: isolate the miner
    ask: "Isolate ${incident.workload.name}?"
    from: { groups: [responders], quorum: %d }
    timeout: %s
    on_timeout: deny
    steps:
      - contain: pod.isolate
        for: 20m
`, quorum, timeout)}
}

// slackHarness is a Stanch with a Slack.
type slackHarness struct {
	*harness.Harness
	fakeSlack     *slack.FakeSlack
	listenAddress string
}

func newSlackHarness(t *testing.T, playbooks map[string]string) *slackHarness {
	t.Helper()
	return newSlackHarnessWith(t, playbooks, "", func(config string) string { return config }, nil)
}

// newSlackHarnessWith adds to the configuration, changes it, and writes further files.
func newSlackHarnessWith(t *testing.T, playbooks map[string]string, more string, change func(string) string,
	files map[string]string,
) *slackHarness {
	t.Helper()
	c := &slackHarness{fakeSlack: slack.Start(t), listenAddress: harness.FreePort(t)}
	for _, m := range []slack.Member{
		{ID: alice},
		{ID: bob},
		{ID: carol},
		{ID: dora},
		{ID: grace},
		{ID: mallory},
		{ID: guestMember, Guest: true},
		{ID: deactivatedMember, Deleted: true},
		{ID: externalMember, External: true, TeamID: "T0OTHER"},
		{ID: botMember, Bot: true},
	} {
		c.fakeSlack.AddMember(m)
	}
	c.fakeSlack.SetGroup("S0ONCALL", carol)
	c.Harness = harness.New(t, stanchBinary,
		harness.Options{
			Config:    change(strings.ReplaceAll(slackConfig, "API", c.fakeSlack.APIURL())) + more,
			Playbooks: playbooks, Args: []string{"--listen", c.listenAddress},
		})
	for name, secret := range map[string]string{
		"bot": slack.BotToken, "app": slack.AppToken,
		"secret": slack.SigningSecret,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(c.ConfigDir, name), []byte(secret), 0o600))
	}
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(c.ConfigDir, name), []byte(text), 0o600))
	}
	c.StartAndWait(t)
	return c
}

func (c *slackHarness) interactionURL() string {
	return "http://" + c.listenAddress + "/slack/interactions"
}

// waitForMessage waits until the incident's one message is as it should be.
func (c *slackHarness) waitForMessage(t *testing.T, incident, what string, ok func(slack.Message) bool) slack.Message {
	t.Helper()
	var last slack.Message
	require.Eventually(t, func() bool {
		for _, m := range c.fakeSlack.Messages() {
			if strings.Contains(m.Text, incident) {
				if last = m; ok(m) {
					return true
				}
			}
		}
		return false
	}, 30*time.Second, 50*time.Millisecond, "%s: %v", what, func() string { return string(last.Blocks) })
	return last
}

// attackAndWaitForRequest attacks in a new container and waits until Slack shows the question.
func (c *slackHarness) attackAndWaitForRequest(t *testing.T) (*harness.Container, playbook.ApprovalRequest,
	slack.Message,
) {
	t.Helper()
	box := c.NewContainer(t)
	box.StartAttack(t)
	in := c.WaitForIncident(t, box.ID, 30*time.Second, "an incident",
		func(in playbooks.Incident) bool { return in.ID != "" })
	m := c.waitForMessage(t, in.ID, "a question with buttons",
		func(m slack.Message) bool { return len(m.Buttons(t)["approve"]) > 0 })
	return box, c.requireOpenRequest(t, in.ID), m
}

func (c *slackHarness) requireOpenRequest(t *testing.T, incident string) playbook.ApprovalRequest {
	t.Helper()
	q, ok := c.findOpenRequest(t, incident)
	require.True(t, ok, "no open question of %s", incident)
	return q
}

func (c *slackHarness) findOpenRequest(t *testing.T, incident string) (playbook.ApprovalRequest, bool) {
	t.Helper()
	var all []playbook.ApprovalRequest
	require.NoError(t, c.Get("/v1/pending", &all))
	for _, q := range all {
		if q.IncidentID == incident {
			return q, true
		}
	}
	return playbook.ApprovalRequest{}, false
}

// pressButton presses a button as Slack would send it, signed.
func (c *slackHarness) pressButton(t *testing.T, member string, m slack.Message, kind string) (int, string) {
	t.Helper()
	buttons := m.Buttons(t)[kind]
	require.NotEmpty(t, buttons, "no button %s in %s", kind, m.Blocks)
	return slack.SignRequest(slack.ButtonPayload(member, m, buttons[0], nil), time.Now(), slack.SigningSecret).Send(t,
		c.interactionURL())
}

// waitForEphemeralMessage waits for what is said to one member alone.
func (c *slackHarness) waitForEphemeralMessage(t *testing.T, member, what string) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, w := range c.fakeSlack.EphemeralMessages(member) {
			if strings.Contains(string(w.Blocks), what) {
				return true
			}
		}
		return false
	}, 10*time.Second, 50*time.Millisecond, "%s is told %q: %v", member, what, c.fakeSlack.EphemeralMessages(member))
}

// renderMessagePage writes what Slack shows into the folder of STANCH_PICTURES, for someone to look at.
func (c *slackHarness) renderMessagePage(t *testing.T, name string, m slack.Message) {
	t.Helper()
	dir := os.Getenv("STANCH_PICTURES")
	if dir == "" {
		return
	}
	page, err := slack.RenderHTML(append([]slack.Message{m}, c.fakeSlack.ThreadMessages(m.TS)...)...)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name+".html"), []byte(page), 0o600))
}

func hasStepOutcome(outcome playbooks.Outcome) func(playbooks.Incident) bool {
	return func(in playbooks.Incident) bool {
		for _, run := range in.Playbooks {
			for _, s := range run.Steps {
				if s.Action == "approval" && s.Outcome == outcome {
					return true
				}
			}
		}
		return false
	}
}

// An incident that people decide in Slack: one message, updated in place, from the approval request to the end.
func TestIncidentIsDecidedInSlack(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(2, "10m"))
	box, q, m := c.attackAndWaitForRequest(t)
	require.False(t, box.IsSilent(200*time.Millisecond), "nothing is contained before people agree")
	require.Contains(t, string(m.Blocks), "0 of 2 approved")
	thread := c.fakeSlack.ThreadMessages(m.TS)
	require.NotEmpty(t, thread, "those who are asked are called in the thread")
	require.Contains(t, string(thread[0].Blocks), alice)
	require.Contains(t, string(thread[0].Blocks), "S0ONCALL")

	code, body := c.pressButton(t, alice, m, "approve")
	require.Equal(t, http.StatusOK, code, body)
	c.waitForEphemeralMessage(t, alice, "recorded")
	m = c.waitForMessage(t, q.IncidentID, "one of two",
		func(m slack.Message) bool { return strings.Contains(string(m.Blocks), "1 of 2 approved (alice)") })
	c.renderMessagePage(t, "slack-asked", m)
	// The same person again, by Socket Mode this time, is still one person.
	_, acked := c.fakeSlack.PushPayload(t, slack.ButtonPayload(alice, m, m.Buttons(t)["approve"][0], nil))
	require.True(t, acked)
	require.False(t, box.IsSilent(300*time.Millisecond))
	// Carol is in the user group in Slack.
	_, acked = c.fakeSlack.PushPayload(t, slack.ButtonPayload(carol, m, m.Buttons(t)["approve"][0], nil))
	require.True(t, acked)
	in := c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	require.True(t, box.IsSilent(300*time.Millisecond))
	m = c.waitForMessage(t, in.ID, "what holds, with its buttons", func(m slack.Message) bool {
		return len(m.Buttons(t)["release"]) == 1 && len(m.Buttons(t)["approve"]) == 0 && strings.Contains(string(m.Blocks),
			"in force, ")
	})
	require.Contains(t, string(m.Blocks), "approved by alice (Slack member U0ALICE), carol (Slack member U0CAROL)")

	c.renderMessagePage(t, "slack-held", m)
	code, body = c.pressButton(t, bob, m, "extend")
	require.Equal(t, http.StatusOK, code, body)
	c.WaitForIncident(t, box.ID, 20*time.Second, "extended", func(in playbooks.Incident) bool {
		return time.Until(in.Leases[0].ExpiresAt) > 50*time.Minute
	})
	code, body = c.pressButton(t, bob, m, "release")
	require.Equal(t, http.StatusOK, code, body)
	c.WaitForIncident(t, box.ID, 30*time.Second, "undone", isUndone)
	require.True(t, box.WaitForTraffic(2*time.Second))
	m = c.waitForMessage(t, in.ID, "undone", func(m slack.Message) bool {
		return len(m.Buttons(t)["release"]) == 0 && strings.Contains(string(m.Blocks), "ended, undone and verified")
	})
	require.Len(t, c.fakeSlack.Messages(), 1, "one message for one incident")
	c.renderMessagePage(t, "slack-undone", m)
}

// A denial requires a reason, which a modal asks for.
func TestDenialInSlackRequiresReason(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(2, "10m"))
	box, q, m := c.attackAndWaitForRequest(t)
	code, body := c.pressButton(t, bob, m, "deny")
	require.Equal(t, http.StatusOK, code, body)
	var form slack.OpenedView
	require.Eventually(t, func() bool {
		views := c.fakeSlack.OpenedViews()
		if len(views) > 0 {
			form = views[0]
		}
		return len(views) > 0
	}, 5*time.Second, 20*time.Millisecond)
	// Someone else submits a form of their own with the same content: it is refused in the form.
	_, answer := slack.SignRequest(slack.ViewSubmission(mallory, form, "because"), time.Now(), slack.SigningSecret).Send(t,
		c.interactionURL())
	require.Contains(t, answer, "not in Stanch's configuration")
	code, answer = slack.SignRequest(slack.ViewSubmission(bob, form, "it is the nightly benchmark <!channel> *bold*"),
		time.Now(), slack.SigningSecret).Send(t, c.interactionURL())
	require.Equal(t, http.StatusOK, code, answer)
	c.WaitForIncident(t, box.ID, 20*time.Second, "denied", hasStepOutcome(playbooks.OutcomeDenied))
	c.waitForMessage(t, q.IncidentID, "the reason is shown as text", func(m slack.Message) bool {
		return strings.Contains(string(m.Blocks), "bob denied it. it is the nightly benchmark")
	})
	require.NotContains(t, string(c.waitForMessage(t, q.IncidentID, "", func(slack.Message) bool { return true }).Blocks),
		`"mrkdwn"`)
	require.False(t, box.IsSilent(200*time.Millisecond), "nothing was contained")
}

// A person with the permission for break-glass gives a reason and approves alone; the manifest has a separate entry for
// it.
func TestBreakGlassInSlack(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(2, "10m"))
	box, q, m := c.attackAndWaitForRequest(t)
	_, _ = c.pressButton(t, grace, m, "break-glass")
	require.Eventually(t, func() bool { return len(c.fakeSlack.OpenedViews()) == 1 }, 5*time.Second, 20*time.Millisecond)
	form := c.fakeSlack.OpenedViews()[0]
	_, answer := slack.SignRequest(slack.ViewSubmission(alice, form, "no time"), time.Now(), slack.SigningSecret).Send(t,
		c.interactionURL())
	require.Contains(t, answer, "is not allowed to use break-glass")
	_, answer = slack.SignRequest(slack.ViewSubmission(grace, form, "  "), time.Now(), slack.SigningSecret).Send(t,
		c.interactionURL())
	require.Contains(t, answer, "missing reason")
	_, answer = slack.SignRequest(slack.ViewSubmission(grace, form, "exfiltration is under way"), time.Now(),
		slack.SigningSecret).Send(t, c.interactionURL())
	require.Empty(t, answer)
	c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	c.waitForMessage(t, q.IncidentID, "said to everybody", func(m slack.Message) bool {
		return strings.Contains(string(m.Blocks), "grace used break-glass: exfiltration is under way")
	})
	stdout, stderr, code := c.Run(t, "evidence", "list", q.IncidentID, "-o", "json")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, `"break-glass"`)
	_, _, code = c.Run(t, "evidence", "verify", q.IncidentID)
	require.Zero(t, code)
}

// A person resolves the incident as a false positive: its leases are released, and nothing new starts.
func TestFalsePositiveReleasesLeases(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(1, "10m"))
	box, q, m := c.attackAndWaitForRequest(t)
	_, _ = c.pressButton(t, alice, m, "approve")
	c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	_, _ = c.pressButton(t, bob, m, "false-positive")
	require.Eventually(t, func() bool { return len(c.fakeSlack.OpenedViews()) == 1 }, 5*time.Second, 20*time.Millisecond)
	code, answer := slack.SignRequest(slack.ViewSubmission(bob, c.fakeSlack.OpenedViews()[0], "our own load test"),
		time.Now(), slack.SigningSecret).Send(t, c.interactionURL())
	require.Equal(t, http.StatusOK, code, answer)
	in := c.WaitForIncident(t, box.ID, 30*time.Second, "undone", func(in playbooks.Incident) bool {
		return isUndone(in) &&
			in.Disposition == "false-positive"
	})
	require.Equal(t, "bob", in.DispositionBy)
	require.True(t, box.WaitForTraffic(2*time.Second))
	c.waitForMessage(t, q.IncidentID, "shown", func(m slack.Message) bool {
		return strings.Contains(string(m.Blocks), "resolved: false-positive by bob")
	})
}

// Slack is unavailable, slow, and loses responses, and Stanch is killed in between: one message exists, and a vote
// counts.
func TestSlackOutageAndCrashLeaveOneMessage(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(1, "10m"))
	c.fakeSlack.SetUnavailable(true)
	box := c.NewContainer(t)
	box.StartAttack(t)
	in := c.WaitForIncident(t, box.ID, 30*time.Second, "asked", func(in playbooks.Incident) bool { return in.ID != "" })
	require.Eventually(t, func() bool { _, ok := c.findOpenRequest(t, in.ID); return ok }, 20*time.Second,
		50*time.Millisecond)
	require.Eventually(t, func() bool { return c.fakeSlack.CallCount("chat.postMessage") > 0 }, 20*time.Second,
		50*time.Millisecond)
	c.Kill()
	c.fakeSlack.SetUnavailable(false)
	c.fakeSlack.RateLimitNext(2)
	dying := make(chan bool, 1)
	c.fakeSlack.AfterPost(func() { c.Kill(); dying <- true }) // it was written, and Stanch never hears of it
	c.StartProcess(t)
	select {
	case <-dying:
	case <-time.After(90 * time.Second):
		t.Fatal("the message was not written")
	}
	c.StartAndWait(t)
	m := c.waitForMessage(t, in.ID, "the question", func(m slack.Message) bool { return len(m.Buttons(t)["approve"]) > 0 })
	require.Eventually(t, func() bool { return len(c.fakeSlack.ThreadMessages(m.TS)) > 0 }, 90*time.Second,
		100*time.Millisecond, "the thread goes on")
	require.Len(t, c.fakeSlack.Messages(), 1, "it is written once")
	code, body := c.pressButton(t, alice, m, "approve")
	require.Equal(t, http.StatusOK, code, body)
	c.WaitForIncident(t, box.ID, 60*time.Second, "held", isIsolated)
	calls := 0
	for _, reply := range c.fakeSlack.ThreadMessages(m.TS) {
		if strings.Contains(string(reply.Blocks), "your approval is requested") {
			calls++
		}
	}
	require.Equal(t, 1, calls, "and its call too")
}
