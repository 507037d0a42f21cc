package activities_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/signer"
)

// voteFixture is a request about one plan, for the scope's approvers with a quorum of two.
type voteFixture struct {
	t              *testing.T
	signer         *signer.Signer
	activities     *activities.Activities
	input          activities.CountVotesInput
	scopeApprovers playbooks.Approvers // the scope's
}

func (b *voteFixture) ApproversForNamespace(namespace string, drill bool) playbooks.Approvers {
	switch {
	case drill:
		return playbooks.Approvers{Groups: []string{"drill"}, Quorum: 1, Timeout: time.Minute}
	case namespace == "shop":
		return b.scopeApprovers
	}
	return playbooks.Approvers{Quorum: 1}
}

func newVoteFixture(t *testing.T) *voteFixture {
	t.Helper()
	key := signer.New(t)
	b := &voteFixture{t: t, signer: key, scopeApprovers: playbooks.Approvers{
		Groups: []string{"oncall"}, Quorum: 2, Timeout: time.Hour, Escalate: &playbooks.Escalation{
			After:  10 * time.Minute,
			Groups: []string{"managers"},
		},
	}}
	b.activities = activities.NewActivities()
	b.activities.Authority, b.activities.ScopeApprovers, b.activities.Evidence = key, b,
		&activities.EvidenceStore{Dir: t.TempDir(), Authority: key}
	target := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web", UID: "1"}
	plan := activities.Plan{Action: "pod.isolate", TargetID: target.ID(), Changes: []string{"isolate it"}}
	now := time.Now()
	b.input = activities.CountVotesInput{
		IncidentID: testIncidentID, WorkflowID: "playbook/1", RequestID: "ask#1",
		Plans: []activities.PlanResult{{Plan: plan, PlanHash: plan.Hash()}}, Targets: []playbooks.Target{target},
		Approvers: b.scopeApprovers, AskedAt: now.Add(-20 * time.Minute), Deadline: now.Add(40 * time.Minute),
	}
	b.updateHash()
	return b
}

// updateHash recomputes the hash of the request.
func (b *voteFixture) updateHash() {
	b.input.PlansHash = activities.ApprovalRequestHash(b.input.Plans, b.input.Approvers)
}

func (b *voteFixture) castVote(person string, change func(*attestation.Vote), groups ...string) {
	v := attestation.Vote{
		IncidentID: b.input.IncidentID, WorkflowID: b.input.WorkflowID, Step: b.input.RequestID,
		PlanHash: b.input.PlansHash, Person: person, AuthenticatedBy: "a test", Approved: true, Groups: groups,
		DecidedAt: time.Now(),
	}
	if change != nil {
		change(&v)
	}
	signed, err := b.signer.Sign(attestation.PayloadTypeVote, v)
	require.NoError(b.t, err)
	b.input.Votes = append(b.input.Votes, signed)
}

func (b *voteFixture) countVotes() activities.VoteCount {
	b.t.Helper()
	tally, err := b.activities.CountVotes(b.t.Context(), b.input)
	require.NoError(b.t, err)
	return tally
}

func TestVotesAreCounted(t *testing.T) {
	for name, c := range map[string]struct {
		cast    func(b *voteFixture)
		granted bool
		denied  bool
		reason  string
	}{
		"two different people with the right": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ben",
				nil, "oncall")
		}, true, false, "ann (a test), ben (a test)"},
		"one person twice is one": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ann",
				nil, "oncall")
		}, false, false, "1 of 2"},
		"one no denies": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", func(v *attestation.Vote) { v.Approved, v.Reason = false, "a test" }, "oncall")
		}, false, true, "ben denied it. a test"},
		"a no of someone without the right": {func(b *voteFixture) {
			b.castVote("eve",
				func(v *attestation.Vote) { v.Approved = false })
		}, false, false, "0 of 2"},
		"a no of who asked for it": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("eve", func(v *attestation.Vote) { v.Approved, v.WithdrawsRequest, v.Reason = false, true, "a mistake" })
		}, false, true, "eve withdrew the request. a mistake"},
		"a yes of who asked for it": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("eve", func(v *attestation.Vote) { v.WithdrawsRequest = true })
		}, false, false, "1 of 2"},
		"a yes of someone without the right": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("eve", nil,
				"interns")
		}, false, false, "1 of 2"},
		"the second group, once it is asked": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("mia",
				nil, "managers")
		}, true, false, "mia"},
		"the second group, before it is asked": {func(b *voteFixture) {
			b.input.AskedAt = time.Now()
			b.castVote("ann", nil, "oncall")
			b.castVote("mia", nil, "managers")
		}, false, false, "1 of 2"},
		"too late": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", func(v *attestation.Vote) { v.DecidedAt = time.Now().Add(time.Hour) }, "oncall")
		}, false, false, "1 of 2"},
		"of another plan": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", func(v *attestation.Vote) { v.PlanHash = "other" }, "oncall")
		}, false, false, "1 of 2"},
		"of another question": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", func(v *attestation.Vote) { v.Step = "ask#2" }, "oncall")
		}, false, false, "1 of 2"},
		"that the gateway refused": {func(b *voteFixture) {
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", func(v *attestation.Vote) { v.RejectionReason = "he triggered it" }, "oncall")
		}, false, false, "1 of 2"},
		"signed by someone else": {func(b *voteFixture) {
			other := signer.New(b.t)
			b.castVote("ann", nil, "oncall")
			genuine := b.signer
			b.signer = other
			b.castVote("ben", nil, "oncall")
			b.signer = genuine
		}, false, false, "1 of 2"},
		"broken glass": {func(b *voteFixture) {
			b.castVote("gus", func(v *attestation.Vote) { v.BreakGlass, v.Reason = true, "fire" })
		}, true, false, "gus used break-glass: fire"},
		"whom nobody may ask": {func(b *voteFixture) {
			b.input.Approvers = playbooks.Approvers{Users: []string{"eve"}, Quorum: 1, Timeout: time.Hour}
			b.updateHash()
			b.castVote("eve", nil)
		}, false, true, "neither those of the scope"},
		"a smaller quorum than the scope's": {func(b *voteFixture) {
			b.input.Approvers.Quorum = 1
			b.updateHash()
			b.castVote("ann", nil, "oncall")
		}, false, true, "neither those of the scope"},
		"a namespace of someone else's scope": {func(b *voteFixture) {
			b.input.Targets[0].Namespace = "bank"
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", nil, "oncall")
		}, false, true, "neither those of the scope"},
		"another target than the plan's": {func(b *voteFixture) {
			b.input.Targets[0].UID = "2"
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", nil, "oncall")
		}, false, true, "differs from the named one"},
		"a plan that is not the one that was hashed": {func(b *voteFixture) {
			b.input.Plans[0].Plan.Changes = []string{"isolate everything"}
			b.castVote("ann", nil, "oncall")
			b.castVote("ben", nil, "oncall")
		}, false, true, "does not match its hash"},
		"another question than was answered": {func(b *voteFixture) {
			b.input.Approvers.Quorum = 1
			b.castVote("ann", nil,
				"oncall")
		}, false, true, "not the one that people voted on"},
		"a known playbook's own approvers": {func(b *voteFixture) {
			b.usePlaybookApprover(b.signer, "boss")
			b.castVote("boss", nil)
		}, true, false, "boss"},
		"an unknown playbook's": {func(b *voteFixture) {
			other := signer.New(b.t)
			b.usePlaybookApprover(other, "boss")
			b.castVote("boss", nil)
		}, false, true, "not part of this installation"},
		"a known playbook, and someone whom it does not ask": {func(b *voteFixture) {
			b.usePlaybookApprover(b.signer, "boss")
			b.input.Approvers.Users = []string{"eve"}
			b.updateHash()
			b.castVote("eve", nil)
		}, false, true, "neither those of the scope"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newVoteFixture(t)
			c.cast(b)
			tally := b.countVotes()
			require.Equal(t, c.granted, tally.Granted, tally.Reason)
			require.Equal(t, c.denied, tally.Denied, tally.Reason)
			require.Contains(t, tally.Reason, c.reason)
			require.Equal(t, c.granted, len(tally.GrantsByPlanHash) == 1)
			lines, found, err := b.activities.Evidence.Verify(testIncidentID, b.signer.Keyring(), "")
			require.NoError(t, err)
			require.Empty(t, found)
			require.Equal(t, c.granted, len(lines) == 1, "what is granted stands in the manifest, and nothing else")
		})
	}
}

// usePlaybookApprover makes the request one of a playbook that asks one person.
func (b *voteFixture) usePlaybookApprover(by *signer.Signer, person string) {
	b.input.Approvers = playbooks.Approvers{Users: []string{person}, Quorum: 1, Timeout: time.Hour}
	b.updateHash()
	signed, err := by.Sign(attestation.PayloadTypePlaybookAuthorization, attestation.PlaybookAuthorization{
		Playbook:   "p",
		SourceHash: "h", ApproverHashes: []string{activities.ApproversHash(b.input.Approvers)}, AuthorizedAt: time.Now(),
	})
	require.NoError(b.t, err)
	b.input.PlaybookAuthorization = &signed
}

// A grant that a drill's key signed names the drill and the namespace.
func TestDrillGrantNamesDrillAndNamespace(t *testing.T) {
	b := newVoteFixture(t)
	b.input.Approvers = b.ApproversForNamespace("", true)
	b.updateHash()
	b.castVote("drill", func(v *attestation.Vote) { v.DrillOnly = true }, "drill")
	tally := b.countVotes()
	require.True(t, tally.Granted, tally.Reason)
	for _, signed := range tally.GrantsByPlanHash {
		g, err := b.signer.Keyring().VerifyGrant(signed, attestation.OperationApply, time.Now())
		require.NoError(t, err)
		require.True(t, g.DrillOnly)
		require.Equal(t, "shop", g.Namespace)
		require.NoError(t, g.Permits(b.input.Plans[0].PlanHash, "pod:1"))
		require.Error(t, g.Permits(strings.Repeat("0", 64), "pod:1"))
	}
}

func TestRecountedVotesGiveTheSameGrant(t *testing.T) {
	b := newVoteFixture(t)
	at := time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	b.castVote("ann", func(v *attestation.Vote) { v.DecidedAt = at.Add(-time.Hour) }, "oncall")
	b.castVote("ben", func(v *attestation.Vote) { v.DecidedAt = at }, "oncall")
	var grants []attestation.Grant
	for range 2 {
		for _, signed := range b.countVotes().GrantsByPlanHash {
			var g attestation.Grant
			require.NoError(t, b.signer.Keyring().Verify(signed, attestation.PayloadTypeGrant, &g))
			grants = append(grants, g)
		}
	}
	require.Len(t, grants, 2)
	require.Equal(t, grants[0].Nonce, grants[1].Nonce, "it is the same grant, which is used once")
	require.True(t, grants[1].IssuedAt.Equal(at), "as old as the last vote, whenever it is counted")
	require.True(t, grants[1].ExpiresAt.Before(time.Now().Add(10*time.Minute)))
}
