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

var start = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return start.Add(d) }

func holder(id string, d time.Duration) lease.Holder {
	return lease.Holder{ID: id, ReportTo: "playbook/" + id, Incident: activities.IncidentRef{ID: "INC-" + id, GroupingKey: "k-" + id}, Action: "pod.isolate", Params: json.RawMessage(`{}`), For: d}
}

func equal(a, b json.RawMessage) (json.RawMessage, error) {
	if string(a) != string(b) {
		return nil, errors.New("other parameters")
	}
	return a, nil
}

func newMachine() *lease.Machine {
	return lease.New("LSE-1", playbooks.Target{Kind: playbooks.TargetPod, UID: "u"}, playbooks.FacetNetwork, holder("a", time.Hour), start, lease.Timing{})
}

func applied() activities.ApplyResult {
	return activities.ApplyResult{Decision: activities.GuardDecision{Verdict: activities.VerdictRun}, Effect: activities.Effect{Outcome: playbooks.OutcomeChanged}, LeaseToken: &attestation.Envelope{KeyID: "k"}}
}

// held is a machine whose containment is in force.
func held(t *testing.T) *lease.Machine {
	t.Helper()
	m := newMachine()
	require.Equal(t, lease.CommandApply, m.Next(start).Kind)
	m.Changed(applied(), m.Request().ExpiresAt, start)
	require.Equal(t, lease.StateHeld, m.State)
	m.Reports = nil
	return m
}

func outcomes(m *lease.Machine, to string) []playbooks.Outcome {
	var out []playbooks.Outcome
	for _, r := range m.Reports {
		if r.To == to {
			out = append(out, r.Lease.Outcome)
		}
	}
	return out
}

func TestALeaseIsAppliedVerifiedAndUndoneAtItsEnd(t *testing.T) {
	m := newMachine()
	require.Equal(t, lease.CommandApply, m.Next(start).Kind)
	m.Changed(applied(), m.Request().ExpiresAt, start)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeChanged}, outcomes(m, "playbook/a"), "the holder is told once")
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeChanged}, outcomes(m, "incident/k-a"))

	cmd := m.Next(at(time.Second))
	require.Equal(t, lease.Command{Kind: lease.CommandWait, Until: at(30 * time.Second)}, cmd, "it waits for the next verification")
	require.Equal(t, lease.CommandVerify, m.Next(at(30*time.Second)).Kind)
	m.Observed(activities.VerifyResult{InForce: true}, nil, at(30*time.Second))
	require.True(t, m.Verified)

	require.Equal(t, lease.CommandUndo, m.Next(at(time.Hour)).Kind)
	require.Equal(t, at(time.Hour), m.Request().ExpiresAt, "undo is judged by what was stamped")
	m.TakenBack(activities.UndoResult{Undone: true}, nil, at(time.Hour))
	require.Equal(t, lease.CommandEnd, m.Next(at(time.Hour)).Kind)
	require.True(t, m.Undone)
}

func TestAHeldLeaseThatIsNotVerifiedSaysWhy(t *testing.T) {
	m := held(t)
	m.Reports = nil
	m.Observed(activities.VerifyResult{InForce: true, UnverifiedReason: "no network interface was found"}, nil, at(30*time.Second))
	require.Equal(t, lease.StateHeld, m.State)
	require.False(t, m.Verified)
	require.False(t, m.Reapply, "what is in force is not applied again")
	require.Contains(t, m.Reason, "no network interface was found")
	require.Len(t, m.Reports, 1, "its incident is told")
	require.Equal(t, "held, NOT verified", display.DescribeLease(m.Reports[0].Lease))

	m.Observed(activities.VerifyResult{InForce: true}, nil, at(time.Minute))
	require.True(t, m.Verified)
	require.Equal(t, "held, verified", display.DescribeLease(m.Report(at(time.Minute))))
}

func TestWhatTheGuardsDoNotLetThroughEndsWithItsReason(t *testing.T) {
	for verdict, want := range map[activities.Verdict]playbooks.Outcome{
		activities.VerdictRefuse: playbooks.OutcomeRefused, activities.VerdictPropose: playbooks.OutcomeProposed, activities.VerdictAskApproval: playbooks.OutcomeProposed,
	} {
		m := newMachine()
		m.Changed(activities.ApplyResult{Decision: activities.GuardDecision{Verdict: verdict, Reason: "because"}}, at(time.Hour), start)
		require.Equal(t, []playbooks.Outcome{want}, outcomes(m, "playbook/a"))
		require.Equal(t, "because", m.Reason)
		require.Equal(t, lease.CommandEnd, m.Next(start).Kind)
		require.False(t, m.Undone, "nothing was done, so nothing is undone")
	}
}

func TestAFailedApplyIsUndone(t *testing.T) {
	m := newMachine()
	m.ChangeFailed(errors.New("the API server is away"), start)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeFailed}, outcomes(m, "playbook/a"))
	require.Equal(t, lease.CommandUndo, m.Next(start).Kind)
}

// Two playbooks take hold of a target in the same moment: the stricter and shorter one must not make the guards refuse
// the longer one's end.
func TestAStricterHolderThatJoinsBeforeTheFirstEffectDoesNotShortenTheHold(t *testing.T) {
	m := newMachine()
	b := holder("b", time.Minute)
	b.Params = json.RawMessage(`{"ingress":true}`)
	m.Join(b, start, func(_, b json.RawMessage) (json.RawMessage, error) { return b, nil })
	require.Equal(t, at(time.Hour), m.Request().ExpiresAt)
	require.Equal(t, time.Hour, m.Request().Duration)
}

func TestASecondHolderJoinsAndTheLastEndUndoes(t *testing.T) {
	m := held(t)
	m.Join(holder("b", 10*time.Minute), at(time.Minute), equal)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeUnchanged}, outcomes(m, "playbook/b"))
	require.Equal(t, at(time.Hour), m.End())

	m.Reports = nil
	m.Join(holder("c", 2*time.Hour), at(time.Minute), equal)
	require.Empty(t, outcomes(m, "playbook/c"), "a longer hold must be stamped first")
	require.Equal(t, lease.CommandApply, m.Next(at(time.Minute)).Kind)
	require.Equal(t, 2*time.Hour, m.Request().Duration, "the guards judge what this holder asks for")
	m.Changed(applied(), m.Request().ExpiresAt, at(time.Minute))
	require.NotEmpty(t, outcomes(m, "playbook/c"))
	require.Equal(t, at(2*time.Hour+time.Minute), m.Stamped)

	m.Join(holder("c", 2*time.Hour), at(2*time.Minute), equal)
	require.Len(t, m.Holders, 3, "a repeated signal changes nothing")
}

func TestAnotherActionOnTheSameFacetIsRefused(t *testing.T) {
	m := held(t)
	h := holder("b", time.Hour)
	h.Action = "pod.other"
	m.Join(h, start, equal)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeRefused}, outcomes(m, "playbook/b"))
	require.Len(t, m.Holders, 1)
}

func TestALongerHoldThatIsNotPermittedLeavesTheLeaseAsItWas(t *testing.T) {
	m := held(t)
	m.Join(holder("b", 5*time.Hour), start, equal)
	m.Changed(activities.ApplyResult{Decision: activities.GuardDecision{Verdict: activities.VerdictRefuse, Reason: "stopped"}}, m.Request().ExpiresAt, start)
	require.Equal(t, []playbooks.Outcome{playbooks.OutcomeRefused}, outcomes(m, "playbook/b"))
	require.Equal(t, lease.StateHeld, m.State)
	require.Equal(t, at(time.Hour), m.End(), "it ends when it was stamped to end")
}

func TestAReleaseEndsItNowAndCarriesItsGrant(t *testing.T) {
	m := held(t)
	m.Release("", attestation.Envelope{KeyID: "grant"}, at(time.Minute))
	require.Equal(t, lease.CommandUndo, m.Next(at(time.Minute)).Kind)
	require.Equal(t, "grant", m.Grant.KeyID)
	require.Equal(t, at(time.Hour), m.Request().ExpiresAt, "what is stamped, which the grant overrides")
}

func TestReleasingOneOfTwoHoldersShortensTheStamp(t *testing.T) {
	m := held(t)
	m.Join(holder("b", 10*time.Minute), start, equal)
	m.Release("a", attestation.Envelope{}, at(time.Minute))
	require.Equal(t, lease.CommandApply, m.Next(at(time.Minute)).Kind)
	require.Equal(t, at(10*time.Minute), m.Request().ExpiresAt)
}

func TestSomebodyWhoPutsThingsBackIsFoughtAndNamed(t *testing.T) {
	m := held(t)
	for i := range 3 {
		now := at(time.Duration(i+1) * 30 * time.Second)
		require.Equal(t, lease.CommandVerify, m.Next(now).Kind)
		m.Observed(activities.VerifyResult{Detail: "the label is gone"}, nil, now)
		require.Equal(t, lease.CommandApply, m.Next(now).Kind, "it is applied again")
		m.Changed(applied(), m.Request().ExpiresAt, now)
		require.NotNil(t, m.Token)
	}
	require.True(t, m.Fought)
}

func TestAnUndoThatWillNotGoThroughIsStuckAndShownAndTriedAgain(t *testing.T) {
	m := held(t)
	now := at(time.Hour)
	for i := range 5 {
		require.Equal(t, lease.CommandUndo, m.Next(now).Kind, i)
		m.TakenBack(activities.UndoResult{}, errors.New("forbidden"), now)
		require.Equal(t, lease.CommandWait, m.Next(now).Kind)
		now = m.NextCheck
	}
	require.Equal(t, lease.StateStuck, m.State)
	require.Contains(t, m.Reason, "forbidden")
	require.Equal(t, lease.CommandUndo, m.Next(now).Kind, "it is tried on")
	m.TakenBack(activities.UndoResult{Undone: true}, nil, now)
	require.Equal(t, lease.StateEnded, m.State)
}

func TestDriftIsStuckAtOnce(t *testing.T) {
	m := held(t)
	m.Next(at(time.Hour))
	m.TakenBack(activities.UndoResult{Drift: &activities.Drift{Detail: "replicas are 7"}}, nil, at(time.Hour))
	require.Equal(t, lease.StateStuck, m.State)
	require.Contains(t, m.Reason, "replicas are 7")
}

func TestAGoneTargetEndsTheLease(t *testing.T) {
	m := held(t)
	m.Observed(activities.VerifyResult{TargetGone: true, Detail: "the pod is gone"}, nil, at(time.Minute))
	require.Equal(t, lease.CommandUndo, m.Next(at(time.Minute)).Kind)
}

func TestAnExtensionIsStampedUnderItsGrant(t *testing.T) {
	m := held(t)
	m.Extend("", at(3*time.Hour), attestation.Envelope{KeyID: "grant"})
	require.Equal(t, lease.CommandApply, m.Next(start).Kind)
	require.Equal(t, at(3*time.Hour), m.Request().ExpiresAt)
	require.Equal(t, "grant", m.Request().ExtensionGrant.KeyID)
	require.NotNil(t, m.Token, "what holds now is the other half of the proof")
}

// Whatever happens in whatever order, a lease never waits past its end while it holds, and never ends undone.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, script []byte) {
		m, now, inForce := newMachine(), start, false
		for i, b := range script {
			if i > 300 {
				break
			}
			now = now.Add(time.Duration(b) * time.Second)
			switch b % 5 {
			case 0:
				m.Join(holder(string('b'+b%20), time.Duration(b)*time.Minute), now, equal)
			case 1:
				m.Release("", attestation.Envelope{}, now)
			}
			cmd := m.Next(now)
			switch cmd.Kind {
			case lease.CommandApply:
				switch b % 3 {
				case 0:
					m.ChangeFailed(errors.New("x"), now)
				case 1:
					m.Changed(applied(), m.Request().ExpiresAt, now)
					inForce = true
				default:
					m.Changed(activities.ApplyResult{Decision: activities.GuardDecision{Verdict: activities.VerdictRefuse}}, m.Request().ExpiresAt, now)
				}
			case lease.CommandVerify:
				m.Observed(activities.VerifyResult{InForce: b%2 == 0}, nil, now)
			case lease.CommandUndo:
				if b%2 == 0 {
					m.TakenBack(activities.UndoResult{Undone: true}, nil, now)
					inForce = false
				} else {
					m.TakenBack(activities.UndoResult{}, errors.New("x"), now)
				}
			case lease.CommandWait:
				if m.State == lease.StateHeld && cmd.Until.After(m.End()) {
					t.Fatalf("waits until %s, past the end %s", cmd.Until, m.End())
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
