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
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
)

// podTag is the session tag by which EKS Pod Identity names the pod to which it gave credentials.
const podTag = "aws:PrincipalTag/kubernetes-pod-uid"

const denyPodPrefix = "stanch-deny-pod-"

// denyPod is `contain: aws.role.deny-pod`.
type denyPod struct {
	account *Account
	client  kubernetes.Interface
}

var _ activities.Containment = (*denyPod)(nil)

func (*denyPod) Spec() playbooks.ActionSpec {
	return playbooks.ActionSpec{
		Name: "aws.role.deny-pod", Verb: playbooks.VerbContain, Class: playbooks.ClassContain, Facet: playbooks.FacetIdentity,
		Targets: []playbooks.TargetKind{playbooks.TargetPod}, Reversible: true, EndMechanism: playbooks.EndByProvider, D3FENDTechnique: "D3-AL", AttemptTimeout: 30 * time.Second,
		Doc:        "Deny everything to the credentials that EKS Pod Identity gave or gives to this one pod, and to no other of its role.",
		PlanPermissions: podRights(), ApplyPermissions: podRights(),
		PlanIAMPermissions:  append(planRole(), associationRights()...),
		ApplyIAMPermissions: append(applyInlineRole(), associationRights()...),
	}
}

func (*denyPod) denial(uid string, r activities.Request) denial {
	return denial{
		prefix: denyPodPrefix,
		say: func(*denyAll) denyAll {
			return denyAll{Condition: map[string]map[string]string{"StringEquals": {podTag: uid}}, Until: stamped(r.Until)}
		},
		keys: func(denyAll) []sessionKey { return []sessionKey{ofPod(uid)} },
	}
}

// role is the role whose credentials the pod gets. A refusal says why it cannot be told apart in it.
func (a *denyPod) role(ctx context.Context, r activities.Request) (principal, error) {
	if err := a.account.ready(); err != nil {
		return principal{}, err
	}
	pod, err := readPod(ctx, a.client, r.Target)
	if err != nil {
		return principal{}, err
	}
	found, err := a.account.association(ctx, pod.namespace, pod.account)
	switch {
	case err != nil:
		return principal{}, err
	case found == nil:
		return principal{}, activities.Refuse(
			"service account %s/%s has no EKS Pod Identity association, so AWS does not know the pod: `aws.role.revoke-sessions` and `aws.irsa.untrust` take hold of the whole role", pod.namespace, pod.account)
	case found.untagged:
		return principal{}, activities.Refuse("association %s gives its sessions no tags, so AWS does not know the pod", found.id)
	case found.onward != "":
		return principal{}, activities.Refuse("association %s hands on to %s: whether those sessions carry the pod's tags is not known", found.id, found.onward)
	}
	return a.account.roleByARN(ctx, found.role)
}

var aRole = regexp.MustCompile(`^arn:aws[a-z-]*:iam::[0-9]{12}:role/([\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)

// roleByARN reads a role that something names by its ARN. An annotation holds whatever somebody wrote into it.
func (a *Account) roleByARN(ctx context.Context, arn string) (principal, error) {
	if !aRole.MatchString(arn) {
		return principal{}, activities.Refuse("%q is not the ARN of a role", clip(arn, 200))
	}
	me, err := a.whoami(ctx)
	if err != nil {
		return principal{}, err
	}
	if other := accountOf(arn); other != me.account {
		return principal{}, activities.Refuse("%s is of account %s; Stanch works on account %s", clip(arn, 200), clip(orNone(other), 20), me.account)
	}
	p, err := a.readRole(ctx, nameOf(arn))
	switch {
	case isGone(err):
		return principal{}, activities.Refuse("role %s is gone", clip(arn, 200))
	case err != nil:
		return principal{}, err
	case p.ARN != arn:
		return principal{}, activities.Refuse("the role is %s, and not %s", p.ARN, clip(arn, 200))
	}
	return p, nil
}

// Plan says what would be denied.
func (a *denyPod) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	p, err := a.role(ctx, r)
	if err != nil {
		return activities.Plan{}, whenPlanning(err)
	}
	if err := a.account.protect(ctx, p); err != nil {
		return activities.Plan{}, err
	}
	held, err := a.account.room(ctx, p, a.denial(r.Target.UID, r), r.Lease)
	if err != nil {
		return activities.Plan{}, err
	}
	plan := activities.Plan{
		Changes: []string{fmt.Sprintf("deny everything that %s asks of AWS as %s (%s), by an inline policy on the role", r.Target, p, p.ID)}, Held: held,
	}
	if r.For < p.longest {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("credentials that were taken from the pod live for up to %s, and are good again when the deny ends", duration.Format(p.longest)))
	}
	plan.Prior, err = saved(p)
	return plan, err
}

// Apply denies.
func (a *denyPod) Apply(ctx context.Context, r activities.Request, raw json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	prior, err := activities.Saved[principal](raw)
	if err != nil {
		return activities.Effect{}, err
	}
	p, err := a.role(ctx, r)
	if errors.Is(err, activities.ErrGone) && prior.ID != "" {
		// The pod went; credentials that were taken from it go on, and so does the deny.
		p, err = a.account.find(ctx, prior.target("", ""))
	}
	if err != nil {
		return activities.Effect{}, whenPlanning(err)
	}
	if prior.ID != "" && p.ID != prior.ID {
		return activities.Effect{}, activities.Refuse("the pod's role was %s when this was planned, and is %s now", prior.ARN, p.ARN)
	}
	return a.account.applyInline(ctx, p, a.denial(r.Target.UID, r), r)
}

// Verify asks AWS whether the pod would be denied. That the pod is gone ends nothing: its credentials may live elsewhere.
func (a *denyPod) Verify(ctx context.Context, r activities.Request, raw json.RawMessage) (bool, string, error) {
	prior, err := a.prior(raw)
	if err != nil {
		return false, "", err
	}
	return a.account.verifyInline(ctx, prior.target("", ""), a.denial(r.Target.UID, r), r)
}

// Undo takes the policy away.
func (a *denyPod) Undo(ctx context.Context, r activities.Request, raw json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	prior, err := a.prior(raw)
	if err != nil {
		return nil, err
	}
	return a.account.undoInline(ctx, prior.target("", ""), a.denial(r.Target.UID, r), r, grant)
}

func (a *denyPod) prior(raw json.RawMessage) (principal, error) {
	if err := a.account.ready(); err != nil {
		return principal{}, err
	}
	prior, err := activities.Saved[principal](raw)
	if err == nil && prior.ID == "" {
		err = activities.Refuse("it was not planned: the pod's role is not known")
	}
	return prior, err
}
