package decisions_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/testenv/voters"
	"stanch/worker/config"
	"stanch/worker/decisions"
	"stanch/workflows/incident"
)

func TestDecisionOnRequestIsSignedAndSent(t *testing.T) {
	f := newDecisionFixture(t)
	before := time.Now()
	got, err := f.vote(f.person("alice"), decisions.VoteRequest{Approve: true, Reason: strings.Repeat("é", 600)})
	require.NoError(t, err)
	require.Equal(t, decisions.ResultRecorded, got.Result)
	require.Contains(t, got.Message, `the approval by alice for "isolate the pod" for 1h is recorded`)
	v := f.lastVote()
	require.WithinRange(t, v.DecidedAt, before, time.Now())
	require.Equal(t, 500, len([]rune(v.Reason)))
	v.DecidedAt, v.Reason = time.Time{}, ""
	require.Equal(t, attestation.Vote{
		IncidentID: voters.IncidentID, WorkflowID: "playbook/a/1", Step: "cut#1", PlanHash: f.open[0].PlansHash,
		Person: "alice", AuthenticatedBy: "a test", Approved: true, Groups: []string{"responders"},
	}, v)
	got, err = f.vote(f.person("bob"), decisions.VoteRequest{})
	require.NoError(t, err)
	require.Contains(t, got.Message, "the denial by bob")
	require.False(t, f.lastVote().Approved)
	require.False(t, f.lastVote().WithdrawsRequest)
}

func TestDecisionIsDurableBeforeItIsAcknowledged(t *testing.T) {
	f := newDecisionFixture(t)
	f.Persist = func() error {
		require.Len(t, f.signals, 1, "Temporal has the decision first")
		return errors.New("the disk is full")
	}
	got, err := f.triage(f.person("bob"), incident.TriageAssigned)
	require.ErrorContains(t, err, "the disk is full")
	require.Nil(t, got)
	f = newDecisionFixture(t)
	f.signalErr = errors.New("unreachable")
	f.Persist = func() error { return errors.New("nothing was sent that could be persisted") }
	_, err = f.triage(f.person("bob"), incident.TriageAssigned)
	require.ErrorIs(t, err, f.signalErr)
}

func TestPersonWaitsForResult(t *testing.T) {
	f := newDecisionFixture(t)
	f.countVotes = true
	got, err := f.vote(f.person("alice"), decisions.VoteRequest{Approve: true, WaitForResult: true})
	require.NoError(t, err)
	require.Equal(t, decisions.ResultCounted, got.Result)
	require.Equal(t, []string{"alice"}, got.ApprovedBy)
	got, err = f.vote(f.person("eve"), decisions.VoteRequest{Approve: true, WaitForResult: true})
	require.ErrorContains(t, err, "eve is not allowed", "a refused vote has no result to wait for")
	require.Nil(t, got)
	f.open = nil
	got, err = f.vote(f.person("bob"), decisions.VoteRequest{Approve: true})
	require.ErrorContains(t, err, "has no pending approval request")
	require.Nil(t, got)
}

func TestPersonWhoApprovedBeforeIsNotCountedTwice(t *testing.T) {
	f := newDecisionFixture(t)
	f.open[0].ApprovedBy = []string{"alice"}
	got, err := f.vote(f.person("alice"), decisions.VoteRequest{Approve: true})
	require.NoError(t, err)
	require.Equal(t, decisions.ResultAlreadyCounted, got.Result)
	require.Empty(t, f.signals)
	_, err = f.vote(f.person("alice"), decisions.VoteRequest{})
	require.NoError(t, err, "people may change their mind")
	_, err = f.vote(f.person("alice"), decisions.VoteRequest{Approve: true, BreakGlass: true, Reason: "alone"})
	require.NoError(t, err)
	require.True(t, f.lastVote().BreakGlass)
}

// A vote that does not count is signed and sent for the record, a few times.
func TestPersonWithoutPermissionIsRefusedAndRecorded(t *testing.T) {
	f := newDecisionFixture(t)
	for i := range 3 {
		got, err := f.vote(f.person("eve"), decisions.VoteRequest{Approve: true})
		require.ErrorContains(t, err, "eve is not allowed to vote on this; allowed: responders")
		require.Nil(t, got)
		require.Len(t, f.signals, min(i+1, 2))
	}
	require.Equal(t, "eve is not allowed to vote on this; allowed: responders", f.lastVote().RejectionReason)
}

func TestDecisionRules(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *decisionFixture, who *decisions.Principal, v *decisions.VoteRequest)
		reason string
	}{
		"expired": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.open[0].Deadline = time.Now().Add(-time.Minute)
		}, "the approval request expired at " + time.Now().UTC().Format("2006-")},
		"too many actors": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.ActorsTruncated = true
		}, "too many people or accounts triggered this"},
		"triggered it": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Actors = []string{"aws:x", "kubernetes:alice@example.com"}
		}, "alice triggered this (kubernetes:alice@example.com); someone else must decide"},
		"requested it": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Playbooks[0].RequestID, f.incident.Playbooks[0].RequestedBy = "r", "alice"
		}, "alice requested this; someone else must approve it"},
		"requested something": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Playbooks[0].RequestID, f.incident.Actors = "r", []string{"person:alice"}
		}, "alice requested this"},
		"a run that the incident does not know": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Playbooks, f.incident.Actors = nil, []string{"person:alice"}
		}, "alice requested this"},
		"another person requested it": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Playbooks[0].RequestID, f.incident.Playbooks[0].RequestedBy = "r", "bob"
			f.incident.Actors = []string{"person:alice"}
		}, ""},
		"requested something, not this": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Actors = []string{"person:alice"}
		}, ""},
		"withdraws the own request": {func(f *decisionFixture, _ *decisions.Principal, v *decisions.VoteRequest) {
			f.incident.Playbooks[0].RequestID, f.incident.Playbooks[0].RequestedBy, v.Approve = "r", "alice", false
			f.incident.ActorsTruncated = true
		}, ""},
		"a drill's key outside of a drill": {func(f *decisionFixture, who *decisions.Principal, _ *decisions.VoteRequest) {
			*who = f.drillKey()
		}, "a drill's key can only vote in drills"},
		"a drill's key in a drill": {func(f *decisionFixture, who *decisions.Principal, _ *decisions.VoteRequest) {
			*who = f.drillKey()
			f.incident.Drill = true
		}, ""},
		"a person in a drill": {func(f *decisionFixture, _ *decisions.Principal, _ *decisions.VoteRequest) {
			f.incident.Drill = true
		}, ""},
		"break-glass": {func(_ *decisionFixture, _ *decisions.Principal, v *decisions.VoteRequest) {
			v.BreakGlass, v.Reason = true, "alone"
		}, ""},
		"break-glass of no approver": {func(f *decisionFixture, who *decisions.Principal, v *decisions.VoteRequest) {
			*who = f.person("eve")
			who.BreakGlass, v.BreakGlass, v.Reason = true, true, "alone"
		}, ""},
		"break-glass without permission": {func(f *decisionFixture, who *decisions.Principal, v *decisions.VoteRequest) {
			*who = f.person("bob")
			v.BreakGlass, v.Reason = true, "alone"
		}, "bob is not allowed to use break-glass"},
		"break-glass without a reason": {func(_ *decisionFixture, _ *decisions.Principal, v *decisions.VoteRequest) {
			v.BreakGlass, v.Reason = true, "  "
		}, "missing reason; break-glass requires one"},
		"escalated": {func(f *decisionFixture, who *decisions.Principal, _ *decisions.VoteRequest) {
			*who = f.person("eve")
			f.open[0].Approvers.Escalate = &playbooks.Escalation{After: 50 * time.Second, Groups: []string{"interns"}}
			f.open[0].PlansHash = activities.ApprovalRequestHash(f.open[0].Plans, f.open[0].Approvers)
		}, ""},
		"not yet escalated": {func(f *decisionFixture, who *decisions.Principal, _ *decisions.VoteRequest) {
			*who = f.person("eve")
			f.open[0].Approvers.Escalate = &playbooks.Escalation{After: 5 * time.Minute, Groups: []string{"interns"}}
			f.open[0].PlansHash = activities.ApprovalRequestHash(f.open[0].Plans, f.open[0].Approvers)
		}, "eve is not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newDecisionFixture(t)
			who, v := f.person("alice"), decisions.VoteRequest{Approve: true}
			c.change(f, &who, &v)
			_, err := f.vote(who, v)
			if c.reason == "" {
				require.NoError(t, err)
				require.Empty(t, f.lastVote().RejectionReason)
				require.Equal(t, who.DrillName != "", f.lastVote().DrillOnly)
				require.Equal(t, !v.Approve, f.lastVote().WithdrawsRequest)
				return
			}
			require.ErrorContains(t, err, c.reason)
			require.Contains(t, f.lastVote().RejectionReason, c.reason)
		})
	}
}

// fixedGroups are groups of another system.
type fixedGroups struct{ err error }

func (g fixedGroups) GroupsOfPerson(context.Context, config.Person, []config.Group) ([]string, error) {
	return []string{"responders"}, g.err
}

func TestDecisionWhoseRulesAreUnknownIsAnError(t *testing.T) {
	f := newDecisionFixture(t)
	f.incidents = errors.New("timed out")
	_, err := f.vote(f.person("alice"), decisions.VoteRequest{Approve: true})
	require.ErrorContains(t, err, "timed out")
	require.Empty(t, f.signals, "it is unknown whether they may vote, so nothing is recorded")

	f = newDecisionFixture(t)
	f.GroupMembership = fixedGroups{err: errors.New("Slack is unreachable")}
	_, err = f.vote(f.person("eve"), decisions.VoteRequest{Approve: true})
	require.ErrorContains(t, err, "look up the members of the group: Slack is unreachable")
	f.GroupMembership = fixedGroups{}
	_, err = f.vote(f.person("eve"), decisions.VoteRequest{Approve: true})
	require.NoError(t, err)
	require.Equal(t, []string{"interns", "responders"}, f.lastVote().Groups)

	f = newDecisionFixture(t)
	f.signalErr = errors.New("unreachable")
	got, err := f.vote(f.person("alice"), decisions.VoteRequest{Approve: true})
	require.ErrorContains(t, err, "send the vote to playbook/a/1: unreachable")
	require.Nil(t, got)
	_, err = f.vote(f.person("eve"), decisions.VoteRequest{Approve: true})
	require.ErrorContains(t, err, "eve is not allowed", "both errors")
	require.ErrorContains(t, err, "unreachable")
}

func TestInvalidConfigurationLetsOnlyTheOperatorPauseAndRelease(t *testing.T) {
	f := newDecisionFixture(t)
	f.breakConfig()
	require.ErrorContains(t, f.Pause(t.Context(), f.person("alice"), ""), "read the approvers")
	require.ErrorContains(t, f.Pause(t.Context(), f.drillKey(), ""), "read the approvers")
	require.NoError(t, f.Pause(t.Context(), f.operator(), ""))
	require.NoError(t, f.Resume(t.Context(), f.operator()))
	for _, who := range []decisions.Principal{f.operator(), f.person("alice")} {
		_, err := f.vote(who, decisions.VoteRequest{Approve: true})
		require.ErrorContains(t, err, "read the approvers", "nobody votes while nobody's entitlement is known")
	}
	require.Empty(t, f.signals)
	_, err := f.triage(f.person("alice"), incident.TriageAssigned)
	require.ErrorContains(t, err, "read the approvers")
	require.ErrorContains(t, f.Resume(t.Context(), f.person("alice")), "read the approvers")
}

func TestPersonWithTooManyRequestsWaits(t *testing.T) {
	f := newDecisionFixture(t)
	for f.AllowRequest("alice") {
	}
	require.ErrorContains(t, f.Pause(t.Context(), f.person("alice"), ""), "too many requests")
	require.NoError(t, f.Pause(t.Context(), f.person("bob"), ""))
	_, err := f.vote(f.person("alice"), decisions.VoteRequest{})
	require.ErrorContains(t, err, "too many requests")
}

func TestPauseAndResumeStandInTheJournal(t *testing.T) {
	f := newDecisionFixture(t)
	require.NoError(t, f.Pause(t.Context(), f.person("bob"), strings.Repeat("é", 600)))
	state, err := f.killSwitch.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, "bob (a test)", state.ChangedBy)
	require.Equal(t, 500, len([]rune(state.Reason)))
	require.Contains(t, f.PausedBy(t.Context()), "by bob (a test)")
	require.NoError(t, f.Resume(t.Context(), f.person("alice")))
	require.Empty(t, f.PausedBy(t.Context()))
	entries := f.entries(activities.JournalManifest)
	require.Len(t, entries, 2)
	require.Equal(t, activities.EntryKindPause, entries[0].Kind)
	require.Equal(t, []string{"bob (a test)"}, entries[0].AuditRecord.People)
	require.Equal(t, activities.EntryKindResume, entries[1].Kind)
	f.Evidence = nil
	require.NoError(t, f.Pause(t.Context(), f.person("bob"), ""), "without a store, nothing is recorded")

	require.ErrorContains(t, f.Resume(t.Context(), f.drillKey()), "is not allowed to resume", "whatever its groups are")
	f.GroupMembership = fixedGroups{err: errors.New("Slack is unreachable")}
	require.ErrorContains(t, f.Resume(t.Context(), f.person("eve")), "is not allowed to resume", "her groups are unknown")
	f.KillSwitch = nil
	require.Empty(t, f.PausedBy(t.Context()))
	f.killSwitch.FilePath = t.TempDir()
	f.KillSwitch = f.killSwitch
	require.Equal(t, "the kill switch cannot be read", f.PausedBy(t.Context()))
	require.ErrorContains(t, f.Pause(t.Context(), f.person("bob"), ""), "read the kill switch")
	require.ErrorContains(t, f.Resume(t.Context(), f.operator()), "read the kill switch")
	require.Contains(t, decisions.PausedWarning("by bob"), "(by bob): containments approved now are refused")
}

func TestTriageIsSignedSentAndRecorded(t *testing.T) {
	for kind, c := range map[incident.TriageKind]struct{ denies bool }{
		incident.TriageAssigned: {true}, incident.TriageTruePositive: {false},
	} {
		f := newDecisionFixture(t)
		got, err := f.triage(f.person("bob"), kind)
		require.NoError(t, err)
		require.Equal(t, voters.IncidentID, got.ID)
		require.Equal(t, c.denies, len(got.DeniedRequests) == 1, kind)
		sent := f.signals[0].(incident.TriageDecision)
		require.Equal(t, kind, sent.Kind)
		require.Equal(t, "bob", sent.Person)
		require.Equal(t, "a test", sent.Reason)
		g, err := f.Authority.Keyring().VerifyGrant(sent.Grant, attestation.OperationTriage, time.Now())
		require.NoError(t, err)
		require.Equal(t, 24*time.Hour, g.ExpiresAt.Sub(g.IssuedAt).Round(time.Second))
		require.Equal(t, string(kind), g.Step)
		require.Equal(t, "shop", g.Namespace)
		require.Equal(t, []string{"bob (a test)"}, g.GrantedBy)
		entries := f.entries(voters.IncidentID)
		require.Len(t, entries, 1)
		require.Equal(t, activities.EntryKindTriage, entries[0].Kind)
	}
	f := newDecisionFixture(t)
	got, err := f.triage(f.person("bob"), incident.TriageAssigned)
	require.NoError(t, err)
	require.Equal(t, []string{"isolate the pod for 1h"}, got.DeniedRequests)
}

func TestTriageRules(t *testing.T) {
	refuse := func(f *decisionFixture, who decisions.Principal, kind incident.TriageKind, want string) {
		t.Helper()
		got, err := f.triage(who, kind)
		require.ErrorContains(t, err, want)
		require.Nil(t, got)
		require.Empty(t, f.signals)
	}
	f := newDecisionFixture(t)
	refuse(f, f.person("bob"), "mine", `invalid disposition "mine"`)
	refuse(f, f.person("eve"), incident.TriageAssigned,
		"eve is not allowed to change containments in shop; allowed: responders")
	refuse(f, f.drillKey(), incident.TriageAssigned, "a drill's key can only change leases of drills")
	f.incident.Drill = true
	drill := f.drillKey()
	drill.Groups = nil
	_, err := f.triage(drill, incident.TriageAssigned)
	require.NoError(t, err)
	f = newDecisionFixture(t)
	_, err = f.triage(f.operator(), incident.TriageAssigned)
	require.NoError(t, err)

	f = newDecisionFixture(t)
	f.incident.Workload.Namespace = ""
	refuse(f, f.person("bob"), incident.TriageAssigned,
		"outside of a namespace; allowed: nobody, because its scope has no approvers")
	f = newDecisionFixture(t)
	f.GroupMembership = fixedGroups{err: errors.New("Slack is unreachable")}
	refuse(f, f.person("eve"), incident.TriageAssigned, "Slack is unreachable")
	f = newDecisionFixture(t)
	f.incident.Status = "closed"
	refuse(f, f.person("bob"), incident.TriageAssigned, "is closed and cannot be changed")
	f.incidents = errors.New("timed out")
	refuse(f, f.person("bob"), incident.TriageAssigned, "timed out")
	f = newDecisionFixture(t)
	f.signalErr = errors.New("unreachable")
	refuse(f, f.person("bob"), incident.TriageAssigned, "send the triage decision to "+voters.IncidentID)
	require.Empty(t, f.entries(voters.IncidentID))

	for _, kind := range []incident.TriageKind{incident.TriageFalsePositive, incident.TriageTruePositive} {
		f = newDecisionFixture(t)
		f.leases = errors.New("timed out")
		_, err = f.triage(f.person("bob"), kind)
		require.Equal(t, kind == incident.TriageFalsePositive, err != nil, "only a false positive releases leases")
		require.Len(t, f.signals, 1)
	}
	f = newDecisionFixture(t)
	_, err = f.Triage(t.Context(), f.person("bob"), decisions.TriageRequest{
		IncidentID: voters.IncidentID, Kind: incident.TriageAssigned, Reason: strings.Repeat("é", 600),
	})
	require.NoError(t, err)
	require.Len(t, []rune(f.signals[0].(incident.TriageDecision).Reason), 500)
}

func TestApproversWhoMayVoteAreCounted(t *testing.T) {
	f := newDecisionFixture(t)
	nobody := func(config.Person) bool { return false }
	a := playbooks.Approvers{Groups: []string{"responders"}, Quorum: 2}
	require.Empty(t, f.TooFewApproversReason(f.cfg, a, nobody))
	a.Quorum = 3
	require.Equal(t, "only 2 of the 3 required approvers are allowed to vote, so it cannot be approved without "+
		"break-glass", f.TooFewApproversReason(f.cfg, a, nobody))
	alice := func(p config.Person) bool { return p.Name == "alice" }
	require.Equal(t, "only 1 of the 3 required approvers are allowed to vote, so it cannot be approved",
		f.TooFewApproversReason(f.cfg, a, alice), "who may not vote may not break the glass either")
	require.Contains(t, f.TooFewApproversReason(f.cfg, a, func(p config.Person) bool { return p.Name == "eve" }),
		"without break-glass")
	a.Quorum = 0
	require.Empty(t, f.TooFewApproversReason(f.cfg, a, alice), "one is enough")
	none := func(config.Person) bool { return true }
	require.Equal(t, "none of its approvers is allowed to vote, so it cannot be approved",
		f.TooFewApproversReason(f.cfg, a, none))
	require.Empty(t, f.TooFewApproversReason(f.cfg, playbooks.Approvers{Quorum: 1}, none),
		"a scope without approvers says so itself")

	f.GroupMembership = fixedGroups{}
	require.Empty(t, f.TooFewApproversReason(f.cfg, a, none), "Slack may know others")
	later := playbooks.Approvers{
		Groups: []string{"leads"}, Quorum: 1, Escalate: &playbooks.Escalation{Groups: []string{"responders"}},
	}
	require.Empty(t, f.TooFewApproversReason(f.cfg, later, none))
	later.Escalate.Groups = []string{"leads"}
	require.NotEmpty(t, f.TooFewApproversReason(f.cfg, later, none))
	later.Escalate = nil
	require.NotEmpty(t, f.TooFewApproversReason(f.cfg, later, none))
	f.cfg.Groups[0].SlackUserGroup = ""
	require.NotEmpty(t, f.TooFewApproversReason(f.cfg, a, none), "a group of the configuration only")
}
