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
	Request Request         `json:"request"`
	Basis   Basis           `json:"basis"`
	Prior   json.RawMessage `json:"prior,omitempty"`
	// Token is the lease's from its first effect: it stands for the guards while the lease holds.
	Token *attestation.Envelope `json:"token,omitempty"`
}

// ApplyResult is what Apply did.
type ApplyResult struct {
	Effect   Effect        `json:"effect"`
	Decision Decision      `json:"decision"`
	Token    *attestation.Envelope `json:"token,omitempty"`
	// Entry is the hash of the effect's line in the incident's manifest; Unrecorded says why there is none.
	Entry      string `json:"entry,omitempty"`
	Unrecorded string `json:"unrecorded,omitempty"`
}

// Apply runs every guard, makes the change and observes it. What it did is undone if it fails in the middle.
func (s *Set) Apply(ctx context.Context, in ApplyInput) (ApplyResult, error) {
	r := in.Request
	action, ok := s.actions[r.Action].(Containment)
	if !ok {
		return ApplyResult{Decision: Decision{Verdict: VerdictRefuse, Reason: fmt.Sprintf("there is no containment %q", r.Action)}}, nil
	}
	defer beat(ctx)()
	s.at("apply/before/" + r.Action)
	decision, token, held, err := s.permit(ctx, action, in)
	if err != nil {
		return ApplyResult{}, failed(err)
	}
	s.at("apply/permitted/" + r.Action)
	if decision.Verdict != VerdictRun {
		return ApplyResult{Decision: decision}, nil
	}
	effect, err := action.Apply(ctx, r, in.Prior, token)
	s.at("apply/after/" + r.Action)
	if refusal, ok := AsRefusal(err); ok {
		return ApplyResult{Decision: Decision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason, Phase: decision.Phase}}, nil
	}
	if err != nil {
		if held {
			err = errors.Join(err, errors.New("what was in force before stays"))
		} else if drift, undoErr := s.rollback(ctx, action, in); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("and undoing what was done failed: %w", undoErr))
		} else if drift != nil {
			err = errors.Join(err, fmt.Errorf("and what was done was changed by somebody else: %s", drift.Detail))
		}
		return ApplyResult{}, failed(fmt.Errorf("apply %s to %s: %w", r.Action, r.Target, err))
	}
	result := ApplyResult{Effect: effect, Decision: decision, Token: &token}
	result.Entry, result.Unrecorded = s.record(r.Incident.ID, EntryEffect, Act{
		Action: r.Action, Target: r.Target.ID(), Lease: r.Lease, Outcome: effect.Outcome, On: decision.On, Note: "until " + r.Until.UTC().Format(time.RFC3339),
	})
	return result, nil
}

// record enters an act into the incident's manifest. A store that is full or damaged takes nothing back that was done:
// what could not be entered is said in the result, and so in the history.
func (s *Set) record(incident string, kind EntryKind, act Act) (entry, unrecorded string) {
	if s.Evidence == nil {
		return "", "there is no evidence store"
	}
	entry, err := s.Evidence.Note(incident, kind, act)
	if err != nil {
		s.Log.Error("an act is not in the manifest", "incident", incident, "kind", kind, "error", err)
		return "", err.Error()
	}
	return entry, ""
}

// rollback undoes a first apply that failed half-way. It is only for a target that nothing held before: else a request
// that is made to fail would end a lease of its choice.
func (s *Set) rollback(ctx context.Context, action Containment, in ApplyInput) (*Drift, error) {
	grant, err := s.Authority.Sign(attestation.PayloadTypeGrant, attestation.Grant{
		Nonce: uuid.NewString(), Operation: attestation.OperationRollback, LeaseID: in.Request.Lease, IncidentID: in.Request.Incident.ID,
		GrantedBy: []string{"stanch: its own failed apply"}, IssuedAt: s.now(), ExpiresAt: s.now().Add(time.Minute),
	})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return action.Undo(ctx, in.Request, in.Prior, &grant)
}

// permit gives the token under which the change may be made: the lease's own, if it still covers what is asked, or
// a new one after every guard. held tells whether something is in force already.
func (s *Set) permit(ctx context.Context, action Containment, in ApplyInput) (_ Decision, _ attestation.Envelope, held bool, _ error) {
	r, now := in.Request, s.now()
	if r.Shorten != nil {
		g, err := s.Authority.Keys().VerifyGrant(*r.Shorten, attestation.OperationRelease, now)
		if err != nil || g.LeaseID != r.Lease {
			r.Shorten = nil // spent, or another lease's
		}
	}
	var heldUntil time.Time
	if in.Token != nil {
		token, err := s.Authority.Keys().VerifyLeaseToken(*in.Token, r.Action, r.Target.ID(), now)
		if err == nil && token.LeaseID == r.Lease {
			heldUntil = token.ExpiresAt
		}
		if err == nil && token.LeaseID == r.Lease && token.ParamsHash == attestation.HashJSON(r.Params) {
			if r.Until.Equal(token.ExpiresAt) || r.Shorten != nil && r.Until.Before(token.ExpiresAt) {
				return Decision{Verdict: VerdictRun, Guard: "token", Reason: "the lease holds", On: token.AuthorizationID}, *in.Token, true, nil
			}
			if g, ok := s.extension(r, now); ok {
				// As old as the token that it follows: a lease that was released since is not brought back by an old extension.
				signed, err := s.token(r, Decision{On: g.Nonce, Since: token.DetectedAt, Drill: token.DrillOnly, DrillTarget: token.DrillTarget}, token.IssuedAt)
				return Decision{Verdict: VerdictRun, Guard: "token", Reason: "extended by " + strings.Join(g.GrantedBy, ", "), On: g.Nonce}, signed, true, err
			}
		}
	}
	plan, err := action.Plan(ctx, r)
	if refusal, ok := AsRefusal(err); ok {
		return Decision{Verdict: VerdictRefuse, Guard: "action", Reason: refusal.Reason}, attestation.Envelope{}, false, nil
	}
	if err != nil {
		return Decision{}, attestation.Envelope{}, false, fmt.Errorf("plan %s again: %w", r.Action, err)
	}
	plan.bind(r)
	decision, err := s.Guards.Decide(ctx, Question{Spec: action.Spec(), Request: r, Basis: in.Basis, PlanHash: plan.Hash(), Ask: plan.Ask, Held: heldUntil, Now: now, Before: true})
	if err != nil {
		return Decision{}, attestation.Envelope{}, false, fmt.Errorf("guards: %w", err)
	}
	if decision.Verdict != VerdictRun {
		return decision, attestation.Envelope{}, false, nil
	}
	signed, err := s.token(r, decision, now)
	return decision, signed, plan.Held, err
}

// extension gives the grant under which a lease that holds may last until the request's end.
func (s *Set) extension(r Request, now time.Time) (attestation.Grant, bool) {
	if r.Extend == nil {
		return attestation.Grant{}, false
	}
	g, err := s.Authority.Keys().VerifyGrant(*r.Extend, attestation.OperationExtend, now)
	return g, err == nil && g.LeaseID == r.Lease && !r.Until.After(g.NewEnd)
}

// token signs what the node needs to see, and what stands for the guards while the lease holds.
func (s *Set) token(r Request, d Decision, issued time.Time) (attestation.Envelope, error) {
	signed, err := s.Authority.Sign(attestation.PayloadTypeLeaseToken, attestation.LeaseToken{
		Nonce: uuid.NewString(), LeaseID: r.Lease, Action: r.Action, TargetID: r.Target.ID(), ParamsHash: attestation.HashJSON(r.Params),
		IncidentID: r.Incident.ID, AuthorizationID: d.On, DetectedAt: d.Since, Namespace: r.Target.Namespace, DrillOnly: d.Drill, DrillTarget: d.DrillTarget, IssuedAt: issued, ExpiresAt: r.Until,
	})
	if err != nil {
		return attestation.Envelope{}, fmt.Errorf("sign the lease token: %w", err)
	}
	return signed, nil
}
