package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"stanch/sensors/attestation"
)

// ApplyInput is the input of Apply.
type ApplyInput struct {
	Request       Request         `json:"request"`
	Authorization Authorization   `json:"authorization"`
	PriorState    json.RawMessage `json:"prior,omitempty"`
	// LeaseToken is the token from the lease's first effect. It replaces the guards' decision while the lease is
	// active.
	LeaseToken *attestation.Envelope `json:"token,omitempty"`
}

// ApplyResult is the result of Apply.
type ApplyResult struct {
	Effect     Effect                `json:"effect"`
	Decision   GuardDecision         `json:"decision"`
	LeaseToken *attestation.Envelope `json:"token,omitempty"`
	// ManifestEntryHash is the hash of the effect's line in the incident's manifest. Unrecorded says why there is no
	// line.
	ManifestEntryHash string `json:"manifest_entry_hash,omitempty"`
	UnrecordedReason  string `json:"unrecorded_reason,omitempty"`
}

// Apply runs every guard, makes the change and verifies it. If it fails halfway, it undoes the part that was applied.
func (s *Activities) Apply(ctx context.Context, in ApplyInput) (ApplyResult, error) {
	r := in.Request
	action, ok := s.actions[r.Action].(Containment)
	if !ok {
		return ApplyResult{Decision: GuardDecision{Verdict: VerdictRefuse, Reason: fmt.Sprintf("unknown contain action %q",
			r.Action)}}, nil
	}
	defer startHeartbeat(ctx)()
	s.hitFailpoint("apply/before/" + r.Action)
	decision, token, held, err := s.authorizeApply(ctx, action, in)
	if err != nil {
		return ApplyResult{}, retryableError(err)
	}
	s.hitFailpoint("apply/permitted/" + r.Action)
	if decision.Verdict != VerdictRun {
		return ApplyResult{Decision: decision}, nil
	}
	effect, err := action.Apply(ctx, r, in.PriorState, token)
	s.hitFailpoint("apply/after/" + r.Action)
	if refusal, ok := AsRefusal(err); ok {
		return ApplyResult{Decision: GuardDecision{
			Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason,
			Phase: decision.Phase,
		}}, nil
	}
	if err != nil {
		if held {
			err = errors.Join(err, errors.New("the previous state is unchanged"))
		} else if drift, undoErr := s.rollbackFailedApply(ctx, action, in); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("and the rollback failed: %w", undoErr))
		} else if drift != nil {
			err = errors.Join(err, fmt.Errorf("and its effects were changed by another writer: %s", drift.Detail))
		}
		return ApplyResult{}, retryableError(fmt.Errorf("apply %s to %s: %w", r.Action, r.Target, err))
	}
	result := ApplyResult{Effect: effect, Decision: decision, LeaseToken: &token}
	result.ManifestEntryHash, result.UnrecordedReason = s.recordInManifest(r.IncidentRef.ID, EntryKindEffect, AuditRecord{
		Action: r.Action, Target: r.Target.ID(), LeaseID: r.LeaseID, Outcome: effect.Outcome, BasisID: decision.BasisID,
		Note: "until " + r.ExpiresAt.UTC().Format(time.RFC3339),
	})
	return result, nil
}

// recordInManifest appends an audit record to the incident's manifest. A full or damaged store does not undo the
// effect: unrecorded then says why there is no entry, and the workflow's history keeps it.
func (s *Activities) recordInManifest(incident string, kind ManifestEntryKind, act AuditRecord) (entry,
	unrecorded string,
) {
	if s.Evidence == nil {
		return "", "no evidence store is configured"
	}
	entry, err := s.Evidence.Append(incident, kind, act)
	if err != nil {
		s.Log.Error("an action is missing from the manifest", "incident", incident, "kind", kind, "error", err)
		return "", err.Error()
	}
	return entry, ""
}

// rollbackFailedApply undoes a first apply that failed halfway. It does nothing if a lease already covered the target;
// otherwise a request that is made to fail could end any lease.
func (s *Activities) rollbackFailedApply(ctx context.Context, action Containment, in ApplyInput) (*Drift, error) {
	grant, err := s.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: attestation.OperationRollback, LeaseID: in.Request.LeaseID,
		IncidentID: in.Request.IncidentRef.ID,
		GrantedBy:  []string{"stanch (rollback of a failed apply)"}, IssuedAt: s.now(), ExpiresAt: s.now().Add(time.Minute),
	})
	if err != nil {
		return nil, fmt.Errorf("sign the manifest entry: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return action.Undo(ctx, in.Request, in.PriorState, &grant)
}

// authorizeApply returns the token that permits the change: the lease's own token if it covers the request, otherwise a
// new one after every guard. held reports whether an effect is already in force.
func (s *Activities) authorizeApply(ctx context.Context, action Containment, in ApplyInput) (_ GuardDecision,
	_ attestation.Envelope, held bool, _ error,
) {
	r, now := in.Request, s.now()
	if r.ReleaseGrant != nil {
		g, err := s.Authority.Keyring().VerifyGrant(*r.ReleaseGrant, attestation.OperationRelease, now)
		if err != nil || g.LeaseID != r.LeaseID {
			r.ReleaseGrant = nil // expired, or for another lease
		}
	}
	var heldUntil time.Time
	if in.LeaseToken != nil {
		token, err := s.Authority.Keyring().VerifyLeaseToken(*in.LeaseToken, r.Action, r.Target.ID(), now)
		if err == nil && token.LeaseID == r.LeaseID {
			heldUntil = token.ExpiresAt
		}
		if err == nil && token.LeaseID == r.LeaseID && token.ParamsHash == attestation.HashJSON(r.Params) {
			if r.ExpiresAt.Equal(token.ExpiresAt) || r.ReleaseGrant != nil && r.ExpiresAt.Before(token.ExpiresAt) {
				return GuardDecision{
					Verdict: VerdictRun, Guard: "token", Reason: "the lease is in force",
					BasisID: token.AuthorizationID,
				}, *in.LeaseToken, true, nil
			}
			if g, ok := s.validExtensionGrant(r, now); ok {
				// The new token keeps the issue time of the old one, so that an old extension does not revive a lease
				// that was released since.
				signed, err := s.signLeaseToken(r, GuardDecision{
					BasisID: g.Nonce, AuthorizedAt: token.DetectedAt,
					Drill: token.DrillOnly, DrillTarget: token.DrillTarget,
				}, token.IssuedAt)
				return GuardDecision{
					Verdict: VerdictRun, Guard: "token", Reason: "extended by " + strings.Join(g.GrantedBy, ", "),
					BasisID: g.Nonce,
				}, signed, true, err
			}
		}
	}
	plan, err := action.Plan(ctx, r)
	if refusal, ok := AsRefusal(err); ok {
		return GuardDecision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason}, attestation.Envelope{}, false,
			nil
	}
	if err != nil {
		return GuardDecision{}, attestation.Envelope{}, false, fmt.Errorf("plan %s again: %w", r.Action, err)
	}
	plan.bindToRequest(r)
	decision, err := s.Guards.Decide(ctx, GuardInput{
		Spec: action.Spec(), Request: r, Authorization: in.Authorization,
		PlanHash: plan.Hash(), ApprovalReason: plan.ApprovalReason, HeldUntil: heldUntil, Now: now, Enforce: true,
	})
	if err != nil {
		return GuardDecision{}, attestation.Envelope{}, false, fmt.Errorf("check the guards: %w", err)
	}
	if decision.Verdict != VerdictRun {
		return decision, attestation.Envelope{}, false, nil
	}
	signed, err := s.signLeaseToken(r, decision, now)
	return decision, signed, plan.AlreadyHeld, err
}

// validExtensionGrant returns the grant that permits the lease to last until the request's end.
func (s *Activities) validExtensionGrant(r Request, now time.Time) (attestation.Grant, bool) {
	if r.ExtensionGrant == nil {
		return attestation.Grant{}, false
	}
	g, err := s.Authority.Keyring().VerifyGrant(*r.ExtensionGrant, attestation.OperationExtend, now)
	return g, err == nil && g.LeaseID == r.LeaseID && !r.ExpiresAt.After(g.NewEnd)
}

// signLeaseToken signs the token that the node verifies, and that replaces the guards' decision while the lease is
// active.
func (s *Activities) signLeaseToken(r Request, d GuardDecision, issued time.Time) (attestation.Envelope, error) {
	signed, err := s.Authority.Sign(attestation.PayloadTypeLeaseToken, attestation.LeaseToken{
		Nonce: uuid.NewString(), LeaseID: r.LeaseID, Action: r.Action, TargetID: r.Target.ID(),
		ParamsHash: attestation.HashJSON(r.Params),
		IncidentID: r.IncidentRef.ID, AuthorizationID: d.BasisID, DetectedAt: d.AuthorizedAt, Namespace: r.Target.Namespace,
		DrillOnly: d.Drill, DrillTarget: d.DrillTarget, IssuedAt: issued, ExpiresAt: r.ExpiresAt,
	})
	if err != nil {
		return attestation.Envelope{}, fmt.Errorf("sign the lease token: %w", err)
	}
	return signed, nil
}
