package kube

import (
	"context"
	"fmt"
	"strconv"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// WorkloadRef identifies one workload with replicas.
type WorkloadRef struct {
	Kind      string `json:"kind"` // "Deployment", "StatefulSet", "ReplicaSet"
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// String returns "KIND NAMESPACE/NAME".
func (r WorkloadRef) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// ScaleRequest is a request for a number of replicas.
type ScaleRequest struct {
	Target   WorkloadRef `json:"target"`
	Replicas int32       `json:"replicas"`
	Lease    Lease       `json:"lease"`
}

// ScalePlan is what a scaling would change.
type ScalePlan struct {
	Target       WorkloadRef `json:"target"`
	FromReplicas int32       `json:"from_replicas"`
	ToReplicas   int32       `json:"to_replicas"`
	// Changes are the changes, a sentence each; empty if there is nothing to do.
	Changes []string `json:"changes,omitempty"`
	// Conflicts are sentences about what would revert it, such as an autoscaler.
	Conflicts []string   `json:"conflicts,omitempty"`
	Prior     ScalePrior `json:"prior"`
}

// ScalePrior is the state that undo restores.
type ScalePrior struct {
	Replicas int32 `json:"replicas"`
}

// ScalePermissions returns the permissions of a scaling. Patch on the workload is for the lease's annotations.
func ScalePermissions() Permissions {
	kinds := []string{"deployments", "statefulsets", "replicasets"}
	scales := []string{"deployments/scale", "statefulsets/scale", "replicasets/scale"}
	apps, autoscalers := []string{"apps"}, newPolicyRule("autoscaling", "horizontalpodautoscalers", "list")
	return Permissions{
		PlanRules: []rbacv1.PolicyRule{{APIGroups: apps, Resources: kinds, Verbs: []string{"get"}}, autoscalers},
		ApplyRules: []rbacv1.PolicyRule{
			{APIGroups: apps, Resources: kinds, Verbs: []string{"get", "list", "patch"}},
			autoscalers,
			{APIGroups: apps, Resources: scales, Verbs: []string{"get", "update"}},
		},
	}
}

// PlanScale returns what a scaling would change. It only reads.
func PlanScale(ctx context.Context, client kubernetes.Interface, r ScaleRequest) (*ScalePlan, *Refusal, error) {
	plan, _, refusal, err := r.readState(ctx, client)
	if err != nil {
		return nil, nil, fmt.Errorf("plan to scale %s: %w", r.Target, err)
	}
	return plan, refusal, nil
}

func (r ScaleRequest) readState(ctx context.Context, client kubernetes.Interface) (*ScalePlan, *scalableWorkload,
	*Refusal, error,
) {
	if r.Replicas < 0 {
		return nil, nil, nil, fmt.Errorf("invalid replica count %d; use 0 or more", r.Replicas)
	}
	w, refusal, err := r.Target.getWorkload(ctx, client)
	if err != nil || refusal != nil {
		return nil, nil, refusal, err
	}
	plan := &ScalePlan{
		Target: r.Target, FromReplicas: w.replicas, ToReplicas: r.Replicas,
		Prior: ScalePrior{Replicas: w.replicas},
	}
	if owner := metav1.GetControllerOf(w.meta); owner != nil {
		return nil, nil, newRefusal(ReasonControllerOwned,
			"%s belongs to %s %s, which would scale it back; scale that instead", r.Target, owner.Kind, owner.Name), nil
	}
	switch lease := w.meta.GetAnnotations()[FacetReplicas.LeaseAnnotation()]; lease {
	case "":
		plan.Changes = append(plan.Changes, fmt.Sprintf("annotate %s with the lease and its %d replicas", r.Target,
			w.replicas))
	case r.Lease.ID:
		prior, err := readSavedPrior(w.meta)
		if err != nil {
			return nil, nil, newRefusal(ReasonForeignObject, "%s has this lease, but its saved state cannot be parsed: %v",
				r.Target, err), nil
		}
		plan.Prior = prior
	default:
		return nil, nil, newRefusal(ReasonForeignObject, "%s is under another lease, %s", r.Target, lease), nil
	}
	if w.replicas != r.Replicas {
		plan.Changes = append(plan.Changes, fmt.Sprintf("scale %s from %d to %d", r.Target, w.replicas, r.Replicas))
	}
	if plan.Conflicts, err = r.findConflicts(ctx, client); err != nil {
		return nil, nil, nil, err
	}
	return plan, w, nil, nil
}

// findConflicts returns the autoscalers of the target. They ignore workloads with zero replicas.
func (r ScaleRequest) findConflicts(ctx context.Context, client kubernetes.Interface) ([]string, error) {
	list, err := client.AutoscalingV1().HorizontalPodAutoscalers(r.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list autoscalers: %w", err)
	}
	var fights []string
	for _, h := range list.Items {
		if h.Spec.ScaleTargetRef.Kind != r.Target.Kind || h.Spec.ScaleTargetRef.Name != r.Target.Name {
			continue
		}
		if r.Replicas == 0 {
			fights = append(fights, fmt.Sprintf("HorizontalPodAutoscaler %s pauses at 0 replicas and resumes afterwards",
				h.Name))
		} else {
			fights = append(fights, fmt.Sprintf("HorizontalPodAutoscaler %s will scale it back", h.Name))
		}
	}
	return fights, nil
}

func readSavedPrior(o metav1.Object) (ScalePrior, error) {
	n, err := strconv.ParseInt(o.GetAnnotations()[FacetReplicas.PriorStateAnnotation()], 10, 32)
	if err != nil || n < 0 {
		return ScalePrior{}, fmt.Errorf("invalid annotation %s: %q; expected a replica count",
			FacetReplicas.PriorStateAnnotation(), o.GetAnnotations()[FacetReplicas.PriorStateAnnotation()])
	}
	return ScalePrior{Replicas: int32(n)}, nil
}

// ApplyScale saves the number of replicas in the workload's annotations and sets the new one by the scale subresource.
// It is idempotent: the saved number stays, and the number and the expiry are set again. The returned plan says what it
// found; its prior state is for UndoScale.
func ApplyScale(ctx context.Context, client kubernetes.Interface, r ScaleRequest) (*ScalePlan, *Refusal, error) {
	fail := func(err error) (*ScalePlan, *Refusal, error) {
		return nil, nil, fmt.Errorf("scale %s: %w", r.Target, err)
	}
	plan, w, refusal, err := r.readState(ctx, client)
	if err != nil {
		return fail(err)
	}
	if refusal != nil {
		return nil, refusal, nil
	}
	annotations := map[string]any{FacetReplicas.PriorStateAnnotation(): strconv.Itoa(int(plan.Prior.Replicas))}
	for k, v := range r.Lease.leaseAnnotations(FacetReplicas) {
		annotations[k] = v
	}
	label := map[string]any{ScaleLabel: ShortLeaseID(r.Lease.ID)}
	if err := patchMetadata(ctx, w.patch, r.Target.UID, r.Lease.FieldManager(), label, annotations); err != nil {
		return fail(fmt.Errorf("annotate the workload: %w", err))
	}
	if err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		scale, err := w.scaleClient.GetScale(ctx, r.Target.Name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read the scale: %w", err)
		}
		return w.setReplicas(ctx, r, scale.ResourceVersion, r.Replicas)
	}); err != nil {
		return fail(err)
	}
	return plan, nil, nil
}

// VerifyScale reports whether the workload has the requested number of replicas, in its spec and running. It is false
// while pods still start or terminate.
func VerifyScale(ctx context.Context, client kubernetes.Interface, r ScaleRequest) (*Verification, *Refusal, error) {
	w, refusal, err := r.Target.getWorkload(ctx, client)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	v := &Verification{}
	by, when := lastFieldWriter(w.meta, r.Lease.FieldManager(), "spec", "replicas")
	if w.replicas != r.Replicas {
		v.Differences = append(v.Differences, r.replicasDifference("spec.replicas", r.Replicas, w.replicas, by, when))
	}
	if w.observedReplicas != r.Replicas {
		v.Differences = append(v.Differences, Difference{
			Object: r.Target.String(), Field: "status.replicas",
			Want: strconv.Itoa(int(r.Replicas)), Have: strconv.Itoa(int(w.observedReplicas)),
		})
	}
	v.Differences = append(v.Differences, metadataDifferences(r.Target.String(), w.meta, r.Lease.FieldManager(),
		"annotation",
		w.meta.GetAnnotations(), r.Lease.leaseAnnotations(FacetReplicas))...)
	v.InForce = len(v.Differences) == 0
	return v, nil, nil
}

// UndoScale restores the saved number of replicas and removes the lease's annotations. It does nothing if the workload
// is gone or the scaling was undone before. If someone changed the number or the annotations, it changes nothing and
// returns a drift; with force, it sets the prior number anyway.
func UndoScale(ctx context.Context, client kubernetes.Interface, r ScaleRequest, prior ScalePrior,
	force bool,
) (drift *Drift, err error) {
	// The controller often writes the object's status: on a conflict everything is read and checked again.
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		drift, err = undoScaleOnce(ctx, client, r, prior, force)
		return err
	})
	return drift, err
}

func undoScaleOnce(ctx context.Context, client kubernetes.Interface, r ScaleRequest, prior ScalePrior,
	force bool,
) (*Drift, error) {
	w, gone, err := r.Target.getWorkload(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("undo the scaling of %s: %w", r.Target, err)
	}
	if gone != nil {
		return nil, nil
	}
	lease := w.meta.GetAnnotations()[FacetReplicas.LeaseAnnotation()]
	if lease == "" && w.replicas == prior.Replicas {
		return nil, nil // already undone
	}
	if !force {
		by, when := lastFieldWriter(w.meta, r.Lease.FieldManager(), "spec", "replicas")
		var drift Drift
		if lease != r.Lease.ID {
			drift.Differences = append(drift.Differences, metadataDifferences(r.Target.String(), w.meta, r.Lease.FieldManager(),
				"annotation", w.meta.GetAnnotations(), map[string]string{FacetReplicas.LeaseAnnotation(): r.Lease.ID})...)
		}
		if w.replicas != r.Replicas && w.replicas != prior.Replicas {
			drift.Differences = append(drift.Differences, r.replicasDifference("spec.replicas", r.Replicas, w.replicas, by,
				when))
		}
		if len(drift.Differences) > 0 {
			return &drift, nil
		}
	}
	// Only the version that was checked above is changed; otherwise the API server returns a conflict.
	if err := w.setReplicas(ctx, r, w.meta.GetResourceVersion(), prior.Replicas); err != nil {
		return nil, fmt.Errorf("undo the scaling of %s: %w", r.Target, err)
	}
	if lease != r.Lease.ID {
		return nil, nil // forced: another lease keeps its annotations
	}
	annotations := map[string]any{FacetReplicas.PriorStateAnnotation(): nil}
	for k := range r.Lease.leaseAnnotations(FacetReplicas) {
		annotations[k] = nil
	}
	label := map[string]any{ScaleLabel: nil}
	if err := patchMetadata(ctx, w.patch, r.Target.UID, r.Lease.FieldManager(), label, annotations); err != nil {
		return nil, fmt.Errorf("undo the scaling of %s: remove the annotations: %w", r.Target, err)
	}
	return nil, nil
}

// setReplicas sets the number by the scale subresource, for this UID and version only. It does nothing for a workload
// that is gone; verification reports that.
func (w *scalableWorkload) setReplicas(ctx context.Context, r ScaleRequest, version string, replicas int32) error {
	_, err := w.scaleClient.UpdateScale(ctx, r.Target.Name, &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Target.Namespace, Name: r.Target.Name, UID: types.UID(r.Target.UID), ResourceVersion: version,
		},
		Spec: autoscalingv1.ScaleSpec{Replicas: replicas},
	}, metav1.UpdateOptions{FieldManager: r.Lease.FieldManager()})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("set %d replicas: %w", replicas, err)
	}
	return nil
}

// FindOrphanedScalings returns scaled workloads in all namespaces whose stamped expiry is before now. An orphan's
// request has the current number of replicas, so that undo restores the saved one.
func FindOrphanedScalings(ctx context.Context, client kubernetes.Interface, now time.Time) ([]Orphan, error) {
	var orphans []Orphan
	add := func(kind string, o metav1.Object, replicas *int32) {
		lease, expired := readExpiredLease(o, FacetReplicas, now)
		if lease.ID == "" || !expired {
			return
		}
		ref := WorkloadRef{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), UID: string(o.GetUID())}
		orphan := Orphan{
			Object: ref.String(), LeaseID: lease.ID, IncidentID: lease.IncidentID, ExpiredAt: lease.ExpiresAt,
			ScaleRequest: &ScaleRequest{Target: ref, Replicas: replicasOrDefault(replicas), Lease: lease},
		}
		if prior, err := readSavedPrior(o); err == nil {
			orphan.ScalePrior = &prior
		}
		orphans = append(orphans, orphan)
	}
	scaled := metav1.ListOptions{LabelSelector: ScaleLabel}
	deployments, err := client.AppsV1().Deployments("").List(ctx, scaled)
	if err != nil {
		return nil, fmt.Errorf("find orphaned scalings: list deployments: %w", err)
	}
	for i := range deployments.Items {
		add("Deployment", &deployments.Items[i], deployments.Items[i].Spec.Replicas)
	}
	sets, err := client.AppsV1().StatefulSets("").List(ctx, scaled)
	if err != nil {
		return nil, fmt.Errorf("find orphaned scalings: list stateful sets: %w", err)
	}
	for i := range sets.Items {
		add("StatefulSet", &sets.Items[i], sets.Items[i].Spec.Replicas)
	}
	replicaSets, err := client.AppsV1().ReplicaSets("").List(ctx, scaled)
	if err != nil {
		return nil, fmt.Errorf("find orphaned scalings: list replica sets: %w", err)
	}
	for i := range replicaSets.Items {
		add("ReplicaSet", &replicaSets.Items[i], replicaSets.Items[i].Spec.Replicas)
	}
	return orphans, nil
}
