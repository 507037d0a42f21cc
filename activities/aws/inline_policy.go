package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// inlineDeny is a kind of inline deny policy.
type inlineDeny struct {
	prefix string // prefix of the policy's name; the lease id follows
	// buildPolicy returns the wanted policy; have is the existing one, or nil.
	buildPolicy func(have *denyAllPolicy) denyAllPolicy
	// simulatedContext returns the context keys of a session that must be denied.
	simulatedContext func(denyAllPolicy) []sessionContextKey
}

// IAM's maximum total size of all inline policies of one principal, without white space.
var inlinePolicyLimit = map[playbooks.TargetKind]int{playbooks.TargetRole: 10240, playbooks.TargetUser: 2048}

// checkQuotaLeft returns an error if the deny does not fit beside the other inline policies. held reports whether an
// equal deny exists already.
func (a *Account) checkQuotaLeft(ctx context.Context, p principal, d inlineDeny, lease string) (held bool, err error) {
	names, err := a.listInlinePolicies(ctx, p)
	if err != nil {
		return false, err
	}
	want := d.buildPolicy(nil)
	mine, size := policyName(d.prefix, lease), policySize(want.render())
	for _, name := range names {
		text, err := a.readInlinePolicy(ctx, p, name)
		if err != nil {
			return false, err
		}
		if have, err := parseDenyAll(text); err == nil && strings.HasPrefix(name, d.prefix) &&
			haveSameConditions(have, want) {
			held = true
			if lease != "" && name == mine {
				continue // it replaces itself
			}
		}
		size += policySize(text)
	}
	if limit := inlinePolicyLimit[p.Kind]; size > limit {
		return held, activities.Refusef(
			"the inline policies of %s would have %d characters with the deny, and IAM allows %d in total; remove some of them or convert them to managed policies",
			p,
			size,
			limit,
		)
	}
	return held, nil
}

// haveSameConditions reports whether two denies have the same conditions. The time of a revocation may differ.
func haveSameConditions(a, b denyAllPolicy) bool {
	strip := func(d denyAllPolicy) map[string]map[string]string {
		out := maps.Clone(d.Condition)
		delete(out, "DateLessThan")
		return out
	}
	return canonicalJSON(
		denyAllPolicy{Condition: strip(a)}.render(),
	) == canonicalJSON(
		denyAllPolicy{Condition: strip(b)}.render(),
	) &&
		(a.Condition["DateLessThan"] == nil) == (b.Condition["DateLessThan"] == nil)
}

// applyInline puts the deny and verifies it. Repeating the same request writes nothing.
func (a *Account) applyInline(ctx context.Context, p principal, d inlineDeny, r activities.Request) (activities.Effect,
	error,
) {
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	if err := a.refuseProtected(ctx, p); err != nil {
		return effect, err
	}
	policy := policyName(d.prefix, r.LeaseID)
	text, err := a.readInlinePolicy(ctx, p, policy)
	if err != nil {
		return effect, err
	}
	want := d.buildPolicy(nil)
	if text != "" {
		have, err := parseDenyAll(text)
		if err != nil {
			return effect, activities.Refusef("policy %s of %s was changed by another writer: %v", policy, p, err)
		}
		want = d.buildPolicy(&have)
		if err := activities.RefuseEarlyEnd(r, have.ExpiresAt, want.ExpiresAt); err != nil {
			return effect, err
		}
	}
	if canonicalJSON(text) != canonicalJSON(want.render()) {
		if err := a.putInlinePolicy(ctx, p, policy, want.render()); err != nil {
			return effect, err
		}
		effect.AppliedAt = time.Now()
	}
	// The name may have been reused between the read and the write: the deny is removed from the new owner.
	if _, err := a.findPrincipal(ctx, p.target("", "")); errors.Is(err, activities.ErrTargetGone) {
		return effect, errors.Join(err, a.deleteInlinePolicy(ctx, p, policy))
	} else if err != nil {
		return effect, err
	}
	seen, err := a.simulateUntilDenied(ctx, p, d.simulatedContext(want)...)
	if err != nil {
		return effect, err
	}
	if effect.Reason = seen.detail; !seen.denied {
		effect.Outcome = playbooks.OutcomeUnverified
	}
	return effect, nil
}

// verifyInline reports whether the deny exists unchanged, and whether a simulation denies.
func (a *Account) verifyInline(ctx context.Context, t playbooks.Target, d inlineDeny, r activities.Request) (bool,
	string, error,
) {
	p, err := a.findPrincipal(ctx, t)
	if err != nil {
		return false, "", err
	}
	policy := policyName(d.prefix, r.LeaseID)
	text, err := a.readInlinePolicy(ctx, p, policy)
	if err != nil {
		return false, "", err
	}
	if text == "" {
		return false, fmt.Sprintf("policy %s of %s was deleted", policy, p), nil
	}
	have, err := parseDenyAll(text)
	if err != nil || !haveSameConditions(have, d.buildPolicy(nil)) {
		detail := fmt.Sprintf("policy %s of %s was changed by another writer", policy, p)
		return false, detail, nil //nolint:nilerr // an unreadable policy was changed
	}
	seen, err := a.simulateDeny(ctx, p, d.simulatedContext(have)...)
	if err != nil {
		return false, "", err
	}
	return seen.denied || seen.unavailable, seen.detail, nil
}

// undoInline deletes the deny of a lease.
func (a *Account) undoInline(ctx context.Context, t playbooks.Target, d inlineDeny, r activities.Request,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	return a.undoPolicy(ctx, t, policyName(d.prefix, r.LeaseID), grant)
}

// undoPolicy deletes a deny if it is unchanged.
func (a *Account) undoPolicy(ctx context.Context, t playbooks.Target, policy string,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	p, err := a.findPrincipal(ctx, t)
	if errors.Is(err, activities.ErrTargetGone) {
		return nil, nil // the policies were deleted with it; the name's new owner is not a target
	}
	if err != nil {
		return nil, err
	}
	text, err := a.readInlinePolicy(ctx, p, policy)
	if err != nil || text == "" {
		return nil, err
	}
	have, err := parseDenyAll(text)
	if err != nil {
		return &activities.Drift{
			Detail: fmt.Sprintf("policy %s of %s was changed by another writer (%v); nothing was deleted", policy, p, err),
		}, nil
	}
	if err := activities.RefuseEarlyUndo(have.ExpiresAt, grant); err != nil {
		return nil, err
	}
	if err := a.deleteInlinePolicy(ctx, p, policy); err != nil {
		return nil, err
	}
	if text, err := a.readInlinePolicy(ctx, p, policy); err != nil || text != "" {
		return nil, errors.Join(err, fmt.Errorf("policy %s of %s still exists", policy, p))
	}
	return nil, nil
}

// encodePrior encodes a prior state.
func encodePrior(v any) (json.RawMessage, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("save the prior state: %w", err)
	}
	return raw, nil
}
