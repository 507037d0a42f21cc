// Package lease holds one facet of one target: apply, verify, hold, undo, verify. Its logic is Machine, a pure state
// machine that is told what happened and says what to do next; Workflow is a thin loop around it.
//
// It refuses to forget: a lease whose undo fails stays, visibly, as stuck. It refuses to end early without a grant
// and to last past its last holder's end.
package lease

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows"
)

// State is where a lease stands.
type State string

// The states.
const (
	StateApplying State = "applying"
	StateHeld     State = "held"
	StateUndoing  State = "undoing"
	StateStuck    State = "stuck" // undo will not go through; it is tried again and shown
	StateEnded    State = "ended"
)

// Holder is one step's hold on the lease.
type Holder struct {
	ID               string                   `json:"id"`
	ReportToWorkflow string                   `json:"report_to_workflow"` // workflow id of the playbook's run
	IncidentRef      activities.IncidentRef   `json:"incident"`
	Action           string                   `json:"action"`
	Params           json.RawMessage          `json:"params"`
	Duration         time.Duration            `json:"for"`
	Plan             activities.Plan          `json:"plan"`
	Authorization    activities.Authorization `json:"authorization"`
	ExpiresAt        time.Time                `json:"until,omitzero"` // set when the lease takes the holder in
}

// Timing says how a lease watches itself. The zero value means the defaults.
type Timing struct {
	VerifyInterval   time.Duration `json:"verify_interval,omitempty"`    // between two verifications; default 30 s
	UndoRetryInitial time.Duration `json:"undo_retry_initial,omitempty"` // after a failed undo; default 2 s, doubling
	UndoRetryMax     time.Duration `json:"undo_retry_max,omitempty"`     // default 1 min
	// Route is where its activities run.
	Route workflows.ActivityRoute `json:"route,omitzero"`
}

func (t Timing) withDefaults() Timing {
	t.VerifyInterval = cmp.Or(t.VerifyInterval, 30*time.Second)
	t.UndoRetryInitial = cmp.Or(t.UndoRetryInitial, 2*time.Second)
	t.UndoRetryMax = cmp.Or(t.UndoRetryMax, time.Minute)
	return t
}

// stuckAfterUndoAttempts is how many times an undo may fail before the lease counts as stuck. It is tried on after that.
const stuckAfterUndoAttempts = 5

// contestedAfterReapplies is how many re-applications make a lease "fought over".
const contestedAfterReapplies = 3

// Machine is the lease's whole state; it is carried through continue-as-new as it is.
type Machine struct {
	LeaseID        string                   `json:"lease"` // unique, never used twice
	Target         playbooks.Target         `json:"target"`
	Facet          playbooks.Facet          `json:"facet"`
	State          State                    `json:"state"`
	Holders        map[string]*Holder       `json:"holders"`
	Action         string                   `json:"action"`
	Params         json.RawMessage          `json:"params"`
	IncidentRef    activities.IncidentRef   `json:"incident"` // of the first holder
	PriorState     json.RawMessage          `json:"prior,omitempty"`
	Authorization  activities.Authorization `json:"authorization"`
	Duration       time.Duration            `json:"for,omitempty"` // what the holder asked whose basis counts
	LeaseToken     *attestation.Envelope    `json:"token,omitempty"`
	ReleaseGrant   *attestation.Envelope    `json:"grant,omitempty"`           // a release that people gave
	ExtensionGrant *attestation.Envelope    `json:"extension_grant,omitempty"` // a longer hold that people gave
	Outcome        playbooks.Outcome        `json:"outcome,omitempty"`
	Reason         string                   `json:"reason,omitempty"`
	Guard          string                   `json:"guard,omitempty"`        // that did not permit it
	StampedUntil   time.Time                `json:"stamped_until,omitzero"` // the end on the contained object
	AppliedAt      time.Time                `json:"applied_at,omitzero"`
	Verified       bool                     `json:"verified"`
	Undone         bool                     `json:"undone"`
	NeedsReapply   bool                     `json:"needs_reapply"`
	ReapplyCount   int                      `json:"reapply_count"`
	Contested      bool                     `json:"contested"`
	UndoAttempts   int                      `json:"undo_attempts"`
	NextCheckAt    time.Time                `json:"next_check_at,omitzero"` // of verification or of the next try
	Timing         Timing                   `json:"timing"`
	// PendingReports are what is to be told: to holders once each, to incidents at every change.
	PendingReports []OutgoingReport `json:"pending_reports,omitempty"`
}

// CommandKind is what to do next.
type CommandKind string

// The commands.
const (
	CommandApply  CommandKind = "apply"
	CommandVerify CommandKind = "verify"
	CommandUndo   CommandKind = "undo"
	CommandWait   CommandKind = "wait"
	CommandEnd    CommandKind = "end"
)

// Command is one thing to do.
type Command struct {
	Kind  CommandKind
	Until time.Time // CommandWait
}

// NewMachine starts a lease with its first holder.
func NewMachine(lease string, target playbooks.Target, facet playbooks.Facet, first Holder, now time.Time, timing Timing) *Machine {
	m := &Machine{LeaseID: lease, Target: target, Facet: facet, State: StateApplying, Holders: map[string]*Holder{}, Timing: timing.withDefaults()}
	m.Action, m.Params, m.IncidentRef, m.PriorState, m.Authorization, m.Duration = first.Action, first.Params, first.IncidentRef, first.Plan.PriorState, first.Authorization, first.Duration
	first.ExpiresAt = now.Add(first.Duration)
	m.Holders[first.ID] = &first
	return m
}

// LastExpiry is when the last holder's hold ends.
func (m *Machine) LastExpiry() time.Time {
	var end time.Time
	for _, h := range m.Holders {
		if h.ExpiresAt.After(end) {
			end = h.ExpiresAt
		}
	}
	return end
}

// NextCommand says what to do at the time given.
func (m *Machine) NextCommand(now time.Time) Command {
	switch m.State {
	case StateApplying:
		return Command{Kind: CommandApply}
	case StateHeld:
		switch end := m.LastExpiry(); {
		case !now.Before(end):
			m.State, m.UndoAttempts = StateUndoing, 0
			return Command{Kind: CommandUndo}
		case m.NeedsReapply:
			return Command{Kind: CommandApply}
		case !now.Before(m.NextCheckAt):
			return Command{Kind: CommandVerify}
		case end.Before(m.NextCheckAt):
			return Command{Kind: CommandWait, Until: end}
		default:
			return Command{Kind: CommandWait, Until: m.NextCheckAt}
		}
	case StateUndoing, StateStuck:
		if now.Before(m.NextCheckAt) {
			return Command{Kind: CommandWait, Until: m.NextCheckAt}
		}
		return Command{Kind: CommandUndo}
	default:
		return Command{Kind: CommandEnd}
	}
}

// ActivityRequest is what the activities are asked for the lease as it stands.
func (m *Machine) ActivityRequest() activities.Request {
	until := m.LastExpiry()
	if m.State == StateUndoing || m.State == StateStuck || !m.NeedsReapply && !m.StampedUntil.IsZero() {
		until = m.StampedUntil // what is in force, which is not always what was asked for
	}
	if until.IsZero() {
		until = m.LastExpiry()
	}
	return activities.Request{Action: m.Action, Params: m.Params, Target: m.Target, IncidentRef: m.IncidentRef, LeaseID: m.LeaseID, Duration: m.Duration, ExpiresAt: until, ReleaseGrant: m.ReleaseGrant, ExtensionGrant: m.ExtensionGrant}
}

// Join takes a further holder in. Another action on the same facet, or a lease that is ending, refuses it.
func (m *Machine) Join(h Holder, now time.Time, combine func(a, b json.RawMessage) (json.RawMessage, error)) {
	if _, known := m.Holders[h.ID]; known {
		return // a repeated signal
	}
	h.ExpiresAt = now.Add(h.Duration)
	refuse := func(format string, args ...any) {
		r := m.buildReport(now)
		r.Outcome, r.Reason = playbooks.OutcomeRefused, fmt.Sprintf(format, args...)
		m.PendingReports = append(m.PendingReports, OutgoingReport{WorkflowID: h.ReportToWorkflow, HolderID: h.ID, Lease: r})
	}
	switch {
	case m.State == StateUndoing || m.State == StateStuck || m.State == StateEnded:
		refuse("the lease of %s on %s is ending; try again", m.Facet, m.Target)
		return
	case h.Action != m.Action:
		refuse("%s of %s is held by %s for %s", m.Facet, m.Target, m.Action, m.IncidentRef.ID)
		return
	}
	params, err := combine(m.Params, h.Params)
	if err != nil {
		refuse("its parameters cannot be combined with those in force: %v", err)
		return
	}
	before := m.LastExpiry()
	m.Holders[h.ID] = &h
	if string(params) != string(m.Params) || h.ExpiresAt.After(before) {
		// The token stays: what it covers, the guards need not permit again. Before there is one, the end is that of the
		// longest hold, whosever it is.
		longest := max(m.Duration, h.Duration)
		if m.Params, m.NeedsReapply, m.Authorization, m.Duration = params, true, h.Authorization, h.Duration; m.LeaseToken == nil {
			m.Duration = longest
		}
	}
	if m.State == StateHeld && !m.NeedsReapply {
		r := m.buildReport(now)
		r.Outcome, r.Reason = playbooks.OutcomeUnchanged, "it was held already; joined"
		m.PendingReports = append(m.PendingReports, OutgoingReport{WorkflowID: h.ReportToWorkflow, HolderID: h.ID, Lease: r})
	}
}

// Release ends one holder, or all with "". The grant was verified by the gateway and is verified again where the
// effect is.
func (m *Machine) Release(holder string, grant attestation.Envelope, now time.Time) {
	if m.State == StateEnded {
		return
	}
	m.ReleaseGrant = &grant
	for id, h := range m.Holders {
		if holder == "" || holder == id {
			if now.Before(h.ExpiresAt) {
				h.ExpiresAt = now
			}
		}
	}
	if m.State == StateHeld && now.Before(m.LastExpiry()) && m.LastExpiry().Before(m.StampedUntil) {
		m.NeedsReapply = true // the stamp must come earlier
	}
	if m.State == StateStuck || m.State == StateUndoing {
		m.NextCheckAt = now
	}
}

// Extend moves the end of a holder, or of all with "".
func (m *Machine) Extend(holder string, until time.Time, grant attestation.Envelope) {
	if m.State != StateHeld && m.State != StateApplying {
		return
	}
	for id, h := range m.Holders {
		if (holder == "" || holder == id) && until.After(h.ExpiresAt) {
			h.ExpiresAt = until
		}
	}
	if m.LastExpiry().After(m.StampedUntil) {
		m.NeedsReapply, m.ExtensionGrant = true, &grant
	}
}

// OnApplied takes in what applying did.
func (m *Machine) OnApplied(r activities.ApplyResult, asked time.Time, now time.Time) {
	first := m.State == StateApplying
	m.NeedsReapply = false
	if r.Decision.Verdict != activities.VerdictRun {
		m.Reason, m.Guard = r.Decision.Reason, r.Decision.Guard
		outcome := playbooks.OutcomeRefused
		if r.Decision.Verdict == activities.VerdictPropose || r.Decision.Verdict == activities.VerdictAskApproval {
			outcome = playbooks.OutcomeProposed
		}
		if first {
			m.Outcome, m.State = outcome, StateEnded
			m.reportToAll(now)
			return
		}
		// What is in force stays until its stamp; the holders that wanted more are told.
		m.reportToWaitingHolders(now, outcome, r.Decision.Reason)
		m.NextCheckAt = now.Add(m.Timing.VerifyInterval)
		m.capHolderExpiry()
		return
	}
	m.LeaseToken, m.StampedUntil = r.LeaseToken, asked
	m.Verified = r.Effect.Outcome != playbooks.OutcomeUnverified
	m.Reason, m.Guard = r.Effect.Reason, ""
	if first {
		m.Outcome, m.AppliedAt = r.Effect.Outcome, r.Effect.AppliedAt
		if m.AppliedAt.IsZero() {
			m.AppliedAt = now
		}
		m.State = StateHeld
	}
	m.NextCheckAt = now.Add(m.Timing.VerifyInterval)
	m.reportToAll(now)
}

// capHolderExpiry takes holders' ends back to what is stamped, where a longer hold was not permitted.
func (m *Machine) capHolderExpiry() {
	for _, h := range m.Holders {
		if h.ExpiresAt.After(m.StampedUntil) {
			h.ExpiresAt = m.StampedUntil
		}
	}
}

// OnApplyFailed takes in that applying failed after its retries.
func (m *Machine) OnApplyFailed(err error, now time.Time) {
	m.NeedsReapply = false
	m.Reason = err.Error()
	if m.State == StateApplying {
		// The activity undid what it did; undo once more, in case it died before it could.
		m.Outcome, m.State, m.NextCheckAt = playbooks.OutcomeFailed, StateUndoing, now
		m.reportToAll(now)
		return
	}
	m.Verified = false
	m.NextCheckAt = now.Add(m.Timing.UndoRetryInitial)
	m.reportToIncidents(now)
}

// OnVerified takes in a verification while the lease holds.
func (m *Machine) OnVerified(r activities.VerifyResult, err error, now time.Time) {
	m.NextCheckAt = now.Add(m.Timing.VerifyInterval)
	was := m.Verified
	switch {
	case err != nil:
		m.Verified, m.Reason = false, "it cannot be observed: "+err.Error()
	case r.TargetGone:
		// Nothing is left to hold: what is left of the containment is taken away.
		m.State, m.UndoAttempts, m.NextCheckAt, m.Reason = StateUndoing, 0, now, r.Detail
		m.reportToIncidents(now)
		return
	case r.InForce && r.UnverifiedReason != "":
		m.Verified, m.Reason = false, "it is in force and not verified: "+r.UnverifiedReason
	case r.InForce:
		m.Verified, m.Reason = m.Outcome != playbooks.OutcomeUnverified, r.Detail
	default:
		m.Verified, m.NeedsReapply = false, true
		m.ReapplyCount++
		m.Contested = m.Contested || m.ReapplyCount >= contestedAfterReapplies
		m.Reason = "it was put back: " + r.Detail
	}
	if was != m.Verified || m.NeedsReapply {
		m.reportToIncidents(now)
	}
}

// OnUndone takes in what undoing did.
func (m *Machine) OnUndone(r activities.UndoResult, err error, now time.Time) {
	m.UndoAttempts++
	switch {
	case err == nil && r.Undone:
		m.State, m.Undone, m.Reason = StateEnded, true, m.releasedBy()
		m.reportToIncidents(now)
		return
	case err != nil:
		m.Reason = "undo failed: " + err.Error()
	case r.Drift != nil:
		m.Reason = "somebody else changed it since: " + r.Drift.Detail
	default:
		m.Reason = "undo was refused: " + r.RefusalReason
	}
	wait := m.Timing.UndoRetryInitial << min(m.UndoAttempts-1, 10)
	m.NextCheckAt = now.Add(min(wait, m.Timing.UndoRetryMax))
	if (r.Drift != nil || m.UndoAttempts >= stuckAfterUndoAttempts) && m.State != StateStuck {
		m.State = StateStuck
		m.reportToIncidents(now)
	}
}
