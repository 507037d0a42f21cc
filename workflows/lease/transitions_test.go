package lease_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows/lease"
)

// lastReport returns the last report to a workflow.
func lastReport(t *testing.T, m *lease.Machine, to string) playbooks.LeaseReport {
	t.Helper()
	for i := len(m.PendingReports) - 1; i >= 0; i-- {
		if m.PendingReports[i].WorkflowID == to {
			return m.PendingReports[i].Lease
		}
	}
	require.Fail(t, "no report", "to %s in %v", to, m.PendingReports)
	return playbooks.LeaseReport{}
}

// newUndoingMachine returns a machine whose lease reached its end and whose first undo failed.
func newUndoingMachine(t *testing.T) *lease.Machine {
	t.Helper()
	m := newHeldMachine(t)
	require.Equal(t, lease.CommandUndo, m.NextCommand(atOffset(time.Hour)).Kind)
	m.OnUndone(activities.UndoResult{}, errors.New("timed out"), atOffset(time.Hour))
	m.PendingReports = nil
	return m
}

func TestTimingDefaults(t *testing.T) {
	require.Equal(t, lease.Timing{
		VerifyInterval: 30 * time.Second, UndoRetryInitial: 2 * time.Second, UndoRetryMax: time.Minute,
	}, newMachine().Timing)
}

func TestLeaseThatEndsBeforeNextVerificationWaitsForItsEnd(t *testing.T) {
	m := lease.NewMachine("LSE-1", lease.Input{
		Target: playbooks.Target{Kind: playbooks.TargetPod, UID: "u"}, Facet: playbooks.FacetNetwork,
		FirstHolder: newHolder("a", 10*time.Second),
	}, startTime)
	m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, startTime)
	require.Equal(t, lease.Command{Kind: lease.CommandWait, Until: atOffset(10 * time.Second)}, m.NextCommand(startTime))
}

func TestUndoRetriesDoubleUpToTheMaximum(t *testing.T) {
	m := newHeldMachine(t)
	now := atOffset(time.Hour)
	for i, want := range []time.Duration{2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60, 60, 60, 60} {
		require.Equal(t, lease.CommandUndo, m.NextCommand(now).Kind)
		m.OnUndone(activities.UndoResult{RefusalReason: "no grant"}, nil, now)
		require.Equal(t, now.Add(want*time.Second), m.NextCheckAt, i)
		require.Equal(t, map[bool]lease.State{true: lease.StateStuck, false: lease.StateUndoing}[i >= 4], m.State, i)
		require.Equal(t, "undo was refused: no grant", m.Reason)
		now = m.NextCheckAt
	}
	require.Len(t, reportedOutcomes(m, "incident/k-a"), 1, "the incident is told once that it is stuck")
	require.Equal(t, "stuck", lastReport(t, m, "incident/k-a").State)
}

func TestHolderCannotJoinLeaseThatIsEnding(t *testing.T) {
	stuck := newUndoingMachine(t)
	stuck.OnUndone(activities.UndoResult{Drift: &activities.Drift{Detail: "x"}}, nil, atOffset(time.Hour))
	ended := newUndoingMachine(t)
	ended.OnUndone(activities.UndoResult{Undone: true}, nil, atOffset(time.Hour))
	for state, m := range map[lease.State]*lease.Machine{
		lease.StateUndoing: newUndoingMachine(t), lease.StateStuck: stuck, lease.StateEnded: ended,
	} {
		require.Equal(t, state, m.State)
		m.Join(newHolder("b", 3*time.Hour), atOffset(time.Hour), combineEqualParams)
		r := lastReport(t, m, "playbook/b")
		require.Equal(t, playbooks.OutcomeRefused, r.Outcome, state)
		require.Contains(t, r.Reason, "is ending; try again", state)
		require.Len(t, m.Holders, 1, state)
		require.Len(t, reportedOutcomes(m, "playbook/b"), 1, state)
	}
}

func TestHolderWithUncombinableParamsIsRefused(t *testing.T) {
	m := newHeldMachine(t)
	b := newHolder("b", 3*time.Hour)
	b.Params = json.RawMessage(`{"ingress":true}`)
	m.Join(b, startTime, combineEqualParams)
	r := lastReport(t, m, "playbook/b")
	require.Equal(t, playbooks.OutcomeRefused, r.Outcome)
	require.Contains(t, r.Reason, "cannot be combined with those in force: other parameters")
	require.Len(t, m.Holders, 1)
	require.JSONEq(t, `{}`, string(m.Params))
}

func TestRepeatedJoinChangesNothing(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("a", 5*time.Hour), atOffset(time.Minute), combineEqualParams)
	require.Equal(t, atOffset(time.Hour), m.LastExpiry())
	require.Empty(t, m.PendingReports)
}

// The marker on the contained object is written again only for a later end.
func TestHolderWithTheSameEndJoinsWithoutReapply(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", time.Hour), startTime, combineEqualParams)
	require.False(t, m.NeedsReapply)
	require.Equal(t, playbooks.OutcomeUnchanged, lastReport(t, m, "playbook/b").Outcome)
}

func TestReleaseOfEndedLeaseIsIgnored(t *testing.T) {
	m := newUndoingMachine(t)
	m.OnUndone(activities.UndoResult{Undone: true}, nil, atOffset(time.Hour))
	m.Release("", attestation.Envelope{KeyID: "late"}, atOffset(time.Hour))
	require.Nil(t, m.ReleaseGrant)
}

func TestReleaseRetriesFailedUndoAtOnce(t *testing.T) {
	stuck := newUndoingMachine(t)
	stuck.OnUndone(activities.UndoResult{Drift: &activities.Drift{Detail: "x"}}, nil, atOffset(time.Hour))
	for _, m := range []*lease.Machine{newUndoingMachine(t), stuck} {
		now := atOffset(time.Hour + time.Second)
		require.Equal(t, lease.CommandWait, m.NextCommand(now).Kind, m.State)
		m.Release("", attestation.Envelope{KeyID: "grant"}, now)
		require.Equal(t, lease.CommandUndo, m.NextCommand(now).Kind, m.State)
		require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt, "the end in force")
		require.False(t, m.NeedsReapply)
	}
}

// Only a holder whose end comes later has kept the marker at its place.
func TestReleaseOfShorterHolderKeepsExpiryMarker(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 10*time.Minute), startTime, combineEqualParams)
	m.Release("b", attestation.Envelope{}, atOffset(time.Minute))
	require.False(t, m.NeedsReapply)
	require.Equal(t, atOffset(time.Minute), m.Holders["b"].ExpiresAt)
	require.Equal(t, lease.CommandVerify, m.NextCommand(atOffset(time.Minute)).Kind)

	m.Release("", attestation.Envelope{}, atOffset(2*time.Minute))
	require.Equal(t, atOffset(time.Minute), m.Holders["b"].ExpiresAt, "an end in the past stays")
	require.False(t, m.NeedsReapply, "a lease that ends is undone and not applied again")
}

func TestReleaseOfLeaseThatIsBeingAppliedLeavesItsFirstApply(t *testing.T) {
	m := newMachine()
	m.Join(newHolder("b", 10*time.Minute), startTime, combineEqualParams)
	m.Release("a", attestation.Envelope{}, startTime)
	require.False(t, m.NeedsReapply)
	require.True(t, m.NextCheckAt.IsZero())
}

func TestExtendMovesOnlyItsHolderAndOnlyLater(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 10*time.Minute), startTime, combineEqualParams)
	m.Extend("b", atOffset(20*time.Minute), attestation.Envelope{KeyID: "grant"})
	require.Equal(t, atOffset(20*time.Minute), m.Holders["b"].ExpiresAt)
	require.Equal(t, atOffset(time.Hour), m.Holders["a"].ExpiresAt)
	require.False(t, m.NeedsReapply, "the last end stays")
	require.Nil(t, m.ExtensionGrant)

	m.Extend("a", atOffset(30*time.Minute), attestation.Envelope{})
	require.Equal(t, atOffset(time.Hour), m.Holders["a"].ExpiresAt, "an extension never shortens")
}

func TestExtendDuringFirstApplyCounts(t *testing.T) {
	m := newMachine()
	m.Extend("", atOffset(3*time.Hour), attestation.Envelope{KeyID: "grant"})
	require.Equal(t, atOffset(3*time.Hour), m.LastExpiry())
}

func TestLeaseThatIsEndingIsNotExtended(t *testing.T) {
	m := newUndoingMachine(t)
	m.Extend("", atOffset(3*time.Hour), attestation.Envelope{KeyID: "grant"})
	require.Equal(t, atOffset(time.Hour), m.LastExpiry())
	require.Nil(t, m.ExtensionGrant)
}

func TestDeniedReapplyKeepsWhatIsInForce(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 5*time.Hour), startTime, combineEqualParams)
	m.OnApplied(activities.ApplyResult{Decision: activities.GuardDecision{
		Verdict: activities.VerdictPropose, Guard: "phase", Reason: "phase 1",
	}}, m.ActivityRequest().ExpiresAt, atOffset(time.Minute))
	require.Equal(t, playbooks.OutcomeProposed, lastReport(t, m, "playbook/b").Outcome)
	require.Equal(t, "phase 1", lastReport(t, m, "playbook/b").Reason)
	require.NotNil(t, m.LeaseToken)
	require.Equal(t, atOffset(time.Hour), m.StampedUntil)
	require.True(t, m.Verified)
	require.Equal(t, atOffset(90*time.Second), m.NextCheckAt)
	require.Equal(t, lease.CommandWait, m.NextCommand(atOffset(time.Minute)).Kind)

	m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, atOffset(2*time.Minute))
	require.Empty(t, m.Guard, "the refusal is over")
	require.Empty(t, m.Reason)
}

func TestRefusedLeaseIsReportedOnce(t *testing.T) {
	m := newMachine()
	refusal := activities.GuardDecision{Verdict: activities.VerdictRefuse, Guard: "target"}
	m.OnApplied(activities.ApplyResult{Decision: refusal}, atOffset(time.Hour), startTime)
	require.Len(t, m.PendingReports, 2)
	require.Equal(t, "target", lastReport(t, m, "playbook/a").Guard)
	require.True(t, m.NextCheckAt.IsZero())
	require.Equal(t, atOffset(time.Hour), m.LastExpiry())
}

func TestAppliedTimeIsThatOfTheTarget(t *testing.T) {
	m := newMachine()
	m.OnApplied(appliedResult(), atOffset(time.Hour), atOffset(time.Second))
	require.Equal(t, atOffset(time.Second), m.AppliedAt, "the worker's clock, if the target has none")
	m = newMachine()
	r := appliedResult()
	r.Effect.AppliedAt = atOffset(-time.Second)
	m.OnApplied(r, atOffset(time.Hour), atOffset(time.Second))
	require.Equal(t, atOffset(-time.Second), m.AppliedAt)
}

func TestFailedReapplyIsReportedAndRetried(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 2*time.Hour), startTime, combineEqualParams)
	require.True(t, m.NeedsReapply)
	m.OnApplyFailed(errors.New("the API server is unavailable"), atOffset(time.Minute))
	require.Equal(t, lease.StateHeld, m.State)
	require.False(t, m.NeedsReapply)
	require.False(t, m.Verified)
	require.Equal(t, atOffset(62*time.Second), m.NextCheckAt)
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt, "the end in force is verified")
	require.Equal(t, "the API server is unavailable", lastReport(t, m, "incident/k-a").Reason)
}

func TestFailedFirstApplyHasReason(t *testing.T) {
	m := newMachine()
	m.OnApplyFailed(errors.New("the API server is unavailable"), startTime)
	require.Equal(t, "the API server is unavailable", lastReport(t, m, "incident/k-a").Reason)
	require.Len(t, m.PendingReports, 2)
}

func TestFailedVerificationMakesStateUnknown(t *testing.T) {
	m := newHeldMachine(t)
	m.OnVerified(activities.VerifyResult{}, errors.New("timed out"), atOffset(time.Minute))
	require.False(t, m.Verified)
	require.False(t, m.NeedsReapply)
	require.Equal(t, "its state is unknown: timed out", lastReport(t, m, "incident/k-a").Reason)
	require.Equal(t, atOffset(90*time.Second), m.NextCheckAt)
	m.PendingReports = nil
	m.OnVerified(activities.VerifyResult{}, errors.New("timed out"), atOffset(2*time.Minute))
	require.Empty(t, m.PendingReports, "the incident knows")
}

func TestMissingTargetIsReportedAndUndoneAtOnce(t *testing.T) {
	m := newHeldMachine(t)
	m.OnVerified(activities.VerifyResult{TargetGone: true, Detail: "the pod is gone"}, nil, atOffset(time.Minute))
	require.Len(t, m.PendingReports, 1)
	require.Equal(t, "the pod is gone", lastReport(t, m, "incident/k-a").Reason)
	require.Equal(t, 0, m.UndoAttempts)
	require.Equal(t, atOffset(time.Minute), m.NextCheckAt)
	require.False(t, m.NeedsReapply)
}

func TestUndoAtExpiryStartsCounting(t *testing.T) {
	require.Equal(t, 1, newUndoingMachine(t).UndoAttempts)
}

func TestRevertedLeaseIsContestedAfterThreeReapplies(t *testing.T) {
	m := newHeldMachine(t)
	for i, contested := range []bool{false, false, true, true} {
		now := atOffset(time.Duration(i+1) * 30 * time.Second)
		m.PendingReports = nil
		m.OnVerified(activities.VerifyResult{Detail: "the label is missing"}, nil, now)
		require.Equal(t, contested, m.Contested, i)
		require.False(t, m.Verified)
		reason := lastReport(t, m, "incident/k-a").Reason
		require.Contains(t, reason, "it was reverted by another writer: the label is missing")
		require.Equal(t, contested, len(reason) > 70, reason)
	}
	require.Contains(t, m.CurrentReport(startTime).Reason, "another writer keeps reverting it, 4 times so far: it was")
	m.OnApplyFailed(errors.New("timed out"), atOffset(3*time.Minute))
	m.PendingReports = nil
	m.OnVerified(activities.VerifyResult{Detail: "the label is missing"}, nil, atOffset(4*time.Minute))
	require.Len(t, m.PendingReports, 1, "a lease that must be applied again is reported, even if it was unverified before")
}

func TestReportsHaveWarningsOnceAndIncidentsOnce(t *testing.T) {
	m := newHeldMachine(t)
	m.Holders["a"].Plan.Warnings = []string{"others share its node", "no host network"}
	b := newHolder("b", 10*time.Minute)
	b.IncidentRef.GroupingKey, b.Plan.Warnings = "k-a", []string{"others share its node"}
	m.Join(b, startTime, combineEqualParams)
	require.Equal(t, []string{"others share its node", "no host network"}, lastReport(t, m, "playbook/b").Warnings)
	m.PendingReports = nil
	m.OnVerified(activities.VerifyResult{}, errors.New("timed out"), atOffset(time.Minute))
	require.Len(t, m.PendingReports, 1)
}

func TestHolderIsReportedToOnce(t *testing.T) {
	m := newHeldMachine(t)
	m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, atOffset(time.Minute))
	require.Len(t, m.PendingReports, 1, "only the incident")
}

func TestReleasedLeaseNamesPeopleAndReason(t *testing.T) {
	for want, g := range map[string]attestation.Grant{
		"released by ann, ben":           {GrantedBy: []string{"ann", "ben"}},
		"released by ann: a false alarm": {GrantedBy: []string{"ann"}, Reason: "a false alarm"},
		"":                               {Reason: "nobody"},
	} {
		payload, err := json.Marshal(g)
		require.NoError(t, err)
		m := newHeldMachine(t)
		m.Release("", attestation.Envelope{Payload: payload}, atOffset(time.Minute))
		m.NextCommand(atOffset(time.Minute))
		m.OnUndone(activities.UndoResult{Undone: true}, nil, atOffset(time.Minute))
		require.Equal(t, want, lastReport(t, m, "incident/k-a").Reason)
	}
	m := newHeldMachine(t)
	m.Release("", attestation.Envelope{Payload: []byte("no JSON")}, atOffset(time.Minute))
	m.OnUndone(activities.UndoResult{Undone: true}, nil, atOffset(time.Minute))
	require.Empty(t, m.Reason)
}

// The effect may exist although applying it failed: undo gets the end that was requested.
func TestUndoOfFailedFirstApplyHasRequestedEnd(t *testing.T) {
	m := newMachine()
	m.OnApplyFailed(errors.New("timed out"), startTime)
	require.Equal(t, lease.CommandUndo, m.NextCommand(startTime).Kind)
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt)
}

func TestUndoHasEndInForceThoughALaterOneWasRequested(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 5*time.Hour), startTime, combineEqualParams)
	m.OnVerified(activities.VerifyResult{TargetGone: true}, nil, atOffset(time.Minute))
	require.True(t, m.NeedsReapply)
	require.Len(t, m.PendingReports, 2, "one for each incident")
	require.Equal(t, lease.CommandUndo, m.NextCommand(atOffset(time.Minute)).Kind)
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt)
	m.OnUndone(activities.UndoResult{Drift: &activities.Drift{Detail: "x"}}, nil, atOffset(time.Minute))
	require.Equal(t, lease.StateStuck, m.State)
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt)
}

func TestDelayOfUndoRetriesIsLimitedWithoutAMaximum(t *testing.T) {
	m := lease.NewMachine("LSE-1", lease.Input{
		Facet: playbooks.FacetNetwork, FirstHolder: newHolder("a", time.Hour),
		Timing: lease.Timing{UndoRetryInitial: time.Second, UndoRetryMax: 1000 * time.Hour},
	}, startTime)
	for range 20 {
		m.OnUndone(activities.UndoResult{}, nil, startTime)
	}
	require.Equal(t, atOffset(1024*time.Second), m.NextCheckAt)
}
