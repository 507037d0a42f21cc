package decisions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/sensors/truncate"
	"stanch/worker/config"
	"stanch/worker/httpserver"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// LeaseRequest selects one lease, those of an incident, or all.
type LeaseRequest struct {
	LeaseID    string `json:"lease,omitempty"`
	IncidentID string `json:"incident,omitempty"`
	All        bool   `json:"all,omitempty"`
	// for an extension: in force for this long from now, unless it already is for longer
	Duration time.Duration `json:"for,omitempty"`
	Reason   string        `json:"reason,omitempty"`
	// CountFrom is the start of an extension's duration; zero means now. It makes a repeated request ask for the same
	// end.
	CountFrom time.Time `json:"count_from,omitzero"`
}

// matchingHolders returns the holders of a lease that a request is about; "" means every holder.
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
	return own // holders of other incidents stay
}

// releaseGrantLifetime is how long a release grant is valid; a stuck lease needs a new one.
const releaseGrantLifetime = 24 * time.Hour

// maxExtension is the maximum of one extension.
const maxExtension = 7 * 24 * time.Hour

// Release ends leases now. It returns the leases that it changed, and an error for those that it could not.
func (d *Service) Release(ctx context.Context, s Principal, q LeaseRequest) ([]playbooks.LeaseReport, error) {
	return d.forEachLease(ctx, s, q, attestation.OperationRelease, func(l leaseHolder) error {
		m := l.machine
		grant, err := d.signGrant(s, attestation.OperationRelease, l, time.Time{}, q.Reason)
		if err != nil {
			return err
		}
		if err := d.signal(ctx, l.workflowID, workflows.SignalReleaseLease,
			lease.ReleaseSignal{HolderID: l.holder, Grant: grant}); err != nil {
			return fmt.Errorf("release %s: %w", m.LeaseID, err)
		}
		d.recordInManifest(m.IncidentRef.ID, activities.EntryKindRelease, activities.AuditRecord{
			LeaseID: m.LeaseID,
			Action:  m.Action, Target: m.Target.ID(), People: []string{s.describe()}, Note: truncate.Runes(q.Reason,
				MaxReasonRunes),
		})
		return nil
	})
}

// checkSinglePersonLimit returns an error if one person may not extend a lease this long: an extension that would
// require several approvers as a new containment cannot be made by one of them. The operator may.
func (d *Service) checkSinglePersonLimit(s Principal, p leaseScope, hold time.Duration) error {
	most := time.Duration(d.Roster.LastRead().Budget.MaxDuration)
	if hold <= most || s.IsOperator && s.DrillName == "" {
		return nil
	}
	approvers := d.ScopeApprovers.ApproversForNamespace(p.namespace, p.drill)
	if approvers.Quorum <= 1 {
		return nil
	}
	return httpserver.Forbidden(
		"one person can extend this lease to at most %s from now; a longer extension requires %d approvals from %s: request it "+
			"with `stanch contain TARGET --for %s --reason …`",
		duration.Format(most), approvers.Quorum, approvers.Describe(), duration.Format(hold))
}

// Extend sets the end of leases to a time from now. It never shortens a lease: one that ends later is refused with its
// end in the error. A repeated request asks for the same end.
func (d *Service) Extend(ctx context.Context, s Principal, q LeaseRequest) ([]playbooks.LeaseReport, error) {
	if q.Duration <= 0 || q.Duration > maxExtension {
		return nil, httpserver.BadRequest("%s", "invalid duration; use a time from now of at most "+
			duration.Format(maxExtension))
	}
	from := time.Now()
	if !q.CountFrom.IsZero() && q.CountFrom.Before(from) {
		from = q.CountFrom
	}
	until := from.Add(q.Duration)
	done, err := d.forEachLease(ctx, s, q, attestation.OperationExtend, func(l leaseHolder) error {
		m := l.machine
		if end := l.expiry(); !end.Before(until) {
			return httpserver.Conflict(
				"the lease already lasts until %s UTC, %s from now, and an extension cannot shorten it; request a "+
					"longer time, or end it with `stanch release %s`",
				end.UTC().Format(time.DateTime), duration.Format(max(time.Until(end), 0).Round(time.Second)), m.LeaseID)
		}
		if err := d.checkSinglePersonLimit(s, l.scope, q.Duration); err != nil {
			return err
		}
		grant, err := d.signGrant(s, attestation.OperationExtend, l, until, q.Reason)
		if err != nil {
			return err
		}
		if err := d.signal(ctx, l.workflowID, workflows.SignalExtendLease,
			lease.ExtendSignal{HolderID: l.holder, ExpiresAt: until, Grant: grant}); err != nil {
			return fmt.Errorf("extend %s: %w", m.LeaseID, err)
		}
		d.recordInManifest(m.IncidentRef.ID, activities.EntryKindExtend, activities.AuditRecord{
			LeaseID: m.LeaseID,
			Action:  m.Action, Target: m.Target.ID(), People: []string{s.describe()},
			Note: "until " + until.UTC().Format(time.RFC3339),
		})
		return nil
	})
	for i := range done {
		done[i].ExpiresAt = until // as requested; the guards decide again before the effect
	}
	return done, err
}

// leaseHolder is one holder of a lease that a person changes; the holder "" means every holder.
type leaseHolder struct {
	workflowID, holder string
	machine            *lease.Machine
	scope              leaseScope
}

// expiry returns the end of the holder.
func (l leaseHolder) expiry() time.Time {
	if h := l.machine.Holders[l.holder]; h != nil {
		return h.ExpiresAt
	}
	return l.machine.LastExpiry()
}

// leaseScope is the location of a lease's target, from the token that was signed when its effect was permitted.
type leaseScope struct {
	namespace string
	drill     bool
}

// leaseScopeOf reads a lease's token. Without a token, nothing was ever permitted, and only the operator may end the
// lease.
func (d *Service) leaseScopeOf(s Principal, m *lease.Machine) (leaseScope, error) {
	var token attestation.LeaseToken
	if m.LeaseToken != nil && d.Authority.Keyring().Verify(*m.LeaseToken, attestation.PayloadTypeLeaseToken,
		&token) == nil && token.LeaseID == m.LeaseID && token.TargetID == m.Target.ID() {
		return leaseScope{token.Namespace, token.DrillOnly}, nil
	}
	if s.IsOperator && s.DrillName == "" {
		return leaseScope{namespace: m.Target.Namespace}, nil
	}
	return leaseScope{}, httpserver.Forbidden(
		"lease %s has no valid token, so its namespace is unknown; only the operator of Stanch is allowed to change it",
		m.LeaseID)
}

func (d *Service) signGrant(s Principal, operation attestation.Operation, l leaseHolder, until time.Time,
	reason string,
) (attestation.Envelope, error) {
	m := l.machine
	signed, err := d.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: operation, LeaseID: m.LeaseID, Holder: l.holder, NewEnd: until,
		IncidentID: m.IncidentRef.ID, Namespace: l.scope.namespace, DrillOnly: l.scope.drill,
		Reason: truncate.Runes(reason, MaxReasonRunes), Targets: []string{m.Target.ID()}, GrantedBy: []string{s.describe()},
		IssuedAt: time.Now(), ExpiresAt: time.Now().Add(releaseGrantLifetime),
	})
	if err != nil {
		return attestation.Envelope{}, fmt.Errorf("sign the grant: %w", err)
	}
	return signed, nil
}

func (d *Service) forEachLease(ctx context.Context, s Principal, q LeaseRequest,
	operation attestation.Operation, do func(leaseHolder) error,
) ([]playbooks.LeaseReport, error) {
	cfg, err := d.authorizeCaller(s)
	if err != nil {
		return nil, err
	}
	if !q.All && q.LeaseID == "" && q.IncidentID == "" {
		return nil, httpserver.BadRequest("missing lease; name a lease, an incident, or all")
	}
	machines, unread := d.Queries.RunningLeases(ctx, q.LeaseID)
	done := []playbooks.LeaseReport{}
	var refused error
	for id, m := range machines {
		holders := q.matchingHolders(id, m)
		if len(holders) == 0 {
			continue
		}
		scope, err := d.authorizeLease(ctx, cfg, s, m)
		for i := 0; err == nil && i < len(holders); i++ {
			err = do(leaseHolder{workflowID: id, holder: holders[i], machine: m, scope: scope})
		}
		if err != nil {
			d.Log.Warn("refused to change a lease", "operation", operation, "lease", m.LeaseID, "by", s.Name, "authenticated_by",
				s.AuthenticatedBy, "reason", err.Error())
			refused = errors.Join(refused, fmt.Errorf("%s: %w", m.LeaseID, err))
			continue // the other leases are not delayed
		}
		d.Log.Info("a person changed a lease", "operation", operation, "lease", m.LeaseID, "by", s.Name, "authenticated_by",
			s.AuthenticatedBy)
		done = append(done, m.CurrentReport(time.Now()))
	}
	if err := errors.Join(refused, unread); err != nil {
		if q.LeaseID != "" {
			return done, err
		}
		// A lease that cannot be read may be among the requested ones.
		return done, fmt.Errorf("%d leases were changed; these were not: %w", len(done), err)
	}
	if len(done) == 0 && q.LeaseID != "" {
		return nil, httpserver.NotFound("lease %s is unknown or has ended; `stanch leases` lists the leases",
			truncate.Name(q.LeaseID))
	}
	return done, nil
}

// authorizeLease returns the scope of a lease, or why the person may not change it.
func (d *Service) authorizeLease(ctx context.Context, cfg *config.Config, s Principal, m *lease.Machine) (leaseScope,
	error,
) {
	scope, err := d.leaseScopeOf(s, m)
	if err != nil {
		return leaseScope{}, err
	}
	return scope, d.authorizeForNamespace(ctx, cfg, s, scope.namespace, scope.drill)
}
