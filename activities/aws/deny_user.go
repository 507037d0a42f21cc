package aws

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

const denyUserPrefix = "stanch-deny-user-"

// denyUserAction is `contain: aws.user.deny`.
type denyUserAction struct{ account *Account }

var (
	_ activities.Containment  = (*denyUserAction)(nil)
	_ activities.OrphanFinder = (*denyUserAction)(nil)
)

func (*denyUserAction) Spec() playbooks.ActionSpec {
	plan := userPermission("iam:GetUser", "iam:ListUserPolicies", "iam:GetUserPolicy")
	return playbooks.ActionSpec{
		Name: "aws.user.deny", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetIdentity,
		Targets: []playbooks.TargetKind{playbooks.TargetUser}, Reversible: true, EndMechanism: playbooks.EndByProvider,
		D3FENDTechnique: "D3-AL", AttemptTimeout: 30 * time.Second,
		Doc:                "Deny all actions to an IAM user, whether it authenticates with an access key or a password.",
		PlanIAMPermissions: []playbooks.IAMPermission{plan},
		ApplyIAMPermissions: []playbooks.IAMPermission{
			plan, userPermission("iam:PutUserPolicy", "iam:DeleteUserPolicy", "iam:SimulatePrincipalPolicy"),
		},
	}
}

func (*denyUserAction) buildDeny(r activities.Request) inlineDeny {
	return inlineDeny{
		prefix:           denyUserPrefix,
		buildPolicy:      func(*denyAllPolicy) denyAllPolicy { return denyAllPolicy{ExpiresAt: truncateExpiry(r.ExpiresAt)} },
		simulatedContext: func(denyAllPolicy) []sessionContextKey { return nil },
	}
}

// Plan returns which user would be denied.
func (a *denyUserAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
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
	held, err := a.account.checkQuotaLeft(ctx, p, a.buildDeny(r), r.LeaseID)
	if err != nil {
		return activities.Plan{}, err
	}
	prior, err := encodePrior(p)
	return activities.Plan{
		Changes:    []string{fmt.Sprintf("deny all requests from %s (%s), with an inline policy", p, p.ID)},
		Warnings:   []string{"sessions of roles that it has assumed stay valid until they expire"},
		PriorState: prior, AlreadyHeld: held,
	}, err
}

// Apply puts the deny policy and verifies it.
func (a *denyUserAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	if err := a.account.checkConfigured(); err != nil {
		return activities.Effect{}, err
	}
	p, err := a.account.findPrincipal(ctx, r.Target)
	if err != nil {
		return activities.Effect{}, err
	}
	return a.account.applyInline(ctx, p, a.buildDeny(r), r)
}

// Verify asks AWS whether the user would be denied.
func (a *denyUserAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	if err := a.account.checkConfigured(); err != nil {
		return false, "", err
	}
	return a.account.verifyInline(ctx, r.Target, a.buildDeny(r), r)
}

// Undo deletes the deny policy.
func (a *denyUserAction) Undo(ctx context.Context, r activities.Request, _ json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	if err := a.account.checkConfigured(); err != nil {
		return nil, err
	}
	return a.account.undoInline(ctx, r.Target, a.buildDeny(r), r, grant)
}

// FindOrphans returns the denies of users whose stamped end has passed.
func (a *denyUserAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	return a.account.findOrphanedDenies(ctx, denyUserPrefix, before)
}
