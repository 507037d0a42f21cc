package activities_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/signer"
)

// grants returns the verified grants of a count.
func (b *voteFixture) grants(c activities.VoteCount) []attestation.Grant {
	b.t.Helper()
	var out []attestation.Grant
	for _, signed := range c.GrantsByPlanHash {
		var g attestation.Grant
		require.NoError(b.t, b.signer.Keyring().Verify(signed, attestation.PayloadTypeGrant, &g))
		out = append(out, g)
	}
	return out
}

func TestIgnoredVotesHaveAReason(t *testing.T) {
	b := newVoteFixture(t)
	b.input.Deadline = time.Now()
	genuine := b.signer
	b.signer = signer.New(t)
	b.castVote("ann", nil, "oncall")
	b.signer = genuine
	b.castVote("ben", func(v *attestation.Vote) { v.RejectionReason = "he triggered it" }, "oncall")
	b.castVote("cid", func(v *attestation.Vote) { v.PlanHash = "other" }, "oncall")
	b.castVote("dan", func(v *attestation.Vote) { v.DecidedAt = b.input.Deadline.Add(1) }, "oncall")
	b.castVote("eve", func(v *attestation.Vote) { v.DecidedAt = b.input.Deadline }, "interns")
	b.castVote(strings.Repeat("f", 200), func(v *attestation.Vote) { v.DecidedAt = b.input.Deadline }, "interns")
	for _, change := range []func(*attestation.Vote){
		func(v *attestation.Vote) { v.IncidentID = "INC-other" },
		func(v *attestation.Vote) { v.WorkflowID = "playbook/2" },
		func(v *attestation.Vote) { v.Step = "ask#2" },
	} {
		b.castVote("gus", change, "oncall")
	}
	c := b.countVotes()
	require.Equal(t, "0 of 2", c.Reason)
	require.Len(t, c.IgnoredVotes, 6, "a vote on another request is none on this one")
	require.Contains(t, c.IgnoredVotes[0], "someone: not verified")
	require.Equal(t, []string{
		"ben: he triggered it", "cid: voted on another plan", "dan: voted too late", "eve: is not allowed to vote on this",
	}, c.IgnoredVotes[1:5])
	require.Less(t, len(c.IgnoredVotes[5]), 130)
}

func TestVoteAtTheDeadlineCounts(t *testing.T) {
	b := newVoteFixture(t)
	b.castVote("ann", func(v *attestation.Vote) { v.DecidedAt = b.input.Deadline }, "oncall")
	require.Equal(t, []string{"ann"}, b.countVotes().ApprovedBy)
}

func TestDeniedRequestKeepsIgnoredVotes(t *testing.T) {
	b := newVoteFixture(t)
	b.castVote("eve", nil, "interns")
	b.castVote("ann", func(v *attestation.Vote) { v.Approved = false }, "oncall")
	c := b.countVotes()
	require.True(t, c.Denied)
	require.Equal(t, "ann denied it.", c.Reason)
	require.Len(t, c.IgnoredVotes, 1)
}

func TestRequestWithoutVotesIsNeverGranted(t *testing.T) {
	b := newVoteFixture(t)
	b.scopeApprovers.Quorum = 0
	b.input.Approvers = b.scopeApprovers
	b.updateHash()
	require.Equal(t, "0 of 1", b.countVotes().Reason)
	require.Empty(t, b.countVotes().GrantsByPlanHash)
}

func TestRequestWithoutTargetsOrApproversIsDenied(t *testing.T) {
	b := newVoteFixture(t)
	b.input.Targets = nil
	c := b.countVotes()
	require.True(t, c.Denied)
	require.Contains(t, c.Reason, "does not name the target")
	b = newVoteFixture(t)
	b.activities.ScopeApprovers = nil
	c = b.countVotes()
	require.True(t, c.Denied)
	require.Equal(t, "no approvers are configured", c.Reason)
}

func TestGrantIsBoundToRequestAndEndsAfterLastApproval(t *testing.T) {
	b := newVoteFixture(t)
	at := time.Now().Add(-time.Minute).Truncate(time.Second)
	b.castVote("ben", func(v *attestation.Vote) { v.DecidedAt = at }, "oncall")
	b.castVote("ann", func(v *attestation.Vote) { v.DecidedAt = at.Add(-time.Minute) }, "oncall")
	c := b.countVotes()
	require.Equal(t, "approved by ann (a test), ben (a test)", c.Reason)
	require.NotEmpty(t, c.ManifestEntryHash)
	g := b.grants(c)[0]
	require.Len(t, g.Nonce, 32)
	require.NotEqual(t, strings.Repeat("0", 32), g.Nonce)
	require.Equal(t, []string{"ann (a test)", "ben (a test)"}, g.GrantedBy)
	require.False(t, g.DrillOnly)
	require.False(t, g.BreakGlass)
	require.True(t, g.IssuedAt.Equal(at))
	require.Equal(t, 15*time.Minute, g.ExpiresAt.Sub(g.IssuedAt))

	// Another request with the same votes has another grant.
	other := newVoteFixture(t)
	other.input.RequestID = "ask#2"
	other.castVote("ben", nil, "oncall")
	other.castVote("ann", nil, "oncall")
	require.NotEqual(t, g.Nonce, other.grants(other.countVotes())[0].Nonce)
}

func TestGrantOfManyPeopleNamesThemInOrder(t *testing.T) {
	b := newVoteFixture(t)
	var want []string
	for _, name := range []string{"zoe", "kim", "ann", "tom", "eva", "ben", "mia", "jon"} {
		b.castVote(name, nil, "oncall")
		want = append(want, name+" (a test)")
	}
	slices.Sort(want)
	require.Equal(t, want, b.grants(b.countVotes())[0].GrantedBy)
}

func TestBreakGlassStandsInGrantAndManifest(t *testing.T) {
	b := newVoteFixture(t)
	b.castVote("ann", func(v *attestation.Vote) { v.BreakGlass, v.Reason = true, "nobody answers" })
	c := b.countVotes()
	require.True(t, c.Granted)
	require.Equal(t, "ann used break-glass: nobody answers. approved by ann (a test)", c.Reason)
	require.True(t, b.grants(c)[0].BreakGlass)
	require.False(t, b.grants(c)[0].DrillOnly)
	entries, problems, err := b.activities.Evidence.Verify(testIncidentID, b.signer.Keyring(), "")
	require.NoError(t, err)
	require.Empty(t, problems)
	require.Equal(t, activities.EntryKindBreakGlass, entries[0].Entry.Kind)
	require.Equal(t, "ann: nobody answers", entries[0].Entry.AuditRecord.Note)
}

// brokenAuthority cannot sign.
type brokenAuthority struct{ *signer.Signer }

func (brokenAuthority) Sign(attestation.PayloadType, any) (attestation.Envelope, error) {
	return attestation.Envelope{}, errors.New("the key is missing")
}

func TestUnsignedGrantsAndReceiptsAreErrors(t *testing.T) {
	b := newVoteFixture(t)
	b.castVote("ann", nil, "oncall")
	b.castVote("ben", nil, "oncall")
	b.activities.Authority = brokenAuthority{b.signer}
	c, err := b.activities.CountVotes(t.Context(), b.input)
	require.ErrorContains(t, err, "sign the grant: the key is missing")
	require.Empty(t, c)
	receipt, err := b.activities.RecordAttempt(t.Context(), activities.Request{})
	require.ErrorContains(t, err, "sign the receipt: the key is missing")
	require.Empty(t, receipt)
}

func TestReceiptOfAttemptSaysThatItFailed(t *testing.T) {
	b := newVoteFixture(t)
	signed, err := b.activities.RecordAttempt(t.Context(), activities.Request{
		Action: "process.snapshot", Target: b.input.Targets[0], IncidentRef: activities.IncidentRef{ID: testIncidentID},
	})
	require.NoError(t, err)
	var r attestation.EvidenceReceipt
	require.NoError(t, b.signer.Keyring().Verify(signed, attestation.PayloadTypeEvidenceReceipt, &r))
	require.Equal(t, "pod:1", r.TargetID)
	require.Equal(t, testIncidentID, r.IncidentID)
	require.False(t, r.Succeeded)
}

func TestRequestIDWithinIncident(t *testing.T) {
	for want, workflow := range map[string]string{
		"2/contain#1": "playbook/INC-1/2/cryptominer/x", "contain#1": "playbook/INC-2/2/cryptominer",
	} {
		q := activities.ApprovalRequest{ID: "contain#1", WorkflowID: workflow, IncidentID: "INC-1"}
		require.Equal(t, want, q.QualifiedID())
	}
	require.Equal(t, "contain#1", activities.ApprovalRequest{
		ID: "contain#1", WorkflowID: "playbook/INC-1/2", IncidentID: "INC-1",
	}.QualifiedID())
}

func TestDurationOfRequestIsThatOfAllPlans(t *testing.T) {
	for want, durations := range map[string][]time.Duration{
		" for 2h": {2 * time.Hour, 2 * time.Hour, 2 * time.Hour}, "": {2 * time.Hour, time.Hour}, " for 1m": {time.Minute},
	} {
		var q activities.ApprovalRequest
		for _, d := range durations {
			q.Plans = append(q.Plans, activities.PlanResult{Plan: activities.Plan{Duration: d}})
		}
		require.Equal(t, want, q.DurationText())
	}
	require.Empty(t, activities.ApprovalRequest{}.DurationText())
	for _, d := range []time.Duration{0, -time.Hour} {
		plans := []activities.PlanResult{{Plan: activities.Plan{Duration: d}}}
		require.Empty(t, activities.ApprovalRequest{Plans: plans}.DurationText())
	}
	shortest := []activities.PlanResult{{Plan: activities.Plan{Duration: 1}}}
	require.NotEmpty(t, activities.ApprovalRequest{Plans: shortest}.DurationText())
}

func TestChangesOfPlanAreListedForApprovers(t *testing.T) {
	before := activities.Plan{
		Changes: []string{"isolate a pod", "label it"}, Duration: time.Hour, Params: []byte(`{}`), TargetID: "pod:1",
	}
	require.Empty(t, before.Diff(before))
	after := activities.Plan{
		Changes: []string{"label it", "delete it"}, Duration: 2 * time.Hour, Params: []byte(`{"a":1}`), TargetID: "pod:2",
	}
	require.Equal(t, []string{
		"no longer planned: isolate a pod", "now: delete it", "now for 2h and not for 1h", "its parameters changed",
		"its target is pod:2, not pod:1",
	}, after.Diff(before))
}

func TestApproversMayVote(t *testing.T) {
	a := playbooks.Approvers{
		Users: []string{"ann"}, Groups: []string{"oncall"},
		Escalate: &playbooks.Escalation{After: time.Minute, Users: []string{"boss"}, Groups: []string{"managers"}},
	}
	require.True(t, a.CanApprove("ann", nil, 0))
	require.True(t, a.CanApprove("ben", []string{"interns", "oncall"}, 0))
	require.False(t, a.CanApprove("boss", []string{"managers"}, time.Minute-1))
	require.True(t, a.CanApprove("boss", nil, time.Minute))
	require.True(t, a.CanApprove("eve", []string{"managers"}, time.Minute))
	require.False(t, a.CanApprove("eve", []string{"interns"}, time.Hour))
	require.Equal(t, "oncall, ann; after 1m: also managers, boss", a.Describe())
	require.False(t, a.IsEmpty())
	require.False(t, playbooks.Approvers{Users: []string{"ann"}}.IsEmpty())
	require.False(t, playbooks.Approvers{Groups: []string{"oncall"}, Users: []string{"ann"}}.IsEmpty())
	require.True(t, playbooks.Approvers{Quorum: 1}.IsEmpty())
}
