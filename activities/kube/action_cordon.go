package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// cordonAction takes a pod as its target, and holds the node under it: detections, evidence and scopes are the pod's.
type cordonAction struct{ client kubernetes.Interface }

var _ activities.Containment = (*cordonAction)(nil)

func (*cordonAction) Spec() playbooks.ActionSpec {
	p := CordonPermissions()
	return playbooks.ActionSpec{
		Name: "node.cordon", Verb: playbooks.VerbContain, Class: playbooks.ClassDisrupt, Facet: playbooks.FacetScheduling,
		Targets: []playbooks.TargetKind{playbooks.TargetPod}, Reversible: true, EndMechanism: playbooks.EndByStanch, D3FENDTechnique: "D3-EI",
		Doc:        "Let nothing new be scheduled on the node under the pod; what runs there goes on. Never the last node.",
		PlanPermissions: Rights(p.Plan), ApplyPermissions: Rights(p.Apply),
	}
}

func (a *cordonAction) request(r activities.Request) (CordonRequest, error) {
	pod, err := needPod(a.client, r)
	return CordonRequest{Pod: pod, Lease: LeaseOf(r)}, err
}

// saved is a request with what its plan saved: the node stays what is held, also when the pod is gone.
func (a *cordonAction) saved(r activities.Request, raw json.RawMessage) (CordonRequest, CordonPrior, error) {
	request, err := a.request(r)
	if err != nil {
		return request, CordonPrior{}, err
	}
	prior, err := activities.Saved[CordonPrior](raw)
	return request, prior, err
}

func (a *cordonAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.request(r)
	if err != nil {
		return activities.Plan{}, err
	}
	plan, refused, err := PlanCordon(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Plan{}, first(err, refusal(refused))
	}
	prior, err := json.Marshal(plan.Prior)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("save the prior state: %w", err)
	}
	return activities.Plan{Changes: plan.Changes, Prior: prior, Nothing: len(plan.Changes) == 0}, nil
}

func (a *cordonAction) Apply(ctx context.Context, r activities.Request, raw json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	request, prior, err := a.saved(r, raw)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := mayShorten(ctx, r, func() (Stamp, error) { s, _, err := request.Stamp(ctx, a.client, prior); return s, err }); err != nil {
		return activities.Effect{}, err
	}
	plan, refused, err := ApplyCordon(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Effect{}, first(err, refusal(refused))
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	verified, refused, err := VerifyCordon(ctx, a.client, request, plan.Prior)
	switch {
	case err != nil || refused != nil:
		return activities.Effect{}, first(err, refusal(refused))
	case !verified.Holds:
		effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, differing(verified.Differences)
	case plan.Prior.Unschedulable:
		effect.Reason = "the node was cordoned before, and stays so when the lease ends"
	}
	return effect, nil
}

func (a *cordonAction) Verify(ctx context.Context, r activities.Request, raw json.RawMessage) (bool, string, error) {
	request, prior, err := a.saved(r, raw)
	if err != nil {
		return false, "", err
	}
	verified, refused, err := VerifyCordon(ctx, a.client, request, prior)
	switch {
	case err != nil:
		return false, "", err
	case refused != nil:
		return false, "", fmt.Errorf("%s: %w", refused.Detail, activities.ErrGone)
	}
	return verified.Holds, differing(verified.Differences), nil
}

func (a *cordonAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	request, prior, err := a.saved(r, raw)
	if err != nil {
		return nil, err
	}
	stamp, stamped, err := request.Stamp(ctx, a.client, prior)
	if err != nil {
		return nil, err
	}
	if err := stamp.ErrNotYet(time.Now()); err != nil && grant == nil {
		return nil, activities.Refuse("%v", err)
	}
	if stamped != nil {
		prior = *stamped // without a stamp of this lease nothing is written, whatever the request says
	}
	drift, err := UndoCordon(ctx, a.client, request, prior)
	if err != nil || drift == nil {
		return nil, err
	}
	return &activities.Drift{Detail: differing(drift.Differences)}, nil
}
