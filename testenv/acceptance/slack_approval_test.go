package acceptance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/testenv/slack"
)

// Two people click at the same time, many times each: the result is one grant and one effect.
func TestConcurrentClicksGrantOnce(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(2, "10m"))
	box, q, m := c.attackAndWaitForRequest(t)
	var all sync.WaitGroup
	for n := range 10 {
		for _, member := range []string{alice, bob} {
			all.Go(func() {
				r := slack.SignRequest(slack.ButtonPayload(member, m, m.Buttons(t)["approve"][0], nil),
					time.Now().Add(-time.Duration(n)*time.Second), slack.SigningSecret)
				if code, body := r.Send(t, c.interactionURL()); code != http.StatusOK {
					t.Errorf("%s: %d %s", member, code, body)
				}
			})
		}
	}
	all.Wait()
	c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	require.Len(t, c.ActiveLocks(t), 1)
	require.Equal(t, map[string]int{"evidence": 1, "approval": 1, "effect": 1}, c.countManifestEntries(t, q.IncidentID))
}

// countManifestEntries counts the entries of an incident's manifest by kind, after it was verified.
func (c *slackHarness) countManifestEntries(t *testing.T, incident string) map[string]int {
	t.Helper()
	_, stderr, code := c.Run(t, "evidence", "verify", incident)
	require.Zero(t, code, stderr)
	stdout, stderr, code := c.Run(t, "evidence", "list", incident, "-o", "json")
	require.Zero(t, code, stderr)
	var entries []struct {
		Kind string `json:"kind"`
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &entries))
	kinds := map[string]int{}
	for _, e := range entries {
		kinds[e.Kind]++
	}
	return kinds
}

func TestClickAfterDeadlineIsRejected(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(1, "4s"))
	box, _, m := c.attackAndWaitForRequest(t)
	c.WaitForIncident(t, box.ID, 20*time.Second, "denied by silence", hasStepOutcome(playbooks.OutcomeDenied))
	code, _ := c.pressButton(t, alice, m, "approve")
	require.Equal(t, http.StatusOK, code)
	c.waitForEphemeralMessage(t, alice, "the approval request is closed")
	require.False(t, box.IsSilent(300*time.Millisecond), "nothing is contained")
}

// Without a decision a second group is mentioned, which can approve from then on and not before.
func TestApprovalRequestEscalates(t *testing.T) {
	plays := approvalPlaybook(1, "10m")
	plays["ask.yaml"] = strings.Replace(plays["ask.yaml"], "quorum: 1 }",
		"quorum: 1, escalate: { after: 8s, groups: [managers] } }", 1)
	c := newSlackHarness(t, plays)
	box, _, m := c.attackAndWaitForRequest(t)
	_, _ = c.pressButton(t, dora, m, "approve")
	c.waitForEphemeralMessage(t, dora, "is not allowed to vote on this")
	require.Eventually(t, func() bool {
		thread, err := json.Marshal(c.fakeSlack.ThreadMessages(m.TS))
		return err == nil && strings.Contains(string(thread), "there was no decision within 8s") &&
			strings.Contains(string(thread), dora)
	}, 30*time.Second, 100*time.Millisecond, "the second group is called")
	_, _ = c.pressButton(t, dora, m, "approve")
	c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
}

// A person cannot approve a containment that they triggered.
func TestTriggeringPersonCannotApprove(t *testing.T) {
	c := newSlackHarnessWith(t, approvalPlaybook(1, "10m"), "sources: [{ name: elsewhere, token_file: DIR/token }]\n",
		func(config string) string {
			return strings.Replace(config, "name: alice,", "name: alice, kubernetes: alice@example.com,", 1)
		}, map[string]string{"token": testSourceToken})
	box := c.NewContainer(t)
	box.StartAttack(t, "web-server")
	host, err := os.Hostname()
	require.NoError(t, err)
	raw, err := json.Marshal(sensors.Detection{
		Node: host,
		ID:   "exec-1", Rule: "exec-into-pod", Title: "someone went into a container", Severity: sensors.SeverityHigh,
		Confidence: 0.9, Objective: sensors.ObjectiveCryptoMining, Time: time.Now(),
		Event: sensors.Event{
			Kind: sensors.KindExec, Actor: "kubernetes:alice@example.com",
			Container: sensors.Container{ID: box.ID, Name: c.ContainerPrefix + "box"},
		},
	})
	require.NoError(t, err)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.listenAddress+"/v1/detections",
		bytes.NewReader(raw))
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+testSourceToken)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Less(t, resp.StatusCode, 300)
	in := c.WaitForIncident(t, box.ID, 20*time.Second, "a question", func(in playbooks.Incident) bool {
		_,
			ok := c.findOpenRequest(t, in.ID)
		return ok
	})
	m := c.waitForMessage(t, in.ID, "a question", func(m slack.Message) bool { return len(m.Buttons(t)["approve"]) > 0 })
	_, _ = c.pressButton(t, alice, m, "approve")
	c.waitForEphemeralMessage(t, alice, "someone else must decide")
	_, _ = c.pressButton(t, bob, m, "approve")
	c.WaitForIncident(t, box.ID, 20*time.Second, "bob's counts", hasStepOutcome(playbooks.OutcomeSucceeded))
}

// After a rotation of the signing key, leases under the old key are still verified, extended and released, and their
// evidence verifies.
func TestSigningKeyRotatesDuringLease(t *testing.T) {
	c := newSlackHarness(t, approvalPlaybook(1, "10m"))
	box, q, m := c.attackAndWaitForRequest(t)
	_, _ = c.pressButton(t, alice, m, "approve")
	before := c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	c.Stop()
	stdout, stderr, code := c.Run(t, "cert", "rotate")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, " replaces ")
	_, stderr, code = c.Run(t, "cert", "rotate", "--payload")
	require.Zero(t, code, stderr)
	require.True(t, box.IsSilent(200*time.Millisecond), "it holds while Stanch is down")
	c.StartAndWait(t)
	m = c.waitForMessage(t, q.IncidentID, "its buttons are of the new key", func(now slack.Message) bool {
		b := now.Buttons(t)["release"]
		return len(b) == 1 && b[0].Value != m.Buttons(t)["assign"][0].Value
	})
	c.WaitForIncident(t, box.ID, 30*time.Second, "still observed", func(in playbooks.Incident) bool {
		return isIsolated(in) && in.Leases[0].ExpiresAt.Equal(before.Leases[0].ExpiresAt)
	})
	_, stderr, code = c.Run(t, "extend", before.Leases[0].ID, "--for", "2h")
	require.Zero(t, code, stderr)
	c.WaitForIncident(t, box.ID, 20*time.Second, "extended", func(in playbooks.Incident) bool {
		return isIsolated(in) && time.Until(in.Leases[0].ExpiresAt) > 100*time.Minute
	})
	_, stderr, code = c.Run(t, "release", before.Leases[0].ID)
	require.Zero(t, code, stderr)
	c.WaitForIncident(t, box.ID, 30*time.Second, "undone", isUndone)
	require.True(t, box.WaitForTraffic(2*time.Second))
	require.Equal(t, map[string]int{"evidence": 1, "approval": 1, "effect": 2, "extend": 1, "release": 1, "undo": 1},
		c.countManifestEntries(t, q.IncidentID))
}

// Stanch is killed while an approval request is open: no request and no vote is lost, and nothing is granted twice.
func TestCrashDuringApprovalLosesNoVote(t *testing.T) {
	kills := 2
	if text := os.Getenv("STANCH_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		kills = n
	}
	c := newSlackHarness(t, approvalPlaybook(2, "30m"))
	answered := map[string]int{}
	for n := range kills {
		box, q, m := c.attackAndWaitForRequest(t)
		kill := func() { // at a random moment of the click: that is what is tried here
			died := make(chan struct{})
			time.AfterFunc(time.Duration(rand.IntN(120))*time.Millisecond, func() { c.Kill(); close(died) })
			<-died
		}
		first := make(chan int, 1)
		go func() {
			code, _ := c.pressButton(t, alice, m, "approve")
			first <- code
		}()
		kill()
		code := <-first
		answered[fmt.Sprintf("killed during the first answer, which was answered with %d", code)]++
		c.StartAndWait(t)
		open := c.requireOpenRequest(t, q.IncidentID)
		require.Equal(t, q.ID, open.ID, "the question is open as it was")
		require.Equal(t, q.PlansHash, open.PlansHash)
		if code == http.StatusOK { // what was acknowledged is not lost
			require.Eventually(t, func() bool { return len(c.requireOpenRequest(t, q.IncidentID).ApprovedBy) == 1 },
				60*time.Second, 50*time.Millisecond, "the acknowledged answer counts")
		} else {
			code, body := c.pressButton(t, alice, m, "approve")
			require.Equal(t, http.StatusOK, code, body)
		}
		go func() {
			code, _ := c.pressButton(t, bob, m, "approve")
			first <- code
		}()
		kill()
		code = <-first
		c.StartAndWait(t)
		if code != http.StatusOK {
			if _, still := c.findOpenRequest(t, q.IncidentID); still {
				_, _ = c.pressButton(t, bob, m, "approve")
			}
		}
		in := c.WaitForIncident(t, box.ID, 90*time.Second, "held", isIsolated)
		require.Len(t, in.Leases, 1)
		require.Len(t, c.ActiveLocks(t), 1)
		kinds := c.countManifestEntries(t, q.IncidentID)
		require.Equal(t, 1, kinds["approval"], "granted once: %v", kinds)
		require.Equal(t, 1, kinds["effect"], "contained once: %v", kinds)
		_, stderr, exit := c.Run(t, "release", in.Leases[0].ID)
		require.Zero(t, exit, stderr)
		c.WaitForIncident(t, box.ID, 60*time.Second, "undone", isUndone)
		require.Empty(t, c.ActiveLocks(t))
		t.Logf("round %d: held and undone", n+1)
	}
	t.Logf("%d rounds of two kills: %v", kills, answered)
}

// Secrets in command lines and environments reach neither Temporal's database nor logs, evidence or Slack.
func TestPlantedSecretsStayOnTheNode(t *testing.T) {
	secrets := map[string]string{
		"password": "pLaNtEd-PaSsWoRd-0001", "aws": "AKIAPLANTED000000001",
		"token": "ghp_PLANTED0000000000000000000000000001",
		"url":   "pLaNtEdUrLpAsS0001", "jwt": "eyJhbGciPLANTED1.eyJzdWIiOiPLANTED1.c2lnbmF0dXJl",
		"env": "pLaNtEd-EnV-vAlUe-0001",
	}
	c := newSlackHarness(t, approvalPlaybook(1, "10m"))
	box := c.NewContainer(t)
	t.Setenv("DATABASE_PASSWORD", secrets["env"])
	box.StartAttack(t, append(append([]string{}, "xmrig"), "--url", "stratum+tcp://wallet:"+secrets["url"]+
		"@pool.example:3333", "--donate-level", "1",
		"--password", secrets["password"], "AWS_ACCESS_KEY_ID="+secrets["aws"], "--auth="+secrets["token"],
		secrets["jwt"])...)
	in := c.WaitForIncident(t, box.ID, 30*time.Second, "an incident",
		func(in playbooks.Incident) bool { return in.ID != "" })
	m := c.waitForMessage(t, in.ID, "a question", func(m slack.Message) bool { return len(m.Buttons(t)["approve"]) > 0 })
	require.Contains(t, string(m.Blocks), "xmrig", "the command line is shown")
	_, _ = c.pressButton(t, alice, m, "approve")
	c.WaitForIncident(t, box.ID, 30*time.Second, "held", isIsolated)
	_, stderr, code := c.Run(t, "release", "--all")
	require.Zero(t, code, stderr)
	c.WaitForIncident(t, box.ID, 30*time.Second, "undone", isUndone)
	everything := map[string]string{"Slack": c.fakeSlack.AllReceivedText(), "the log": c.Output()}
	files := 0
	require.NoError(t, filepath.WalkDir(c.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		everything[path] = string(raw)
		files++
		return err
	}))
	require.Greater(t, files, 5)
	// What Temporal stores is encrypted: a search of its file alone would find nothing of anything. So what is in it is
	// searched as people read it, too, and a word that is no secret must be found.
	for _, command := range [][]string{
		{"incidents", in.ID, "-o", "json"},
		{"audit", in.ID, "-o", "json"},
		{"record", in.ID},
	} {
		stdout, stderr, code := c.Run(t, command...)
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "donate-level", "%s", command)
		everything["stanch "+command[0]] = stdout
	}
	require.Contains(t, everything["Slack"], "donate-level")
	require.Contains(t, strings.Join(sortedNames(everything), " "), "temporal")
	for name, secret := range secrets {
		for where, text := range everything {
			require.NotContains(t, text, secret, "the %s is in %s", name, where)
		}
	}
}

func sortedNames(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}
