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
	ID       string           `json:"id"`
	ReportTo string           `json:"report_to"` // workflow id of the playbook's run
	Incident activities.IncidentRef `json:"incident"`
	Action   string           `json:"action"`
	Params   json.RawMessage  `json:"params"`
	For      time.Duration    `json:"for"`
	Plan     activities.Plan  `json:"plan"`
	Basis    activities.Authorization `json:"basis"`
	Until    time.Time        `json:"until,omitzero"` // set when the lease takes the holder in
}

// Timing says how a lease watches itself. The zero value means the defaults.
type Timing struct {
	Verify     time.Duration `json:"verify,omitempty"`      // between two verifications; default 30 s
	RetryFirst time.Duration `json:"retry_first,omitempty"` // after a failed undo; default 2 s, doubling
	RetryMost  time.Duration `json:"retry_most,omitempty"`  // default 1 min
	// Route is where its activities run.
	Route workflows.Route `json:"route,omitzero"`
}

func (t Timing) orDefault() Timing {
	t.Verify = cmp.Or(t.Verify, 30*time.Second)
	t.RetryFirst = cmp.Or(t.RetryFirst, 2*time.Second)
	t.RetryMost = cmp.Or(t.RetryMost, time.Minute)
	return t
}

// undoTries is how many times an undo may fail before the lease counts as stuck. It is tried on after that.
const undoTries = 5

// foughtLimit is how many re-applications make a lease "fought over".
const foughtLimit = 3

// Machine is the lease's whole state; it is carried through continue-as-new as it is.
type Machine struct {
	Lease     string             `json:"lease"` // unique, never used twice
	Target    playbooks.Target   `json:"target"`
	Facet     playbooks.Facet    `json:"facet"`
	State     State              `json:"state"`
	Holders   map[string]*Holder `json:"holders"`
	Action    string             `json:"action"`
	Params    json.RawMessage    `json:"params"`
	Incident  activities.IncidentRef   `json:"incident"` // of the first holder
	Prior     json.RawMessage    `json:"prior,omitempty"`
	Basis     activities.Authorization   `json:"basis"`
	For       time.Duration      `json:"for,omitempty"` // what the holder asked whose basis counts
	Token     *attestation.Envelope      `json:"token,omitempty"`
	Grant     *attestation.Envelope      `json:"grant,omitempty"`     // a release that people gave
	Extension *attestation.Envelope      `json:"extension,omitempty"` // a longer hold that people gave
	Outcome   playbooks.Outcome  `json:"outcome,omitempty"`
	Reason    string             `json:"reason,omitempty"`
	Guard     string             `json:"guard,omitempty"`  // that did not permit it
	Stamped   time.Time          `json:"stamped,omitzero"` // the end on the contained object
	Applied   time.Time          `json:"applied,omitzero"`
	Verified  bool               `json:"verified"`
	Undone    bool               `json:"undone"`
	Reapply   bool               `json:"reapply"`
	Reapplied int                `json:"reapplied"`
	Fought    bool               `json:"fought"`
	UndoTried int                `json:"undo_tried"`
	NextCheck time.Time          `json:"next_check,omitzero"` // of verification or of the next try
	Timing    Timing             `json:"timing"`
	// Reports are what is to be told: to holders once each, to incidents at every change.
	Reports []Report `json:"reports,omitempty"`
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

// New starts a lease with its first holder.
func New(lease string, target playbooks.Target, facet playbooks.Facet, first Holder, now time.Time, timing Timing) *Machine {
	m := &Machine{Lease: lease, Target: target, Facet: facet, State: StateApplying, Holders: map[string]*Holder{}, Timing: timing.orDefault()}
	m.Action, m.Params, m.Incident, m.Prior, m.Basis, m.For = first.Action, first.Params, first.Incident, first.Plan.PriorState, first.Basis, first.For
	first.Until = now.Add(first.For)
	m.Holders[first.ID] = &first
	return m
}

// End is when the last holder's hold ends.
func (m *Machine) End() time.Time {
	var end time.Time
	for _, h := range m.Holders {
		if h.Until.After(end) {
			end = h.Until
		}
	}
	return end
}

// Next says what to do at the time given.
func (m *Machine) Next(now time.Time) Command {
	switch m.State {
	case StateApplying:
		return Command{Kind: CommandApply}
	case StateHeld:
		switch end := m.End(); {
		case !now.Before(end):
			m.State, m.UndoTried = StateUndoing, 0
			return Command{Kind: CommandUndo}
		case m.Reapply:
			return Command{Kind: CommandApply}
		case !now.Before(m.NextCheck):
			return Command{Kind: CommandVerify}
		case end.Before(m.NextCheck):
			return Command{Kind: CommandWait, Until: end}
		default:
			return Command{Kind: CommandWait, Until: m.NextCheck}
		}
	case StateUndoing, StateStuck:
		if now.Before(m.NextCheck) {
			return Command{Kind: CommandWait, Until: m.NextCheck}
		}
		return Command{Kind: CommandUndo}
	default:
		return Command{Kind: CommandEnd}
	}
}

// Request is what the activities are asked for the lease as it stands.
func (m *Machine) Request() activities.Request {
	until := m.End()
	if m.State == StateUndoing || m.State == StateStuck || !m.Reapply && !m.Stamped.IsZero() {
		until = m.Stamped // what is in force, which is not always what was asked for
	}
	if until.IsZero() {
		until = m.End()
	}
	return activities.Request{Action: m.Action, Params: m.Params, Target: m.Target, IncidentRef: m.Incident, LeaseID: m.Lease, Duration: m.For, ExpiresAt: until, ReleaseGrant: m.Grant, ExtensionGrant: m.Extension}
}

// Join takes a further holder in. Another action on the same facet, or a lease that is ending, refuses it.
func (m *Machine) Join(h Holder, now time.Time, combine func(a, b json.RawMessage) (json.RawMessage, error)) {
	if _, known := m.Holders[h.ID]; known {
		return // a repeated signal
	}
	h.Until = now.Add(h.For)
	refuse := func(format string, args ...any) {
		r := m.report(now)
		r.Outcome, r.Reason = playbooks.OutcomeRefused, fmt.Sprintf(format, args...)
		m.Reports = append(m.Reports, Report{To: h.ReportTo, Holder: h.ID, Lease: r})
	}
	switch {
	case m.State == StateUndoing || m.State == StateStuck || m.State == StateEnded:
		refuse("the lease of %s on %s is ending; try again", m.Facet, m.Target)
		return
	case h.Action != m.Action:
		refuse("%s of %s is held by %s for %s", m.Facet, m.Target, m.Action, m.Incident.ID)
		return
	}
	params, err := combine(m.Params, h.Params)
	if err != nil {
		refuse("its parameters cannot be combined with those in force: %v", err)
		return
	}
	before := m.End()
	m.Holders[h.ID] = &h
	if string(params) != string(m.Params) || h.Until.After(before) {
		// The token stays: what it covers, the guards need not permit again. Before there is one, the end is that of the
		// longest hold, whosever it is.
		longest := max(m.For, h.For)
		if m.Params, m.Reapply, m.Basis, m.For = params, true, h.Basis, h.For; m.Token == nil {
			m.For = longest
		}
	}
	if m.State == StateHeld && !m.Reapply {
		r := m.report(now)
		r.Outcome, r.Reason = playbooks.OutcomeUnchanged, "it was held already; joined"
		m.Reports = append(m.Reports, Report{To: h.ReportTo, Holder: h.ID, Lease: r})
	}
}

// Release ends one holder, or all with "". The grant was verified by the gateway and is verified again where the
// effect is.
func (m *Machine) Release(holder string, grant attestation.Envelope, now time.Time) {
	if m.State == StateEnded {
		return
	}
	m.Grant = &grant
	for id, h := range m.Holders {
		if holder == "" || holder == id {
			if now.Before(h.Until) {
				h.Until = now
			}
		}
	}
	if m.State == StateHeld && now.Before(m.End()) && m.End().Before(m.Stamped) {
		m.Reapply = true // the stamp must come earlier
	}
	if m.State == StateStuck || m.State == StateUndoing {
		m.NextCheck = now
	}
}

// Extend moves the end of a holder, or of all with "".
func (m *Machine) Extend(holder string, until time.Time, grant attestation.Envelope) {
	if m.State != StateHeld && m.State != StateApplying {
		return
	}
	for id, h := range m.Holders {
		if (holder == "" || holder == id) && until.After(h.Until) {
			h.Until = until
		}
	}
	if m.End().After(m.Stamped) {
		m.Reapply, m.Extension = true, &grant
	}
}

// Changed takes in what applying did.
func (m *Machine) Changed(r activities.ApplyResult, asked time.Time, now time.Time) {
	first := m.State == StateApplying
	m.Reapply = false
	if r.Decision.Verdict != activities.VerdictRun {
		m.Reason, m.Guard = r.Decision.Reason, r.Decision.Guard
		outcome := playbooks.OutcomeRefused
		if r.Decision.Verdict == activities.VerdictPropose || r.Decision.Verdict == activities.VerdictAskApproval {
			outcome = playbooks.OutcomeProposed
		}
		if first {
			m.Outcome, m.State = outcome, StateEnded
			m.tellAll(now)
			return
		}
		// What is in force stays until its stamp; the holders that wanted more are told.
		m.tellWaiting(now, outcome, r.Decision.Reason)
		m.NextCheck = now.Add(m.Timing.Verify)
		m.clip()
		return
	}
	m.Token, m.Stamped = r.LeaseToken, asked
	m.Verified = r.Effect.Outcome != playbooks.OutcomeUnverified
	m.Reason, m.Guard = r.Effect.Reason, ""
	if first {
		m.Outcome, m.Applied = r.Effect.Outcome, r.Effect.AppliedAt
		if m.Applied.IsZero() {
			m.Applied = now
		}
		m.State = StateHeld
	}
	m.NextCheck = now.Add(m.Timing.Verify)
	m.tellAll(now)
}

// clip takes holders' ends back to what is stamped, where a longer hold was not permitted.
func (m *Machine) clip() {
	for _, h := range m.Holders {
		if h.Until.After(m.Stamped) {
			h.Until = m.Stamped
		}
	}
}

// ChangeFailed takes in that applying failed after its retries.
func (m *Machine) ChangeFailed(err error, now time.Time) {
	m.Reapply = false
	m.Reason = err.Error()
	if m.State == StateApplying {
		// The activity undid what it did; undo once more, in case it died before it could.
		m.Outcome, m.State, m.NextCheck = playbooks.OutcomeFailed, StateUndoing, now
		m.tellAll(now)
		return
	}
	m.Verified = false
	m.NextCheck = now.Add(m.Timing.RetryFirst)
	m.tell(now)
}

// Observed takes in a verification while the lease holds.
func (m *Machine) Observed(r activities.VerifyResult, err error, now time.Time) {
	m.NextCheck = now.Add(m.Timing.Verify)
	was := m.Verified
	switch {
	case err != nil:
		m.Verified, m.Reason = false, "it cannot be observed: "+err.Error()
	case r.TargetGone:
		// Nothing is left to hold: what is left of the containment is taken away.
		m.State, m.UndoTried, m.NextCheck, m.Reason = StateUndoing, 0, now, r.Detail
		m.tell(now)
		return
	case r.InForce && r.UnverifiedReason != "":
		m.Verified, m.Reason = false, "it is in force and not verified: "+r.UnverifiedReason
	case r.InForce:
		m.Verified, m.Reason = m.Outcome != playbooks.OutcomeUnverified, r.Detail
	default:
		m.Verified, m.Reapply = false, true
		m.Reapplied++
		m.Fought = m.Fought || m.Reapplied >= foughtLimit
		m.Reason = "it was put back: " + r.Detail
	}
	if was != m.Verified || m.Reapply {
		m.tell(now)
	}
}

// TakenBack takes in what undoing did.
func (m *Machine) TakenBack(r activities.UndoResult, err error, now time.Time) {
	m.UndoTried++
	switch {
	case err == nil && r.Undone:
		m.State, m.Undone, m.Reason = StateEnded, true, m.releasedBy()
		m.tell(now)
		return
	case err != nil:
		m.Reason = "undo failed: " + err.Error()
	case r.Drift != nil:
		m.Reason = "somebody else changed it since: " + r.Drift.Detail
	default:
		m.Reason = "undo was refused: " + r.RefusalReason
	}
	wait := m.Timing.RetryFirst << min(m.UndoTried-1, 10)
	m.NextCheck = now.Add(min(wait, m.Timing.RetryMost))
	if (r.Drift != nil || m.UndoTried >= undoTries) && m.State != StateStuck {
		m.State = StateStuck
		m.tell(now)
	}
}
