package slack_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/slack-go/slack"
	"github.com/stretchr/testify/require"

	"stanch/activities"
	view "stanch/activities/slack"
	"stanch/playbooks"
	stand "stanch/testenv/slack"
)

const incidentID = "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV"

var asked = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

// desk is an incident, its questions, and a desk at the stand-in.
type desk struct {
	view.Desk
	slack    *stand.Slack
	incident playbooks.Incident
	pending  []activities.Pending
	state    activities.ThreadState
	log      bytes.Buffer
}

func (d *desk) Incident(context.Context, string) (playbooks.Incident, error) { return d.incident, nil }

func (d *desk) Pending(context.Context, string) ([]activities.Pending, error) { return d.pending, nil }

// Mention calls each group by a member id.
func (*desk) Mention(groups, _ []string) (members, userGroups []string) {
	for _, g := range groups {
		members = append(members, "U0"+strings.ToUpper(g))
	}
	return members, nil
}

// seal is a key of the test's own.
type seal string

func (s seal) MAC(purpose string, message []byte) []byte {
	h := hmac.New(sha256.New, []byte(s))
	h.Write([]byte(purpose))
	h.Write(message)
	return h.Sum(nil)
}

func open(t *testing.T) *desk {
	t.Helper()
	d := &desk{slack: stand.Start(t)}
	d.incident = playbooks.Incident{
		ID: incidentID, Status: "open", Opened: asked, Severity: "critical", Objective: "impact", Summary: "a miner", Scope: "shop", Phase: 2,
		Workload: playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Deployment", Name: "web"},
	}
	d.Desk = view.Desk{
		API: slack.New(stand.Token, slack.OptionAPIURL(d.slack.API())), Channel: stand.Channel, Reader: d, Sealer: seal("a key of the test"), Mentions: d, BreakGlass: true,
		Log: slog.New(slog.NewTextHandler(&d.log, nil)), Now: func() time.Time { return asked.Add(time.Minute) },
	}
	return d
}

// look looks once, as the thread does.
func (d *desk) look(t *testing.T) error {
	t.Helper()
	out, err := d.Look(t.Context(), activities.LookInput{Incident: incidentID, State: d.state})
	if err == nil {
		d.state = out.State
	}
	return err
}

// message is the incident's message as it is now.
func (d *desk) message(t *testing.T) stand.Message {
	t.Helper()
	require.NoError(t, d.look(t))
	require.Len(t, d.slack.Messages(), 1)
	return d.slack.Messages()[0]
}

// question asks for plans of one change each.
func question(n int, change func(i int) string, plans int) activities.Pending {
	q := activities.Pending{
		ID: fmt.Sprintf("contain#%d", n), Incident: incidentID, Title: "contain the pods", Hash: strings.Repeat(fmt.Sprint(n), 64),
		Approvers: activities.Approvers{Groups: []string{"oncall"}, Quorum: 2}, Asked: asked.Add(time.Duration(n) * time.Second), Deadline: asked.Add(time.Hour),
	}
	for i := range plans {
		q.Plans = append(q.Plans, activities.PlanResult{
			Plan:     activities.Plan{Action: "pod.isolate", Target: fmt.Sprintf("pod/%d", i), For: time.Hour, Changes: []string{change(i)}, Warnings: []string{"it is the only replica"}},
			Decision: activities.Decision{Reason: "it disrupts"},
		})
	}
	return q
}

func isolate(i int) string { return fmt.Sprintf("isolate pod shop/web-%d.", i) }

// texts are all literal texts of a message, in their order, without what a button asks back.
func texts(t *testing.T, m stand.Message) []string {
	t.Helper()
	var blocks any
	require.NoError(t, json.Unmarshal(m.Blocks, &blocks))
	var out []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, one := range v {
				walk(one)
			}
		case map[string]any:
			if s, is := v["text"].(string); is {
				out = append(out, s)
			}
			if v["type"] != "actions" {
				walk(v["elements"])
			}
		}
	}
	walk(blocks)
	return out
}

func counted(all []string, is func(string) bool) (n int) {
	for _, s := range all {
		if is(s) {
			n++
		}
	}
	return n
}

func isIsolate(s string) bool { return strings.HasPrefix(s, "isolate pod shop/web-") }

// confirm is what the dialog of the approval says.
func confirm(t *testing.T, m stand.Message) string {
	t.Helper()
	var blocks []struct {
		Elements []struct {
			ActionID string `json:"action_id"`
			Confirm  struct {
				Text struct {
					Text string `json:"text"`
				} `json:"text"`
			} `json:"confirm"`
		} `json:"elements"`
	}
	require.NoError(t, json.Unmarshal(m.Blocks, &blocks))
	for _, b := range blocks {
		for _, e := range b.Elements {
			if e.ActionID == "approve" {
				return e.Confirm.Text.Text
			}
		}
	}
	return ""
}

func TestWhatAYesPermitsIsShownWhole(t *testing.T) {
	d := open(t)
	d.pending = []activities.Pending{question(1, isolate, 2)}
	m := d.message(t)
	shown := texts(t, m)
	require.Equal(t, 2, counted(shown, isIsolate))
	require.Equal(t, "isolate pod shop/web-0.; isolate pod shop/web-1.", confirm(t, m), "few changes are in the dialog too")
	require.Equal(t, 1, counted(shown, func(s string) bool { return s == "it is the only replica" }), "a warning that both share is said once")
	require.Equal(t, 1, counted(shown, func(s string) bool { return s == "it disrupts" }))
	require.Equal(t, 1, counted(shown, func(s string) bool { return s == "after 1h, by itself" }))

	d.pending = []activities.Pending{question(2, isolate, 12)}
	m = d.message(t)
	require.Equal(t, 12, counted(texts(t, m), isIsolate), "what a person approves is what they read")
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.Equal(t, "Approve exactly the 12 changes listed above.", confirm(t, m), "a dialog that is too small does not show a part")
}

// What two ids have in common at their beginning must not make one look like the other.
func TestAChangeIsNotAbbreviated(t *testing.T) {
	d := open(t)
	ids := []string{strings.Repeat("a", 60) + "0001", strings.Repeat("a", 60) + "0002"}
	d.pending = []activities.Pending{question(1, func(i int) string { return "freeze " + ids[i] }, 2)}
	shown := texts(t, d.message(t))
	for _, id := range ids {
		require.Contains(t, shown, "freeze "+id)
	}
}

func TestAPlanWithoutWordsIsShownToo(t *testing.T) {
	d := open(t)
	d.pending = []activities.Pending{question(1, func(i int) string { return []string{"isolate pod shop/web-0.", ""}[i] }, 2)}
	d.pending[0].Plans[1].Plan.For = 2 * time.Hour
	shown := texts(t, d.message(t))
	require.Contains(t, shown, "pod.isolate of pod/1")
	require.Contains(t, shown, "pod.isolate of pod/0: after 1h, by itself", "what lasts unequally long is said of each")
	require.Contains(t, shown, "pod.isolate of pod/1: after 2h, by itself")
}

func TestNobodyApprovesMoreThanIsShown(t *testing.T) {
	for name, q := range map[string]activities.Pending{
		"too many plans":       question(1, isolate, 80),
		"one change, too long": question(1, func(int) string { return "isolate " + strings.Repeat("x", 12_000) }, 1),
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			d.pending = []activities.Pending{q}
			m := d.message(t)
			require.Empty(t, m.Buttons(t)["approve"])
			require.Empty(t, m.Buttons(t)["break-glass"])
			require.Len(t, m.Buttons(t)["deny"], 1, "to deny what one has not read does no harm")
			shown := texts(t, m)
			hidden := len(q.Plans) - counted(shown, isIsolate)
			require.Contains(t, shown, fmt.Sprintf("%d of %d changes: this is too much for a message. `stanch incidents %s` shows all of it, `stanch approve %s` answers.",
				hidden, len(q.Plans), incidentID, incidentID))
			require.Contains(t, shown, "contain the pods")
		})
	}
}

// crowded is an incident in which an attacker chose every text that they can choose.
func crowded(d *desk) {
	long := strings.Repeat(`<x/"&>`, 400)
	pod := "shop/" + strings.Repeat("p", 253)
	in := &d.incident
	in.Summary, in.Workload.Image, in.Workload.Node, in.Workload.ServiceAccount = long, long, long, long
	in.Workload.Name = strings.Repeat("w", 253)
	for i := range 30 {
		in.Reasons = append(in.Reasons, long)
		in.Detections = append(in.Detections, playbooks.DetectionSummary{Title: long, Description: long})
		in.Changes = append(in.Changes, playbooks.RecentChange{Description: long, ChangedAt: asked})
		in.BlastRadius.DangerousPermissions = append(in.BlastRadius.DangerousPermissions, long)
		in.Context.Missing = append(in.Context.Missing, long)
		in.Leases = append(in.Leases, playbooks.LeaseReport{ID: fmt.Sprintf("L-%d", i), Action: "pod.isolate", Target: pod, State: "held", Reason: long, ExpiresAt: asked})
	}
	run := playbooks.PlaybookRun{Playbook: "miner", Error: long}
	for range 30 {
		run.Steps = append(run.Steps, playbooks.StepReport{Action: "process.kill", Outcome: playbooks.OutcomeFailed, Reason: long})
	}
	in.Playbooks = []playbooks.PlaybookRun{run}
	for n := 1; n <= 5; n++ {
		q := question(n, func(i int) string { return fmt.Sprintf("label pod %s%d and add a NetworkPolicy", pod, i) }, 10)
		q.Title, q.Ask, q.Yes = long, long, []string{long}
		d.pending = append(d.pending, q)
	}
}

func TestAnAttackerCannotCrowdAQuestionOut(t *testing.T) {
	d := open(t)
	crowded(d)
	m := d.message(t)
	require.Empty(t, d.log.String(), "Slack takes it at once")
	require.Less(t, len(m.Blocks), 9500)
	shown := texts(t, m)
	hint := func(s string) bool { return strings.Contains(s, "this is too much for a message. `stanch") }
	require.Equal(t, 5, len(m.Buttons(t)["approve"])+counted(shown, hint), "each question can be approved or says where")
	require.Len(t, m.Buttons(t)["deny"], 5)
	require.Len(t, m.Buttons(t)["take-over"], 1)

	// One of them alone is small enough to be approved, whatever else there is.
	d.pending = []activities.Pending{question(1, isolate, 10)}
	m = d.message(t)
	require.Equal(t, 10, counted(texts(t, m), isIsolate))
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.NotEmpty(t, m.Buttons(t)["release"], "then what holds can be ended")
	require.Contains(t, texts(t, m), "and more is held; `stanch leases` lists all")
	require.Less(t, len(m.Blocks), 9500)

	d.pending, d.incident.Leases = nil, nil
	m = d.message(t)
	require.Less(t, len(m.Blocks), 9500)
	require.Contains(t, texts(t, m), "What Stanch did")
}

// Slack refuses empty texts, and much of an incident may be empty.
func TestWhatIsEmptyIsLeftOut(t *testing.T) {
	d := open(t)
	d.incident = playbooks.Incident{ID: incidentID, Status: "open", Leases: []playbooks.LeaseReport{{ID: "L-1", State: "held"}, {ID: "L-2", State: "ended"}}, Detections: []playbooks.DetectionSummary{{}}, Reasons: []string{""}}
	d.incident.Playbooks = []playbooks.PlaybookRun{{Steps: []playbooks.StepReport{{}}}}
	d.pending = []activities.Pending{{ID: "q", Hash: "h", Plans: []activities.PlanResult{{}}, Changed: []string{""}}}
	m := d.message(t)
	require.Empty(t, d.log.String(), "Slack takes it at once")
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.NoError(t, d.Say(t.Context(), activities.Brief{ID: incidentID}, "notify", ""))
	require.NotContains(t, d.slack.Everything(), `"text":""`+`}`)
}

func TestAQuestionIsNotLostAmongMany(t *testing.T) {
	d := open(t)
	for n := 1; n <= 9; n++ {
		d.pending = append(d.pending, question(n, isolate, 1))
	}
	m := d.message(t)
	require.Len(t, m.Buttons(t)["deny"], 5)
	require.Contains(t, texts(t, m), "and 4 more questions; `stanch incidents "+incidentID+"` shows them")
}

// A thread that begins again, knowing nothing of the one before it, goes on with the message that is there.
func TestAThreadThatBeginsAgainFindsItsMessage(t *testing.T) {
	d := open(t)
	before := d.message(t)
	out, err := d.Look(t.Context(), activities.LookInput{Incident: incidentID, Again: true})
	require.NoError(t, err)
	require.Equal(t, before.TS, out.State.TS)
	require.Len(t, d.slack.Messages(), 1)
}
