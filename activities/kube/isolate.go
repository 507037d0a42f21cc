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
	Pod    PodRef `json:"pod"`
	Policy string `json:"policy"` // the NetworkPolicy's name
	Label  string `json:"label"`  // what the pod is labelled with, "key=value"
	// Changes are what apply would do, a sentence each; empty if all is so already.
	Changes []string `json:"changes,omitempty"`
	// Defeats are users' policies that go on allowing traffic: policies add up. Not empty means that the isolation
	// by policy is incomplete. The labels by which they select the pod are the user's and stay.
	Defeats []Defeat     `json:"defeats,omitempty"`
	Prior   IsolatePrior `json:"prior"`
}

// Incomplete says whether traffic will still be allowed by somebody else's policy.
func (p *IsolatePlan) Incomplete() bool { return len(p.Defeats) > 0 }

// IsolatePrior is what was before, and what undo restores. A pod that already has the label for another lease is
// refused, so that there is nothing to save but its absence.
type IsolatePrior struct {
	Labelled bool `json:"labelled"` // the pod had our label for this lease already
}

// IsolatePermissions are what the isolation needs.
func IsolatePermissions() Permissions {
	return Permissions{
		Plan: []rbacv1.PolicyRule{rule("", "pods", "get"), rule("networking.k8s.io", "networkpolicies", "list")},
		Apply: []rbacv1.PolicyRule{
			rule("", "pods", "get", "list", "patch"),
			rule("networking.k8s.io", "networkpolicies", "get", "list", "create", "update", "delete"),
		},
	}
}

// PlanIsolate says what an isolation would change, and changes nothing.
func PlanIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (*IsolatePlan, *Refusal, error) {
	plan, _, _, refusal, err := r.survey(ctx, client)
	if err != nil {
		return nil, nil, fmt.Errorf("plan to isolate pod %s: %w", r.Pod, err)
	}
	return plan, refusal, nil
}

// survey reads all that plan and apply decide by.
func (r IsolateRequest) survey(ctx context.Context, client kubernetes.Interface) (
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
		refusal = r.objection(pod)
	}
	if refusal != nil || err != nil {
		return fail(refusal, err)
	}
	if listErr != nil {
		return fail(nil, fmt.Errorf("list network policies: %w", listErr))
	}
	plan := &IsolatePlan{
		Pod: r.Pod, Policy: r.policyName(), Label: IsolateLabel + "=" + ShortID(r.Lease.ID),
		Prior: IsolatePrior{Labelled: pod.Labels[IsolateLabel] != ""},
	}
	var policy *networkingv1.NetworkPolicy
	for i := range policies.Items {
		if p := &policies.Items[i]; p.Name == plan.Policy {
			policy = p
		}
	}
	switch {
	case policy == nil:
		plan.Changes = append(plan.Changes, "create "+r.policyObject()+" that denies "+r.directions())
	case policy.Annotations[FacetNetwork.LeaseKey()] != r.Lease.ID:
		return fail(refuse(ReasonForeign, "%s exists and is not of this lease; remove or rename it", r.policyObject()), nil)
	case !apiequality.Semantic.DeepEqual(policy.Spec, r.policy().Spec):
		plan.Changes = append(plan.Changes, "put back the spec of "+r.policyObject())
	}
	if !plan.Prior.Labelled {
		plan.Changes = append(plan.Changes, fmt.Sprintf("label pod %s with %s", r.Pod, plan.Label))
	}
	labels := maps.Clone(pod.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[IsolateLabel] = ShortID(r.Lease.ID)
	plan.Defeats, err = defeats(policies.Items, plan.Policy, labels, r.Ingress)
	if err != nil {
		return fail(nil, err)
	}
	return plan, pod, policy, nil, nil
}

// objection refuses pods that cannot or must not be isolated.
func (r IsolateRequest) objection(pod *corev1.Pod) *Refusal {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	for _, o := range pod.OwnerReferences {
		mirror = mirror || o.Kind == "Node"
	}
	label := pod.Labels[IsolateLabel]
	switch {
	case pod.Spec.HostNetwork:
		return refuse(ReasonHostNetwork, "pod %s uses the node's network: a policy does not select it", r.Pod)
	case mirror:
		return refuse(ReasonStatic, "pod %s is a static pod of node %s: change its manifest on the node", r.Pod, pod.Spec.NodeName)
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return refuse(ReasonEnded, "pod %s has ended (%s)", r.Pod, pod.Status.Phase)
	case label != "" && label != ShortID(r.Lease.ID):
		return refuse(ReasonForeign, "pod %s has the label %s=%s already, which is not of this lease", r.Pod, IsolateLabel, label)
	}
	return nil
}

func (r IsolateRequest) policyName() string { return "stanch-isolate-" + ShortID(r.Lease.ID) }

func (r IsolateRequest) policyObject() string {
	return "NetworkPolicy " + r.Pod.Namespace + "/" + r.policyName()
}

func (r IsolateRequest) directions() string {
	if r.Ingress {
		return "all egress and ingress"
	}
	return "all egress"
}

// policy is the object as it must be: it selects the pods that carry this lease's label, which is one, and names
// directions without a rule, which denies them.
func (r IsolateRequest) policy() *networkingv1.NetworkPolicy {
	directions := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	if r.Ingress {
		directions = append(directions, networkingv1.PolicyTypeIngress)
	}
	annotations := r.Lease.annotations(FacetNetwork)
	prior, err := json.Marshal(r.Pod)
	if err != nil {
		panic(err) // three strings
	}
	annotations[FacetNetwork.PriorKey()] = `{"pod":` + string(prior) + `,"label":null}`
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Pod.Namespace, Name: r.policyName(), Annotations: annotations,
			Labels: map[string]string{ManagedByLabel: ManagedBy, IsolateLabel: ShortID(r.Lease.ID)},
		},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{IsolateLabel: ShortID(r.Lease.ID)}},
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
	plan, pod, policy, refusal, err := r.survey(ctx, client)
	if err != nil {
		return fail(err)
	}
	if refusal != nil {
		return nil, refusal, nil
	}
	want, api := r.policy(), client.NetworkingV1().NetworkPolicies(r.Pod.Namespace)
	switch {
	case policy == nil:
		// AlreadyExists is an error here: the next attempt reads the object and judges whose it is.
		if policy, err = api.Create(ctx, want, metav1.CreateOptions{FieldManager: r.Lease.FieldManager()}); err != nil {
			return fail(fmt.Errorf("create %s: %w", r.policyObject(), err))
		}
	case !apiequality.Semantic.DeepEqual(policy.Spec, want.Spec) || !within(want.Annotations, policy.Annotations) ||
		!within(want.Labels, policy.Labels):
		policy.Spec = want.Spec
		policy.Annotations = merged(policy.Annotations, want.Annotations)
		policy.Labels = merged(policy.Labels, want.Labels)
		if policy, err = api.Update(ctx, policy, metav1.UpdateOptions{FieldManager: r.Lease.FieldManager()}); err != nil {
			return fail(fmt.Errorf("update %s: %w", r.policyObject(), err))
		}
	}
	label := map[string]string{IsolateLabel: ShortID(r.Lease.ID)}
	if !within(label, pod.Labels) || !within(r.Lease.annotations(FacetNetwork), pod.Annotations) {
		_, refusal, err := r.applyPod(ctx, client, label, r.Lease.annotations(FacetNetwork))
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

// applyPod makes our fields of the pod's metadata exactly these, by server-side apply: with none, all of ours go and
// nobody else's. It returns the pod as it is then. The UID in it makes the API server refuse a pod that came later, and create none.
func (r IsolateRequest) applyPod(ctx context.Context, client kubernetes.Interface, labels, annotations map[string]string) (
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
		return fmt.Errorf("delete %s: %w", r.policyObject(), err)
	}
	return nil
}

// within tells whether all of the small map is in the large one.
func within(small, large map[string]string) bool {
	for k, v := range small {
		if large[k] != v {
			return false
		}
	}
	return true
}

// merged is a with b over it.
func merged(a, b map[string]string) map[string]string {
	m := maps.Clone(a)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, b)
	return m
}
