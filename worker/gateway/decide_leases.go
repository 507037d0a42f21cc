package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// LeaseRequest names one lease, those of an incident, or all.
type LeaseRequest struct {
	Lease    string        `json:"lease,omitempty"`
	Incident string        `json:"incident,omitempty"`
	All      bool          `json:"all,omitempty"`
	For      time.Duration `json:"for,omitempty"` // extend: hold until this long from now, if it does not already hold longer
	Reason   string        `json:"reason,omitempty"`
	// From is what an extension is counted from; zero is now. A repeated request then asks for the same end.
	From time.Time `json:"from,omitzero"`
}

// names gives the holders of a lease that a request is about; "" is every holder.
func (q LeaseRequest) names(id string, m *lease.Machine) []string {
	if q.All || q.Lease != "" && (m.LeaseID == q.Lease || id == q.Lease) {
		return []string{""}
	}
	var own []string
	for holder, h := range m.Holders {
		if q.Incident != "" && h.IncidentRef.ID == q.Incident {
			own = append(own, holder)
		}
	}
	if len(own) > 0 && len(own) == len(m.Holders) {
		return []string{""}
	}
	return own // what another incident holds stays
}

// releaseLife is how long a release may take to get through; a lease that is stuck is released anew.
const releaseLife = 24 * time.Hour

// longestExtension bounds one extension.
const longestExtension = 7 * 24 * time.Hour

// Release ends leases now.
func (d *Decider) Release(ctx context.Context, s Speaker, q LeaseRequest) ([]playbooks.LeaseReport, error) {
	return d.each(ctx, s, q, attestation.OperationRelease, func(id, holder string, m *lease.Machine, scope place) error {
		grant, err := d.grantFor(s, attestation.OperationRelease, m, holder, scope, time.Time{}, q.Reason)
		if err != nil {
			return err
		}
		if err := d.Reader.Temporal.SignalWorkflow(ctx, id, "", workflows.SignalReleaseLease, lease.ReleaseSignal{HolderID: holder, Grant: grant}); err != nil {
			return fmt.Errorf("release %s: %w", m.LeaseID, err)
		}
		d.record(m.IncidentRef.ID, activities.EntryKindRelease, activities.AuditRecord{LeaseID: m.LeaseID, Action: m.Action, Target: m.Target.ID(), People: []string{s.who()}, Note: cut(q.Reason, maxReasonLen)})
		return nil
	})
}

// aloneTooLong says why one person may not let a lease hold for so long, or nil: what would ask several people if it were
// contained anew is not for one of them to extend. Who runs Stanch may.
func (d *Decider) aloneTooLong(s Speaker, p place, hold time.Duration) error {
	most := time.Duration(d.Roster.Last().Budget.Longest)
	if hold <= most || s.Operator && s.Drill == "" {
		return nil
	}
	approvers := d.Scopes.ApproversForNamespace(p.namespace, p.drill)
	if approvers.Quorum <= 1 {
		return nil
	}
	return deny("one person may extend to at most %s from now here, since longer takes %d of %s: `stanch contain TARGET --for %s --reason …` asks them",
		duration.Format(most), approvers.Quorum, approvers.Describe(), duration.Format(hold))
}

// Extend lets leases hold until a time from now. It never shortens one: a lease that already holds until then or later is
// refused, and the refusal names its end. A repeated request asks for the same end.
func (d *Decider) Extend(ctx context.Context, s Speaker, q LeaseRequest) ([]playbooks.LeaseReport, error) {
	if q.For <= 0 || q.For > longestExtension {
		return nil, &problem{http.StatusBadRequest, "say until how long from now it shall hold: at most " + duration.Format(longestExtension)}
	}
	from := time.Now()
	if !q.From.IsZero() && q.From.Before(from) {
		from = q.From
	}
	until := from.Add(q.For)
	done, err := d.each(ctx, s, q, attestation.OperationExtend, func(id, holder string, m *lease.Machine, scope place) error {
		if end := holdsUntil(m, holder); !end.Before(until) {
			return &problem{http.StatusConflict, fmt.Sprintf("it holds until %s UTC already, %s from now, and extending never shortens: ask for longer than that, or end it with `stanch release %s`",
				end.UTC().Format(time.DateTime), duration.Format(max(time.Until(end), 0).Round(time.Second)), m.LeaseID)}
		}
		if err := d.aloneTooLong(s, scope, q.For); err != nil {
			return err
		}
		grant, err := d.grantFor(s, attestation.OperationExtend, m, holder, scope, until, q.Reason)
		if err != nil {
			return err
		}
		if err := d.Reader.Temporal.SignalWorkflow(ctx, id, "", workflows.SignalExtendLease, lease.ExtendSignal{HolderID: holder, ExpiresAt: until, Grant: grant}); err != nil {
			return fmt.Errorf("extend %s: %w", m.LeaseID, err)
		}
		d.record(m.IncidentRef.ID, activities.EntryKindExtend, activities.AuditRecord{LeaseID: m.LeaseID, Action: m.Action, Target: m.Target.ID(), People: []string{s.who()}, Note: "until " + until.UTC().Format(time.RFC3339)})
		return nil
	})
	for i := range done {
		done[i].ExpiresAt = until // as it was asked for; the guards decide once more before the effect
	}
	return done, err
}

// holdsUntil is when what a holder holds ends; "" is every holder.
func holdsUntil(m *lease.Machine, holder string) time.Time {
	if h := m.Holders[holder]; h != nil {
		return h.ExpiresAt
	}
	return m.LastExpiry()
}

// place is where a lease's target is, by the token that was signed when its effect was permitted.
type place struct {
	namespace string
	drill     bool
}

// placeOf reads a lease's token. Without one, nothing was ever permitted: only who runs Stanch may end that.
func (d *Decider) placeOf(s Speaker, m *lease.Machine) (place, error) {
	var token attestation.LeaseToken
	if m.LeaseToken != nil && d.Authority.Keys().Verify(*m.LeaseToken, attestation.PayloadTypeLeaseToken, &token) == nil && token.LeaseID == m.LeaseID && token.TargetID == m.Target.ID() {
		return place{token.Namespace, token.DrillOnly}, nil
	}
	if s.Operator && s.Drill == "" {
		return place{namespace: m.Target.Namespace}, nil
	}
	return place{}, deny("the lease %s has no proof of what it holds: nobody but who runs Stanch may end it", m.LeaseID)
}

func (d *Decider) grantFor(s Speaker, operation attestation.Operation, m *lease.Machine, holder string, p place, until time.Time, reason string) (attestation.Envelope, error) {
	signed, err := d.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: operation, LeaseID: m.LeaseID, Holder: holder, NewEnd: until, IncidentID: m.IncidentRef.ID, Namespace: p.namespace, DrillOnly: p.drill,
		Reason: cut(reason, maxReasonLen), Targets: []string{m.Target.ID()}, GrantedBy: []string{s.who()}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(releaseLife),
	})
	if err != nil {
		return attestation.Envelope{}, fmt.Errorf("sign the grant: %w", err)
	}
	return signed, nil
}

func (d *Decider) each(ctx context.Context, s Speaker, q LeaseRequest, operation attestation.Operation, do func(id, holder string, m *lease.Machine, p place) error) ([]playbooks.LeaseReport, error) {
	cfg, err := d.permitted(s)
	if err != nil {
		return nil, err
	}
	if !q.All && q.Lease == "" && q.Incident == "" {
		return nil, &problem{http.StatusBadRequest, "name a lease, an incident, or all"}
	}
	machines, unread := d.Reader.Machines(ctx, q.Lease)
	done := []playbooks.LeaseReport{}
	var refused error
	for id, m := range machines {
		holders := q.names(id, m)
		if len(holders) == 0 {
			continue
		}
		if err := d.one(ctx, cfg, s, id, holders, m, do); err != nil {
			d.Log.Warn("a change of a lease was refused", "operation", operation, "lease", m.LeaseID, "by", s.Name, "proved", s.Proved, "why", err.Error())
			refused = errors.Join(refused, fmt.Errorf("%s: %w", m.LeaseID, err))
			continue // the others are not to wait for it
		}
		d.Log.Info("a lease was changed by a person", "operation", operation, "lease", m.LeaseID, "by", s.Name, "proved", s.Proved)
		done = append(done, m.CurrentReport(time.Now()))
	}
	if err := errors.Join(refused, unread); err != nil {
		if q.Lease != "" {
			return done, err
		}
		// What cannot be read may be among what was asked for.
		return done, fmt.Errorf("%d leases were changed, and these were not: %w", len(done), err)
	}
	if len(done) == 0 && q.Lease != "" {
		return nil, missing("there is no lease %s in force; `stanch leases` lists them", clip(q.Lease))
	}
	return done, nil
}

func (d *Decider) one(ctx context.Context, cfg *config.Config, s Speaker, id string, holders []string, m *lease.Machine, do func(id, holder string, m *lease.Machine, p place) error) error {
	p, err := d.placeOf(s, m)
	if err != nil {
		return err
	}
	if err := d.entitled(ctx, cfg, s, p.namespace, p.drill); err != nil {
		return err
	}
	for _, holder := range holders {
		if err := do(id, holder, m, p); err != nil {
			return err
		}
	}
	return nil
}
