package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"golang.org/x/sync/errgroup"
)

// IsolateRequest is a request for a NetworkPolicy that isolates exactly one pod and none of its siblings.
type IsolateRequest struct {
	Pod   PodRef `json:"pod"`
	Lease Lease  `json:"lease"`
	// Ingress denies incoming traffic too. Most network plugins still permit the kubelet's probes.
	Ingress bool `json:"ingress,omitempty"`
}

// IsolatePlan is what an isolation would change. It contains no time, so that its hash stays the same while the cluster
// does.
type IsolatePlan struct {
	Pod        PodRef `json:"pod"`
	PolicyName string `json:"policy_name"` // the NetworkPolicy's name
	Label      string `json:"label"`       // the label that is added to the pod, "key=value"
	// Changes are the changes, a sentence each; empty if there is nothing to do.
	Changes []string `json:"changes,omitempty"`
	// PolicyConflicts are users' policies that still allow traffic, because policies are additive. If there are any,
	// isolation by policy is incomplete. The labels by which they select the pod are not changed.
	PolicyConflicts []PolicyConflict `json:"policy_conflicts,omitempty"`
	Prior           IsolatePrior     `json:"prior"`
}

// IsolatePrior is the state that undo restores. A pod with the label of another lease is refused, so there is nothing
// to save but whether the label exists.
type IsolatePrior struct {
	AlreadyLabeled bool `json:"already_labeled"` // the pod already has this lease's label
}

// IsolatePermissions returns the permissions of an isolation.
func IsolatePermissions() Permissions {
	return Permissions{
		PlanRules: []rbacv1.PolicyRule{newPolicyRule("", "pods", "get"), newPolicyRule("networking.k8s.io", "networkpolicies",
			"list")},
		ApplyRules: []rbacv1.PolicyRule{
			newPolicyRule("", "pods", "get", "list", "patch"),
			newPolicyRule("networking.k8s.io", "networkpolicies", "get", "list", "create", "update", "delete"),
		},
	}
}

// PlanIsolate returns what an isolation would change. It only reads.
func PlanIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (*IsolatePlan, *Refusal, error) {
	plan, _, _, refusal, err := r.readState(ctx, client)
	if err != nil {
		return nil, nil, fmt.Errorf("plan to isolate pod %s: %w", r.Pod, err)
	}
	return plan, refusal, nil
}

// readState reads everything that plan and apply depend on.
func (r IsolateRequest) readState(ctx context.Context, client kubernetes.Interface) (
	*IsolatePlan, *corev1.Pod, *networkingv1.NetworkPolicy, *Refusal, error,
) {
	fail := func(refusal *Refusal, err error) (*IsolatePlan, *corev1.Pod, *networkingv1.NetworkPolicy, *Refusal, error) {
		return nil, nil, nil, refusal, err
	}
	// Both reads run in parallel: every round trip counts during an attack.
	var policies *networkingv1.NetworkPolicyList
	var listing errgroup.Group
	listing.Go(func() (err error) {
		policies, err = client.NetworkingV1().NetworkPolicies(r.Pod.Namespace).List(ctx, metav1.ListOptions{})
		return err
	})
	pod, refusal, err := getPod(ctx, client, r.Pod)
	listErr := listing.Wait()
	if refusal == nil && err == nil {
		refusal = r.refusalReason(pod)
	}
	if refusal != nil || err != nil {
		return fail(refusal, err)
	}
	if listErr != nil {
		return fail(nil, fmt.Errorf("list network policies: %w", listErr))
	}
	plan := &IsolatePlan{
		Pod: r.Pod, PolicyName: r.policyName(), Label: IsolateLabel + "=" + ShortLeaseID(r.Lease.ID),
		Prior: IsolatePrior{AlreadyLabeled: pod.Labels[IsolateLabel] != ""},
	}
	var policy *networkingv1.NetworkPolicy
	for i := range policies.Items {
		if p := &policies.Items[i]; p.Name == plan.PolicyName {
			policy = p
		}
	}
	switch {
	case policy == nil:
		plan.Changes = append(plan.Changes, "create "+r.policyObjectName()+" that denies "+r.describeDirections())
	case policy.Annotations[FacetNetwork.LeaseAnnotation()] != r.Lease.ID:
		return fail(newRefusal(ReasonForeignObject, "%s exists and does not belong to this lease; remove or rename it",
			r.policyObjectName()), nil)
	case !apiequality.Semantic.DeepEqual(policy.Spec, r.buildPolicy().Spec):
		plan.Changes = append(plan.Changes, "restore the spec of "+r.policyObjectName())
	}
	if !plan.Prior.AlreadyLabeled {
		plan.Changes = append(plan.Changes, fmt.Sprintf("label pod %s with %s", r.Pod, plan.Label))
	}
	labels := maps.Clone(pod.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[IsolateLabel] = ShortLeaseID(r.Lease.ID)
	plan.PolicyConflicts, err = findPolicyConflicts(policies.Items, plan.PolicyName, labels, r.Ingress)
	if err != nil {
		return fail(nil, err)
	}
	return plan, pod, policy, nil, nil
}

// refusalReason returns a refusal for pods that cannot be isolated.
func (r IsolateRequest) refusalReason(pod *corev1.Pod) *Refusal {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	for _, o := range pod.OwnerReferences {
		mirror = mirror || o.Kind == "Node"
	}
	label := pod.Labels[IsolateLabel]
	switch {
	case pod.Spec.HostNetwork:
		return newRefusal(ReasonHostNetwork, "pod %s uses the host network, which a NetworkPolicy does not affect", r.Pod)
	case mirror:
		return newRefusal(ReasonStaticPod, "pod %s is a static pod on node %s; change its manifest on the node", r.Pod,
			pod.Spec.NodeName)
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return newRefusal(ReasonPodCompleted, "pod %s has ended (%s)", r.Pod, pod.Status.Phase)
	case label != "" && label != ShortLeaseID(r.Lease.ID):
		return newRefusal(ReasonForeignObject, "pod %s already has the label %s=%s, which does not belong to this lease",
			r.Pod, IsolateLabel, label)
	}
	return nil
}

func (r IsolateRequest) policyName() string { return "stanch-isolate-" + ShortLeaseID(r.Lease.ID) }

func (r IsolateRequest) policyObjectName() string {
	return "NetworkPolicy " + r.Pod.Namespace + "/" + r.policyName()
}

func (r IsolateRequest) describeDirections() string {
	if r.Ingress {
		return "all egress and ingress"
	}
	return "all egress"
}

// buildPolicy returns the policy: it selects pods with this lease's label, which is one pod, and lists directions
// without rules, which denies them.
func (r IsolateRequest) buildPolicy() *networkingv1.NetworkPolicy {
	directions := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	if r.Ingress {
		directions = append(directions, networkingv1.PolicyTypeIngress)
	}
	annotations := r.Lease.leaseAnnotations(FacetNetwork)
	prior, err := json.Marshal(r.Pod)
	if err != nil {
		panic(err) // it marshals only strings
	}
	annotations[FacetNetwork.PriorStateAnnotation()] = `{"pod":` + string(prior) + `,"label":null}`
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Pod.Namespace, Name: r.policyName(), Annotations: annotations,
			Labels: map[string]string{ManagedByLabel: ManagedBy, IsolateLabel: ShortLeaseID(r.Lease.ID)},
		},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{IsolateLabel: ShortLeaseID(r.Lease.ID)}},
			PolicyTypes: directions,
		},
	}
}

// ApplyIsolate isolates the pod: first it creates the policy, which selects nothing yet, then it adds the label, which
// activates it. It is idempotent: it recreates missing parts and updates the expiry. The returned plan says what it
// found and changed.
func ApplyIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (*IsolatePlan, *Refusal, error) {
	fail := func(err error) (*IsolatePlan, *Refusal, error) {
		return nil, nil, fmt.Errorf("isolate pod %s: %w", r.Pod, err)
	}
	plan, pod, policy, refusal, err := r.readState(ctx, client)
	if err != nil {
		return fail(err)
	}
	if refusal != nil {
		return nil, refusal, nil
	}
	want, api := r.buildPolicy(), client.NetworkingV1().NetworkPolicies(r.Pod.Namespace)
	switch {
	case policy == nil:
		// AlreadyExists is an error here: the next attempt reads the object and checks its owner.
		if policy, err = api.Create(ctx, want, metav1.CreateOptions{FieldManager: r.Lease.FieldManager()}); err != nil {
			return fail(fmt.Errorf("create %s: %w", r.policyObjectName(), err))
		}
	case !apiequality.Semantic.DeepEqual(policy.Spec, want.Spec) || !isSubset(want.Annotations, policy.Annotations) ||
		!isSubset(want.Labels, policy.Labels):
		policy.Spec = want.Spec
		policy.Annotations = mergeMaps(policy.Annotations, want.Annotations)
		policy.Labels = mergeMaps(policy.Labels, want.Labels)
		if policy, err = api.Update(ctx, policy, metav1.UpdateOptions{FieldManager: r.Lease.FieldManager()}); err != nil {
			return fail(fmt.Errorf("update %s: %w", r.policyObjectName(), err))
		}
	}
	label := map[string]string{IsolateLabel: ShortLeaseID(r.Lease.ID)}
	if !isSubset(label, pod.Labels) || !isSubset(r.Lease.leaseAnnotations(FacetNetwork), pod.Annotations) {
		_, refusal, err := r.applyPodMetadata(ctx, client, label, r.Lease.leaseAnnotations(FacetNetwork))
		if err != nil {
			return fail(fmt.Errorf("label the pod: %w", err))
		}
		if refusal != nil { // the pod is gone: remove the policy
			if err := r.deletePolicy(ctx, client, policy); err != nil {
				return fail(err)
			}
			return nil, refusal, nil
		}
	}
	return plan, nil, nil
}

// applyPodMetadata sets Stanch's labels and annotations of the pod to exactly these, by server-side apply: with none,
// Stanch's are removed and no others. It returns the updated pod. The UID makes the API server refuse a newer pod of
// the same name, and prevents creating one.
func (r IsolateRequest) applyPodMetadata(ctx context.Context, client kubernetes.Interface, labels,
	annotations map[string]string) (
	*corev1.Pod, *Refusal, error,
) {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"namespace": r.Pod.Namespace, "name": r.Pod.Name, "uid": r.Pod.UID, "labels": labels, "annotations": annotations,
		},
	})
	if err != nil {
		return nil, nil, err
	}
	pod, err := client.CoreV1().Pods(r.Pod.Namespace).Patch(ctx, r.Pod.Name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: r.Lease.FieldManager()})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		_, gone, getErr := getPod(ctx, client, r.Pod)
		if getErr == nil && gone != nil {
			return nil, gone, nil
		}
	}
	return pod, nil, err
}

// deletePolicy deletes exactly the policy that was read. A changed or recreated policy is a conflict, which the next
// attempt checks again.
func (r IsolateRequest) deletePolicy(ctx context.Context, client kubernetes.Interface,
	policy *networkingv1.NetworkPolicy,
) error {
	only := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{
		UID:             &policy.UID,
		ResourceVersion: &policy.ResourceVersion,
	}}
	err := client.NetworkingV1().NetworkPolicies(r.Pod.Namespace).Delete(ctx, policy.Name, only)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w", r.policyObjectName(), err)
	}
	return nil
}

// isSubset reports whether every entry of small is in large.
func isSubset(small, large map[string]string) bool {
	for k, v := range small {
		if large[k] != v {
			return false
		}
	}
	return true
}

// mergeMaps returns the entries of a and b; b has precedence.
func mergeMaps(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, b)
	return m
}
