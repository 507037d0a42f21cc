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
	// LeaseToken is the lease's from its first effect: it stands for the guards while the lease holds.
	LeaseToken *attestation.Envelope `json:"token,omitempty"`
}

// ApplyResult is what Apply did.
type ApplyResult struct {
	Effect     Effect                `json:"effect"`
	Decision   GuardDecision         `json:"decision"`
	LeaseToken *attestation.Envelope `json:"token,omitempty"`
	// ManifestEntryHash is the hash of the effect's line in the incident's manifest; Unrecorded says why there is none.
	ManifestEntryHash string `json:"manifest_entry_hash,omitempty"`
	UnrecordedReason  string `json:"unrecorded_reason,omitempty"`
}

// Apply runs every guard, makes the change and observes it. What it did is undone if it fails in the middle.
func (s *Activities) Apply(ctx context.Context, in ApplyInput) (ApplyResult, error) {
	r := in.Request
	action, ok := s.actions[r.Action].(Containment)
	if !ok {
		return ApplyResult{Decision: GuardDecision{Verdict: VerdictRefuse, Reason: fmt.Sprintf("there is no containment %q", r.Action)}}, nil
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
		return ApplyResult{Decision: GuardDecision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason, Phase: decision.Phase}}, nil
	}
	if err != nil {
		if held {
			err = errors.Join(err, errors.New("what was in force before stays"))
		} else if drift, undoErr := s.rollbackFailedApply(ctx, action, in); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("and undoing what was done failed: %w", undoErr))
		} else if drift != nil {
			err = errors.Join(err, fmt.Errorf("and what was done was changed by somebody else: %s", drift.Detail))
		}
		return ApplyResult{}, retryableError(fmt.Errorf("apply %s to %s: %w", r.Action, r.Target, err))
	}
	result := ApplyResult{Effect: effect, Decision: decision, LeaseToken: &token}
	result.ManifestEntryHash, result.UnrecordedReason = s.recordInManifest(r.IncidentRef.ID, EntryKindEffect, AuditRecord{
		Action: r.Action, Target: r.Target.ID(), LeaseID: r.LeaseID, Outcome: effect.Outcome, BasisID: decision.BasisID, Note: "until " + r.ExpiresAt.UTC().Format(time.RFC3339),
	})
	return result, nil
}

// recordInManifest enters an act into the incident's manifest. A store that is full or damaged takes nothing back that was done:
// what could not be entered is said in the result, and so in the history.
func (s *Activities) recordInManifest(incident string, kind ManifestEntryKind, act AuditRecord) (entry, unrecorded string) {
	if s.Evidence == nil {
		return "", "there is no evidence store"
	}
	entry, err := s.Evidence.Append(incident, kind, act)
	if err != nil {
		s.Log.Error("an act is not in the manifest", "incident", incident, "kind", kind, "error", err)
		return "", err.Error()
	}
	return entry, ""
}

// rollbackFailedApply undoes a first apply that failed half-way. It is only for a target that nothing held before: else a request
// that is made to fail would end a lease of its choice.
func (s *Activities) rollbackFailedApply(ctx context.Context, action Containment, in ApplyInput) (*Drift, error) {
	grant, err := s.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: attestation.OperationRollback, LeaseID: in.Request.LeaseID, IncidentID: in.Request.IncidentRef.ID,
		GrantedBy: []string{"stanch: its own failed apply"}, IssuedAt: s.now(), ExpiresAt: s.now().Add(time.Minute),
	})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return action.Undo(ctx, in.Request, in.PriorState, &grant)
}

// authorizeApply gives the token under which the change may be made: the lease's own, if it still covers what is asked, or
// a new one after every guard. held tells whether something is in force already.
func (s *Activities) authorizeApply(ctx context.Context, action Containment, in ApplyInput) (_ GuardDecision, _ attestation.Envelope, held bool, _ error) {
	r, now := in.Request, s.now()
	if r.ReleaseGrant != nil {
		g, err := s.Authority.Keyring().VerifyGrant(*r.ReleaseGrant, attestation.OperationRelease, now)
		if err != nil || g.LeaseID != r.LeaseID {
			r.ReleaseGrant = nil // spent, or another lease's
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
				return GuardDecision{Verdict: VerdictRun, Guard: "token", Reason: "the lease holds", BasisID: token.AuthorizationID}, *in.LeaseToken, true, nil
			}
			if g, ok := s.validExtensionGrant(r, now); ok {
				// As old as the token that it follows: a lease that was released since is not brought back by an old extension.
				signed, err := s.signLeaseToken(r, GuardDecision{BasisID: g.Nonce, AuthorizedAt: token.DetectedAt, Drill: token.DrillOnly, DrillTarget: token.DrillTarget}, token.IssuedAt)
				return GuardDecision{Verdict: VerdictRun, Guard: "token", Reason: "extended by " + strings.Join(g.GrantedBy, ", "), BasisID: g.Nonce}, signed, true, err
			}
		}
	}
	plan, err := action.Plan(ctx, r)
	if refusal, ok := AsRefusal(err); ok {
		return GuardDecision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason}, attestation.Envelope{}, false, nil
	}
	if err != nil {
		return GuardDecision{}, attestation.Envelope{}, false, fmt.Errorf("plan %s again: %w", r.Action, err)
	}
	plan.bindToRequest(r)
	decision, err := s.Guards.Decide(ctx, GuardInput{Spec: action.Spec(), Request: r, Authorization: in.Authorization, PlanHash: plan.Hash(), ApprovalReason: plan.ApprovalReason, HeldUntil: heldUntil, Now: now, Enforce: true})
	if err != nil {
		return GuardDecision{}, attestation.Envelope{}, false, fmt.Errorf("guards: %w", err)
	}
	if decision.Verdict != VerdictRun {
		return decision, attestation.Envelope{}, false, nil
	}
	signed, err := s.signLeaseToken(r, decision, now)
	return decision, signed, plan.AlreadyHeld, err
}

// validExtensionGrant gives the grant under which a lease that holds may last until the request's end.
func (s *Activities) validExtensionGrant(r Request, now time.Time) (attestation.Grant, bool) {
	if r.ExtensionGrant == nil {
		return attestation.Grant{}, false
	}
	g, err := s.Authority.Keyring().VerifyGrant(*r.ExtensionGrant, attestation.OperationExtend, now)
	return g, err == nil && g.LeaseID == r.LeaseID && !r.ExpiresAt.After(g.NewEnd)
}

// signLeaseToken signs what the node needs to see, and what stands for the guards while the lease holds.
func (s *Activities) signLeaseToken(r Request, d GuardDecision, issued time.Time) (attestation.Envelope, error) {
	signed, err := s.Authority.Sign(attestation.PayloadTypeLeaseToken, attestation.LeaseToken{
		Nonce: uuid.NewString(), LeaseID: r.LeaseID, Action: r.Action, TargetID: r.Target.ID(), ParamsHash: attestation.HashJSON(r.Params),
		IncidentID: r.IncidentRef.ID, AuthorizationID: d.BasisID, DetectedAt: d.AuthorizedAt, Namespace: r.Target.Namespace, DrillOnly: d.Drill, DrillTarget: d.DrillTarget, IssuedAt: issued, ExpiresAt: r.ExpiresAt,
	})
	if err != nil {
		return attestation.Envelope{}, fmt.Errorf("sign the lease token: %w", err)
	}
	return signed, nil
}
