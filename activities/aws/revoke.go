package aws

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
)

// issueTime is the condition key of when a session's credentials were made.
const issueTime = "aws:TokenIssueTime"

const revokePrefix = "stanch-revoke-"

// revokeSessions is `contain: aws.role.revoke-sessions`.
type revokeSessions struct{ account *Account }

var _ activities.Containment = (*revokeSessions)(nil)

func (*revokeSessions) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "aws.role.revoke-sessions", Verb: playbooks.VerbContain, Class: playbooks.ClassDisrupt, Facet: playbooks.FacetIdentity,
		Targets: []playbooks.TargetKind{playbooks.TargetRole}, Reversible: true, EndMechanism: playbooks.EndByProvider, D3FENDTechnique: "D3-ACI", AttemptTimeout: 30 * time.Second,
		MinDuration:    time.Hour, // no role's longest session is shorter
		Doc:       "Deny everything to all credentials that the role has given out until now; every workload that shares it has to get new ones.",
		PlanIAMPermissions: planRole(), ApplyIAMPermissions: applyInlineRole(),
	}
}

// planRole and applyInlineRole are the permissions of an inline deny on a role.
func planRole() []playbooks.IAMPermission {
	return []playbooks.IAMPermission{roleRight("iam:GetRole", "iam:ListRolePolicies", "iam:GetRolePolicy")}
}

func applyInlineRole() []playbooks.IAMPermission {
	return []playbooks.IAMPermission{roleRight("iam:GetRole", "iam:ListRolePolicies", "iam:GetRolePolicy", "iam:PutRolePolicy", "iam:DeleteRolePolicy", "iam:SimulatePrincipalPolicy")}
}

func roleRight(actions ...string) playbooks.IAMPermission {
	return playbooks.IAMPermission{Actions: actions, Resources: []string{"arn:aws:iam::*:role/*"}}
}

func userRight(actions ...string) playbooks.IAMPermission {
	return playbooks.IAMPermission{Actions: actions, Resources: []string{"arn:aws:iam::*:user/*"}}
}

func (*revokeSessions) denial(p principal, r activities.Request) denial {
	return denial{
		prefix: revokePrefix,
		say: func(have *denyAll) denyAll {
			at := p.now
			if have != nil {
				if was, err := time.Parse(time.RFC3339, have.Condition["DateLessThan"][issueTime]); err == nil {
					at = was // what was revoked first stays so, and the workload's new sessions stay good
				}
			}
			until := stamped(r.Until)
			// Taken away before the oldest of the revoked sessions has ended, it would give them back.
			if last := stamped(at.Add(p.longest)); r.Shorten == nil && last.After(until) {
				until = last
			}
			return denyAll{Condition: map[string]map[string]string{"DateLessThan": {issueTime: at.UTC().Format(time.RFC3339)}}, Until: until}
		},
		keys: func(d denyAll) []sessionKey {
			at, err := time.Parse(time.RFC3339, d.Condition["DateLessThan"][issueTime])
			if err != nil {
				at = p.now
			}
			return []sessionKey{issuedAt(at.Add(-time.Second))}
		},
	}
}

// Plan says what would be revoked.
func (a *revokeSessions) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	if err := a.account.ready(); err != nil {
		return activities.Plan{}, err
	}
	p, err := a.account.find(ctx, r.Target)
	if err != nil {
		return activities.Plan{}, whenPlanning(err)
	}
	if err := a.account.protect(ctx, p); err != nil {
		return activities.Plan{}, err
	}
	if r.For < p.longest {
		return activities.Plan{}, activities.Refuse(
			"it must last at least %s and not %s: sessions of %s live so long, and when the deny ends before them the stolen ones are good again", duration.Format(p.longest), duration.Format(r.For), p)
	}
	held, err := a.account.room(ctx, p, a.denial(p, r), r.Lease)
	if err != nil {
		return activities.Plan{}, err
	}
	prior, err := saved(p)
	return activities.Plan{
		Changes: []string{fmt.Sprintf("deny everything to every session that %s (%s) has given out until then, by an inline policy", p, p.ID)},
		Warnings: []string{
			"the workload gets new credentials at once, and so does whoever is still inside: isolate the pod, or keep it from the role, besides",
			"it hits every workload that uses " + p.Name,
		},
		Prior: prior, Held: held,
	}, err
}

// Apply revokes.
func (a *revokeSessions) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	if err := a.account.ready(); err != nil {
		return activities.Effect{}, err
	}
	p, err := a.account.find(ctx, r.Target)
	if err != nil {
		return activities.Effect{}, whenPlanning(err)
	}
	return a.account.applyInline(ctx, p, a.denial(p, r), r)
}

// Verify asks AWS whether a session from before would be denied.
func (a *revokeSessions) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	if err := a.account.ready(); err != nil {
		return false, "", err
	}
	return a.account.verifyInline(ctx, r.Target, a.denial(principal{now: time.Now()}, r), r)
}

// Undo takes the policy away.
func (a *revokeSessions) Undo(ctx context.Context, r activities.Request, _ json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	if err := a.account.ready(); err != nil {
		return nil, err
	}
	return a.account.undoInline(ctx, r.Target, a.denial(principal{now: time.Now()}, r), r, grant)
}
