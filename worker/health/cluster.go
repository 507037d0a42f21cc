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

// Kubernetes tells from the cluster which nodes there are, and which of them have a pod of the sensor's DaemonSet.
type Kubernetes struct {
	Client kubernetes.Interface
	// Namespace and Selector find the sensor's DaemonSet's pods.
	Namespace, Selector string
	// Every is how long an answer is believed; default 30 s.
	Every time.Duration

	mu    sync.Mutex
	asked time.Time
	known map[string]Expectation
}

var _ Cluster = (*Kubernetes)(nil)

// pageSize bounds one answer of the API server.
const pageSize = 500

// Expected are the nodes that exist, with what the cluster says of the sensor's pod there. A pod that cannot start is a
// sensor that should run; a node that was watched and has no such pod any more was perhaps made blind on purpose.
func (k *Kubernetes) Expected(ctx context.Context) (map[string]Expectation, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	every := k.Every
	if every == 0 {
		every = 30 * time.Second
	}
	if k.known != nil && time.Since(k.asked) < every {
		return k.known, nil
	}
	nodes := map[string]corev1.Node{}
	for next := ""; ; {
		page, err := k.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
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
	out := map[string]Expectation{}
	for _, n := range nodes {
		out[n.Name] = Expectation{Ready: ready(n), Cordoned: n.Spec.Unschedulable, Since: n.CreationTimestamp.Time}
	}
	for next := ""; ; {
		page, err := k.Client.CoreV1().Pods(k.Namespace).List(ctx, metav1.ListOptions{LabelSelector: k.Selector, Limit: pageSize, Continue: next})
		if err != nil {
			return nil, fmt.Errorf("list the sensor's pods: %w", err)
		}
		for _, p := range page.Items {
			name := nodeOf(p)
			e, exists := out[name]
			if !exists || p.DeletionTimestamp != nil && e.Pod != "" {
				continue
			}
			e.Pod, e.Since = stateOf(p), later(nodes[name].CreationTimestamp.Time, p.CreationTimestamp.Time)
			out[name] = e
		}
		if next = page.Continue; next == "" {
			break
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the cluster has no nodes") // which cannot be: this runs on one
	}
	k.known, k.asked = out, time.Now()
	return out, nil
}

// nodeOf is the node of a DaemonSet's pod, which is named in its affinity before it is scheduled.
func nodeOf(p corev1.Pod) string {
	if p.Spec.NodeName != "" || p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil || p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
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

func ready(n corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func stateOf(p corev1.Pod) string {
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

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
