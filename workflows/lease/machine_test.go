package lease_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/attestation"
	"stanch/workflows/lease"
)

var startTime = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func atOffset(d time.Duration) time.Time { return startTime.Add(d) }

func newHolder(id string, d time.Duration) lease.Holder {
	return lease.Holder{ID: id, ReportToWorkflow: "playbook/" + id, IncidentRef: activities.IncidentRef{
		ID:          "INC-" + id,
		GroupingKey: "k-" + id,
	}, Action: "pod.isolate", Params: json.RawMessage(`{}`), Duration: d}
}

func combineEqualParams(a, b json.RawMessage) (json.RawMessage, error) {
	if string(a) != string(b) {
		return nil, errors.New("other parameters")
	}
	return a, nil
}

func newMachine() *lease.Machine {
	return lease.NewMachine("LSE-1", lease.Input{
		Target: playbooks.Target{Kind: playbooks.TargetPod, UID: "u"}, Facet: playbooks.FacetNetwork,
		FirstHolder: newHolder("a", time.Hour),
	}, startTime)
}

func appliedResult() activities.ApplyResult {
	return activities.ApplyResult{
		Decision: activities.GuardDecision{Verdict: activities.VerdictRun},
		Effect:   activities.Effect{Outcome: playbooks.OutcomeChanged}, LeaseToken: &attestation.Envelope{KeyID: "k"},
	}
}

// newHeldMachine returns a machine whose containment is in force.
func newHeldMachine(t *testing.T) *lease.Machine {
	t.Helper()
	m := newMachine()
	require.Equal(t, lease.CommandApply, m.NextCommand(startTime).Kind)
	m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, startTime)
	require.Equal(t, lease.StateHeld, m.State)
	m.PendingReports = nil
	return m
}

func reportedOutcomes(m *lease.Machine, to string) []playbooks.Outcome {
	var out []playbooks.Outcome
	for _, r := range m.PendingReports {
		if r.WorkflowID == to {
			out = append(out, r.Lease.Outcome)
		}
	}
	return out
}

func TestLeaseIsAppliedVerifiedAndUndoneAtExpiry(t *testing.T) {
	m := newMachine()
	require.Equal(t, lease.CommandApply, m.NextCommand(startTime).Kind)
	m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, startTime)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeChanged}, reportedOutcomes(m, "playbook/a"),
		"the holder is told once")
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeChanged}, reportedOutcomes(m, "incident/k-a"))

	cmd := m.NextCommand(atOffset(time.Second))
	require.Equal(t, lease.Command{Kind: lease.CommandWait, Until: atOffset(30 * time.Second)}, cmd,
		"it waits for the next verification")
	require.Equal(t, lease.CommandVerify, m.NextCommand(atOffset(30*time.Second)).Kind)
	m.OnVerified(activities.VerifyResult{InForce: true}, nil, atOffset(30*time.Second))
	require.True(t, m.Verified)

	require.Equal(t, lease.CommandUndo, m.NextCommand(atOffset(time.Hour)).Kind)
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt, "undo is judged by what was stamped")
	m.OnUndone(activities.UndoResult{Undone: true}, nil, atOffset(time.Hour))
	require.Equal(t, lease.CommandEnd, m.NextCommand(atOffset(time.Hour)).Kind)
	require.True(t, m.Undone)
}

func TestUnverifiedLeaseHasReason(t *testing.T) {
	m := newHeldMachine(t)
	m.PendingReports = nil
	m.OnVerified(activities.VerifyResult{InForce: true, UnverifiedReason: "no network interface was found"}, nil,
		atOffset(30*time.Second))
	require.Equal(t, lease.StateHeld, m.State)
	require.False(t, m.Verified)
	require.False(t, m.NeedsReapply, "what is in force is not applied again")
	require.Contains(t, m.Reason, "no network interface was found")
	require.Len(t, m.PendingReports, 1, "its incident is told")
	require.Equal(t, "in force, NOT verified", display.DescribeLease(m.PendingReports[0].Lease))

	m.OnVerified(activities.VerifyResult{InForce: true}, nil, atOffset(time.Minute))
	require.True(t, m.Verified)
	require.Equal(t, "in force, verified", display.DescribeLease(m.CurrentReport(atOffset(time.Minute))))
}

func TestRefusedLeaseEndsWithGuardReason(t *testing.T) {
	for verdict, want := range map[activities.Verdict]playbooks.Outcome{
		activities.VerdictRefuse: playbooks.OutcomeRefused, activities.VerdictPropose: playbooks.OutcomeProposed,
		activities.VerdictAskApproval: playbooks.OutcomeProposed,
	} {
		m := newMachine()
		m.OnApplied(activities.ApplyResult{Decision: activities.GuardDecision{Verdict: verdict, Reason: "because"}},
			atOffset(time.Hour), startTime)
		require.Equal(t, []playbooks.Outcome{want}, reportedOutcomes(m, "playbook/a"))
		require.Equal(t, "because", m.Reason)
		require.Equal(t, lease.CommandEnd, m.NextCommand(startTime).Kind)
		require.False(t, m.Undone, "nothing was done, so nothing is undone")
	}
}

func TestFailedApplyIsUndone(t *testing.T) {
	m := newMachine()
	m.OnApplyFailed(errors.New("the API server is away"), startTime)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeFailed}, reportedOutcomes(m, "playbook/a"))
	require.Equal(t, lease.CommandUndo, m.NextCommand(startTime).Kind)
}

// Two playbooks request a target at the same moment: the holder with stricter parameters and a shorter duration must
// not make the guards refuse the longer end.
func TestStricterHolderThatJoinsEarlyDoesNotShortenLease(t *testing.T) {
	m := newMachine()
	b := newHolder("b", time.Minute)
	b.Params = json.RawMessage(`{"ingress":true}`)
	m.Join(b, startTime, func(_, b json.RawMessage) (json.RawMessage, error) { return b, nil })
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt)
	require.Equal(t, time.Hour, m.ActivityRequest().Duration)
}

func TestLeaseEndsWithItsLastHolder(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 10*time.Minute), atOffset(time.Minute), combineEqualParams)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeUnchanged}, reportedOutcomes(m, "playbook/b"))
	require.Equal(t, atOffset(time.Hour), m.LastExpiry())

	m.PendingReports = nil
	m.Join(newHolder("c", 2*time.Hour), atOffset(time.Minute), combineEqualParams)
	require.Empty(t, reportedOutcomes(m, "playbook/c"), "a longer hold must be stamped first")
	require.Equal(t, lease.CommandApply, m.NextCommand(atOffset(time.Minute)).Kind)
	require.Equal(t, 2*time.Hour, m.ActivityRequest().Duration, "the guards judge what this holder asks for")
	m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, atOffset(time.Minute))
	require.NotEmpty(t, reportedOutcomes(m, "playbook/c"))
	require.Equal(t, atOffset(2*time.Hour+time.Minute), m.StampedUntil)

	m.Join(newHolder("c", 2*time.Hour), atOffset(2*time.Minute), combineEqualParams)
	require.Len(t, m.Holders, 3, "a repeated signal changes nothing")
}

func TestSecondActionOnLeasedFacetIsRefused(t *testing.T) {
	m := newHeldMachine(t)
	h := newHolder("b", time.Hour)
	h.Action = "pod.other"
	m.Join(h, startTime, combineEqualParams)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeRefused}, reportedOutcomes(m, "playbook/b"))
	require.Len(t, m.Holders, 1)
}

func TestDeniedExtensionLeavesLeaseUnchanged(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 5*time.Hour), startTime, combineEqualParams)
	m.OnApplied(activities.ApplyResult{Decision: activities.GuardDecision{
		Verdict: activities.VerdictRefuse,
		Reason:  "stopped",
	}}, m.ActivityRequest().ExpiresAt, startTime)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeRefused}, reportedOutcomes(m, "playbook/b"))
	require.Equal(t, lease.StateHeld, m.State)
	require.Equal(t, atOffset(time.Hour), m.LastExpiry(), "it ends when it was stamped to end")
}

func TestReleaseEndsLeaseWithItsGrant(t *testing.T) {
	m := newHeldMachine(t)
	m.Release("", attestation.Envelope{KeyID: "grant"}, atOffset(time.Minute))
	require.Equal(t, lease.CommandUndo, m.NextCommand(atOffset(time.Minute)).Kind)
	require.Equal(t, "grant", m.ReleaseGrant.KeyID)
	require.Equal(t, atOffset(time.Hour), m.ActivityRequest().ExpiresAt, "what is stamped, which the grant overrides")
}

func TestReleaseOfOneHolderShortensExpiryMarker(t *testing.T) {
	m := newHeldMachine(t)
	m.Join(newHolder("b", 10*time.Minute), startTime, combineEqualParams)
	m.Release("a", attestation.Envelope{}, atOffset(time.Minute))
	require.Equal(t, lease.CommandApply, m.NextCommand(atOffset(time.Minute)).Kind)
	require.Equal(t, atOffset(10*time.Minute), m.ActivityRequest().ExpiresAt)
}

func TestContestedLeaseIsReappliedAndReported(t *testing.T) {
	m := newHeldMachine(t)
	for i := range 3 {
		now := atOffset(time.Duration(i+1) * 30 * time.Second)
		require.Equal(t, lease.CommandVerify, m.NextCommand(now).Kind)
		m.OnVerified(activities.VerifyResult{Detail: "the label is gone"}, nil, now)
		require.Equal(t, lease.CommandApply, m.NextCommand(now).Kind, "it is applied again")
		m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, now)
		require.NotNil(t, m.LeaseToken)
	}
	require.True(t, m.Contested)
}

func TestFailingUndoIsStuckAndRetried(t *testing.T) {
	m := newHeldMachine(t)
	now := atOffset(time.Hour)
	for i := range 5 {
		require.Equal(t, lease.CommandUndo, m.NextCommand(now).Kind, i)
		m.OnUndone(activities.UndoResult{}, errors.New("forbidden"), now)
		require.Equal(t, lease.CommandWait, m.NextCommand(now).Kind)
		now = m.NextCheckAt
	}
	require.Equal(t, lease.StateStuck, m.State)
	require.Contains(t, m.Reason, "forbidden")
	require.Equal(t, lease.CommandUndo, m.NextCommand(now).Kind, "it is tried on")
	m.OnUndone(activities.UndoResult{Undone: true}, nil, now)
	require.Equal(t, lease.StateEnded, m.State)
}

func TestDriftMakesLeaseStuck(t *testing.T) {
	m := newHeldMachine(t)
	m.NextCommand(atOffset(time.Hour))
	m.OnUndone(activities.UndoResult{Drift: &activities.Drift{Detail: "replicas are 7"}}, nil, atOffset(time.Hour))
	require.Equal(t, lease.StateStuck, m.State)
	require.Contains(t, m.Reason, "replicas are 7")
}

func TestMissingTargetEndsLease(t *testing.T) {
	m := newHeldMachine(t)
	m.OnVerified(activities.VerifyResult{TargetGone: true, Detail: "the pod is gone"}, nil, atOffset(time.Minute))
	require.Equal(t, lease.CommandUndo, m.NextCommand(atOffset(time.Minute)).Kind)
}

func TestExtensionUpdatesExpiryMarkerWithGrant(t *testing.T) {
	m := newHeldMachine(t)
	m.Extend("", atOffset(3*time.Hour), attestation.Envelope{KeyID: "grant"})
	require.Equal(t, lease.CommandApply, m.NextCommand(startTime).Kind)
	require.Equal(t, atOffset(3*time.Hour), m.ActivityRequest().ExpiresAt)
	require.Equal(t, "grant", m.ActivityRequest().ExtensionGrant.KeyID)
	require.NotNil(t, m.LeaseToken, "what holds now is the other half of the proof")
}

// In every order of events, an active lease never waits past its end, and never ends before it is undone.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, script []byte) {
		m, now, inForce := newMachine(), startTime, false
		for i, b := range script {
			if i > 300 {
				break
			}
			now = now.Add(time.Duration(b) * time.Second)
			switch b % 5 {
			case 0:
				m.Join(newHolder(string('b'+b%20), time.Duration(b)*time.Minute), now, combineEqualParams)
			case 1:
				m.Release("", attestation.Envelope{}, now)
			}
			cmd := m.NextCommand(now)
			switch cmd.Kind {
			case lease.CommandApply:
				switch b % 3 {
				case 0:
					m.OnApplyFailed(errors.New("x"), now)
				case 1:
					m.OnApplied(appliedResult(), m.ActivityRequest().ExpiresAt, now)
					inForce = true
				default:
					m.OnApplied(activities.ApplyResult{Decision: activities.GuardDecision{Verdict: activities.VerdictRefuse}},
						m.ActivityRequest().ExpiresAt, now)
				}
			case lease.CommandVerify:
				m.OnVerified(activities.VerifyResult{InForce: b%2 == 0}, nil, now)
			case lease.CommandUndo:
				if b%2 == 0 {
					m.OnUndone(activities.UndoResult{Undone: true}, nil, now)
					inForce = false
				} else {
					m.OnUndone(activities.UndoResult{}, errors.New("x"), now)
				}
			case lease.CommandWait:
				if m.State == lease.StateHeld && cmd.Until.After(m.LastExpiry()) {
					t.Fatalf("waits until %s, past the end %s", cmd.Until, m.LastExpiry())
				}
			case lease.CommandEnd:
				if inForce {
					t.Fatal("ended while in force")
				}
				return
			}
		}
	})
}
