package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// VerifyIsolate reports whether the isolation is in place as it was applied: the policy with exactly its spec, the
// label that it selects, and the expiry on both. For a pod that is gone, it returns a refusal.
func VerifyIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest) (*Verification, *Refusal,
	error,
) {
	pod, refusal, err := getPod(ctx, client, r.Pod)
	if err != nil || refusal != nil {
		return nil, refusal, err
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return nil, nil, fmt.Errorf("verify the isolation of pod %s: %w", r.Pod, err)
	}
	v := &Verification{Limitations: []string{
		"the API server does not show whether the cluster's network enforces NetworkPolicies and closes open connections",
	}}
	if policy == nil {
		v.Differences = append(v.Differences, Difference{
			Object: r.policyObjectName(), Field: "object", Want: "present",
			Have: "absent",
		})
	} else {
		v.Differences = append(v.Differences, r.policyDifferences(policy)...)
		v.Differences = append(v.Differences, r.compareEntries(r.policyObjectName(), policy, "annotation", policy.Annotations,
			r.Lease.leaseAnnotations(FacetNetwork))...)
	}
	v.Differences = append(v.Differences, r.labelDifferences(pod)...)
	v.Differences = append(v.Differences, r.compareEntries("Pod "+r.Pod.String(), pod, "annotation", pod.Annotations,
		r.Lease.leaseAnnotations(FacetNetwork))...)
	v.InForce = len(v.Differences) == 0
	return v, nil, nil
}

// UndoIsolate removes what ApplyIsolate added, and nothing else: first the pod's label, which restores its network at
// once, then the policy. It is idempotent. If someone changed Stanch's objects since, it changes nothing and returns a
// drift; with force, it removes them anyway.
func UndoIsolate(ctx context.Context, client kubernetes.Interface, r IsolateRequest, force bool) (*Drift, error) {
	fail := func(err error) (*Drift, error) {
		return nil, fmt.Errorf("undo the isolation of pod %s: %w", r.Pod, err)
	}
	gone := newRefusal(ReasonNotFound, "the pod is unknown") // the orphan sweep may find only a policy
	var pod *corev1.Pod
	var err error
	if r.Pod.Name != "" {
		if pod, gone, err = getPod(ctx, client, r.Pod); err != nil {
			return fail(err)
		}
	}
	policy, err := r.getPolicy(ctx, client)
	if err != nil {
		return fail(err)
	}
	ours := policy != nil && policy.Annotations[FacetNetwork.LeaseAnnotation()] == r.Lease.ID
	if !force {
		var drift Drift
		if policy != nil && !ours {
			drift.Differences = append(drift.Differences, r.compareEntries(r.policyObjectName(), policy, "annotation",
				policy.Annotations,
				map[string]string{FacetNetwork.LeaseAnnotation(): r.Lease.ID})...)
		}
		if ours {
			drift.Differences = append(drift.Differences, r.policyDifferences(policy)...)
		}
		// A missing label is what undo wants; another value belongs to someone else.
		if gone == nil && pod.Labels[IsolateLabel] != "" {
			drift.Differences = append(drift.Differences, r.labelDifferences(pod)...)
		}
		if len(drift.Differences) > 0 {
			return &drift, nil
		}
	}
	if gone == nil && r.hasMarkers(pod) {
		left, gone, err := r.applyPodMetadata(ctx, client, nil, nil)
		if err == nil && gone == nil && r.hasMarkers(left) {
			err = r.removeMarkers(ctx, client, left)
		}
		if err != nil {
			return fail(fmt.Errorf("remove the label: %w", err))
		}
	}
	if ours {
		if err := r.deletePolicy(ctx, client, policy); err != nil {
			return fail(err)
		}
	}
	return nil, nil
}

// removeMarkers removes Stanch's label and annotations if someone wrote the same values later: both managers then own
// them, and server-side apply does not remove them. The values name this lease, so they are Stanch's.
func (r IsolateRequest) removeMarkers(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) error {
	labels, annotations := map[string]any{}, map[string]any{}
	if pod.Labels[IsolateLabel] == ShortLeaseID(r.Lease.ID) {
		labels[IsolateLabel] = nil
	}
	if pod.Annotations[FacetNetwork.LeaseAnnotation()] == r.Lease.ID {
		for k := range r.Lease.leaseAnnotations(FacetNetwork) {
			annotations[k] = nil
		}
	}
	return patchMetadata(ctx, func(ctx context.Context, body []byte, o metav1.PatchOptions) error {
		_, err := client.CoreV1().Pods(r.Pod.Namespace).Patch(ctx, r.Pod.Name, mergePatchType, body, o)
		return err
	}, r.Pod.UID, r.Lease.FieldManager(), labels, annotations)
}

// hasMarkers reports whether the pod has the label or annotations of this lease.
func (r IsolateRequest) hasMarkers(pod *corev1.Pod) bool {
	return pod.Labels[IsolateLabel] == ShortLeaseID(r.Lease.ID) ||
		pod.Annotations[FacetNetwork.LeaseAnnotation()] == r.Lease.ID
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
	by, when := lastFieldWriter(policy, r.Lease.FieldManager(), "spec")
	return []Difference{{
		Object: r.policyObjectName(), Field: "spec", Want: compactJSON(want), Have: compactJSON(policy.Spec), ChangedBy: by,
		ChangedAt: when,
	}}
}

func (r IsolateRequest) labelDifferences(pod *corev1.Pod) []Difference {
	return r.compareEntries("Pod "+r.Pod.String(), pod, "label", pod.Labels,
		map[string]string{IsolateLabel: ShortLeaseID(r.Lease.ID)})
}

// compareEntries compares a map of labels or annotations with the wanted entries.
func (r IsolateRequest) compareEntries(object string, o metav1.Object, what string, have,
	want map[string]string,
) []Difference {
	return metadataDifferences(object, o, r.Lease.FieldManager(), what, have, want)
}

// Orphan is a contained object whose expiry has passed.
type Orphan struct {
	Object     string    `json:"object"` // "NetworkPolicy ns/name", "Pod ns/name", "Deployment ns/name"
	LeaseID    string    `json:"lease"`
	IncidentID string    `json:"incident"`
	ExpiredAt  time.Time `json:"expired_at"`
	// IsolateRequest is the argument for UndoIsolate. ScaleRequest and ScalePrior are the arguments for UndoScale; the
	// prior is nil if it cannot be parsed, and a person must decide.
	IsolateRequest *IsolateRequest `json:"isolate_request,omitempty"`
	ScaleRequest   *ScaleRequest   `json:"scale_request,omitempty"`
	ScalePrior     *ScalePrior     `json:"prior,omitempty"`
	// CordonRequest and CordonPrior are the arguments for UndoCordon; the prior is nil if it cannot be parsed.
	CordonRequest *CordonRequest `json:"cordon_request,omitempty"`
	CordonPrior   *CordonPrior   `json:"cordon_prior,omitempty"`
}

// FindOrphanedIsolations returns isolations in all namespaces whose stamped expiry is before now, one per lease,
// whether the policy, the pod's label or both are left. An expiry that cannot be parsed was tampered with and counts as
// passed, with the zero time.
func FindOrphanedIsolations(ctx context.Context, client kubernetes.Interface, now time.Time) ([]Orphan, error) {
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
	var orphans []Orphan
	seen := map[string]bool{}
	for i := range policies.Items {
		p := &policies.Items[i]
		lease, expired := readExpiredLease(p, FacetNetwork, now)
		if lease.ID == "" || !expired {
			continue
		}
		seen[lease.ID] = true
		var prior struct {
			Pod PodRef `json:"pod"`
		}
		if err := json.Unmarshal([]byte(p.Annotations[FacetNetwork.PriorStateAnnotation()]), &prior); err != nil ||
			prior.Pod.UID == "" {
			prior.Pod = findLabeledPod(pods.Items, p) // someone tampered with it: use the label
		}
		orphans = append(orphans, Orphan{
			Object: "NetworkPolicy " + p.Namespace + "/" + p.Name, LeaseID: lease.ID, IncidentID: lease.IncidentID,
			ExpiredAt:      lease.ExpiresAt,
			IsolateRequest: &IsolateRequest{Pod: prior.Pod, Lease: lease, Ingress: len(p.Spec.PolicyTypes) > 1},
		})
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		lease, expired := readExpiredLease(p, FacetNetwork, now)
		if lease.ID == "" || !expired || seen[lease.ID] {
			continue
		}
		ref := PodRef{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
		orphans = append(orphans, Orphan{
			Object: "Pod " + ref.String(), LeaseID: lease.ID, IncidentID: lease.IncidentID, ExpiredAt: lease.ExpiresAt,
			IsolateRequest: &IsolateRequest{Pod: ref, Lease: lease},
		})
	}
	return orphans, nil
}

// findLabeledPod returns the pod that Stanch's policy selects; without one, only the namespace is known.
func findLabeledPod(pods []corev1.Pod, policy *networkingv1.NetworkPolicy) PodRef {
	for i := range pods {
		if p := &pods[i]; p.Namespace == policy.Namespace && p.Labels[IsolateLabel] == policy.Labels[IsolateLabel] {
			return PodRef{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
		}
	}
	return PodRef{Namespace: policy.Namespace}
}

// readExpiredLease reads the lease of an object for a facet, and reports whether it has expired.
func readExpiredLease(o metav1.Object, f Facet, now time.Time) (Lease, bool) {
	a := o.GetAnnotations()
	lease := Lease{ID: a[f.LeaseAnnotation()], IncidentID: a[f.IncidentAnnotation()]}
	expires, err := time.Parse(time.RFC3339, a[f.ExpiresAnnotation()])
	if err != nil {
		return lease, true
	}
	lease.ExpiresAt = expires
	return lease, !now.Before(expires)
}

func compactJSON(v any) string {
	content, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(content)
}
