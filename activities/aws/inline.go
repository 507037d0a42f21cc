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

// denial is one kind of inline deny: which policies are its own, what it says, and how a simulation sees it.
type denial struct {
	prefix string // of the policy's name; the lease follows
	// say gives what is to be in force; have is what is already, or nil.
	say func(have *denyAll) denyAll
	// keys are those of a session that must be denied.
	keys func(denyAll) []sessionKey
}

// The sizes that IAM allows for all inline policies of one principal together, without white space.
var inlineLimit = map[playbooks.TargetKind]int{playbooks.TargetRole: 10240, playbooks.TargetUser: 2048}

// room looks whether the deny still fits beside the other inline policies, and whether one like it is there already.
func (a *Account) room(ctx context.Context, p principal, d denial, lease string) (held bool, err error) {
	names, err := a.inlineNames(ctx, p)
	if err != nil {
		return false, err
	}
	want := d.say(nil)
	mine, size := policyName(d.prefix, lease), weight(want.text())
	for _, name := range names {
		text, err := a.inline(ctx, p, name)
		if err != nil {
			return false, err
		}
		if have, err := readDenyAll(text); err == nil && strings.HasPrefix(name, d.prefix) && alike(have, want) {
			held = true
			if lease != "" && name == mine {
				continue // it takes its own place
			}
		}
		size += weight(text)
	}
	if limit := inlineLimit[p.Kind]; size > limit {
		return held, activities.Refuse("the inline policies of %s would have %d characters with the deny, and IAM allows %d in all: remove or attach some of them", p, size, limit)
	}
	return held, nil
}

// alike tells whether two denies have the same conditions; the time of a revocation may differ.
func alike(a, b denyAll) bool {
	strip := func(d denyAll) map[string]map[string]string {
		out := maps.Clone(d.Condition)
		delete(out, "DateLessThan")
		return out
	}
	return canonical(denyAll{Condition: strip(a)}.text()) == canonical(denyAll{Condition: strip(b)}.text()) &&
		(a.Condition["DateLessThan"] == nil) == (b.Condition["DateLessThan"] == nil)
}

// applyInline puts the deny and looks whether it denies. Again with the same request it writes nothing.
func (a *Account) applyInline(ctx context.Context, p principal, d denial, r activities.Request) (activities.Effect, error) {
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	if err := a.protect(ctx, p); err != nil {
		return effect, err
	}
	policy := policyName(d.prefix, r.Lease)
	text, err := a.inline(ctx, p, policy)
	if err != nil {
		return effect, err
	}
	want := d.say(nil)
	if text != "" {
		have, err := readDenyAll(text)
		if err != nil {
			return effect, activities.Refuse("policy %s of %s was changed by somebody: %v", policy, p, err)
		}
		want = d.say(&have)
		if err := mayShorten(r, have.Until, want.Until); err != nil {
			return effect, err
		}
	}
	if canonical(text) != canonical(want.text()) {
		if err := a.putInline(ctx, p, policy, want.text()); err != nil {
			return effect, err
		}
		effect.AppliedAt = time.Now()
	}
	// Between the look and the write the name may have gone to another: it gets its own back.
	if _, err := a.find(ctx, p.target("", "")); errors.Is(err, activities.ErrGone) {
		return effect, errors.Join(whenPlanning(err), a.deleteInline(ctx, p, policy))
	} else if err != nil {
		return effect, err
	}
	seen, err := a.settled(ctx, p, d.keys(want)...)
	if err != nil {
		return effect, err
	}
	if effect.Reason = seen.detail; !seen.denied {
		effect.Outcome = playbooks.OutcomeUnverified
	}
	return effect, nil
}

// mayShorten refuses to stamp an earlier end than is stamped, unless a release grant says so.
func mayShorten(r activities.Request, have, want time.Time) error {
	if r.Shorten == nil && want.Before(have) { // the grant was verified where the request was permitted
		return activities.Refuse("ending at %s instead of the stamped %s needs a grant", want.Format(time.RFC3339), have.Format(time.RFC3339))
	}
	return nil
}

// verifyInline looks whether the deny is there as it was written, and whether it denies.
func (a *Account) verifyInline(ctx context.Context, t playbooks.Target, d denial, r activities.Request) (bool, string, error) {
	p, err := a.find(ctx, t)
	if err != nil {
		return false, "", err
	}
	policy := policyName(d.prefix, r.Lease)
	text, err := a.inline(ctx, p, policy)
	if err != nil {
		return false, "", err
	}
	if text == "" {
		return false, fmt.Sprintf("policy %s of %s was deleted", policy, p), nil
	}
	have, err := readDenyAll(text)
	if err != nil || !alike(have, d.say(nil)) {
		return false, fmt.Sprintf("policy %s of %s was changed by somebody", policy, p), nil //nolint:nilerr // what cannot be read is not what was written
	}
	seen, err := a.simulate(ctx, p, d.keys(have)...)
	if err != nil {
		return false, "", err
	}
	return seen.denied || seen.silent, seen.detail, nil
}

// undoInline takes the deny of a lease away.
func (a *Account) undoInline(ctx context.Context, t playbooks.Target, d denial, r activities.Request, grant *attestation.Envelope) (*activities.Drift, error) {
	return a.undoPolicy(ctx, t, policyName(d.prefix, r.Lease), grant)
}

// undoPolicy deletes a deny if it is as it was written, and nothing else.
func (a *Account) undoPolicy(ctx context.Context, t playbooks.Target, policy string, grant *attestation.Envelope) (*activities.Drift, error) {
	p, err := a.find(ctx, t)
	if errors.Is(err, activities.ErrGone) {
		return nil, nil // its policies went with it; the name's new owner is none of ours
	}
	if err != nil {
		return nil, err
	}
	text, err := a.inline(ctx, p, policy)
	if err != nil || text == "" {
		return nil, err
	}
	have, err := readDenyAll(text)
	if err != nil {
		return &activities.Drift{Detail: fmt.Sprintf("policy %s of %s was changed by somebody (%v); nothing was deleted", policy, p, err)}, nil
	}
	if err := notYet(have.Until, grant); err != nil {
		return nil, err
	}
	if err := a.deleteInline(ctx, p, policy); err != nil {
		return nil, err
	}
	if text, err := a.inline(ctx, p, policy); err != nil || text != "" {
		return nil, errors.Join(err, fmt.Errorf("policy %s of %s is still there", policy, p))
	}
	return nil, nil
}

// notYet refuses an end before the stamped one without a grant: a request may come from anybody who can reach Temporal,
// the stamp only from who may write to the account.
func notYet(until time.Time, grant *attestation.Envelope) error {
	if grant == nil && time.Now().Before(until) {
		return activities.Refuse("its stamped end has not come (%s), and no grant was given", until.Format(time.RFC3339))
	}
	return nil
}

// saved makes a prior state.
func saved(v any) (json.RawMessage, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("save the prior state: %w", err)
	}
	return raw, nil
}
