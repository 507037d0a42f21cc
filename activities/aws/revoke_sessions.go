package aws

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
)

// tokenIssueTimeKey is the condition key of the time at which a session's credentials were issued.
const tokenIssueTimeKey = "aws:TokenIssueTime"

const revokePrefix = "stanch-revoke-"

// revokeSessionsAction is `contain: aws.role.revoke-sessions`.
type revokeSessionsAction struct{ account *Account }

var (
	_ activities.Containment  = (*revokeSessionsAction)(nil)
	_ activities.OrphanFinder = (*revokeSessionsAction)(nil)
)

func (*revokeSessionsAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name:                "aws.role.revoke-sessions",
		Verb:                playbooks.VerbContain,
		Class:               playbooks.ClassDisrupt,
		Facet:               playbooks.FacetIdentity,
		Targets:             []playbooks.TargetKind{playbooks.TargetRole},
		Reversible:          true,
		EndMechanism:        playbooks.EndByProvider,
		D3FENDTechnique:     "D3-ACI",
		AttemptTimeout:      30 * time.Second,
		MinDuration:         time.Hour, // the minimum of a role's maximum session
		Doc:                 "Deny all actions to every credential issued for the role so far. Every workload that shares the role must request new ones.",
		PlanIAMPermissions:  rolePlanPermissions(),
		ApplyIAMPermissions: inlineRolePermissions(),
	}
}

// rolePlanPermissions and inlineRolePermissions return the permissions of an inline deny on a role.
func rolePlanPermissions() []playbooks.IAMPermission {
	return []playbooks.IAMPermission{rolePermission("iam:GetRole", "iam:ListRolePolicies", "iam:GetRolePolicy")}
}

func inlineRolePermissions() []playbooks.IAMPermission {
	return []playbooks.IAMPermission{rolePermission("iam:GetRole", "iam:ListRolePolicies", "iam:GetRolePolicy",
		"iam:PutRolePolicy", "iam:DeleteRolePolicy", "iam:SimulatePrincipalPolicy")}
}

func rolePermission(actions ...string) playbooks.IAMPermission {
	return playbooks.IAMPermission{Actions: actions, Resources: []string{"arn:aws:iam::*:role/*"}}
}

func userPermission(actions ...string) playbooks.IAMPermission {
	return playbooks.IAMPermission{Actions: actions, Resources: []string{"arn:aws:iam::*:user/*"}}
}

func (*revokeSessionsAction) buildDeny(p principal, r activities.Request) inlineDeny {
	return inlineDeny{
		prefix: revokePrefix,
		buildPolicy: func(have *denyAllPolicy) denyAllPolicy {
			at := p.fetchedAt
			if have != nil {
				if was, err := time.Parse(time.RFC3339, have.Condition["DateLessThan"][tokenIssueTimeKey]); err == nil {
					at = was // revoked sessions stay revoked, and new sessions of the workload stay valid
				}
			}
			until := truncateExpiry(r.ExpiresAt)
			// If the policy were removed before the oldest revoked session has expired, that session would work again.
			if last := truncateExpiry(at.Add(p.maxSession)); r.ReleaseGrant == nil && last.After(until) {
				until = last
			}
			return denyAllPolicy{
				Condition: map[string]map[string]string{"DateLessThan": {tokenIssueTimeKey: at.UTC().Format(time.RFC3339)}},
				ExpiresAt: until,
			}
		},
		simulatedContext: func(d denyAllPolicy) []sessionContextKey {
			at, err := time.Parse(time.RFC3339, d.Condition["DateLessThan"][tokenIssueTimeKey])
			if err != nil {
				at = p.fetchedAt
			}
			return []sessionContextKey{issuedAtContext(at.Add(-time.Second))}
		},
	}
}

// Plan returns what would be revoked.
func (a *revokeSessionsAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	if err := a.account.checkConfigured(); err != nil {
		return activities.Plan{}, err
	}
	p, err := a.account.findPrincipal(ctx, r.Target)
	if err != nil {
		return activities.Plan{}, err
	}
	if err := a.account.refuseProtected(ctx, p); err != nil {
		return activities.Plan{}, err
	}
	if r.Duration < p.maxSession {
		return activities.Plan{}, activities.Refusef(
			"it must last at least %s, not %s: sessions of %s are valid for that long, and stolen ones would work again if the deny ended earlier",
			duration.Format(p.maxSession),
			duration.Format(r.Duration),
			p,
		)
	}
	held, err := a.account.checkQuotaLeft(ctx, p, a.buildDeny(p, r), r.LeaseID)
	if err != nil {
		return activities.Plan{}, err
	}
	prior, err := encodePrior(p)
	return activities.Plan{
		Changes: []string{
			fmt.Sprintf("deny all requests from every session issued for %s (%s) until then, with an inline policy", p, p.ID),
		},
		Warnings: []string{
			"the workload gets new credentials immediately, and so does an attacker who is still inside; also isolate the pod or deny it the role",
			"it affects every workload that uses " + p.Name,
		},
		PriorState:  prior,
		AlreadyHeld: held,
	}, err
}

// Apply puts the deny policy and verifies it.
func (a *revokeSessionsAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	if err := a.account.checkConfigured(); err != nil {
		return activities.Effect{}, err
	}
	p, err := a.account.findPrincipal(ctx, r.Target)
	if err != nil {
		return activities.Effect{}, err
	}
	return a.account.applyInline(ctx, p, a.buildDeny(p, r), r)
}

// Verify asks AWS whether a session from before the revocation would be denied.
func (a *revokeSessionsAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string,
	error,
) {
	if err := a.account.checkConfigured(); err != nil {
		return false, "", err
	}
	return a.account.verifyInline(ctx, r.Target, a.buildDeny(principal{fetchedAt: time.Now()}, r), r)
}

// Undo deletes the deny policy.
func (a *revokeSessionsAction) Undo(ctx context.Context, r activities.Request, _ json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	if err := a.account.checkConfigured(); err != nil {
		return nil, err
	}
	return a.account.undoInline(ctx, r.Target, a.buildDeny(principal{fetchedAt: time.Now()}, r), r, grant)
}

// FindOrphans returns the revocations whose stamped end has passed.
func (a *revokeSessionsAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	return a.account.findOrphanedDenies(ctx, revokePrefix, before)
}
