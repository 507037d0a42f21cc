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

// cordonAction cordons the node of a target pod. The target is a pod because detections, evidence and scopes are about
// pods.
type cordonAction struct{ client kubernetes.Interface }

var _ activities.Containment = (*cordonAction)(nil)

func (*cordonAction) Spec() playbooks.ActionSpec {
	p := CordonPermissions()
	return playbooks.ActionSpec{
		Name:             "node.cordon",
		Verb:             playbooks.VerbContain,
		Class:            playbooks.ClassDisrupt,
		Facet:            playbooks.FacetScheduling,
		Targets:          []playbooks.TargetKind{playbooks.TargetPod},
		Reversible:       true,
		EndMechanism:     playbooks.EndByStanch,
		D3FENDTechnique:  "D3-EI",
		Doc:              "Schedule no new pods on the pod's node; running pods are not affected. Never cordons the last node.",
		PlanPermissions:  PermissionsFromRBAC(p.PlanRules),
		ApplyPermissions: PermissionsFromRBAC(p.ApplyRules),
	}
}

func (a *cordonAction) cordonRequest(r activities.Request) (CordonRequest, error) {
	pod, err := requirePod(a.client, r)
	return CordonRequest{Pod: pod, Lease: LeaseForRequest(r)}, err
}

// requestWithPrior returns the request and the saved prior state, which names the node even after the pod is gone.
func (a *cordonAction) requestWithPrior(r activities.Request, raw json.RawMessage) (CordonRequest, CordonPrior, error) {
	request, err := a.cordonRequest(r)
	if err != nil {
		return request, CordonPrior{}, err
	}
	prior, err := activities.DecodePriorState[CordonPrior](raw)
	return request, prior, err
}

func (a *cordonAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.cordonRequest(r)
	if err != nil {
		return activities.Plan{}, err
	}
	plan, refused, err := PlanCordon(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Plan{}, firstError(err, toActivityRefusal(refused))
	}
	prior, err := json.Marshal(plan.Prior)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("save the prior state: %w", err)
	}
	return activities.Plan{Changes: plan.Changes, PriorState: prior, NothingToDo: len(plan.Changes) == 0}, nil
}

func (a *cordonAction) Apply(ctx context.Context, r activities.Request, raw json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	request, prior, err := a.requestWithPrior(r, raw)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := checkEarlyEnd(ctx, r, func() (ExpiryMarker, error) {
		s, _, err := request.ReadExpiryMarker(ctx, a.client, prior)
		return s, err
	}); err != nil {
		return activities.Effect{}, err
	}
	plan, refused, err := ApplyCordon(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Effect{}, firstError(err, toActivityRefusal(refused))
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	verified, refused, err := VerifyCordon(ctx, a.client, request, plan.Prior)
	switch {
	case err != nil || refused != nil:
		return activities.Effect{}, firstError(err, toActivityRefusal(refused))
	case !verified.InForce:
		effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, describeDifferences(verified.Differences)
	case plan.Prior.WasUnschedulable:
		effect.Reason = "the node was cordoned before and stays cordoned when the lease ends"
	}
	return effect, nil
}

func (a *cordonAction) Verify(ctx context.Context, r activities.Request, raw json.RawMessage) (bool, string, error) {
	request, prior, err := a.requestWithPrior(r, raw)
	if err != nil {
		return false, "", err
	}
	verified, refused, err := VerifyCordon(ctx, a.client, request, prior)
	switch {
	case err != nil:
		return false, "", err
	case refused != nil:
		return false, "", fmt.Errorf("%s: %w", refused.Detail, activities.ErrTargetGone)
	}
	return verified.InForce, describeDifferences(verified.Differences), nil
}

func (a *cordonAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	request, prior, err := a.requestWithPrior(r, raw)
	if err != nil {
		return nil, err
	}
	stamp, stamped, err := request.ReadExpiryMarker(ctx, a.client, prior)
	if err != nil {
		return nil, err
	}
	if err := stamp.CheckExpired(time.Now()); err != nil && grant == nil {
		return nil, activities.Refusef("%v", err)
	}
	if stamped != nil {
		prior = *stamped // without a marker of this lease nothing is written, whatever the request says
	}
	drift, err := UndoCordon(ctx, a.client, request, prior)
	if err != nil || drift == nil {
		return nil, err
	}
	return &activities.Drift{Detail: describeDifferences(drift.Differences)}, nil
}
