package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// cordonLabel marks a cordoned node; its value is ShortLeaseID of the lease.
const cordonLabel = "stanch.dev/cordon"

// cordonAction is `contain: node.cordon`. It cordons the node of a target pod. The target is a pod because detections,
// evidence and scopes are about pods. A pod never moves, so its UID identifies the node.
type cordonAction struct{ client kubernetes.Interface }

var (
	_ activities.Containment  = (*cordonAction)(nil)
	_ activities.OrphanFinder = (*cordonAction)(nil)
)

func (*cordonAction) Spec() playbooks.ActionSpec {
	pods, nodes := []string{"pods"}, []string{"nodes"}
	return playbooks.ActionSpec{
		Name:            "node.cordon",
		Verb:            playbooks.VerbContain,
		Class:           playbooks.ClassDisrupt,
		Facet:           playbooks.FacetScheduling,
		Targets:         []playbooks.TargetKind{playbooks.TargetPod},
		Reversible:      true,
		EndMechanism:    playbooks.EndByStanch,
		D3FENDTechnique: "D3-EI",
		Doc:             "Schedule no new pods on the pod's node; running pods are not affected. Never cordons the last node.",
		PlanPermissions: []playbooks.KubernetesPermission{
			permission("", pods, "get"), permission("", nodes, "get", "list"),
		},
		ApplyPermissions: []playbooks.KubernetesPermission{
			permission("", pods, "get"),
			permission("", nodes, "get", "list", "patch"), // of spec.unschedulable and the lease's annotations
		},
		OrphanPermissions: []playbooks.KubernetesPermission{permission("", nodes, "list")},
	}
}

// cordonPrior is the cordoned node, the pod that identifies it, and the state before. It names the node even after the
// pod is gone.
type cordonPrior struct {
	Node             string `json:"node"`
	UID              string `json:"uid"`
	Pod              PodRef `json:"pod"`
	WasUnschedulable bool   `json:"was_unschedulable"`
}

// String returns the node, for messages.
func (p cordonPrior) String() string { return "Node " + p.Node }

// cordonState is what plan and apply depend on: the node, the state that undo restores, and what is left to change.
type cordonState struct {
	node    *corev1.Node
	prior   cordonPrior
	changes []string
}

func (a *cordonAction) readState(ctx context.Context, ref PodRef, lease string) (cordonState, error) {
	pod, err := getPod(ctx, a.client, ref)
	if err != nil {
		return cordonState{}, err
	}
	if pod.Spec.NodeName == "" {
		return cordonState{}, activities.Refusef("pod %s is not scheduled yet", ref)
	}
	nodes, err := a.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return cordonState{}, fmt.Errorf("list nodes: %w", err)
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
		return cordonState{}, activities.RefuseGonef("node %s is gone", pod.Spec.NodeName)
	}
	s := cordonState{node: node, prior: cordonPrior{
		Node: node.Name, UID: string(node.UID), Pod: ref, WasUnschedulable: node.Spec.Unschedulable,
	}}
	switch other := readStamp(node, playbooks.FacetScheduling).ID; other {
	case "":
		s.changes = append(s.changes, fmt.Sprintf("annotate node %s with the lease", node.Name))
	case lease:
		if s.prior, err = readCordonPrior(node); err != nil {
			return s, activities.Refusef("node %s has this lease, but its saved state cannot be parsed: %v", node.Name, err)
		}
	default:
		return s, activities.Refusef("node %s is under another lease, %s", node.Name, other)
	}
	if node.Spec.Unschedulable {
		return s, nil
	}
	if others == 0 {
		return s, activities.Refusef(
			"node %s is the only node that is ready and schedulable; if it is cordoned, no pod can start", node.Name)
	}
	s.changes = append(s.changes, fmt.Sprintf(
		"cordon node %s: its pods keep running, and no new ones are scheduled (%d other nodes are schedulable)", node.Name,
		others))
	return s, nil
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

// readCordonPrior reads the prior state from a node's annotation. The node's name comes from the node itself.
func readCordonPrior(node *corev1.Node) (cordonPrior, error) {
	var prior cordonPrior
	name := priorAnnotation(playbooks.FacetScheduling)
	if err := json.Unmarshal([]byte(node.Annotations[name]), &prior); err != nil {
		return cordonPrior{}, fmt.Errorf("annotation %s: %w", name, err)
	}
	prior.Node, prior.UID = node.Name, string(node.UID)
	return prior, nil
}

// Plan returns what a cordon would change.
func (a *cordonAction) Plan(ctx context.Context, r activities.Request) (activities.Plan, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return activities.Plan{}, err
	}
	state, err := a.readState(ctx, pod, r.LeaseID)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("plan to cordon the node of pod %s: %w", pod, err)
	}
	prior, err := json.Marshal(state.prior)
	if err != nil {
		return activities.Plan{}, fmt.Errorf("save the prior state: %w", err)
	}
	return activities.Plan{Changes: state.changes, PriorState: prior, NothingToDo: len(state.changes) == 0}, nil
}

// Apply cordons the node and stamps the lease on it in one write. It is idempotent: the saved prior state stays, only
// the expiry changes.
func (a *cordonAction) Apply(ctx context.Context, r activities.Request, raw json.RawMessage,
	_ attestation.Envelope,
) (activities.Effect, error) {
	pod, prior, err := a.decodeRequest(r, raw)
	if err != nil {
		return activities.Effect{}, err
	}
	if err := refuseEarlyEnd(r, func() (activities.LeaseStamp, error) {
		stamp, _, err := a.readOwnStamp(ctx, r.LeaseID, prior)
		return stamp, err
	}); err != nil {
		return activities.Effect{}, err
	}
	var state cordonState
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() (err error) {
		if state, err = a.readState(ctx, pod, r.LeaseID); err != nil {
			return err
		}
		return a.patchNode(ctx, state.node, fieldManager(r.LeaseStamp()), cordonPatch{
			unschedulable: true, label: ShortLeaseID(r.LeaseID),
			annotations: stampPatch(playbooks.FacetScheduling, r.LeaseStamp(), compactJSON(state.prior)),
		})
	})
	if err != nil {
		return activities.Effect{}, fmt.Errorf("cordon the node of pod %s: %w", pod, err)
	}
	effect := activities.Effect{Outcome: playbooks.OutcomeChanged, AppliedAt: time.Now()}
	differences, err := a.findDifferences(ctx, r.LeaseStamp(), state.prior)
	switch {
	case err != nil:
		return activities.Effect{}, err
	case len(differences) > 0:
		effect.Outcome, effect.Reason = playbooks.OutcomeUnverified, DescribeDifferences(differences)
	case state.prior.WasUnschedulable:
		effect.Reason = "the node was cordoned before and stays cordoned when the lease ends"
	}
	return effect, nil
}

// decodeRequest returns the pod and the saved prior state of a request.
func (a *cordonAction) decodeRequest(r activities.Request, raw json.RawMessage) (PodRef, cordonPrior, error) {
	pod, err := requirePod(a.client, r)
	if err != nil {
		return pod, cordonPrior{}, err
	}
	prior, err := activities.DecodePriorState[cordonPrior](raw)
	return pod, prior, err
}

// cordonPatch is what is written to a node. The label is removed if it is nil.
type cordonPatch struct {
	unschedulable bool
	label         any
	annotations   map[string]any
}

// patchNode patches the node at the resource version that was checked; otherwise the API server returns a conflict.
func (a *cordonAction) patchNode(ctx context.Context, node *corev1.Node, manager string, p cordonPatch) error {
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{
			"uid": node.UID, "resourceVersion": node.ResourceVersion,
			"labels": map[string]any{cordonLabel: p.label}, "annotations": p.annotations,
		},
		"spec": map[string]any{"unschedulable": p.unschedulable},
	})
	if err != nil {
		return err
	}
	_, err = a.client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, body,
		metav1.PatchOptions{FieldManager: manager})
	if apierrors.IsNotFound(err) {
		return nil // verification reports it
	}
	return err
}

// getNode returns the node of a cordon, or nil if it is gone.
func (a *cordonAction) getNode(ctx context.Context, prior cordonPrior) (*corev1.Node, error) {
	node, err := a.client.CoreV1().Nodes().Get(ctx, prior.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && string(node.UID) != prior.UID {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", prior.Node, err)
	}
	return node, nil
}

// readOwnStamp reads the stamp of a lease from the node, and the prior state that was saved with it. The stamp is zero
// and the prior state nil if the node has none of this lease.
func (a *cordonAction) readOwnStamp(ctx context.Context, lease string, prior cordonPrior) (activities.LeaseStamp,
	*cordonPrior, error,
) {
	node, err := a.getNode(ctx, prior)
	if err != nil || node == nil {
		return activities.LeaseStamp{}, nil, err
	}
	stamp := readOwnStamp(node, playbooks.FacetScheduling, lease)
	if stamp.ID == "" {
		return stamp, nil, nil
	}
	before, err := readCordonPrior(node)
	if err != nil {
		return stamp, nil, fmt.Errorf("read the lease of node %s: %w", prior.Node, err)
	}
	return stamp, &before, nil
}

// findDifferences returns how the node differs from what apply wrote. The pod may be gone.
func (a *cordonAction) findDifferences(ctx context.Context, stamp activities.LeaseStamp,
	prior cordonPrior,
) ([]Difference, error) {
	node, err := a.getNode(ctx, prior)
	if err != nil {
		return nil, err
	}
	if node == nil {
		return nil, activities.RefuseGonef("node %s is gone", prior.Node)
	}
	var out []Difference
	if !node.Spec.Unschedulable {
		by, when := lastWriter(node, fieldManager(stamp))
		out = append(out, Difference{
			Object: prior.String(), Field: "spec.unschedulable", Want: "true", Have: "false", ChangedBy: by, ChangedAt: when,
		})
	}
	seen := observedObject{prior.String(), node, fieldManager(stamp)}
	return append(out, seen.annotationDifferences(stampAnnotations(playbooks.FacetScheduling, stamp))...), nil
}

// Verify reports whether the node is cordoned and carries the lease's stamp.
func (a *cordonAction) Verify(ctx context.Context, r activities.Request, raw json.RawMessage) (bool, string, error) {
	_, prior, err := a.decodeRequest(r, raw)
	if err != nil {
		return false, "", err
	}
	differences, err := a.findDifferences(ctx, r.LeaseStamp(), prior)
	return err == nil && len(differences) == 0, DescribeDifferences(differences), err
}

// Undo restores the prior state that is stamped on the node. Without a stamp of this lease, it writes nothing, whatever
// the request says.
func (a *cordonAction) Undo(ctx context.Context, r activities.Request, raw json.RawMessage,
	grant *attestation.Envelope,
) (*activities.Drift, error) {
	_, prior, err := a.decodeRequest(r, raw)
	if err != nil {
		return nil, err
	}
	stamp, stamped, err := a.readOwnStamp(ctx, r.LeaseID, prior)
	if err != nil {
		return nil, err
	}
	if err := activities.RefuseEarlyUndo(stamp.ExpiresAt, grant); err != nil {
		return nil, err
	}
	if stamped != nil {
		prior = *stamped
	}
	return a.uncordon(ctx, r.LeaseStamp(), prior)
}

// uncordon restores the prior state and removes the stamp. It does nothing if the node is gone or the cordon was undone
// before. If the node is cordoned without this lease's stamp, it changes nothing and returns a drift. A second cordon
// by someone else looks like the first; to keep a cordon after the lease, remove the annotations.
func (a *cordonAction) uncordon(ctx context.Context, stamp activities.LeaseStamp,
	prior cordonPrior,
) (drift *activities.Drift, err error) {
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		node, err := a.getNode(ctx, prior)
		if err != nil || node == nil {
			return err
		}
		lease := readStamp(node, playbooks.FacetScheduling).ID
		if lease == "" && node.Spec.Unschedulable == prior.WasUnschedulable {
			return nil // already undone
		}
		if lease != stamp.ID {
			drift = driftFrom(observedObject{prior.String(), node, fieldManager(stamp)}.annotationDifferences(
				map[string]string{leaseAnnotation(playbooks.FacetScheduling): stamp.ID}))
			return nil
		}
		return a.patchNode(ctx, node, fieldManager(stamp), cordonPatch{
			unschedulable: prior.WasUnschedulable, annotations: unstampPatch(playbooks.FacetScheduling),
		})
	})
	if err != nil {
		return nil, fmt.Errorf("uncordon node %s: %w", prior.Node, err)
	}
	return drift, nil
}

// FindOrphans returns the cordoned nodes whose stamped end has passed.
func (a *cordonAction) FindOrphans(ctx context.Context, before time.Time) ([]activities.Orphan, error) {
	if a.client == nil {
		return nil, nil
	}
	nodes, err := a.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: cordonLabel})
	if err != nil {
		return nil, fmt.Errorf("find orphaned cordons: list nodes: %w", err)
	}
	var out []activities.Orphan
	for i := range nodes.Items {
		stamp, expired := readExpiredStamp(&nodes.Items[i], playbooks.FacetScheduling, before)
		if !expired {
			continue
		}
		name := "Node " + nodes.Items[i].Name
		prior, err := readCordonPrior(&nodes.Items[i])
		out = append(out, activities.Orphan{
			ObjectName: name, Lease: stamp, Facet: playbooks.FacetScheduling,
			Target: playbooks.Target{Kind: playbooks.TargetPod, UID: prior.Pod.UID},
			Undo: func(ctx context.Context) (*activities.Drift, error) {
				if err != nil {
					return nil, unreadablePriorError(name, err)
				}
				return a.uncordon(ctx, stamp, prior)
			},
		})
	}
	return out, nil
}
