package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// scaleLabel marks a scaled workload; its value is ShortLeaseID of the lease.
const scaleLabel = "stanch.dev/scale"

// scaleParams are the parameters of workload.scale.
type scaleParams struct {
	Replicas int32 `json:"replicas" jsonschema:"minimum=0,maximum=1000" doc:"the number of replicas to keep"`
}

// scaleAction is `contain: workload.scale`.
type scaleAction struct{ client kubernetes.Interface }

var (
	_ activities.Containment  = (*scaleAction)(nil)
	_ activities.OrphanFinder = (*scaleAction)(nil)
)

func (*scaleAction) Spec() playbooks.ActionSpec {
	kinds := []string{"deployments", "statefulsets", "replicasets"}
	scales := []string{"deployments/scale", "statefulsets/scale", "replicasets/scale"}
	autoscalers := permission("autoscaling", []string{"horizontalpodautoscalers"}, "list")
	return playbooks.ActionSpec{
		Name:            "workload.scale",
		Verb:            playbooks.VerbContain,
		Class:           playbooks.ClassDisrupt,
		Facet:           playbooks.FacetReplicas,
		Targets:         []playbooks.TargetKind{playbooks.TargetWorkload},
		Reversible:      true,
		EndMechanism:    playbooks.EndByStanch,
		Params:          scaleParams{},
		D3FENDTechnique: "D3-PT",
		Doc:             "Scale a Deployment, StatefulSet or ReplicaSet, and restore the previous replica count when the lease ends.",
		PlanPermissions: []playbooks.KubernetesPermission{permission("apps", kinds, "get"), autoscalers},
		ApplyPermissions: []playbooks.KubernetesPermission{
			permission("apps", kinds, "get", "list", "patch"), // patch is for the lease's annotations
			autoscalers,
			permission("apps", scales, "get", "update"),
		},
		OrphanPermissions: []playbooks.KubernetesPermission{permission("apps", kinds, "list")},
		CombineParams:     fewestReplicas,
	}
}

// fewestReplicas returns the stricter of two holders' parameters.
func fewestReplicas(a, b json.RawMessage) (json.RawMessage, error) {
	var x, y scaleParams
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		return nil, fmt.Errorf("read the parameters of workload.scale: %w", err)
	}
	if y.Replicas < x.Replicas {
		return b, nil
	}
	return a, nil
}

// scaleRequest is a request for a number of replicas of one workload.
type scaleRequest struct {
	target   WorkloadRef
	replicas int32
	lease    activities.LeaseStamp
}

func (a *scaleAction) decodeRequest(r activities.Request) (scaleRequest, error) {
	params, err := activities.DecodeParams[scaleParams](r)
	switch {
	case err != nil:
		return scaleRequest{}, err
	case a.client == nil:
		return scaleRequest{}, activities.Refusef("no cluster is connected")
	case r.Target.Kind != playbooks.TargetWorkload:
		return scaleRequest{}, activities.Refusef("%s is not a workload", r.Target)
	case r.Target.UID == "":
		return scaleRequest{}, activities.Refusef("the UID of %s is unknown; add `enrich: workload` before this step",
			r.Target)
	case params.Replicas < 0:
		return scaleRequest{}, fmt.Errorf("invalid replica count %d; use 0 or more", params.Replicas)
	}
	return scaleRequest{target: workloadRefForTarget(r.Target), replicas: params.Replicas, lease: r.LeaseStamp()}, nil
}

// scalePrior is the state that undo restores.
type scalePrior struct {
	Replicas int32 `json:"replicas"`
}

func readScalePrior(o metav1.Object) (scalePrior, error) {
	name := priorAnnotation(playbooks.FacetReplicas)
	n, err := strconv.ParseInt(o.GetAnnotations()[name], 10, 32)
	if err != nil || n < 0 {
		return scalePrior{}, fmt.Errorf("invalid annotation %s: %q; expected a replica count", name,
			o.GetAnnotations()[name])
	}
	return scalePrior{Replicas: int32(n)}, nil
}

// scaleState is what plan and apply depend on.
type scaleState struct {
	workload  *scalableWorkload
	prior     scalePrior
	changes   []string
	conflicts []string // sentences about what would revert it, such as an autoscaler
}

func (a *scaleAction) readState(ctx context.Context, r scaleRequest) (scaleState, error) {
	w, err := r.target.getWorkload(ctx, a.client)
	if err != nil {
		return scaleState{}, err
	}
	if owner := metav1.GetControllerOf(w.meta); owner != nil {
		return scaleState{}, activities.Refusef("%s belongs to %s %s, which would scale it back; scale that instead",
			r.target, owner.Kind, owner.Name)
	}
	s := scaleState{workload: w, prior: scalePrior{Replicas: w.replicas}}
	switch lease := readStamp(w.meta, playbooks.FacetReplicas).ID; lease {
	case "":
		s.changes = append(s.changes, fmt.Sprintf("annotate %s with the lease and its %d replicas", r.target, w.replicas))
	case r.lease.ID:
		if s.prior, err = readScalePrior(w.meta); err != nil {
			return s, activities.Refusef("%s has this lease, but its saved state cannot be parsed: %v", r.target, err)
		}
	default:
		return s, activities.Refusef("%s is under another lease, %s", r.target, lease)
	}
	if w.replicas != r.replicas {
		s.changes = append(s.changes, fmt.Sprintf("scale %s from %d to %d", r.target, w.replicas, r.replicas))
	}
	s.conflicts, err = a.findConflicts(ctx, r)
	return s, err
}

// findConflicts returns the autoscalers of the target. They ignore workloads with zero replicas.
func (a *scaleAction) findConflicts(ctx context.Context, r scaleRequest) ([]string, error) {
	list, err := a.client.AutoscalingV1().HorizontalPodAutoscalers(r.target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list autoscalers: %w", err)
	}
	effect := "will scale it back"
	if r.replicas == 0 {
		effect = "pauses at 0 replicas and resumes afterwards"
	}
	var out []string
	for _, h := range list.Items {
		if h.Spec.ScaleTargetRef.Kind == r.target.Kind && h.Spec.ScaleTargetRef.Name == r.target.Name {
			out = append(out, fmt.Sprintf("HorizontalPodAutoscaler %s %s", h.Name, effect))
		}
	}
	return out, nil
}

// Plan returns what a scaling would change.
func (a *scaleAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return activities.Plan{}, err
	}
	state, err := a.readState(ctx, request)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("plan to scale %s: %w", request.target, err)
	}
	prior, err := json.Marshal(state.prior)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("save the prior state: %w", err)
	}
	return activities.Plan{
		Changes: state.changes, Warnings: state.conflicts, PriorState: prior, NothingToDo: len(state.changes) == 0,
	}, nil
}

// Apply saves the number of replicas in the workload's annotations and sets the new one by the scale subresource. It is
// idempotent: the saved number stays, and the number and the expiry are set again.
func (a *scaleAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := refuseEarlyEnd(r, func() (activities.LeaseStamp, error) {
		stamp, _, err := a.readOwnStamp(ctx, request)
		return stamp, err
	}); err != nil {
		return activities.Effect{}, err
	}
	state, err := a.readState(ctx, request)
	if err == nil {
		err = a.scale(ctx, request, state)
	}
	if err != nil {
		return activities.Effect{}, fmt.Errorf("scale %s: %w", request.target, err)
	}
	effect := activities.Effect{
		Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now(), Reason: strings.Join(state.conflicts, "; "),
	}
	// Pods take time to terminate; until then the effect is applied but not verified.
	for ctx.Err() == nil {
		differences, err := a.findDifferences(ctx, request)
		if err != nil {
			return activities.Effect{}, err
		}
		if len(differences) == 0 {
			return effect, nil
		}
		if time.Since(effect.AppliedAt) > 15*time.Second {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, DescribeDifferences(differences)
			return effect, nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return effect, ctx.Err()
}

func (a *scaleAction) scale(ctx context.Context, r scaleRequest, s scaleState) error {
	patch := metadataPatch{
		uid: r.target.UID, manager: fieldManager(r.lease),
		labels:      map[string]any{scaleLabel: ShortLeaseID(r.lease.ID)},
		annotations: stampPatch(playbooks.FacetReplicas, r.lease, strconv.Itoa(int(s.prior.Replicas))),
	}
	if err := patch.send(ctx, s.workload.patch); err != nil {
		return fmt.Errorf("annotate the workload: %w", err)
	}
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		scale, err := s.workload.scaleClient.GetScale(ctx, r.target.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read the scale: %w", err)
		}
		return s.workload.setReplicas(ctx, scale.ResourceVersion, fieldManager(r.lease), r.replicas)
	})
}

// readOwnStamp reads the stamp of the request's lease, and the number of replicas that was saved with it. The stamp is
// zero if the workload is gone or has none of this lease.
func (a *scaleAction) readOwnStamp(ctx context.Context, r scaleRequest) (activities.LeaseStamp, scalePrior, error) {
	w, err := r.target.getWorkload(ctx, a.client)
	if _, refused := activities.AsRefusal(err); refused {
		return activities.LeaseStamp{}, scalePrior{}, nil
	}
	if err != nil {
		return activities.LeaseStamp{}, scalePrior{}, fmt.Errorf("read the lease of %s: %w", r.target, err)
	}
	stamp := readOwnStamp(w.meta, playbooks.FacetReplicas, r.lease.ID)
	if stamp.ID == "" {
		return stamp, scalePrior{}, nil
	}
	prior, err := readScalePrior(w.meta)
	return stamp, prior, err
}

// findDifferences returns how the workload differs from the request, in its spec and running. Pods that still start or
// terminate are a difference.
func (a *scaleAction) findDifferences(ctx context.Context, r scaleRequest) ([]Difference, error) {
	w, err := r.target.getWorkload(ctx, a.client)
	if err != nil {
		return nil, err
	}
	out := w.replicasDifference(r.replicas, fieldManager(r.lease))
	if w.observedReplicas != r.replicas {
		out = append(out, Difference{
			Object: r.target.String(), Field: "status.replicas",
			Want: strconv.Itoa(int(r.replicas)), Have: strconv.Itoa(int(w.observedReplicas)),
		})
	}
	seen := observedObject{r.target.String(), w.meta, fieldManager(r.lease)}
	return append(out, seen.annotationDifferences(stampAnnotations(playbooks.FacetReplicas, r.lease))...), nil
}

// Verify reports whether the workload has the requested number of replicas and the lease's stamp. For a workload that
// is gone, it says so: nothing can be in force.
func (a *scaleAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return false, "", err
	}
	differences, err := a.findDifferences(ctx, request)
	if refusal, ok := activities.AsRefusal(err); ok {
		return false, refusal.Reason, nil
	}
	return err == nil && len(differences) == 0, DescribeDifferences(differences), err
}

// Undo restores the number of replicas that is stamped on the workload. Without a stamp of this lease, nothing is in
// force, and a request alone must not set a number of replicas.
func (a *scaleAction) Undo(ctx context.Context, r activities.Request, _ json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return nil, err
	}
	stamp, prior, err := a.readOwnStamp(ctx, request)
	if err != nil || stamp.ID == "" {
		return nil, err
	}
	if err := activities.RefuseEarlyUndo(stamp.ExpiresAt, grant); err != nil {
		return nil, err
	}
	return a.restoreReplicas(ctx, request, prior)
}

// restoreReplicas restores the saved number of replicas and removes the stamp. It does nothing if the workload is gone
// or the scaling was undone before. If someone changed the number or the annotations, it changes nothing and returns a
// drift.
func (a *scaleAction) restoreReplicas(ctx context.Context, r scaleRequest,
	prior scalePrior,
) (drift *activities.Drift, err error) {
	// The controller often writes the object's status: on a conflict everything is read and checked again.
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		drift, err = a.tryRestoreReplicas(ctx, r, prior)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("undo the scaling of %s: %w", r.target, err)
	}
	return drift, nil
}

func (a *scaleAction) tryRestoreReplicas(ctx context.Context, r scaleRequest, prior scalePrior) (*activities.Drift,
	error,
) {
	w, err := r.target.getWorkload(ctx, a.client)
	if errors.Is(err, activities.ErrTargetGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lease := readStamp(w.meta, playbooks.FacetReplicas).ID
	if lease == "" && w.replicas == prior.Replicas {
		return nil, nil // already undone
	}
	// Without a difference, it is this lease's.
	differences := observedObject{r.target.String(), w.meta, fieldManager(r.lease)}.annotationDifferences(
		map[string]string{leaseAnnotation(playbooks.FacetReplicas): r.lease.ID})
	if w.replicas != prior.Replicas {
		differences = append(differences, w.replicasDifference(r.replicas, fieldManager(r.lease))...)
	}
	if len(differences) > 0 {
		return driftFrom(differences), nil
	}
	// Only the version that was checked above is changed; otherwise the API server returns a conflict.
	if err := w.setReplicas(ctx, w.meta.GetResourceVersion(), fieldManager(r.lease), prior.Replicas); err != nil {
		return nil, err
	}
	patch := metadataPatch{
		uid: r.target.UID, manager: fieldManager(r.lease),
		labels: map[string]any{scaleLabel: nil}, annotations: unstampPatch(playbooks.FacetReplicas),
	}
	if err := patch.send(ctx, w.patch); err != nil {
		return nil, fmt.Errorf("remove the annotations: %w", err)
	}
	return nil, nil
}

// FindOrphans returns the scaled workloads in all namespaces whose stamped end has passed.
func (a *scaleAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	if a.client == nil {
		return nil, nil
	}
	workloads, err := listScalableWorkloads(ctx, a.client, scaleLabel)
	var out []activities.Orphan
	for i := range workloads {
		w, ref := &workloads[i], workloads[i].ref()
		stamp, expired := readExpiredStamp(w.meta, playbooks.FacetReplicas, before)
		if !expired {
			continue
		}
		// With the current number as the requested one, undo restores the saved one.
		request := scaleRequest{target: ref, replicas: w.replicas, lease: stamp}
		prior, priorErr := readScalePrior(w.meta)
		out = append(out, activities.Orphan{
			ObjectName: ref.String(), Lease: stamp, Facet: playbooks.FacetReplicas,
			Target: playbooks.Target{Kind: playbooks.TargetWorkload, UID: ref.UID},
			Undo: func(ctx context.Context) (*activities.Drift, error) {
				if priorErr != nil {
					return nil, unreadablePriorError(ref.String(), priorErr)
				}
				return a.restoreReplicas(ctx, request, prior)
			},
		})
	}
	return out, err
}
