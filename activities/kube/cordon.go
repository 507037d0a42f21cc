package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// CordonRequest is a request to cordon the node of a pod. A pod never moves, so its UID identifies the node.
type CordonRequest struct {
	Pod   PodRef `json:"pod"`
	Lease Lease  `json:"lease"`
}

// CordonPrior is the cordoned node, the pod that identifies it, and the state before.
type CordonPrior struct {
	Node             string `json:"node"`
	UID              string `json:"uid"`
	Pod              PodRef `json:"pod"`
	WasUnschedulable bool   `json:"was_unschedulable"`
}

// String returns the node, for messages.
func (p CordonPrior) String() string { return "Node " + p.Node }

// CordonPlan is what a cordon would change.
type CordonPlan struct {
	Changes []string    `json:"changes,omitempty"`
	Prior   CordonPrior `json:"prior"`
}

// CordonPermissions returns the permissions of a cordon. Patch on nodes is for spec.unschedulable and the lease's
// annotations.
func CordonPermissions() Permissions {
	return Permissions{
		PlanRules:  []rbacv1.PolicyRule{newPolicyRule("", "pods", "get"), newPolicyRule("", "nodes", "get", "list")},
		ApplyRules: []rbacv1.PolicyRule{newPolicyRule("", "pods", "get"), newPolicyRule("", "nodes", "get", "list", "patch")},
	}
}

// PlanCordon returns what a cordon would change. It only reads.
func PlanCordon(ctx context.Context, client kubernetes.Interface, r CordonRequest) (*CordonPlan, *Refusal, error) {
	plan, _, refusal, err := r.readState(ctx, client)
	if err != nil {
		return nil, nil, fmt.Errorf("plan to cordon the node of pod %s: %w", r.Pod, err)
	}
	return plan, refusal, nil
}

func (r CordonRequest) readState(ctx context.Context, client kubernetes.Interface) (*CordonPlan, *corev1.Node, *Refusal,
	error,
) {
	pod, refusal, err := getPod(ctx, client, r.Pod)
	if err != nil || refusal != nil {
		return nil, nil, refusal, err
	}
	if pod.Spec.NodeName == "" {
		return nil, nil, newRefusal(ReasonNotFound, "pod %s is not scheduled yet", r.Pod), nil
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	var node *corev1.Node
	others := 0
	for i := range nodes.Items {
		n := &nodes.Items[i]
		switch {
		case n.Name == pod.Spec.NodeName:
			node = n
		case isSchedulable(n):
			others++
		}
	}
	if node == nil {
		return nil, nil, newRefusal(ReasonNotFound, "node %s is gone", pod.Spec.NodeName), nil
	}
	plan := &CordonPlan{Prior: CordonPrior{
		Node: node.Name, UID: string(node.UID), Pod: r.Pod,
		WasUnschedulable: node.Spec.Unschedulable,
	}}
	switch lease := node.Annotations[FacetScheduling.LeaseAnnotation()]; lease {
	case "":
		plan.Changes = append(plan.Changes, fmt.Sprintf("annotate node %s with the lease", node.Name))
	case r.Lease.ID:
		if plan.Prior, err = readSavedCordon(node); err != nil {
			return nil, nil, newRefusal(ReasonForeignObject, "node %s has this lease, but its saved state cannot be parsed: %v",
				node.Name, err), nil
		}
	default:
		return nil, nil, newRefusal(ReasonForeignObject, "node %s is under another lease, %s", node.Name, lease), nil
	}
	if !node.Spec.Unschedulable {
		if others == 0 {
			return nil, nil, newRefusal(ReasonLastNode,
				"node %s is the only node that is ready and schedulable; if it is cordoned, no pod can start", node.Name), nil
		}
		plan.Changes = append(
			plan.Changes,
			fmt.Sprintf(
				"cordon node %s: its pods keep running, and no new ones are scheduled (%d other nodes are schedulable)",
				node.Name,
				others,
			),
		)
	}
	return plan, node, nil, nil
}

// readSavedCordon reads the prior state from a node's annotation. The node's name comes from the node itself.
func readSavedCordon(node *corev1.Node) (CordonPrior, error) {
	var prior CordonPrior
	if err := json.Unmarshal([]byte(node.Annotations[FacetScheduling.PriorStateAnnotation()]), &prior); err != nil {
		return CordonPrior{}, fmt.Errorf("annotation %s: %w", FacetScheduling.PriorStateAnnotation(), err)
	}
	prior.Node, prior.UID = node.Name, string(node.UID)
	return prior, nil
}

// isSchedulable reports whether ordinary pods can be scheduled on a node: it is ready, not cordoned, and has no taint
// that prevents it.
func isSchedulable(n *corev1.Node) bool {
	if n.Spec.Unschedulable {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectPreferNoSchedule {
			return false
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// ApplyCordon cordons the node and stamps the lease on it in one write. It is idempotent: the saved prior state stays,
// only the expiry changes.
func ApplyCordon(ctx context.Context, client kubernetes.Interface, r CordonRequest) (plan *CordonPlan, refusal *Refusal,
	err error,
) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var node *corev1.Node
		if plan, node, refusal, err = r.readState(ctx, client); err != nil || refusal != nil {
			return err
		}
		set := map[string]any{FacetScheduling.PriorStateAnnotation(): compactJSON(plan.Prior)}
		for k, v := range r.Lease.leaseAnnotations(FacetScheduling) {
			set[k] = v
		}
		return r.patchNode(ctx, client, node, true, ShortLeaseID(r.Lease.ID), set)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("cordon the node of pod %s: %w", r.Pod, err)
	}
	return plan, refusal, nil
}

// patchNode patches the node at the resource version that was checked; otherwise the API server returns a conflict.
func (r CordonRequest) patchNode(ctx context.Context, client kubernetes.Interface, node *corev1.Node,
	unschedulable bool, label any, annotations map[string]any,
) error {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{
			"uid": node.UID, "resourceVersion": node.ResourceVersion,
			"labels": map[string]any{CordonLabel: label}, "annotations": annotations,
		},
		"spec": map[string]any{"unschedulable": unschedulable},
	})
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, node.Name, mergePatchType, body,
		metav1.PatchOptions{FieldManager: r.Lease.FieldManager()})
	if apierrors.IsNotFound(err) {
		return nil // verification reports it
	}
	return err
}

// getNode returns the node of a cordon, or nil if it is gone.
func (p CordonPrior) getNode(ctx context.Context, client kubernetes.Interface) (*corev1.Node, error) {
	node, err := client.CoreV1().Nodes().Get(ctx, p.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && string(node.UID) != p.UID {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", p.Node, err)
	}
	return node, nil
}

// VerifyCordon reports whether the node is cordoned and carries the lease's marker. The pod may be gone.
func VerifyCordon(ctx context.Context, client kubernetes.Interface, r CordonRequest, prior CordonPrior) (*Verification,
	*Refusal, error,
) {
	node, err := prior.getNode(ctx, client)
	if err != nil {
		return nil, nil, err
	}
	if node == nil {
		return nil, newRefusal(ReasonNotFound, "node %s is gone", prior.Node), nil
	}
	v := &Verification{}
	if !node.Spec.Unschedulable {
		by, when := lastWriter(node, r.Lease.FieldManager())
		v.Differences = append(v.Differences, Difference{
			Object: prior.String(), Field: "spec.unschedulable", Want: "true",
			Have: "false", ChangedBy: by, ChangedAt: when,
		})
	}
	v.Differences = append(v.Differences, metadataDifferences(prior.String(), node, r.Lease.FieldManager(), "annotation",
		node.Annotations, r.Lease.leaseAnnotations(FacetScheduling))...)
	v.InForce = len(v.Differences) == 0
	return v, nil, nil
}

// UndoCordon restores the prior state and removes the lease's annotations. It does nothing if the node is gone or the
// cordon was undone before. If the node is cordoned without this lease's marker, it changes nothing and returns a
// drift. A second cordon by someone else looks like the first; to keep a cordon after the lease, remove the marker.
func UndoCordon(ctx context.Context, client kubernetes.Interface, r CordonRequest, prior CordonPrior) (drift *Drift,
	err error,
) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		drift, err = undoCordonOnce(ctx, client, r, prior)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("uncordon node %s: %w", prior.Node, err)
	}
	return drift, nil
}

func undoCordonOnce(ctx context.Context, client kubernetes.Interface, r CordonRequest, prior CordonPrior) (*Drift,
	error,
) {
	node, err := prior.getNode(ctx, client)
	if err != nil || node == nil {
		return nil, err
	}
	lease := node.Annotations[FacetScheduling.LeaseAnnotation()]
	if lease == "" && node.Spec.Unschedulable == prior.WasUnschedulable {
		return nil, nil // already undone
	}
	if lease != r.Lease.ID {
		return &Drift{metadataDifferences(prior.String(), node, r.Lease.FieldManager(), "annotation", node.Annotations,
			map[string]string{FacetScheduling.LeaseAnnotation(): r.Lease.ID})}, nil
	}
	off := map[string]any{FacetScheduling.PriorStateAnnotation(): nil}
	for k := range r.Lease.leaseAnnotations(FacetScheduling) {
		off[k] = nil
	}
	return nil, r.patchNode(ctx, client, node, prior.WasUnschedulable, nil, off)
}

// ReadExpiryMarker reads the marker of a cordon, and the prior state that was saved with it.
func (r CordonRequest) ReadExpiryMarker(ctx context.Context, client kubernetes.Interface,
	prior CordonPrior,
) (ExpiryMarker, *CordonPrior, error) {
	node, err := prior.getNode(ctx, client)
	if err != nil || node == nil {
		return ExpiryMarker{}, nil, err
	}
	s := readExpiryMarker(node, FacetScheduling, r.Lease.ID)
	if !s.Present {
		return s, nil, nil
	}
	before, err := readSavedCordon(node)
	if err != nil {
		return s, nil, fmt.Errorf("read the expiry marker of node %s: %w", prior.Node, err)
	}
	return s, &before, nil
}

// FindOrphanedCordons returns cordoned nodes whose stamped expiry is before now.
func FindOrphanedCordons(ctx context.Context, client kubernetes.Interface, now time.Time) ([]Orphan, error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: CordonLabel})
	if err != nil {
		return nil, fmt.Errorf("find orphaned cordons: list nodes: %w", err)
	}
	var orphans []Orphan
	for i := range nodes.Items {
		n := &nodes.Items[i]
		lease, expired := readExpiredLease(n, FacetScheduling, now)
		if lease.ID == "" || !expired {
			continue
		}
		o := Orphan{
			Object: "Node " + n.Name, LeaseID: lease.ID, IncidentID: lease.IncidentID, ExpiredAt: lease.ExpiresAt,
			CordonRequest: &CordonRequest{Lease: lease},
		}
		if prior, err := readSavedCordon(n); err == nil {
			o.CordonRequest.Pod, o.CordonPrior = prior.Pod, &prior
		}
		orphans = append(orphans, o)
	}
	return orphans, nil
}
