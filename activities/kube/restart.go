package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
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

// restartAction is `contain: pod.restart`. It evicts one pod, so that its controller starts another from the image.
type restartAction struct{ client kubernetes.Interface }

var _ activities.Containment = (*restartAction)(nil)

func (*restartAction) Spec() playbooks.ActionSpec {
	read := []playbooks.KubernetesPermission{
		permission("", []string{"pods"}, "get"), permission("policy", []string{"poddisruptionbudgets"}, "list"),
	}
	return playbooks.ActionSpec{
		Name:            "pod.restart",
		Verb:            playbooks.VerbContain,
		Class:           playbooks.ClassContain,
		Facet:           playbooks.FacetExecution,
		Targets:         []playbooks.TargetKind{playbooks.TargetPod},
		Params:          restartParams{},
		D3FENDTechnique: "D3-PT",
		AttemptTimeout:  restartTimeout,
		Doc:             "Evict one pod, so that its controller starts another from the image; data that exists only in the pod is lost.",
		PlanPermissions: read,
		// Deleting pods would bypass disruption budgets, so this is never among them.
		ApplyPermissions: append(read[:2:2], permission("", []string{"pods/eviction"}, "create")),
	}
}

// restartRequest is a request to evict one pod. Its processes have the grace period to end.
type restartRequest struct {
	pod   PodRef
	grace time.Duration
}

func (a *restartAction) decodeRequest(r activities.Request) (restartRequest, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return restartRequest{}, err
	}
	params, err := activities.DecodeParams[restartParams](r)
	if params.GraceSeconds == 0 {
		params.GraceSeconds = 10
	}
	return restartRequest{pod: pod, grace: time.Duration(params.GraceSeconds) * time.Second}, err
}

// Plan returns what a restart would do. Its sentence stays the same while the pod terminates, so that a retry is the
// action that was approved.
func (a *restartAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return activities.Plan{}, err
	}
	gone, err := a.checkEvictable(ctx, request.pod)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("plan to restart pod %s: %w", request.pod, err)
	}
	return activities.Plan{NothingToDo: gone, Changes: []string{fmt.Sprintf(
		"evict pod %s (UID %s), so that its controller starts another from the image", request.pod, request.pod.UID)}}, nil
}

// checkEvictable returns a refusal for pods that no controller would start again, or that the API server would not
// evict. gone means that no pod with this UID exists anymore.
func (a *restartAction) checkEvictable(ctx context.Context, ref PodRef) (gone bool, err error) {
	pod, err := getPod(ctx, a.client, ref)
	switch {
	case errors.Is(err, activities.ErrTargetGone):
		return true, nil
	case err != nil:
		return false, err
	case isStaticPod(pod):
		return false, activities.Refusef("pod %s is a static pod on node %s, which the API server only mirrors", ref,
			pod.Spec.NodeName)
	case metav1.GetControllerOf(pod) == nil:
		return false, activities.Refusef("pod %s has no controller that would replace it; isolate it instead", ref)
	case hasCompleted(pod):
		return false, activities.Refusef("pod %s has ended (%s)", ref, pod.Status.Phase)
	case pod.DeletionTimestamp != nil:
		return false, nil // it is already terminating, and counts in no budget
	}
	budgets, err := a.client.PolicyV1().PodDisruptionBudgets(ref.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, fmt.Errorf("list disruption budgets: %w", err)
	}
	return false, checkDisruptionBudgets(pod, budgets.Items)
}

// checkDisruptionBudgets refuses what the API server would refuse because of a disruption budget, by the rules of
// pkg/registry/core/pod/storage/eviction.go, because the planning permissions do not include a dry run. The API server
// makes the final decision.
func checkDisruptionBudgets(pod *corev1.Pod, budgets []policyv1.PodDisruptionBudget) error {
	if pod.Status.Phase == corev1.PodPending {
		return nil // it counts in no budget
	}
	ref := PodRef{Namespace: pod.Namespace, Name: pod.Name}
	var matching []policyv1.PodDisruptionBudget
	for _, b := range budgets {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			return fmt.Errorf("read the selector of PodDisruptionBudget %s/%s: %w", b.Namespace, b.Name, err)
		}
		if selector.Matches(labels.Set(pod.Labels)) {
			matching = append(matching, b)
		}
	}
	switch {
	case len(matching) == 0:
		return nil
	case len(matching) > 1:
		names := make([]string, 0, len(matching))
		for _, b := range matching {
			names = append(names, b.Namespace+"/"+b.Name)
		}
		return activities.Refusef(
			"pod %s is selected by more than one PodDisruptionBudget (%s), so the API server cannot evict it", ref,
			strings.Join(names, ", "))
	}
	b := matching[0]
	if !isReady(pod) {
		always := b.Spec.UnhealthyPodEvictionPolicy != nil && *b.Spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow
		if always || b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0 {
			return nil // the number of healthy pods stays the same without it
		}
	}
	if b.Status.DisruptionsAllowed < 1 && b.Status.ObservedGeneration >= b.Generation {
		return activities.Refusef("PodDisruptionBudget %s/%s currently allows no disruption (%d of %d pods are healthy)",
			b.Namespace, b.Name, b.Status.CurrentHealthy, b.Status.DesiredHealthy)
	}
	return nil
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Apply evicts the pod and waits until it is gone, at most the grace period and 15 s.
func (a *restartAction) Apply(ctx context.Context, r activities.Request, _ json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return activities.Effect{}, err
	}
	evicted, err := a.evict(ctx, request)
	if err != nil {
		return activities.Effect{}, fmt.Errorf("evict pod %s: %w", request.pod, err)
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	if !evicted {
		effect.Outcome, effect.Reason = playbooks.OutcomeUnchanged, "the pod was already gone"
		return effect, nil
	}
	for ctx.Err() == nil {
		gone, detail, err := a.isGone(ctx, request.pod)
		if err != nil || gone {
			return effect, err
		}
		if time.Since(effect.AppliedAt) > request.grace+15*time.Second {
			effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, detail
			return effect, nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return effect, ctx.Err()
}

// evict evicts the pod with this UID and no other. It returns false if the pod was already gone.
func (a *restartAction) evict(ctx context.Context, r restartRequest) (bool, error) {
	gone, err := a.checkEvictable(ctx, r.pod)
	if err != nil || gone {
		return false, err
	}
	uid, grace := types.UID(r.pod.UID), int64(r.grace/time.Second)
	err = a.client.PolicyV1().Evictions(r.pod.Namespace).Evict(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: r.pod.Namespace, Name: r.pod.Name},
		DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: &metav1.Preconditions{UID: &uid}},
	})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case apierrors.IsConflict(err):
		// Another pod has the name now, which must not be evicted; or the budget was just recomputed.
		if gone, _, verifyErr := a.isGone(ctx, r.pod); verifyErr == nil && gone {
			return false, nil
		}
		return false, err
	case apierrors.IsTooManyRequests(err):
		return false, activities.Refusef("a PodDisruptionBudget currently does not allow the eviction of pod %s: %v", r.pod,
			err)
	}
	return err == nil, err
}

// isGone reports whether the pod with this UID is gone, and otherwise its state.
func (a *restartAction) isGone(ctx context.Context, ref PodRef) (gone bool, detail string, _ error) {
	pod, err := getPod(ctx, a.client, ref)
	switch {
	case errors.Is(err, activities.ErrTargetGone):
		return true, "", nil
	case err != nil:
		return false, "", fmt.Errorf("verify the restart of pod %s: %w", ref, err)
	case pod.DeletionTimestamp != nil:
		return false, fmt.Sprintf("pod %s is still terminating", ref), nil
	}
	return false, fmt.Sprintf("pod %s still exists", ref), nil
}

// Verify reports whether the pod is gone.
func (a *restartAction) Verify(ctx context.Context, r activities.Request, _ json.RawMessage) (bool, string, error) {
	request, err := a.decodeRequest(r)
	if err != nil {
		return false, "", err
	}
	return a.isGone(ctx, request.pod)
}

// Undo does nothing: the evicted pod is gone, and its controller has started another.
func (*restartAction) Undo(context.Context, activities.Request, json.RawMessage,
	*attestation.Envelope,
) (*activities.Drift, error) {
	return nil, nil
}
