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
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/worker/config"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// LeaseRequest names one lease, those of an incident, or all.
type LeaseRequest struct {
	LeaseID    string        `json:"lease,omitempty"`
	IncidentID string        `json:"incident,omitempty"`
	All        bool          `json:"all,omitempty"`
	Duration   time.Duration `json:"for,omitempty"` // extend: hold until this long from now, if it does not already hold longer
	Reason     string        `json:"reason,omitempty"`
	// CountFrom is what an extension is counted from; zero is now. A repeated request then asks for the same end.
	CountFrom time.Time `json:"count_from,omitzero"`
}

// matchingHolders gives the holders of a lease that a request is about; "" is every holder.
func (q LeaseRequest) matchingHolders(id string, m *lease.Machine) []string {
	if q.All || q.LeaseID != "" && (m.LeaseID == q.LeaseID || id == q.LeaseID) {
		return []string{""}
	}
	var own []string
	for holder, h := range m.Holders {
		if q.IncidentID != "" && h.IncidentRef.ID == q.IncidentID {
			own = append(own, holder)
		}
	}
	if len(own) > 0 && len(own) == len(m.Holders) {
		return []string{""}
	}
	return own // what another incident holds stays
}

// releaseGrantLifetime is how long a release may take to get through; a lease that is stuck is released anew.
const releaseGrantLifetime = 24 * time.Hour

// maxExtension bounds one extension.
const maxExtension = 7 * 24 * time.Hour

// Release ends leases now.
func (d *ApprovalService) Release(ctx context.Context, s Principal, q LeaseRequest) ([]playbooks.LeaseReport, error) {
	return d.forEachLease(ctx, s, q, attestation.OperationRelease, func(id, holder string, m *lease.Machine, scope leaseScope) error {
		grant, err := d.signGrant(s, attestation.OperationRelease, m, holder, scope, time.Time{}, q.Reason)
		if err != nil {
			return err
		}
		if err := d.QueryService.Temporal.SignalWorkflow(ctx, id, "", workflows.SignalReleaseLease, lease.ReleaseSignal{HolderID: holder, Grant: grant}); err != nil {
			return fmt.Errorf("release %s: %w", m.LeaseID, err)
		}
		d.recordInManifest(m.IncidentRef.ID, activities.EntryKindRelease, activities.AuditRecord{LeaseID: m.LeaseID, Action: m.Action, Target: m.Target.ID(), People: []string{s.describe()}, Note: truncateTo(q.Reason, maxReasonBytes)})
		return nil
	})
}

// checkSinglePersonLimit says why one person may not let a lease hold for so long, or nil: what would ask several people if it were
// contained anew is not for one of them to extend. Who runs Stanch may.
func (d *ApprovalService) checkSinglePersonLimit(s Principal, p leaseScope, hold time.Duration) error {
	most := time.Duration(d.Roster.LastRead().Budget.MaxDuration)
	if hold <= most || s.IsOperator && s.DrillName == "" {
		return nil
	}
	approvers := d.ScopeApprovers.ApproversForNamespace(p.namespace, p.drill)
	if approvers.Quorum <= 1 {
		return nil
	}
	return forbidden("one person may extend to at most %s from now here, since longer takes %d of %s: `stanch contain TARGET --for %s --reason …` asks them",
		duration.Format(most), approvers.Quorum, approvers.Describe(), duration.Format(hold))
}

// Extend lets leases hold until a time from now. It never shortens one: a lease that already holds until then or later is
// refused, and the refusal names its end. A repeated request asks for the same end.
func (d *ApprovalService) Extend(ctx context.Context, s Principal, q LeaseRequest) ([]playbooks.LeaseReport, error) {
	if q.Duration <= 0 || q.Duration > maxExtension {
		return nil, &httpError{http.StatusBadRequest, "say until how long from now it shall hold: at most " + duration.Format(maxExtension)}
	}
	from := time.Now()
	if !q.CountFrom.IsZero() && q.CountFrom.Before(from) {
		from = q.CountFrom
	}
	until := from.Add(q.Duration)
	done, err := d.forEachLease(ctx, s, q, attestation.OperationExtend, func(id, holder string, m *lease.Machine, scope leaseScope) error {
		if end := holderExpiry(m, holder); !end.Before(until) {
			return &httpError{http.StatusConflict, fmt.Sprintf("it holds until %s UTC already, %s from now, and extending never shortens: ask for longer than that, or end it with `stanch release %s`",
				end.UTC().Format(time.DateTime), duration.Format(max(time.Until(end), 0).Round(time.Second)), m.LeaseID)}
		}
		if err := d.checkSinglePersonLimit(s, scope, q.Duration); err != nil {
			return err
		}
		grant, err := d.signGrant(s, attestation.OperationExtend, m, holder, scope, until, q.Reason)
		if err != nil {
			return err
		}
		if err := d.QueryService.Temporal.SignalWorkflow(ctx, id, "", workflows.SignalExtendLease, lease.ExtendSignal{HolderID: holder, ExpiresAt: until, Grant: grant}); err != nil {
			return fmt.Errorf("extend %s: %w", m.LeaseID, err)
		}
		d.recordInManifest(m.IncidentRef.ID, activities.EntryKindExtend, activities.AuditRecord{LeaseID: m.LeaseID, Action: m.Action, Target: m.Target.ID(), People: []string{s.describe()}, Note: "until " + until.UTC().Format(time.RFC3339)})
		return nil
	})
	for i := range done {
		done[i].ExpiresAt = until // as it was asked for; the guards decide once more before the effect
	}
	return done, err
}

// holderExpiry is when what a holder holds ends; "" is every holder.
func holderExpiry(m *lease.Machine, holder string) time.Time {
	if h := m.Holders[holder]; h != nil {
		return h.ExpiresAt
	}
	return m.LastExpiry()
}

// leaseScope is where a lease's target is, by the token that was signed when its effect was permitted.
type leaseScope struct {
	namespace string
	drill     bool
}

// leaseScopeOf reads a lease's token. Without one, nothing was ever permitted: only who runs Stanch may end that.
func (d *ApprovalService) leaseScopeOf(s Principal, m *lease.Machine) (leaseScope, error) {
	var token attestation.LeaseToken
	if m.LeaseToken != nil && d.Authority.Keyring().Verify(*m.LeaseToken, attestation.PayloadTypeLeaseToken, &token) == nil && token.LeaseID == m.LeaseID && token.TargetID == m.Target.ID() {
		return leaseScope{token.Namespace, token.DrillOnly}, nil
	}
	if s.IsOperator && s.DrillName == "" {
		return leaseScope{namespace: m.Target.Namespace}, nil
	}
	return leaseScope{}, forbidden("the lease %s has no proof of what it holds: nobody but who runs Stanch may end it", m.LeaseID)
}

func (d *ApprovalService) signGrant(s Principal, operation attestation.Operation, m *lease.Machine, holder string, p leaseScope, until time.Time, reason string) (attestation.Envelope, error) {
	signed, err := d.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: operation, LeaseID: m.LeaseID, Holder: holder, NewEnd: until, IncidentID: m.IncidentRef.ID, Namespace: p.namespace, DrillOnly: p.drill,
		Reason: truncateTo(reason, maxReasonBytes), Targets: []string{m.Target.ID()}, GrantedBy: []string{s.describe()}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(releaseGrantLifetime),
	})
	if err != nil {
		return attestation.Envelope{}, fmt.Errorf("sign the grant: %w", err)
	}
	return signed, nil
}

func (d *ApprovalService) forEachLease(ctx context.Context, s Principal, q LeaseRequest, operation attestation.Operation, do func(id, holder string, m *lease.Machine, p leaseScope) error) ([]playbooks.LeaseReport, error) {
	cfg, err := d.authorizeCaller(s)
	if err != nil {
		return nil, err
	}
	if !q.All && q.LeaseID == "" && q.IncidentID == "" {
		return nil, &httpError{http.StatusBadRequest, "name a lease, an incident, or all"}
	}
	machines, unread := d.QueryService.RunningLeases(ctx, q.LeaseID)
	done := []playbooks.LeaseReport{}
	var refused error
	for id, m := range machines {
		holders := q.matchingHolders(id, m)
		if len(holders) == 0 {
			continue
		}
		if err := d.applyToLease(ctx, cfg, s, id, holders, m, do); err != nil {
			d.Log.Warn("a change of a lease was refused", "operation", operation, "lease", m.LeaseID, "by", s.Name, "proved", s.AuthenticatedBy, "why", err.Error())
			refused = errors.Join(refused, fmt.Errorf("%s: %w", m.LeaseID, err))
			continue // the others are not to wait for it
		}
		d.Log.Info("a lease was changed by a person", "operation", operation, "lease", m.LeaseID, "by", s.Name, "proved", s.AuthenticatedBy)
		done = append(done, m.CurrentReport(time.Now()))
	}
	if err := errors.Join(refused, unread); err != nil {
		if q.LeaseID != "" {
			return done, err
		}
		// What cannot be read may be among what was asked for.
		return done, fmt.Errorf("%d leases were changed, and these were not: %w", len(done), err)
	}
	if len(done) == 0 && q.LeaseID != "" {
		return nil, notFound("there is no lease %s in force; `stanch leases` lists them", truncateText(q.LeaseID))
	}
	return done, nil
}

func (d *ApprovalService) applyToLease(ctx context.Context, cfg *config.Config, s Principal, id string, holders []string, m *lease.Machine, do func(id, holder string, m *lease.Machine, p leaseScope) error) error {
	p, err := d.leaseScopeOf(s, m)
	if err != nil {
		return err
	}
	if err := d.authorizeForNamespace(ctx, cfg, s, p.namespace, p.drill); err != nil {
		return err
	}
	for _, holder := range holders {
		if err := do(id, holder, m, p); err != nil {
			return err
		}
	}
	return nil
}
