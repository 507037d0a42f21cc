package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
)

// IsolateRequest is a request for a NetworkPolicy that isolates exactly one pod and none of its siblings.
type IsolateRequest struct {
	Pod   PodRef
	Lease activities.LeaseStamp
	// Ingress denies incoming traffic too. Most network plugins still permit the kubelet's probes.
	Ingress bool
}

// IsolatePlan is what an isolation would change. It contains no time, so that its hash stays the same while the cluster
// does.
type IsolatePlan struct {
	PolicyName string // the NetworkPolicy's name
	// Changes are the changes, a sentence each; empty if there is nothing to do.
	Changes []string
	// PolicyConflicts are users' policies that still allow traffic, because policies are additive. If there are any,
	// isolation by policy is incomplete. The labels by which they select the pod are not changed.
	PolicyConflicts []PolicyConflict
	// AlreadyLabeled means that the pod already has this lease's label. A pod with the label of another lease is refused,
	// so there is no other state to save.
	AlreadyLabeled bool
}

// PlanIsolate returns what an isolation would change. It only reads.
func PlanIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (IsolatePlan, error) {
	state, err := r.readState(ctx, client)
	if err != nil {
		return IsolatePlan{}, fmt.Errorf("plan to isolate pod %s: %w", r.Pod, err)
	}
	return state.plan, nil
}

// isolateState is everything that plan and apply depend on. The policy is nil if it does not exist.
type isolateState struct {
	plan   IsolatePlan
	pod    *corev1.Pod
	policy *networkingv1.NetworkPolicy
}

func (r IsolateRequest) readState(ctx context.Context, client kubernetes.Interface) (isolateState, error) {
	// Both reads run in parallel: every round trip counts during an attack.
	var policies *networkingv1.NetworkPolicyList
	var listing errgroup.Group
	listing.Go(func() (err error) {
		policies, err = client.NetworkingV1().NetworkPolicies(r.Pod.Namespace).List(ctx, metav1.ListOptions{})
		return err
	})
	pod, err := getPod(ctx, client, r.Pod)
	listErr := listing.Wait()
	if err == nil {
		err = r.refusePod(pod)
	}
	if err != nil {
		return isolateState{}, err
	}
	if listErr != nil {
		return isolateState{}, fmt.Errorf("list network policies: %w", listErr)
	}
	s := isolateState{pod: pod, plan: IsolatePlan{
		PolicyName: r.policyName(), AlreadyLabeled: pod.Labels[IsolateLabel] != "",
	}}
	for i := range policies.Items {
		if p := &policies.Items[i]; p.Name == s.plan.PolicyName {
			s.policy = p
		}
	}
	switch {
	case s.policy == nil:
		s.plan.Changes = append(s.plan.Changes, "create "+r.policyObjectName()+" that denies "+r.describeDirections())
	case readStamp(s.policy, playbooks.FacetNetwork).ID != r.Lease.ID:
		return s, activities.Refusef("%s exists and does not belong to this lease; remove or rename it",
			r.policyObjectName())
	case !apiequality.Semantic.DeepEqual(s.policy.Spec, r.buildPolicy().Spec):
		s.plan.Changes = append(s.plan.Changes, "restore the spec of "+r.policyObjectName())
	}
	if !s.plan.AlreadyLabeled {
		s.plan.Changes = append(s.plan.Changes, fmt.Sprintf("label pod %s with %s=%s", r.Pod, IsolateLabel,
			ShortLeaseID(r.Lease.ID)))
	}
	s.plan.PolicyConflicts, err = findPolicyConflicts(policies.Items, s.plan.PolicyName,
		mergeMaps(pod.Labels, r.label()), r.Ingress)
	return s, err
}

// refusePod returns a refusal for pods that cannot be isolated.
func (r IsolateRequest) refusePod(pod *corev1.Pod) error {
	label := pod.Labels[IsolateLabel]
	switch {
	case pod.Spec.HostNetwork:
		return activities.Refusef("pod %s uses the host network, which a NetworkPolicy does not affect", r.Pod)
	case isStaticPod(pod):
		return activities.Refusef("pod %s is a static pod on node %s; change its manifest on the node", r.Pod,
			pod.Spec.NodeName)
	case hasCompleted(pod):
		return activities.Refusef("pod %s has ended (%s)", r.Pod, pod.Status.Phase)
	case label != "" && label != ShortLeaseID(r.Lease.ID):
		return activities.Refusef("pod %s already has the label %s=%s, which does not belong to this lease", r.Pod,
			IsolateLabel, label)
	}
	return nil
}

// label returns the label of the isolated pod, which the policy selects.
func (r IsolateRequest) label() map[string]string {
	return map[string]string{IsolateLabel: ShortLeaseID(r.Lease.ID)}
}

// annotations returns the stamp on the policy and the pod.
func (r IsolateRequest) annotations() map[string]string {
	return stampAnnotations(playbooks.FacetNetwork, r.Lease)
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
	annotations := r.annotations()
	annotations[priorAnnotation(playbooks.FacetNetwork)] = `{"pod":` + compactJSON(r.Pod) + `,"label":null}`
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Pod.Namespace, Name: r.policyName(), Annotations: annotations,
			Labels: map[string]string{ManagedByLabel: ManagedBy, IsolateLabel: ShortLeaseID(r.Lease.ID)},
		},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: r.label()},
			PolicyTypes: directions,
		},
	}
}

// ApplyIsolate isolates the pod: first it creates the policy, which selects nothing yet, then it adds the label, which
// activates it. It is idempotent: it recreates missing parts and updates the expiry. The returned plan says what it
// found and changed.
func ApplyIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (IsolatePlan, error) {
	s, err := r.readState(ctx, client)
	if err == nil {
		err = r.apply(ctx, client, s)
	}
	if err != nil {
		return IsolatePlan{}, fmt.Errorf("isolate pod %s: %w", r.Pod, err)
	}
	return s.plan, nil
}

func (r IsolateRequest) apply(ctx context.Context, client kubernetes.Interface, s isolateState) error {
	want, api, policy := r.buildPolicy(), client.NetworkingV1().NetworkPolicies(r.Pod.Namespace), s.policy
	var err error
	switch {
	case policy == nil:
		// AlreadyExists is an error here: the next attempt reads the object and checks its owner.
		if policy, err = api.Create(ctx, want, metav1.CreateOptions{FieldManager: fieldManager(r.Lease)}); err != nil {
			return fmt.Errorf("create %s: %w", r.policyObjectName(), err)
		}
	case !apiequality.Semantic.DeepEqual(policy.Spec, want.Spec) || !isSubset(want.Annotations, policy.Annotations) ||
		!isSubset(want.Labels, policy.Labels):
		policy.Spec = want.Spec
		policy.Annotations = mergeMaps(policy.Annotations, want.Annotations)
		policy.Labels = mergeMaps(policy.Labels, want.Labels)
		if policy, err = api.Update(ctx, policy, metav1.UpdateOptions{FieldManager: fieldManager(r.Lease)}); err != nil {
			return fmt.Errorf("update %s: %w", r.policyObjectName(), err)
		}
	}
	if isSubset(r.label(), s.pod.Labels) && isSubset(r.annotations(), s.pod.Annotations) {
		return nil
	}
	_, err = r.applyPodMetadata(ctx, client, r.label(), r.annotations())
	if errors.Is(err, activities.ErrTargetGone) {
		if err := r.deletePolicy(ctx, client, policy); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("label the pod: %w", err)
	}
	return nil
}

// applyPodMetadata sets Stanch's labels and annotations of the pod to exactly these, by server-side apply: with none,
// Stanch's are removed and no others. It returns the updated pod. The UID makes the API server refuse a newer pod of
// the same name, and prevents creating one.
func (r IsolateRequest) applyPodMetadata(ctx context.Context, client kubernetes.Interface, labels,
	annotations map[string]string,
) (*corev1.Pod, error) {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"namespace": r.Pod.Namespace, "name": r.Pod.Name, "uid": r.Pod.UID, "labels": labels, "annotations": annotations,
		},
	})
	if err != nil {
		return nil, err
	}
	pod, err := client.CoreV1().Pods(r.Pod.Namespace).Patch(ctx, r.Pod.Name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: fieldManager(r.Lease)})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		if _, getErr := getPod(ctx, client, r.Pod); errors.Is(getErr, activities.ErrTargetGone) {
			return nil, getErr
		}
	}
	return pod, err
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
