// Package lease runs the lease of one facet of one target: apply, verify regularly, undo, verify. Its logic is Machine,
// a pure state machine that receives events and returns commands; the workflow is a thin loop around it.
//
// A lease whose undo fails is never forgotten: it stays visible as stuck. A lease never ends early without a grant, and
// never lasts past its last holder's end.
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

// State is the state of a lease.
type State string

// The states.
const (
	StateApplying State = "applying"
	StateHeld     State = "held"
	StateUndoing  State = "undoing"
	StateStuck    State = "stuck" // undo fails repeatedly; it is retried and reported
	StateEnded    State = "ended"
)

// Holder is one step that holds the lease.
type Holder struct {
	ID string `json:"id"`
	// workflow id of the playbook's run; "" after its first report
	ReportToWorkflow string                   `json:"report_to_workflow"`
	IncidentRef      activities.IncidentRef   `json:"incident"`
	Action           string                   `json:"action"`
	Params           json.RawMessage          `json:"params"`
	Duration         time.Duration            `json:"for"`
	Plan             activities.Plan          `json:"plan"`
	Authorization    activities.Authorization `json:"authorization"`
	ExpiresAt        time.Time                `json:"until,omitzero"` // set when the holder joins the lease
}

// Timing configures the verification and the retries of a lease. The zero value means the defaults.
type Timing struct {
	VerifyInterval time.Duration `json:"verify_interval,omitempty"` // time between verifications; default 30 s
	// delay after a failed undo; default 2 s, doubling
	UndoRetryInitial time.Duration `json:"undo_retry_initial,omitempty"`
	UndoRetryMax     time.Duration `json:"undo_retry_max,omitempty"` // maximum of that delay; default 1 min
	// Route selects where its activities run.
	Route workflows.ActivityRoute `json:"route,omitzero"`
}

func (t Timing) withDefaults() Timing {
	t.VerifyInterval = cmp.Or(t.VerifyInterval, 30*time.Second)
	t.UndoRetryInitial = cmp.Or(t.UndoRetryInitial, 2*time.Second)
	t.UndoRetryMax = cmp.Or(t.UndoRetryMax, time.Minute)
	return t
}

// stuckAfterUndoAttempts is the number of failed undo attempts after which a lease is stuck. Undo is retried even then.
const stuckAfterUndoAttempts = 5

// contestedAfterReapplies is the number of re-applications after which a lease is contested.
const contestedAfterReapplies = 3

// Machine is the complete state of a lease. Continue-as-new carries it over unchanged. It is not safe for concurrent
// use.
type Machine struct {
	LeaseID        string                   `json:"lease"` // unique, never reused
	Target         playbooks.Target         `json:"target"`
	Facet          playbooks.Facet          `json:"facet"`
	State          State                    `json:"state"`
	Holders        map[string]*Holder       `json:"holders"`
	Action         string                   `json:"action"`
	Params         json.RawMessage          `json:"params"`
	IncidentRef    activities.IncidentRef   `json:"incident"` // of the first holder
	PriorState     json.RawMessage          `json:"prior,omitempty"`
	Authorization  activities.Authorization `json:"authorization"`
	Duration       time.Duration            `json:"for,omitempty"` // duration of the holder whose authorization is used
	LeaseToken     *attestation.Envelope    `json:"token,omitempty"`
	ReleaseGrant   *attestation.Envelope    `json:"grant,omitempty"`           // an early end that people granted
	ExtensionGrant *attestation.Envelope    `json:"extension_grant,omitempty"` // an extension that people granted
	Outcome        playbooks.Outcome        `json:"outcome,omitempty"`
	Reason         string                   `json:"reason,omitempty"`
	Guard          string                   `json:"guard,omitempty"`        // the guard that refused it
	StampedUntil   time.Time                `json:"stamped_until,omitzero"` // the end on the contained object
	AppliedAt      time.Time                `json:"applied_at,omitzero"`
	Verified       bool                     `json:"verified"`
	Undone         bool                     `json:"undone"`
	NeedsReapply   bool                     `json:"needs_reapply"`
	ReapplyCount   int                      `json:"reapply_count"`
	Contested      bool                     `json:"contested"`
	UndoAttempts   int                      `json:"undo_attempts"`
	NextCheckAt    time.Time                `json:"next_check_at,omitzero"` // next verification or retry
	Timing         Timing                   `json:"timing"`
	// PendingReports are the reports to send: one to each holder, and one to each incident at every change.
	PendingReports []OutgoingReport `json:"pending_reports,omitempty"`
}

// CommandKind is the kind of the next action.
type CommandKind string

// The commands.
const (
	CommandApply  CommandKind = "apply"
	CommandVerify CommandKind = "verify"
	CommandUndo   CommandKind = "undo"
	CommandWait   CommandKind = "wait"
	CommandEnd    CommandKind = "end"
)

// Command is one action of the workflow.
type Command struct {
	Kind  CommandKind
	Until time.Time // for CommandWait
}

// NewMachine returns the machine of a new lease with its first holder.
func NewMachine(lease string, in Input, now time.Time) *Machine {
	first := in.FirstHolder
	m := &Machine{
		LeaseID: lease, Target: in.Target, Facet: in.Facet, State: StateApplying, Holders: map[string]*Holder{},
		Timing: in.Timing.withDefaults(),
	}
	m.Action, m.Params, m.IncidentRef, m.PriorState, m.Authorization, m.Duration = first.Action, first.Params,
		first.IncidentRef, first.Plan.PriorState, first.Authorization, first.Duration
	first.ExpiresAt = now.Add(first.Duration)
	m.Holders[first.ID] = &first
	return m
}

// LastExpiry returns the end of the last holder.
func (m *Machine) LastExpiry() time.Time {
	var end time.Time
	for _, h := range m.Holders {
		if h.ExpiresAt.After(end) {
			end = h.ExpiresAt
		}
	}
	return end
}

// NextCommand returns what to do at the given time.
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

// ActivityRequest returns the request for activities in the current state.
func (m *Machine) ActivityRequest() activities.Request {
	until := m.LastExpiry()
	if m.State == StateUndoing || m.State == StateStuck || !m.NeedsReapply && !m.StampedUntil.IsZero() {
		until = m.StampedUntil // the end that is in force, which may differ from the requested one
	}
	if until.IsZero() {
		until = m.LastExpiry()
	}
	return activities.Request{
		Action: m.Action, Params: m.Params, Target: m.Target, IncidentRef: m.IncidentRef,
		LeaseID: m.LeaseID, Duration: m.Duration, ExpiresAt: until, ReleaseGrant: m.ReleaseGrant,
		ExtensionGrant: m.ExtensionGrant,
	}
}

// Join adds a holder. It refuses another action on the same facet, and any holder if the lease is ending.
func (m *Machine) Join(h Holder, now time.Time, combine func(a, b json.RawMessage) (json.RawMessage, error)) {
	if _, known := m.Holders[h.ID]; known {
		return // repeated signal
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
		refuse("%s of %s is already under a lease of %s for %s", m.Facet, m.Target, m.Action, m.IncidentRef.ID)
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
		// The token stays valid for what it covers, without new guard decisions. Without a token, the end is that of
		// the longest holder.
		longest := max(m.Duration, h.Duration)
		if m.Params, m.NeedsReapply, m.Authorization, m.Duration = params, true, h.Authorization,
			h.Duration; m.LeaseToken == nil {
			m.Duration = longest
		}
	}
	if m.State == StateHeld && !m.NeedsReapply {
		r := m.buildReport(now)
		r.Outcome, r.Reason = playbooks.OutcomeUnchanged, "already in force; joined the lease"
		m.PendingReports = append(m.PendingReports, OutgoingReport{WorkflowID: h.ReportToWorkflow, HolderID: h.ID, Lease: r})
	}
}

// Release ends one holder, or all with "". The gateway verified the grant, and the activity verifies it again.
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
		m.NeedsReapply = true // the stamped end must move to an earlier time
	}
	if m.State == StateStuck || m.State == StateUndoing {
		m.NextCheckAt = now
	}
}

// Extend moves the end of one holder, or of all with "".
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

// OnApplied handles the result of applying.
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
		// What is in force stays until its stamped end; holders that requested more get a report.
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

// capHolderExpiry limits holders' ends to the stamped end, if a longer duration was not permitted.
func (m *Machine) capHolderExpiry() {
	for _, h := range m.Holders {
		if h.ExpiresAt.After(m.StampedUntil) {
			h.ExpiresAt = m.StampedUntil
		}
	}
}

// OnApplyFailed handles a failure of applying after all retries.
func (m *Machine) OnApplyFailed(err error, now time.Time) {
	m.NeedsReapply = false
	m.Reason = err.Error()
	if m.State == StateApplying {
		// The activity rolls back its changes; undo again in case it died before that.
		m.Outcome, m.State, m.NextCheckAt = playbooks.OutcomeFailed, StateUndoing, now
		m.reportToAll(now)
		return
	}
	m.Verified = false
	m.NextCheckAt = now.Add(m.Timing.UndoRetryInitial)
	m.reportToIncidents(now)
}

// OnVerified handles the result of a verification while the lease is active.
func (m *Machine) OnVerified(r activities.VerifyResult, err error, now time.Time) {
	m.NextCheckAt = now.Add(m.Timing.VerifyInterval)
	was := m.Verified
	switch {
	case err != nil:
		m.Verified, m.Reason = false, "its state is unknown: "+err.Error()
	case r.TargetGone:
		// The target is gone: undo what is left of the containment.
		m.State, m.UndoAttempts, m.NextCheckAt, m.Reason = StateUndoing, 0, now, r.Detail
		m.reportToIncidents(now)
		return
	case r.InForce && r.UnverifiedReason != "":
		m.Verified, m.Reason = false, "in force but unverified: "+r.UnverifiedReason
	case r.InForce:
		m.Verified, m.Reason = m.Outcome != playbooks.OutcomeUnverified, r.Detail
	default:
		m.Verified, m.NeedsReapply = false, true
		m.ReapplyCount++
		m.Contested = m.Contested || m.ReapplyCount >= contestedAfterReapplies
		m.Reason = "it was reverted by another writer: " + r.Detail
	}
	if was != m.Verified || m.NeedsReapply {
		m.reportToIncidents(now)
	}
}

// OnUndone handles the result of undoing.
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
		m.Reason = "another writer has changed it since then: " + r.Drift.Detail
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
