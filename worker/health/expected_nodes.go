package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// KubernetesCluster returns the nodes of the cluster, and which of them have a pod of the sensor's DaemonSet.
type KubernetesCluster struct {
	KubeClient kubernetes.Interface
	// Namespace and Selector select the pods of the sensor's DaemonSet.
	Namespace, Selector string
	// CacheTTL is how long a result is cached; default 30 s.
	CacheTTL time.Duration

	mu          sync.Mutex
	fetchedAt   time.Time
	cachedNodes map[string]NodeExpectation
}

var _ ClusterNodes = (*KubernetesCluster)(nil)

// pageSize is the page size of lists.
const pageSize = 500

// ExpectedNodes returns the existing nodes, with the state of the sensor's pod. A node whose pod cannot start should
// still have a sensor; a node that had a sensor and has no pod anymore may have been blinded on purpose.
func (k *KubernetesCluster) ExpectedNodes(ctx context.Context) (map[string]NodeExpectation, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	every := k.CacheTTL
	if every == 0 {
		every = 30 * time.Second
	}
	if k.cachedNodes != nil && time.Since(k.fetchedAt) < every {
		return k.cachedNodes, nil
	}
	nodes := map[string]corev1.Node{}
	for next := ""; ; {
		page, err := k.KubeClient.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
		if err != nil {
			return nil, fmt.Errorf("list the cluster's nodes: %w", err)
		}
		for _, n := range page.Items {
			if n.DeletionTimestamp == nil {
				nodes[n.Name] = n
			}
		}
		if next = page.Continue; next == "" {
			break
		}
	}
	out := map[string]NodeExpectation{}
	for _, n := range nodes {
		out[n.Name] = NodeExpectation{
			Ready: isReady(n), Cordoned: n.Spec.Unschedulable,
			ExpectedSince: n.CreationTimestamp.Time,
		}
	}
	for next := ""; ; {
		page, err := k.KubeClient.CoreV1().Pods(k.Namespace).List(ctx, metav1.ListOptions{
			LabelSelector: k.Selector,
			Limit:         pageSize, Continue: next,
		})
		if err != nil {
			return nil, fmt.Errorf("list the sensor's pods: %w", err)
		}
		for _, p := range page.Items {
			name := nodeOfDaemonPod(p)
			e, exists := out[name]
			if !exists || p.DeletionTimestamp != nil && e.SensorPodStatus != "" {
				continue
			}
			e.SensorPodStatus, e.ExpectedSince = describePodState(p), laterTime(nodes[name].CreationTimestamp.Time,
				p.CreationTimestamp.Time)
			out[name] = e
		}
		if next = page.Continue; next == "" {
			break
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the cluster has no nodes") // impossible: this process runs on one
	}
	k.cachedNodes, k.fetchedAt = out, time.Now()
	return out, nil
}

// nodeOfDaemonPod returns the node of a DaemonSet's pod, which its affinity names before it is scheduled.
func nodeOfDaemonPod(p corev1.Pod) string {
	if p.Spec.NodeName != "" || p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil ||
		p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return p.Spec.NodeName
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == "metadata.name" && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

func isReady(n corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func describePodState(p corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return w.Reason
		}
	}
	if p.DeletionTimestamp != nil {
		return "it is being deleted"
	}
	if p.Status.Phase == "" {
		return "not started"
	}
	return string(p.Status.Phase)
}

func laterTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
