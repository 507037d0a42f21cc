package slack_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/activities"
)

// Slack's size rule is undocumented: when it rejects the message, people still see the approval requests.
func TestRejectedMessageIsShortened(t *testing.T) {
	d := newFixture(t)
	fillWithHostileText(d)
	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(1, isolateChange, 3)}
	d.slack.SetMaxBlockChars(6500)
	m := d.currentMessage(t)
	require.Len(t, m.Buttons(t)["approve"], 1)
	require.Equal(t, 3, countMatching(literalTexts(t, m), isIsolateChange))
	require.Len(t, m.Buttons(t)["assign"], 1)
	require.Contains(t, string(m.Blocks), "Slack rejected parts of this message")
	require.Contains(t, d.log.String(), "msg_blocks_too_long")

	before := d.slack.CallCount("chat.update")
	d.currentMessage(t)
	require.Equal(t, before, d.slack.CallCount("chat.update"), "it is not tried again while nothing changes")

	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(2, isolateChange, 4)}
	m = d.currentMessage(t)
	require.Equal(t, 4, countMatching(literalTexts(t, m), isIsolateChange), "a change is shown the same way")
}

func TestApproversAreMentionedIfMessageIsRejected(t *testing.T) {
	d := newFixture(t)
	first := d.currentMessage(t)
	d.approvalRequests = []activities.ApprovalRequest{newApprovalRequest(1, isolateChange, 3)}
	d.slack.SetMaxBlockChars(800)
	require.ErrorContains(t, d.syncOnce(t), "msg_blocks_too_long", "it is tried again")
	thread := d.slack.ThreadMessages(first.TS)
	require.Len(t, thread, 1)
	require.Contains(t, string(thread[0].Blocks), "U0ONCALL")
	require.Contains(t, string(thread[0].Blocks), "stanch approve "+incidentID)
}
