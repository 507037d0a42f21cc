package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// VerifyIsolate returns how the isolation differs from what was applied: the policy with exactly its spec, the label
// that it selects, and the expiry on both. Without differences, it is in place; the API server does not show whether
// the cluster's network enforces it. A pod that is gone is a refusal that wraps activities.ErrTargetGone.
func VerifyIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) ([]Difference, error) {
	pod, err := getPod(ctx, client, r.Pod)
	if err != nil {
		return nil, err
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("verify the isolation of pod %s: %w", r.Pod, err)
	}
	var out []Difference
	if policy == nil {
		out = append(out, Difference{Object: r.policyObjectName(), Field: "object", Want: "present", Have: "absent"})
	} else {
		out = append(out, r.policyDifferences(policy)...)
		out = append(out, r.observedPolicy(policy).annotationDifferences(r.annotations())...)
	}
	out = append(out, r.observedPod(pod).labelDifferences(r.label())...)
	return append(out, r.observedPod(pod).annotationDifferences(r.annotations())...), nil
}

// RefuseEarlyIsolationEnd refuses an end before the one that is stamped on the pod or its policy, unless a release
// grant permits it.
func RefuseEarlyIsolationEnd(ctx context.Context, client kubernetes.Interface, request IsolateRequest,
	r activities.Request,
) error {
	return refuseEarlyEnd(r, func() (activities.LeaseStamp, error) {
		stamp, _, err := request.readOwnStamp(ctx, client)
		return stamp, err
	})
}

// RefuseEarlyIsolationUndo refuses an undo before the stamped end without a grant. If the pod is gone, only a policy is
// left, which isolates nothing.
func RefuseEarlyIsolationUndo(ctx context.Context, client kubernetes.Interface, request IsolateRequest,
	grant *attestation.Envelope,
) error {
	stamp, podGone, err := request.readOwnStamp(ctx, client)
	if err != nil || podGone {
		return err
	}
	return activities.RefuseEarlyUndo(stamp.ExpiresAt, grant)
}

// readOwnStamp reads the stamp of the lease from the pod and its policy. The later end counts.
func (r IsolateRequest) readOwnStamp(ctx context.Context, client kubernetes.Interface) (stamp activities.LeaseStamp,
	podGone bool, _ error,
) {
	if r.Pod.Name != "" {
		pod, err := getPod(ctx, client, r.Pod)
		podGone = errors.Is(err, activities.ErrTargetGone)
		if err != nil && !podGone {
			return stamp, false, fmt.Errorf("read the lease of pod %s: %w", r.Pod, err)
		}
		if !podGone {
			stamp = readOwnStamp(pod, playbooks.FacetNetwork, r.Lease.ID)
		}
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return stamp, podGone, fmt.Errorf("read the lease of %s: %w", r.policyObjectName(), err)
	}
	if policy != nil {
		if s := readOwnStamp(policy, playbooks.FacetNetwork, r.Lease.ID); s.ExpiresAt.After(stamp.ExpiresAt) {
			stamp = s
		}
	}
	return stamp, podGone, nil
}

// UndoIsolate removes what ApplyIsolate added, and nothing else: first the pod's label, which restores its network at
// once, then the policy. It is idempotent. If someone changed Stanch's objects since, it changes nothing and returns a
// drift.
func UndoIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (*activities.Drift, error) {
	drift, err := r.undo(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("undo the isolation of pod %s: %w", r.Pod, err)
	}
	return drift, nil
}

func (r IsolateRequest) undo(ctx context.Context, client kubernetes.Interface) (*activities.Drift, error) {
	var pod *corev1.Pod // nil if it is gone, or if the orphan sweep found only a policy
	var err error
	if r.Pod.Name != "" {
		if pod, err = getPod(ctx, client, r.Pod); err != nil && !errors.Is(err, activities.ErrTargetGone) {
			return nil, err
		}
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return nil, err
	}
	ours := policy != nil && readStamp(policy, playbooks.FacetNetwork).ID == r.Lease.ID
	var differences []Difference
	if ours {
		differences = r.policyDifferences(policy)
	} else if policy != nil {
		differences = r.observedPolicy(policy).annotationDifferences(
			map[string]string{leaseAnnotation(playbooks.FacetNetwork): r.Lease.ID})
	}
	// A missing label is what undo wants; another value belongs to someone else.
	if pod != nil && pod.Labels[IsolateLabel] != "" {
		differences = append(differences, r.observedPod(pod).labelDifferences(r.label())...)
	}
	if len(differences) > 0 {
		return driftFrom(differences), nil
	}
	if pod != nil && r.hasMarkers(pod) {
		if err := r.removeMarkers(ctx, client); err != nil {
			return nil, fmt.Errorf("remove the label: %w", err)
		}
	}
	if ours {
		return nil, r.deletePolicy(ctx, client, policy)
	}
	return nil, nil
}

// removeMarkers removes Stanch's label and annotations from the pod. If someone wrote the same values later, both
// managers own them, and server-side apply does not remove them. The values name this lease, so they are Stanch's.
func (r IsolateRequest) removeMarkers(ctx context.Context, client kubernetes.Interface) error {
	left, err := r.applyPodMetadata(ctx, client, nil, nil)
	if errors.Is(err, activities.ErrTargetGone) {
		return nil
	}
	if err != nil || !r.hasMarkers(left) {
		return err
	}
	patch := metadataPatch{uid: r.Pod.UID, manager: fieldManager(r.Lease)}
	if left.Labels[IsolateLabel] == ShortLeaseID(r.Lease.ID) {
		patch.labels = map[string]any{IsolateLabel: nil}
	}
	if readStamp(left, playbooks.FacetNetwork).ID == r.Lease.ID {
		patch.annotations = unstampPatch(playbooks.FacetNetwork)
	}
	return patch.send(ctx, func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
		_, err := client.CoreV1().Pods(r.Pod.Namespace).Patch(ctx, r.Pod.Name, types.MergePatchType, body, o)
		return err
	})
}

// hasMarkers reports whether the pod has the label or annotations of this lease.
func (r IsolateRequest) hasMarkers(pod *corev1.Pod) bool {
	return pod.Labels[IsolateLabel] == ShortLeaseID(r.Lease.ID) ||
		readStamp(pod, playbooks.FacetNetwork).ID == r.Lease.ID
}

func (r IsolateRequest) getPolicy(ctx context.Context, client kubernetes.Interface) (*networkingv1.NetworkPolicy,
	error,
) {
	policy, err := client.NetworkingV1().NetworkPolicies(r.Pod.Namespace).Get(ctx, r.policyName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.policyObjectName(), err)
	}
	return policy, nil
}

func (r IsolateRequest) policyDifferences(policy *networkingv1.NetworkPolicy) []Difference {
	want := r.buildPolicy().Spec
	if apiequality.Semantic.DeepEqual(policy.Spec, want) {
		return nil
	}
	by, when := lastFieldWriter(policy, fieldManager(r.Lease), "spec")
	return []Difference{{
		Object: r.policyObjectName(), Field: "spec", Want: compactJSON(want), Have: compactJSON(policy.Spec), ChangedBy: by,
		ChangedAt: when,
	}}
}

func (r IsolateRequest) observedPolicy(policy *networkingv1.NetworkPolicy) observedObject {
	return observedObject{r.policyObjectName(), policy, fieldManager(r.Lease)}
}

func (r IsolateRequest) observedPod(pod *corev1.Pod) observedObject {
	return observedObject{"Pod " + r.Pod.String(), pod, fieldManager(r.Lease)}
}

// FindOrphanedIsolations returns isolations in all namespaces whose stamped end has passed, one per lease, whether the
// policy, the pod's label or both are left.
func FindOrphanedIsolations(ctx context.Context, client kubernetes.Interface, before time.Time) ([]activities.Orphan,
	error,
) {
	policies, err := client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{
		LabelSelector: ManagedByLabel + "=" + ManagedBy + "," + IsolateLabel,
	})
	if err != nil {
		return nil, fmt.Errorf("find orphaned isolations: list network policies: %w", err)
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: IsolateLabel})
	if err != nil {
		return nil, fmt.Errorf("find orphaned isolations: list pods: %w", err)
	}
	var orphans []activities.Orphan
	seen := map[string]bool{}
	for i := range policies.Items {
		p := &policies.Items[i]
		lease, expired := readExpiredStamp(p, playbooks.FacetNetwork, before)
		if !expired {
			continue
		}
		seen[lease.ID] = true
		var prior struct {
			Pod PodRef `json:"pod"`
		}
		if err := json.Unmarshal([]byte(p.Annotations[priorAnnotation(playbooks.FacetNetwork)]), &prior); err != nil ||
			prior.Pod.UID == "" {
			prior.Pod = findLabeledPod(pods.Items, p) // someone tampered with it: use the label
		}
		request := IsolateRequest{Pod: prior.Pod, Lease: lease, Ingress: len(p.Spec.PolicyTypes) > 1}
		orphans = append(orphans, request.orphan(client, "NetworkPolicy "+p.Namespace+"/"+p.Name))
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		lease, expired := readExpiredStamp(p, playbooks.FacetNetwork, before)
		if !expired || seen[lease.ID] {
			continue
		}
		request := IsolateRequest{Pod: newPodRef(p), Lease: lease}
		orphans = append(orphans, request.orphan(client, "Pod "+request.Pod.String()))
	}
	return orphans, nil
}

func (r IsolateRequest) orphan(client kubernetes.Interface, name string) activities.Orphan {
	return activities.Orphan{
		ObjectName: name, Target: playbooks.Target{Kind: playbooks.TargetPod, UID: r.Pod.UID},
		Facet: playbooks.FacetNetwork, Lease: r.Lease,
		Undo: func(ctx context.Context) (*activities.Drift, error) { return UndoIsolate(ctx, client, r) },
	}
}

// findLabeledPod returns the pod that Stanch's policy selects; without one, only the namespace is known.
func findLabeledPod(pods []corev1.Pod, policy *networkingv1.NetworkPolicy) PodRef {
	for i := range pods {
		if p := &pods[i]; p.Namespace == policy.Namespace && p.Labels[IsolateLabel] == policy.Labels[IsolateLabel] {
			return newPodRef(p)
		}
	}
	return PodRef{Namespace: policy.Namespace}
}
