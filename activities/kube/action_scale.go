package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// scaleParams are the parameters of workload.scale.
type scaleParams struct {
	Replicas int32 `json:"replicas" jsonschema:"minimum=0,maximum=1000" doc:"the number of replicas to keep"`
}

type scaleAction struct{ client kubernetes.Interface }

var _ activities.Containment = (*scaleAction)(nil)

func (*scaleAction) Spec() playbooks.ActionSpec {
	p := ScalePermissions()
	return playbooks.ActionSpec{
		Name:             "workload.scale",
		Verb:             playbooks.VerbContain,
		Class:            playbooks.ClassDisrupt,
		Facet:            playbooks.FacetReplicas,
		Targets:          []playbooks.TargetKind{playbooks.TargetWorkload},
		Reversible:       true,
		EndMechanism:     playbooks.EndByStanch,
		Params:           scaleParams{},
		D3FENDTechnique:  "D3-PT",
		Doc:              "Scale a Deployment, StatefulSet or ReplicaSet, and restore the previous replica count when the lease ends.",
		PlanPermissions:  PermissionsFromRBAC(p.PlanRules),
		ApplyPermissions: PermissionsFromRBAC(p.ApplyRules),
		CombineParams:    fewestReplicas,
	}
}

// fewestReplicas returns the stricter of two holders' parameters.
func fewestReplicas(a, b json.RawMessage) (json.RawMessage, error) {
	var x, y scaleParams
	if err := firstError(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return nil, fmt.Errorf("read the parameters of workload.scale: %w", err)
	}
	if y.Replicas < x.Replicas {
		return b, nil
	}
	return a, nil
}

func (a *scaleAction) scaleRequest(r activities.Request) (ScaleRequest, error) {
	params, err := activities.DecodeParams[scaleParams](r)
	switch {
	case err != nil:
		return ScaleRequest{}, err
	case a.client == nil:
		return ScaleRequest{}, activities.Refusef("no cluster is connected")
	case r.Target.Kind != playbooks.TargetWorkload:
		return ScaleRequest{}, activities.Refusef("%s is not a workload", r.Target)
	case r.Target.UID == "":
		return ScaleRequest{}, activities.Refusef("the UID of %s is unknown; add `enrich: workload` before this step",
			r.Target)
	}
	return ScaleRequest{
		Target: WorkloadRef{
			Kind: r.Target.WorkloadKind, Namespace: r.Target.Namespace, Name: r.Target.Name,
			UID: r.Target.UID,
		},
		Replicas: params.Replicas, Lease: LeaseForRequest(r),
	}, nil
}

func (a *scaleAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.scaleRequest(r)
	if err != nil {
		return activities.Plan{}, err
	}
	plan, refused, err := PlanScale(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Plan{}, firstError(err, toActivityRefusal(refused))
	}
	prior, err := json.Marshal(plan.Prior)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("save the prior state: %w", err)
	}
	return activities.Plan{
		Changes: plan.Changes, Warnings: plan.Conflicts, PriorState: prior,
		NothingToDo: len(plan.Changes) == 0,
	}, nil
}

func (a *scaleAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	request, err := a.scaleRequest(r)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := checkEarlyEnd(ctx, r, func() (ExpiryMarker, error) {
		s, _, err := request.ReadExpiryMarker(ctx,
			a.client)
		return s, err
	}); err != nil {
		return activities.Effect{}, err
	}
	plan, refused, err := ApplyScale(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Effect{}, firstError(err, toActivityRefusal(refused))
	}
	effect := activities.Effect{
		Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now(),
		Reason: strings.Join(plan.Conflicts, "; "),
	}
	// Pods take time to terminate; until then the effect is applied but not verified.
	for ctx.Err() == nil {
		verified, refused, err := VerifyScale(ctx, a.client, request)
		if err != nil || refused != nil {
			return activities.Effect{}, firstError(err, toActivityRefusal(refused))
		}
		if verified.InForce {
			return effect, nil
		}
		if time.Since(effect.AppliedAt) > 15*time.Second {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, describeDifferences(verified.Differences)
			return effect, nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return effect, ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func describeDifferences(differences []Difference) string {
	var out []string
	for _, d := range differences {
		out = append(out, d.String())
	}
	return strings.Join(out, "; ")
}

func (a *scaleAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	request, err := a.scaleRequest(r)
	if err != nil {
		return false, "", err
	}
	verified, refused, err := VerifyScale(ctx, a.client, request)
	if err != nil {
		return false, "", err
	}
	if refused != nil {
		return false, refused.Detail, nil
	}
	return verified.InForce, describeDifferences(verified.Differences), nil
}

func (a *scaleAction) Undo(ctx context.Context, r activities.Request, prior json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	request, err := a.scaleRequest(r)
	if err != nil {
		return nil, err
	}
	saved, err := activities.DecodePriorState[ScalePrior](prior)
	if err != nil {
		return nil, err
	}
	stamp, stamped, err := request.ReadExpiryMarker(ctx, a.client)
	if err != nil {
		return nil, err
	}
	if err := stamp.CheckExpired(time.Now()); err != nil && grant == nil {
		return nil, activities.Refusef("%v", err)
	}
	if !stamp.Present {
		// Nothing of this lease is in force; a request alone must not set a number of replicas.
		return nil, nil
	}
	if stamped != nil {
		saved = *stamped
	}
	drift, err := UndoScale(ctx, a.client, request, saved, false)
	if err != nil || drift == nil {
		return nil, err
	}
	return &activities.Drift{Detail: describeDifferences(drift.Differences)}, nil
}

// checkEarlyEnd refuses an end before the stamped one, unless a release grant permits it.
func checkEarlyEnd(_ context.Context, r activities.Request, stamp func() (ExpiryMarker, error)) error {
	if r.ReleaseGrant != nil {
		return nil // verified when the request was authorized
	}
	s, err := stamp()
	if err != nil {
		return err
	}
	if s.Present && r.ExpiresAt.Before(s.ExpiresAt.Add(-time.Second)) {
		return activities.Refusef("ending it at %s instead of the recorded %s requires a grant",
			r.ExpiresAt.Format(time.RFC3339), s.ExpiresAt.Format(time.RFC3339))
	}
	return nil
}
