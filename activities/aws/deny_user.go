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

// denyUser is `contain: aws.user.deny`.
type denyUser struct{ account *Account }

var _ activities.Containment = (*denyUser)(nil)

func (*denyUser) Spec() playbooks.ActionSpec {
	plan := userRight("iam:GetUser", "iam:ListUserPolicies", "iam:GetUserPolicy")
	return playbooks.ActionSpec{
		Name: "aws.user.deny", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetIdentity,
		Targets: []playbooks.TargetKind{playbooks.TargetUser}, Reversible: true, EndMechanism: playbooks.EndByProvider, D3FENDTechnique: "D3-AL", AttemptTimeout: 30 * time.Second,
		Doc:       "Deny everything to an IAM user, whichever of its keys or passwords is used.",
		PlanIAMPermissions: []playbooks.IAMPermission{plan},
		ApplyIAMPermissions: []playbooks.IAMPermission{
			plan, userRight("iam:PutUserPolicy", "iam:DeleteUserPolicy", "iam:SimulatePrincipalPolicy"),
		},
	}
}

func (*denyUser) denial(r activities.Request) denial {
	return denial{
		prefix: denyUserPrefix,
		say:    func(*denyAll) denyAll { return denyAll{Until: stamped(r.Until)} },
		keys:   func(denyAll) []sessionKey { return nil },
	}
}

// Plan says who would be denied.
func (a *denyUser) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
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
	held, err := a.account.room(ctx, p, a.denial(r), r.Lease)
	if err != nil {
		return activities.Plan{}, err
	}
	prior, err := saved(p)
	return activities.Plan{
		Changes:  []string{fmt.Sprintf("deny everything to %s (%s), by an inline policy", p, p.ID)},
		Warnings: []string{"sessions of roles that it has assumed go on until they expire"},
		Prior:    prior, Held: held,
	}, err
}

// Apply denies.
func (a *denyUser) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	if err := a.account.ready(); err != nil {
		return activities.Effect{}, err
	}
	p, err := a.account.find(ctx, r.Target)
	if err != nil {
		return activities.Effect{}, whenPlanning(err)
	}
	return a.account.applyInline(ctx, p, a.denial(r), r)
}

// Verify asks AWS whether the user would be denied.
func (a *denyUser) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	if err := a.account.ready(); err != nil {
		return false, "", err
	}
	return a.account.verifyInline(ctx, r.Target, a.denial(r), r)
}

// Undo takes the policy away.
func (a *denyUser) Undo(ctx context.Context, r activities.Request, _ json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	if err := a.account.ready(); err != nil {
		return nil, err
	}
	return a.account.undoInline(ctx, r.Target, a.denial(r), r, grant)
}
