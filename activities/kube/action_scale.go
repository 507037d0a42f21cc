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
	Replicas int32 `json:"replicas" jsonschema:"minimum=0,maximum=1000" doc:"how many replicas to leave"`
}

type scaleAction struct{ client kubernetes.Interface }

var _ activities.Containment = (*scaleAction)(nil)

func (*scaleAction) Spec() playbooks.ActionSpec {
	p := ScalePermissions()
	return playbooks.ActionSpec{
		Name: "workload.scale", Verb: playbooks.VerbContain, Class: playbooks.ClassDisrupt, Facet: playbooks.FacetReplicas,
		Targets: []playbooks.TargetKind{playbooks.TargetWorkload}, Reversible: true, EndMechanism: playbooks.EndByStanch, Params: scaleParams{}, D3FENDTechnique: "D3-PT",
		Doc:        "Scale a Deployment, StatefulSet or ReplicaSet, and back to what it was when the lease ends.",
		PlanPermissions: Rights(p.Plan), ApplyPermissions: Rights(p.Apply), CombineParams: fewest,
	}
}

// fewest is the stricter of two holders' parameters.
func fewest(a, b json.RawMessage) (json.RawMessage, error) {
	var x, y scaleParams
	if err := first(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return nil, fmt.Errorf("parameters of workload.scale: %w", err)
	}
	if y.Replicas < x.Replicas {
		return b, nil
	}
	return a, nil
}

func (a *scaleAction) request(r activities.Request) (ScaleRequest, error) {
	params, err := activities.Params[scaleParams](r)
	switch {
	case err != nil:
		return ScaleRequest{}, err
	case a.client == nil:
		return ScaleRequest{}, activities.Refuse("no cluster is connected")
	case r.Target.Kind != playbooks.TargetWorkload:
		return ScaleRequest{}, activities.Refuse("%s is no workload", r.Target)
	case r.Target.UID == "":
		return ScaleRequest{}, activities.Refuse("the identity of %s is not known; put `enrich: workload` before it", r.Target)
	}
	return ScaleRequest{
		Target:   WorkloadRef{Kind: r.Target.WorkloadKind, Namespace: r.Target.Namespace, Name: r.Target.Name, UID: r.Target.UID},
		Replicas: params.Replicas, Lease: LeaseOf(r),
	}, nil
}

func (a *scaleAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.request(r)
	if err != nil {
		return activities.Plan{}, err
	}
	plan, refused, err := PlanScale(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Plan{}, first(err, refusal(refused))
	}
	prior, err := json.Marshal(plan.Prior)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("save the prior state: %w", err)
	}
	return activities.Plan{Changes: plan.Changes, Warnings: plan.Fights, Prior: prior, Nothing: len(plan.Changes) == 0}, nil
}

func (a *scaleAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage, _ attestation.Envelope) (activities.Effect, error) {
	request, err := a.request(r)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := mayShorten(ctx, r, func() (Stamp, error) { s, _, err := request.Stamp(ctx, a.client); return s, err }); err != nil {
		return activities.Effect{}, err
	}
	plan, refused, err := ApplyScale(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Effect{}, first(err, refusal(refused))
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now(), Reason: strings.Join(plan.Fights, "; ")}
	// Pods take their time to go; while they do the effect is applied and not yet observed.
	for ctx.Err() == nil {
		verified, refused, err := VerifyScale(ctx, a.client, request)
		if err != nil || refused != nil {
			return activities.Effect{}, first(err, refusal(refused))
		}
		if verified.Holds {
			return effect, nil
		}
		if time.Since(effect.AppliedAt) > 15*time.Second {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, differing(verified.Differences)
			return effect, nil
		}
		pause(ctx, 200*time.Millisecond)
	}
	return effect, ctx.Err()
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func differing(differences []Difference) string {
	var out []string
	for _, d := range differences {
		out = append(out, d.String())
	}
	return strings.Join(out, "; ")
}

func (a *scaleAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	request, err := a.request(r)
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
	return verified.Holds, differing(verified.Differences), nil
}

func (a *scaleAction) Undo(ctx context.Context, r activities.Request, prior json.RawMessage, grant *attestation.Envelope) (*activities.Drift, error) {
	request, err := a.request(r)
	if err != nil {
		return nil, err
	}
	saved, err := activities.Saved[ScalePrior](prior)
	if err != nil {
		return nil, err
	}
	stamp, stamped, err := request.Stamp(ctx, a.client)
	if err != nil {
		return nil, err
	}
	if err := stamp.ErrNotYet(time.Now()); err != nil && grant == nil {
		return nil, activities.Refuse("%v", err)
	}
	if !stamp.Held {
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
	return &activities.Drift{Detail: differing(drift.Differences)}, nil
}

// mayShorten refuses to stamp an earlier end than is stamped, unless a release grant says so.
func mayShorten(_ context.Context, r activities.Request, stamp func() (Stamp, error)) error {
	if r.Shorten != nil {
		return nil // verified where the request was permitted
	}
	s, err := stamp()
	if err != nil {
		return err
	}
	if s.Held && r.Until.Before(s.Until.Add(-time.Second)) {
		return activities.Refuse("ending at %s instead of the stamped %s needs a grant", r.Until.Format(time.RFC3339), s.Until.Format(time.RFC3339))
	}
	return nil
}
