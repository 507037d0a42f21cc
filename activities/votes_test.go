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

// ballot is a question about one plan, asked of the scope's approvers, two of whom must agree.
type ballot struct {
	t    *testing.T
	key  *signer.Signer
	set  *activities.Set
	in   activities.TallyInput
	mind activities.Approvers // the scope's
}

func (b *ballot) ApproversOf(namespace string, drill bool) activities.Approvers {
	switch {
	case drill:
		return activities.Approvers{Groups: []string{"drill"}, Quorum: 1, Timeout: time.Minute}
	case namespace == "shop":
		return b.mind
	}
	return activities.Approvers{Quorum: 1}
}

func newBallot(t *testing.T) *ballot {
	t.Helper()
	key := signer.New(t)
	b := &ballot{t: t, key: key, mind: activities.Approvers{
		Groups: []string{"oncall"}, Quorum: 2, Timeout: time.Hour, Escalate: &activities.Escalation{After: 10 * time.Minute, Groups: []string{"managers"}},
	}}
	b.set = activities.NewSet()
	b.set.Authority, b.set.Scopes, b.set.Evidence = key, b, &activities.EvidenceStore{Dir: t.TempDir(), Authority: key}
	target := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web", UID: "1"}
	plan := activities.Plan{Action: "pod.isolate", Target: target.ID(), Changes: []string{"isolate it"}}
	now := time.Now()
	b.in = activities.TallyInput{
		Incident: incident, Run: "playbook/1", Step: "ask#1", Plans: []activities.PlanResult{{Plan: plan, Hash: plan.Hash()}}, Targets: []playbooks.Target{target},
		Approvers: b.mind, Asked: now.Add(-20 * time.Minute), Deadline: now.Add(40 * time.Minute),
	}
	b.hash()
	return b
}

// hash binds the question to what it is now about.
func (b *ballot) hash() { b.in.Hash = activities.QuestionHash(b.in.Plans, b.in.Approvers) }

func (b *ballot) vote(person string, change func(*attestation.Vote), groups ...string) {
	v := attestation.Vote{IncidentID: b.in.Incident, WorkflowID: b.in.Run, Step: b.in.Step, PlanHash: b.in.Hash, Person: person, AuthenticatedBy: "a test", Approved: true, Groups: groups, DecidedAt: time.Now()}
	if change != nil {
		change(&v)
	}
	signed, err := b.key.Sign(attestation.PayloadTypeVote, v)
	require.NoError(b.t, err)
	b.in.Votes = append(b.in.Votes, signed)
}

func (b *ballot) count() activities.Tally {
	b.t.Helper()
	tally, err := b.set.CountVotes(b.t.Context(), b.in)
	require.NoError(b.t, err)
	return tally
}

func TestVotesAreCounted(t *testing.T) {
	for name, c := range map[string]struct {
		cast    func(b *ballot)
		granted bool
		denied  bool
		reason  string
	}{
		"two different people with the right": {func(b *ballot) { b.vote("ann", nil, "oncall"); b.vote("ben", nil, "oncall") }, true, false, "ann (a test), ben (a test)"},
		"one person twice is one":             {func(b *ballot) { b.vote("ann", nil, "oncall"); b.vote("ann", nil, "oncall") }, false, false, "1 of 2"},
		"one no denies": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("ben", func(v *attestation.Vote) { v.Approved, v.Reason = false, "a test" }, "oncall")
		}, false, true, "ben said no. a test"},
		"a no of somebody without the right": {func(b *ballot) { b.vote("eve", func(v *attestation.Vote) { v.Approved = false }) }, false, false, "0 of 2"},
		"a no of who asked for it": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("eve", func(v *attestation.Vote) { v.Approved, v.WithdrawsRequest, v.Reason = false, true, "a mistake" })
		}, false, true, "eve withdrew the request. a mistake"},
		"a yes of who asked for it": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("eve", func(v *attestation.Vote) { v.WithdrawsRequest = true })
		}, false, false, "1 of 2"},
		"a yes of somebody without the right":  {func(b *ballot) { b.vote("ann", nil, "oncall"); b.vote("eve", nil, "interns") }, false, false, "1 of 2"},
		"the second group, once it is asked":   {func(b *ballot) { b.vote("ann", nil, "oncall"); b.vote("mia", nil, "managers") }, true, false, "mia"},
		"the second group, before it is asked": {func(b *ballot) { b.in.Asked = time.Now(); b.vote("ann", nil, "oncall"); b.vote("mia", nil, "managers") }, false, false, "1 of 2"},
		"too late": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("ben", func(v *attestation.Vote) { v.DecidedAt = time.Now().Add(time.Hour) }, "oncall")
		}, false, false, "1 of 2"},
		"of another plan": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("ben", func(v *attestation.Vote) { v.PlanHash = "other" }, "oncall")
		}, false, false, "1 of 2"},
		"of another question": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("ben", func(v *attestation.Vote) { v.Step = "ask#2" }, "oncall")
		}, false, false, "1 of 2"},
		"that the gateway refused": {func(b *ballot) {
			b.vote("ann", nil, "oncall")
			b.vote("ben", func(v *attestation.Vote) { v.RejectionReason = "he triggered it" }, "oncall")
		}, false, false, "1 of 2"},
		"signed by somebody else": {func(b *ballot) {
			other := signer.New(b.t)
			b.vote("ann", nil, "oncall")
			genuine := b.key
			b.key = other
			b.vote("ben", nil, "oncall")
			b.key = genuine
		}, false, false, "1 of 2"},
		"broken glass": {func(b *ballot) { b.vote("gus", func(v *attestation.Vote) { v.BreakGlass, v.Reason = true, "fire" }) }, true, false, "gus broke the glass: fire"},
		"whom nobody may ask": {func(b *ballot) {
			b.in.Approvers = activities.Approvers{Users: []string{"eve"}, Quorum: 1, Timeout: time.Hour}
			b.hash()
			b.vote("eve", nil)
		}, false, true, "neither the scope"},
		"a smaller quorum than the scope's": {func(b *ballot) {
			b.in.Approvers.Quorum = 1
			b.hash()
			b.vote("ann", nil, "oncall")
		}, false, true, "neither the scope"},
		"a namespace of somebody else's scope": {func(b *ballot) {
			b.in.Targets[0].Namespace = "bank"
			b.vote("ann", nil, "oncall")
			b.vote("ben", nil, "oncall")
		}, false, true, "neither the scope"},
		"another target than the plan's": {func(b *ballot) {
			b.in.Targets[0].UID = "2"
			b.vote("ann", nil, "oncall")
			b.vote("ben", nil, "oncall")
		}, false, true, "is not the one that is named"},
		"a plan that is not the one that was hashed": {func(b *ballot) {
			b.in.Plans[0].Plan.Changes = []string{"isolate everything"}
			b.vote("ann", nil, "oncall")
			b.vote("ben", nil, "oncall")
		}, false, true, "not the plan that was hashed"},
		"another question than was answered": {func(b *ballot) { b.in.Approvers.Quorum = 1; b.vote("ann", nil, "oncall") }, false, true, "not the one that people answered"},
		"a known playbook's own approvers": {func(b *ballot) {
			b.ask(b.key, "boss")
			b.vote("boss", nil)
		}, true, false, "boss"},
		"an unknown playbook's": {func(b *ballot) {
			other := signer.New(b.t)
			b.ask(other, "boss")
			b.vote("boss", nil)
		}, false, true, "not one of this installation's"},
		"a known playbook, and somebody whom it does not ask": {func(b *ballot) {
			b.ask(b.key, "boss")
			b.in.Approvers.Users = []string{"eve"}
			b.hash()
			b.vote("eve", nil)
		}, false, true, "neither the scope"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBallot(t)
			c.cast(b)
			tally := b.count()
			require.Equal(t, c.granted, tally.Granted, tally.Reason)
			require.Equal(t, c.denied, tally.Denied, tally.Reason)
			require.Contains(t, tally.Reason, c.reason)
			require.Equal(t, c.granted, len(tally.Grants) == 1)
			lines, found, err := b.set.Evidence.Verify(incident, b.key.Keys(), "")
			require.NoError(t, err)
			require.Empty(t, found)
			require.Equal(t, c.granted, len(lines) == 1, "what is granted stands in the manifest, and nothing else")
		})
	}
}

// ask lets a playbook of somebody's ask one person.
func (b *ballot) ask(by *signer.Signer, person string) {
	b.in.Approvers = activities.Approvers{Users: []string{person}, Quorum: 1, Timeout: time.Hour}
	b.hash()
	signed, err := by.Sign(attestation.PayloadTypePlaybookAuthorization, attestation.PlaybookAuthorization{Playbook: "p", SourceHash: "h", ApproverHashes: []string{activities.AsksHash(b.in.Approvers)}, AuthorizedAt: time.Now()})
	require.NoError(b.t, err)
	b.in.Selection = &signed
}

// What a drill's key granted says so, and for which namespace.
func TestAGrantSaysForWhatItIs(t *testing.T) {
	b := newBallot(t)
	b.in.Approvers = b.ApproversOf("", true)
	b.hash()
	b.vote("drill", func(v *attestation.Vote) { v.DrillOnly = true }, "drill")
	tally := b.count()
	require.True(t, tally.Granted, tally.Reason)
	for _, signed := range tally.Grants {
		g, err := b.key.Keys().VerifyGrant(signed, attestation.OperationApply, time.Now())
		require.NoError(t, err)
		require.True(t, g.DrillOnly)
		require.Equal(t, "shop", g.Namespace)
		require.NoError(t, g.Permits(b.in.Plans[0].Hash, "pod:1"))
		require.Error(t, g.Permits(strings.Repeat("0", 64), "pod:1"))
	}
}

func TestVotesThatAreCountedAgainGiveNoSecondGrant(t *testing.T) {
	b := newBallot(t)
	at := time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	b.vote("ann", func(v *attestation.Vote) { v.DecidedAt = at.Add(-time.Hour) }, "oncall")
	b.vote("ben", func(v *attestation.Vote) { v.DecidedAt = at }, "oncall")
	var grants []attestation.Grant
	for range 2 {
		for _, signed := range b.count().Grants {
			var g attestation.Grant
			require.NoError(t, b.key.Keys().Verify(signed, attestation.PayloadTypeGrant, &g))
			grants = append(grants, g)
		}
	}
	require.Len(t, grants, 2)
	require.Equal(t, grants[0].Nonce, grants[1].Nonce, "it is the same grant, which is used once")
	require.True(t, grants[1].IssuedAt.Equal(at), "as old as the last vote, whenever it is counted")
	require.True(t, grants[1].ExpiresAt.Before(time.Now().Add(10*time.Minute)))
}
