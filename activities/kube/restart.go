package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// RestartRequest is a request to evict one pod, so that its controller starts another from the image.
type RestartRequest struct {
	Pod         PodRef        `json:"pod"`
	GracePeriod time.Duration `json:"grace"` // time for its processes to end
}

// RestartPlan is what a restart would do. Its sentence stays the same while the pod terminates, so that a retry is the
// action that was approved.
type RestartPlan struct {
	Changes []string `json:"changes"`
	// PodGone means that no pod with this UID exists anymore.
	PodGone bool `json:"pod_gone,omitempty"`
}

// RestartPermissions returns the permissions of a restart. They never include deleting pods, which would bypass
// disruption budgets.
func RestartPermissions() Permissions {
	read := []rbacv1.PolicyRule{newPolicyRule("", "pods", "get"), newPolicyRule("policy", "poddisruptionbudgets", "list")}
	return Permissions{PlanRules: read, ApplyRules: append(read[:2:2], newPolicyRule("", "pods/eviction", "create"))}
}

// PlanRestart returns what a restart would do, or a refusal. It only reads.
func PlanRestart(ctx context.Context, client kubernetes.Interface, r RestartRequest) (*RestartPlan, *Refusal, error) {
	plan := &RestartPlan{
		Changes: []string{
			fmt.Sprintf("evict pod %s (UID %s), so that its controller starts another from the image", r.Pod, r.Pod.UID),
		},
	}
	pod, gone, err := getPod(ctx, client, r.Pod)
	if err != nil {
		return nil, nil, fmt.Errorf("plan to restart pod %s: %w", r.Pod, err)
	}
	if gone != nil {
		plan.PodGone = true
		return plan, nil, nil
	}
	if refusal := r.refusalReason(pod); refusal != nil {
		return nil, refusal, nil
	}
	if pod.DeletionTimestamp != nil {
		return plan, nil, nil // it is already terminating, and counts in no budget
	}
	budgets, err := client.PolicyV1().PodDisruptionBudgets(r.Pod.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("plan to restart pod %s: list disruption budgets: %w", r.Pod, err)
	}
	refusal, err := r.checkDisruptionBudgets(pod, budgets.Items)
	return plan, refusal, err
}

// refusalReason returns a refusal for pods that no controller would start again, or that an eviction does not restart.
func (r RestartRequest) refusalReason(pod *corev1.Pod) *Refusal {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	owner := metav1.GetControllerOf(pod)
	switch {
	case mirror || owner != nil && owner.Kind == "Node":
		return newRefusal(ReasonStaticPod, "pod %s is a static pod on node %s, which the API server only mirrors", r.Pod,
			pod.Spec.NodeName)
	case owner == nil:
		return newRefusal(ReasonNoController, "pod %s has no controller that would replace it; isolate it instead", r.Pod)
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return newRefusal(ReasonPodCompleted, "pod %s has ended (%s)", r.Pod, pod.Status.Phase)
	}
	return nil
}

// checkDisruptionBudgets refuses what the API server would refuse because of a disruption budget, by the rules of
// pkg/registry/core/pod/storage/eviction.go, because the planning permissions do not include a dry run. The API server
// makes the final decision.
func (r RestartRequest) checkDisruptionBudgets(pod *corev1.Pod, budgets []policyv1.PodDisruptionBudget) (*Refusal,
	error,
) {
	if pod.Status.Phase == corev1.PodPending {
		return nil, nil // it counts in no budget
	}
	var matching []policyv1.PodDisruptionBudget
	for _, b := range budgets {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			return nil, fmt.Errorf("read the selector of PodDisruptionBudget %s/%s: %w", b.Namespace, b.Name, err)
		}
		if selector.Matches(labels.Set(pod.Labels)) {
			matching = append(matching, b)
		}
	}
	switch {
	case len(matching) == 0:
		return nil, nil
	case len(matching) > 1:
		names := make([]string, 0, len(matching))
		for _, b := range matching {
			names = append(names, b.Namespace+"/"+b.Name)
		}
		return newRefusal(ReasonDisruptionBudget,
			"pod %s is selected by more than one PodDisruptionBudget (%s), so the API server cannot evict it", r.Pod,
			strings.Join(names, ", ")), nil
	}
	b := matching[0]
	if !isReady(pod) {
		always := b.Spec.UnhealthyPodEvictionPolicy != nil && *b.Spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow
		if always || b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0 {
			return nil, nil // the number of healthy pods stays the same without it
		}
	}
	if b.Status.DisruptionsAllowed < 1 && b.Status.ObservedGeneration >= b.Generation {
		return newRefusal(ReasonDisruptionBudget,
			"PodDisruptionBudget %s/%s currently allows no disruption (%d of %d pods are healthy)", b.Namespace, b.Name,
			b.Status.CurrentHealthy, b.Status.DesiredHealthy), nil
	}
	return nil, nil
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// ApplyRestart evicts the pod with this UID and no other. done is false if the pod was already gone or terminating.
func ApplyRestart(ctx context.Context, client kubernetes.Interface, r RestartRequest) (done bool, _ *Refusal, _ error) {
	plan, refusal, err := PlanRestart(ctx, client, r)
	if err != nil || refusal != nil || plan.PodGone {
		return false, refusal, err
	}
	uid, grace := types.UID(r.Pod.UID), int64(r.GracePeriod/time.Second)
	err = client.PolicyV1().Evictions(r.Pod.Namespace).Evict(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: r.Pod.Namespace, Name: r.Pod.Name},
		DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: &grace, Preconditions: &metav1.Preconditions{UID: &uid}},
	})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil, nil
	case apierrors.IsConflict(err):
		// Another pod has the name now, which must not be evicted; or the budget was just recomputed.
		if gone, _, verifyErr := VerifyRestart(ctx, client, r); verifyErr == nil && gone {
			return false, nil, nil
		}
		return false, nil, fmt.Errorf("evict pod %s: %w", r.Pod, err)
	case apierrors.IsTooManyRequests(err):
		return false, newRefusal(ReasonDisruptionBudget,
			"a PodDisruptionBudget currently does not allow the eviction of pod %s: %v", r.Pod, err), nil
	case err != nil:
		return false, nil, fmt.Errorf("evict pod %s: %w", r.Pod, err)
	}
	return true, nil, nil
}

// VerifyRestart reports whether the pod with this UID is gone.
func VerifyRestart(ctx context.Context, client kubernetes.Interface, r RestartRequest) (bool, string, error) {
	pod, gone, err := getPod(ctx, client, r.Pod)
	switch {
	case err != nil:
		return false, "", fmt.Errorf("verify the restart of pod %s: %w", r.Pod, err)
	case gone != nil:
		return true, "", nil
	case pod.DeletionTimestamp != nil:
		return false, fmt.Sprintf("pod %s is still terminating", r.Pod), nil
	}
	return false, fmt.Sprintf("pod %s still exists", r.Pod), nil
}
