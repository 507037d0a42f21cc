package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
)

// podUIDTagKey is the session tag in which EKS Pod Identity names the pod.
const podUIDTagKey = "aws:PrincipalTag/kubernetes-pod-uid"

const denyPodPrefix = "stanch-deny-pod-"

// denyPodAction is `contain: aws.role.deny-pod`.
type denyPodAction struct {
	account *Account
	client  kubernetes.Interface
}

var (
	_ activities.Containment  = (*denyPodAction)(nil)
	_ activities.OrphanFinder = (*denyPodAction)(nil)
)

func (*denyPodAction) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name:                "aws.role.deny-pod",
		Verb:                playbooks.VerbContain,
		Class:               playbooks.ClassContain,
		Facet:               playbooks.FacetIdentity,
		Targets:             []playbooks.TargetKind{playbooks.TargetPod},
		Reversible:          true,
		EndMechanism:        playbooks.EndByProvider,
		D3FENDTechnique:     "D3-AL",
		AttemptTimeout:      30 * time.Second,
		Doc:                 "Deny all actions to the credentials that EKS Pod Identity issues to this pod; other pods with the same role are not affected.",
		PlanPermissions:     podReadPermissions(),
		ApplyPermissions:    podReadPermissions(),
		PlanIAMPermissions:  append(rolePlanPermissions(), associationReadPermissions()...),
		ApplyIAMPermissions: append(inlineRolePermissions(), associationReadPermissions()...),
	}
}

func (*denyPodAction) buildDeny(uid string, r activities.Request) inlineDeny {
	return inlineDeny{
		prefix: denyPodPrefix,
		buildPolicy: func(*denyAllPolicy) denyAllPolicy {
			return denyAllPolicy{
				Condition: map[string]map[string]string{"StringEquals": {podUIDTagKey: uid}},
				ExpiresAt: truncateExpiry(r.ExpiresAt),
			}
		},
		simulatedContext: func(denyAllPolicy) []sessionContextKey { return []sessionContextKey{podUIDContext(uid)} },
	}
}

// podRole returns the role whose credentials the pod uses. It returns a refusal if sessions of the role do not identify
// the pod.
func (a *denyPodAction) podRole(ctx context.Context, r activities.Request) (principal, error) {
	if err := a.account.checkConfigured(); err != nil {
		return principal{}, err
	}
	pod, err := readPod(ctx, a.client, r.Target)
	if err != nil {
		return principal{}, err
	}
	found, err := a.account.findAssociation(ctx, pod.namespace, pod.serviceAccount)
	switch {
	case err != nil:
		return principal{}, err
	case found == nil:
		return principal{}, activities.Refusef(
			"service account %s/%s has no EKS Pod Identity association, so AWS does not know the pod; `aws.role.revoke-sessions` and `aws.irsa.untrust` apply to the whole role",
			pod.namespace,
			pod.serviceAccount,
		)
	case found.sessionsUntagged:
		return principal{}, activities.Refusef("association %s adds no session tags, so AWS does not know the pod", found.id)
	case found.chainedRole != "":
		return principal{}, activities.Refusef(
			"association %s chains to role %s; it is unknown whether those sessions have the pod's tags",
			found.id,
			found.chainedRole,
		)
	}
	return a.account.roleByARN(ctx, found.role)
}

var roleARNPattern = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/([\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)

// roleByARN reads a role by an ARN from elsewhere. An annotation may contain anything.
func (a *Account) roleByARN(ctx context.Context, arn string) (principal, error) {
	if !roleARNPattern.MatchString(arn) {
		return principal{}, activities.Refusef("invalid role ARN %q", plainText(arn, 200))
	}
	me, err := a.resolveCallerIdentity(ctx)
	if err != nil {
		return principal{}, err
	}
	if other := accountFromARN(arn); other != me.accountID {
		return principal{}, activities.Refusef("%s belongs to account %s; Stanch is configured for account %s",
			plainText(arn, 200), plainText(valueOrNone(other), 20), me.accountID)
	}
	p, err := a.readRole(ctx, nameFromARN(arn))
	switch {
	case isNotFound(err):
		return principal{}, activities.Refusef("role %s is gone", plainText(arn, 200))
	case err != nil:
		return principal{}, err
	case p.ARN != arn:
		return principal{}, activities.Refusef("the role is %s, not %s", p.ARN, plainText(arn, 200))
	}
	return p, nil
}

// Plan returns what would be denied.
func (a *denyPodAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	p, err := a.podRole(ctx, r)
	if err != nil {
		return activities.Plan{}, err
	}
	if err := a.account.refuseProtected(ctx, p); err != nil {
		return activities.Plan{}, err
	}
	held, err := a.account.checkQuotaLeft(ctx, p, a.buildDeny(r.Target.UID, r), r.LeaseID)
	if err != nil {
		return activities.Plan{}, err
	}
	plan := activities.Plan{
		Changes: []string{fmt.Sprintf("deny all AWS requests from %s as %s (%s), with an inline policy on the role", r.Target,
			p, p.ID)}, AlreadyHeld: held,
	}
	if r.Duration < p.maxSession {
		plan.Warnings = append(
			plan.Warnings,
			fmt.Sprintf(
				"credentials that were stolen from the pod are valid for up to %s, and work again when the deny ends",
				duration.Format(p.maxSession),
			),
		)
	}
	plan.PriorState, err = encodePrior(p)
	return plan, err
}

// Apply puts the deny policy and verifies it.
func (a *denyPodAction) Apply(ctx context.Context, r activities.Request, raw json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	prior, err := activities.DecodePriorState[principal](raw)
	if err != nil {
		return activities.Effect{}, err
	}
	p, err := a.podRole(ctx, r)
	if errors.Is(err, activities.ErrTargetGone) && prior.ID != "" {
		// The pod is gone, but credentials stolen from it stay valid, and so does the deny.
		p, err = a.account.findPrincipal(ctx, prior.target("", ""))
	}
	if err != nil {
		return activities.Effect{}, err
	}
	if prior.ID != "" && p.ID != prior.ID {
		return activities.Effect{}, activities.Refusef("the pod's role was %s when this was planned and is %s now", prior.ARN,
			p.ARN)
	}
	return a.account.applyInline(ctx, p, a.buildDeny(r.Target.UID, r), r)
}

// Verify asks AWS whether the pod would be denied. A pod that is gone does not end the lease, because its credentials
// may be used elsewhere.
func (a *denyPodAction) Verify(ctx context.Context, r activities.Request, raw json.RawMessage) (bool, string, error) {
	prior, err := a.decodePrior(raw)
	if err != nil {
		return false, "", err
	}
	return a.account.verifyInline(ctx, prior.target("", ""), a.buildDeny(r.Target.UID, r), r)
}

// Undo deletes the deny policy.
func (a *denyPodAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	prior, err := a.decodePrior(raw)
	if err != nil {
		return nil, err
	}
	return a.account.undoInline(ctx, prior.target("", ""), a.buildDeny(r.Target.UID, r), r, grant)
}

func (a *denyPodAction) decodePrior(raw json.RawMessage) (principal, error) {
	if err := a.account.checkConfigured(); err != nil {
		return principal{}, err
	}
	prior, err := activities.DecodePriorState[principal](raw)
	if err == nil && prior.ID == "" {
		err = activities.Refusef("it was not planned: the pod's role is unknown")
	}
	return prior, err
}

// FindOrphans returns the denies of pods whose stamped end has passed.
func (a *denyPodAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	return a.account.findOrphanedDenies(ctx, denyPodPrefix, before)
}
