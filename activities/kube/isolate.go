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

// IsolateRequest asks for a NetworkPolicy that takes the network from exactly one pod and none of its siblings.
type IsolateRequest struct {
	Pod   PodRef `json:"pod"`
	Lease Lease  `json:"lease"`
	// Ingress denies incoming traffic as well. Most networks let the kubelet's probes through all the same.
	Ingress bool `json:"ingress,omitempty"`
}

// IsolatePlan is what an isolation would change. It holds no time, so its hash is stable while the world is.
type IsolatePlan struct {
	Pod        PodRef `json:"pod"`
	PolicyName string `json:"policy_name"` // the NetworkPolicy's name
	Label      string `json:"label"`       // what the pod is labelled with, "key=value"
	// Changes are what apply would do, a sentence each; empty if all is so already.
	Changes []string `json:"changes,omitempty"`
	// PolicyConflicts are users' policies that go on allowing traffic: policies add up. Not empty means that the isolation
	// by policy is incomplete. The labels by which they select the pod are the user's and stay.
	PolicyConflicts []PolicyConflict `json:"policy_conflicts,omitempty"`
	Prior           IsolatePrior     `json:"prior"`
}

// IsIncomplete says whether traffic will still be allowed by somebody else's policy.
func (p *IsolatePlan) IsIncomplete() bool { return len(p.PolicyConflicts) > 0 }

// IsolatePrior is what was before, and what undo restores. A pod that already has the label for another lease is
// refused, so that there is nothing to save but its absence.
type IsolatePrior struct {
	AlreadyLabeled bool `json:"already_labeled"` // the pod had our label for this lease already
}

// IsolatePermissions are what the isolation needs.
func IsolatePermissions() Permissions {
	return Permissions{
		PlanRules: []rbacv1.PolicyRule{newPolicyRule("", "pods", "get"), newPolicyRule("networking.k8s.io", "networkpolicies", "list")},
		ApplyRules: []rbacv1.PolicyRule{
			newPolicyRule("", "pods", "get", "list", "patch"),
			newPolicyRule("networking.k8s.io", "networkpolicies", "get", "list", "create", "update", "delete"),
		},
	}
}

// PlanIsolate says what an isolation would change, and changes nothing.
func PlanIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (*IsolatePlan, *Refusal, error) {
	plan, _, _, refusal, err := r.readState(ctx, client)
	if err != nil {
		return nil, nil, fmt.Errorf("plan to isolate pod %s: %w", r.Pod, err)
	}
	return plan, refusal, nil
}

// readState reads all that plan and apply decide by.
func (r IsolateRequest) readState(ctx context.Context, client kubernetes.Interface) (
	*IsolatePlan, *corev1.Pod, *networkingv1.NetworkPolicy, *Refusal, error,
) {
	fail := func(refusal *Refusal, err error) (*IsolatePlan, *corev1.Pod, *networkingv1.NetworkPolicy, *Refusal, error) {
		return nil, nil, nil, refusal, err
	}
	// Both reads at once: a round trip counts while something is being stolen.
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
		return fail(newRefusal(ReasonForeignObject, "%s exists and is not of this lease; remove or rename it", r.policyObjectName()), nil)
	case !apiequality.Semantic.DeepEqual(policy.Spec, r.buildPolicy().Spec):
		plan.Changes = append(plan.Changes, "put back the spec of "+r.policyObjectName())
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

// refusalReason refuses pods that cannot or must not be isolated.
func (r IsolateRequest) refusalReason(pod *corev1.Pod) *Refusal {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	for _, o := range pod.OwnerReferences {
		mirror = mirror || o.Kind == "Node"
	}
	label := pod.Labels[IsolateLabel]
	switch {
	case pod.Spec.HostNetwork:
		return newRefusal(ReasonHostNetwork, "pod %s uses the node's network: a policy does not select it", r.Pod)
	case mirror:
		return newRefusal(ReasonStaticPod, "pod %s is a static pod of node %s: change its manifest on the node", r.Pod, pod.Spec.NodeName)
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return newRefusal(ReasonPodCompleted, "pod %s has ended (%s)", r.Pod, pod.Status.Phase)
	case label != "" && label != ShortLeaseID(r.Lease.ID):
		return newRefusal(ReasonForeignObject, "pod %s has the label %s=%s already, which is not of this lease", r.Pod, IsolateLabel, label)
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

// buildPolicy is the object as it must be: it selects the pods that carry this lease's label, which is one, and names
// directions without a rule, which denies them.
func (r IsolateRequest) buildPolicy() *networkingv1.NetworkPolicy {
	directions := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	if r.Ingress {
		directions = append(directions, networkingv1.PolicyTypeIngress)
	}
	annotations := r.Lease.leaseAnnotations(FacetNetwork)
	prior, err := json.Marshal(r.Pod)
	if err != nil {
		panic(err) // three strings
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

// ApplyIsolate isolates the pod: first the policy, which selects nothing yet, then the label, which is the switch.
// It may be repeated: it then puts back what is missing and moves the expiry. The plan that it returns says what
// it found and changed.
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
		// AlreadyExists is an error here: the next attempt reads the object and judges whose it is.
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
		if refusal != nil { // the pod went meanwhile: leave no policy behind
			if err := r.deletePolicy(ctx, client, policy); err != nil {
				return fail(err)
			}
			return nil, refusal, nil
		}
	}
	return plan, nil, nil
}

// applyPodMetadata makes our fields of the pod's metadata exactly these, by server-side apply: with none, all of ours go and
// nobody else's. It returns the pod as it is then. The UID in it makes the API server refuse a pod that came later, and create none.
func (r IsolateRequest) applyPodMetadata(ctx context.Context, client kubernetes.Interface, labels, annotations map[string]string) (
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

// deletePolicy deletes the very policy that was read: one that somebody changed or made anew since is a conflict, and the
// next attempt judges it.
func (r IsolateRequest) deletePolicy(ctx context.Context, client kubernetes.Interface, policy *networkingv1.NetworkPolicy) error {
	only := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &policy.UID, ResourceVersion: &policy.ResourceVersion}}
	err := client.NetworkingV1().NetworkPolicies(r.Pod.Namespace).Delete(ctx, policy.Name, only)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w", r.policyObjectName(), err)
	}
	return nil
}

// isSubset tells whether all of the small map is in the large one.
func isSubset(small, large map[string]string) bool {
	for k, v := range small {
		if large[k] != v {
			return false
		}
	}
	return true
}

// mergeMaps is a with b over it.
func mergeMaps(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, b)
	return m
}
