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

var askedAt = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

// messengerFixture is an incident, its approval requests, and a messenger connected to the fake Slack.
type messengerFixture struct {
	view.Messenger
	slack            *stand.FakeSlack
	incident         playbooks.Incident
	approvalRequests []activities.ApprovalRequest
	state            activities.MessageState
	log              bytes.Buffer
}

func (d *messengerFixture) Incident(context.Context, string) (playbooks.Incident, error) {
	return d.incident, nil
}

func (d *messengerFixture) PendingApprovals(context.Context, string) ([]activities.ApprovalRequest, error) {
	return d.approvalRequests, nil
}

// ResolveMentions returns one member id for each group.
func (*messengerFixture) ResolveMentions(groups, _ []string) (members, userGroups []string) {
	for _, g := range groups {
		members = append(members, "U0"+strings.ToUpper(g))
	}
	return members, nil
}

// testSigner signs with a key of the test.
type testSigner string

func (s testSigner) MAC(purpose string, message []byte) []byte {
	h := hmac.New(sha256.New, []byte(s))
	h.Write([]byte(purpose))
	h.Write(message)
	return h.Sum(nil)
}

func newFixture(t *testing.T) *messengerFixture {
	t.Helper()
	d := &messengerFixture{slack: stand.Start(t)}
	d.incident = playbooks.Incident{
		ID: incidentID, Status: "open", Opened: askedAt, Severity: "critical", Objective: "impact", Summary: "a miner",
		Scope: "shop", Phase: 2,
		Workload: playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Deployment", Name: "web"},
	}
	d.Messenger = view.Messenger{
		SlackClient: slack.New(stand.BotToken, slack.OptionAPIURL(d.slack.APIURL())), Channel: stand.ChannelID, Reader: d,
		Signer: testSigner("a key of the test"), MentionResolver: d, BreakGlassEnabled: true,
		Log: slog.New(slog.NewTextHandler(&d.log, nil)), Now: func() time.Time { return askedAt.Add(time.Minute) },
	}
	return d
}

// syncOnce syncs once, as the workflow does.
func (d *messengerFixture) syncOnce(t *testing.T) error {
	t.Helper()
	out, err := d.SyncMessage(t.Context(), activities.SyncMessageInput{IncidentID: incidentID, State: d.state})
	if err == nil {
		d.state = out.State
	}
	return err
}

// currentMessage returns the incident's current message.
func (d *messengerFixture) currentMessage(t *testing.T) stand.Message {
	t.Helper()
	require.NoError(t, d.syncOnce(t))
	require.Len(t, d.slack.Messages(), 1)
	return d.slack.Messages()[0]
}

// newApprovalRequest returns a request with plans of one change each.
func newApprovalRequest(n int, change func(i int) string, plans int) activities.ApprovalRequest {
	q := activities.ApprovalRequest{
		ID: fmt.Sprintf("contain#%d", n), IncidentID: incidentID, Title: "contain the pods",
		PlansHash: strings.Repeat(fmt.Sprint(n), 64),
		Approvers: playbooks.Approvers{Groups: []string{"oncall"}, Quorum: 2},
		AskedAt:   askedAt.Add(time.Duration(n) * time.Second), Deadline: askedAt.Add(time.Hour),
	}
	for i := range plans {
		q.Plans = append(q.Plans, activities.PlanResult{
			Plan: activities.Plan{
				Action: "pod.isolate", TargetID: fmt.Sprintf("pod/%d", i), Duration: time.Hour,
				Changes: []string{change(i)}, Warnings: []string{"it is the only replica"},
			},
			Decision: activities.GuardDecision{Reason: "it disrupts"},
		})
	}
	return q
}

func isolateChange(i int) string { return fmt.Sprintf("isolate pod shop/web-%d.", i) }

// literalTexts returns all literal texts of a message, in order, without confirmation dialogs.
func literalTexts(t *testing.T, m stand.Message) []string {
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

func countMatching(all []string, is func(string) bool) (n int) {
	for _, s := range all {
		if is(s) {
			n++
		}
	}
	return n
}

func isIsolateChange(s string) bool { return strings.HasPrefix(s, "isolate pod shop/web-") }

// confirmationDialog returns the text of the approval's confirmation dialog.
func confirmationDialog(t *testing.T, m stand.Message) string {
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

func TestApprovalRequestShowsAllChanges(t *testing.T) {
	d := newFixture(t)
	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(1, isolateChange, 2)}
	m := d.currentMessage(t)
	shown := literalTexts(t, m)
	require.Equal(t, 2, countMatching(shown, isIsolateChange))
	require.Equal(t, "isolate pod shop/web-0.; isolate pod shop/web-1.", confirmationDialog(t, m),
		"few changes are in the dialog too")
	require.Equal(t, 1, countMatching(shown, func(s string) bool { return s == "it is the only replica" }),
		"a warning that both share is said once")
	require.Equal(t, 1, countMatching(shown, func(s string) bool { return s == "it disrupts" }))
	require.Equal(t, 1, countMatching(shown, func(s string) bool { return s == "after 1h, automatically" }))

	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(2, isolateChange, 12)}
	m = d.currentMessage(t)
	require.Equal(t, 12, countMatching(literalTexts(t, m), isIsolateChange), "what a person approves is what they read")
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.Equal(t, "Approve exactly the 12 changes listed above.", confirmationDialog(t, m),
		"a dialog that is too small does not show a part")
}

// Two ids with a common prefix must not look the same.
func TestChangesAreNotAbbreviated(t *testing.T) {
	d := newFixture(t)
	ids := []string{strings.Repeat("a", 60) + "0001", strings.Repeat("a", 60) + "0002"}
	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(1,
		func(i int) string { return "freeze " + ids[i] }, 2)}
	shown := literalTexts(t, d.currentMessage(t))
	for _, id := range ids {
		require.Contains(t, shown, "freeze "+id)
	}
}

func TestPlanWithoutChangesIsShown(t *testing.T) {
	d := newFixture(t)
	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(1,
		func(i int) string { return []string{"isolate pod shop/web-0.", ""}[i] }, 2)}
	d.approvalRequests[0].Plans[1].Plan.Duration = 2 * time.Hour
	shown := literalTexts(t, d.currentMessage(t))
	require.Contains(t, shown, "pod.isolate on pod/1")
	require.Contains(t, shown, "pod.isolate on pod/0: after 1h, automatically",
		"what lasts unequally long is said of each")
	require.Contains(t, shown, "pod.isolate on pod/1: after 2h, automatically")
}

func TestTruncatedRequestHasNoApproveButton(t *testing.T) {
	for name, q := range map[string]activities.ApprovalRequest{
		"too many plans": newApprovalRequest(1, isolateChange, 80),
		"one change, too long": newApprovalRequest(1, func(int) string { return "isolate " + strings.Repeat("x", 12_000) },
			1),
	} {
		t.Run(name, func(t *testing.T) {
			d := newFixture(t)
			d.approvalRequests = []activities.ApprovalRequest{q}
			m := d.currentMessage(t)
			require.Empty(t, m.Buttons(t)["approve"])
			require.Empty(t, m.Buttons(t)["break-glass"])
			require.Len(t, m.Buttons(t)["deny"], 1, "to deny what one has not read does no harm")
			shown := literalTexts(t, m)
			hidden := len(q.Plans) - countMatching(shown, isIsolateChange)
			require.Contains(
				t,
				shown,
				fmt.Sprintf(
					"%d of %d changes, which are too long for a message. `stanch incidents %s` shows all of them; `stanch approve %s` approves them.",
					hidden,
					len(q.Plans),
					incidentID,
					incidentID,
				),
			)
			require.Contains(t, shown, "contain the pods")
		})
	}
}

// fillWithHostileText sets every text that an attacker can choose.
func fillWithHostileText(d *messengerFixture) {
	long := strings.Repeat(`<x/"&>`, 400)
	pod := "shop/" + strings.Repeat("p", 253)
	in := &d.incident
	in.Summary, in.Workload.Image, in.Workload.Node, in.Workload.ServiceAccount = long, long, long, long
	in.Workload.Name = strings.Repeat("w", 253)
	for i := range 30 {
		in.Reasons = append(in.Reasons, long)
		in.Detections = append(in.Detections, playbooks.DetectionSummary{Title: long, Description: long})
		in.Changes = append(in.Changes, playbooks.RecentChange{Description: long, ChangedAt: askedAt})
		in.BlastRadius.DangerousPermissions = append(in.BlastRadius.DangerousPermissions, long)
		in.Context.Missing = append(in.Context.Missing, long)
		in.Leases = append(in.Leases, playbooks.LeaseReport{
			ID: fmt.Sprintf("L-%d", i), Action: "pod.isolate", Target: pod,
			State: "held", Reason: long, ExpiresAt: askedAt,
		})
	}
	run := playbooks.PlaybookRun{Playbook: "miner", Error: long}
	for range 30 {
		run.Steps = append(run.Steps, playbooks.StepReport{
			Action: "process.kill", Outcome: playbooks.OutcomeFailed,
			Reason: long,
		})
	}
	in.Playbooks = []playbooks.PlaybookRun{run}
	for n := 1; n <= 5; n++ {
		q := newApprovalRequest(n, func(i int) string {
			return fmt.Sprintf("label pod %s%d and add a NetworkPolicy", pod,
				i)
		}, 10)
		q.Title, q.Question, q.ApprovedBy = long, long, []string{long}
		d.approvalRequests = append(d.approvalRequests, q)
	}
}

func TestApprovalRequestSurvivesLongIncident(t *testing.T) {
	d := newFixture(t)
	fillWithHostileText(d)
	m := d.currentMessage(t)
	require.Empty(t, d.log.String(), "Slack takes it at once")
	require.Less(t, len(m.Blocks), 9500)
	shown := literalTexts(t, m)
	hint := func(s string) bool { return strings.Contains(s, "which are too long for a message. `stanch") }
	require.Equal(t, 5, len(m.Buttons(t)["approve"])+countMatching(shown, hint),
		"each question can be approved or says where")
	require.Len(t, m.Buttons(t)["deny"], 5)
	require.Len(t, m.Buttons(t)["assign"], 1)

	// One of them alone is small enough to be approved, whatever else the message contains.
	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(1, isolateChange, 10)}
	m = d.currentMessage(t)
	require.Equal(t, 10, countMatching(literalTexts(t, m), isIsolateChange))
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.NotEmpty(t, m.Buttons(t)["release"], "then what holds can be ended")
	require.Contains(t, literalTexts(t, m), "and more leases; run `stanch leases`")
	require.Less(t, len(m.Blocks), 9500)

	d.approvalRequests, d.incident.Leases = nil, nil
	m = d.currentMessage(t)
	require.Less(t, len(m.Blocks), 9500)
	require.Contains(t, literalTexts(t, m), "What Stanch did")
}

// Slack rejects empty texts, and many fields of an incident may be empty.
func TestEmptyFieldsAreOmitted(t *testing.T) {
	d := newFixture(t)
	d.incident = playbooks.Incident{
		ID: incidentID, Status: "open",
		Leases:     []playbooks.LeaseReport{{ID: "L-1", State: "held"}, {ID: "L-2", State: "ended"}},
		Detections: []playbooks.DetectionSummary{{}}, Reasons: []string{""},
	}
	d.incident.Playbooks = []playbooks.PlaybookRun{{Steps: []playbooks.StepReport{{}}}}
	d.approvalRequests = []activities.ApprovalRequest{{
		ID: "q", PlansHash: "h", Plans: []activities.PlanResult{{}},
		ChangesSinceReplaced: []string{""},
	}}
	m := d.currentMessage(t)
	require.Empty(t, d.log.String(), "Slack takes it at once")
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.NoError(t, d.Post(t.Context(), activities.IncidentRef{ID: incidentID}, "notify", ""))
	require.NotContains(t, d.slack.AllReceivedText(), `"text":""`+`}`)
}

func TestFurtherApprovalRequestsAreCounted(t *testing.T) {
	d := newFixture(t)
	for n := 1; n <= 9; n++ {
		d.approvalRequests = append(d.approvalRequests, newApprovalRequest(n, isolateChange, 1))
	}
	m := d.currentMessage(t)
	require.Len(t, m.Buttons(t)["deny"], 5)
	require.Contains(t, literalTexts(t, m), "and 4 more approval requests; run `stanch incidents "+incidentID+"`")
}

// A new workflow without state continues with the existing message.
func TestRestartedWorkflowFindsItsMessage(t *testing.T) {
	d := newFixture(t)
	before := d.currentMessage(t)
	out, err := d.SyncMessage(t.Context(), activities.SyncMessageInput{IncidentID: incidentID, MayExistAlready: true})
	require.NoError(t, err)
	require.Equal(t, before.TS, out.State.MessageTS)
	require.Len(t, d.slack.Messages(), 1)
}
