package kube

import (
	"context"
	"encoding/json"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// restartParams are the parameters of pod.restart. The pod's own grace period is ignored: it may be hours, and an
// attacker may depend on it.
type restartParams struct {
	GraceSeconds int64 `json:"grace,omitempty" jsonschema:"minimum=1,maximum=60" doc:"seconds until its processes are killed; default 10"`
}

// restartTimeout covers the longest grace period and the time until the kubelet reports that all containers are gone.
const restartTimeout = 90 * time.Second

type restartAction struct{ client kubernetes.Interface }

var _ activities.Containment = (*restartAction)(nil)

func (*restartAction) Spec() playbooks.ActionSpec {
	p := RestartPermissions()
	return playbooks.ActionSpec{
		Name:             "pod.restart",
		Verb:             playbooks.VerbContain,
		Class:            playbooks.ClassContain,
		Facet:            playbooks.FacetExecution,
		Targets:          []playbooks.TargetKind{playbooks.TargetPod},
		Params:           restartParams{},
		D3FENDTechnique:  "D3-PT",
		AttemptTimeout:   restartTimeout,
		Doc:              "Evict one pod, so that its controller starts another from the image; data that exists only in the pod is lost.",
		PlanPermissions:  PermissionsFromRBAC(p.PlanRules),
		ApplyPermissions: PermissionsFromRBAC(p.ApplyRules),
	}
}

func (a *restartAction) restartRequest(r activities.Request) (RestartRequest, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return RestartRequest{}, err
	}
	params, err := activities.DecodeParams[restartParams](r)
	if params.GraceSeconds == 0 {
		params.GraceSeconds = 10
	}
	return RestartRequest{Pod: pod, GracePeriod: time.Duration(params.GraceSeconds) * time.Second}, err
}

func (a *restartAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.restartRequest(r)
	if err != nil {
		return activities.Plan{}, err
	}
	plan, refused, err := PlanRestart(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Plan{}, firstError(err, toActivityRefusal(refused))
	}
	return activities.Plan{Changes: plan.Changes, NothingToDo: plan.PodGone}, nil
}

func (a *restartAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	request, err := a.restartRequest(r)
	if err != nil {
		return activities.Effect{}, err
	}
	done, refused, err := ApplyRestart(ctx, a.client, request)
	if err != nil || refused != nil {
		return activities.Effect{}, firstError(err, toActivityRefusal(refused))
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	if !done {
		effect.Outcome, effect.Reason = playbooks.OutcomeUnchanged, "the pod was already gone"
		return effect, nil
	}
	for ctx.Err() == nil {
		gone, detail, err := VerifyRestart(ctx, a.client, request)
		if err != nil || gone {
			return effect, err
		}
		if time.Since(effect.AppliedAt) > request.GracePeriod+15*time.Second {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, detail
			return effect, nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return effect, ctx.Err()
}

func (a *restartAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	request, err := a.restartRequest(r)
	if err != nil {
		return false, "", err
	}
	return VerifyRestart(ctx, a.client, request)
}

// Undo does nothing: the evicted pod is gone, and its controller has started another.
func (*restartAction) Undo(context.Context, activities.Request, json.RawMessage,
	*attestation.Envelope,
) (*activities.Drift, error) {
	return nil, nil
}
