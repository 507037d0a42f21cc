package health

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// Memory keeps for all replicas, longer than any of them lives, on which nodes a sensor was seen: who takes the sensors
// away and then restarts the gateway must not make it forget that there were any.
type Memory interface {
	// Recall gives the nodes on which a sensor was seen, and when it was first.
	Recall(ctx context.Context) (map[string]time.Time, error)
	// Remember adds nodes and takes others away.
	Remember(ctx context.Context, seen map[string]time.Time, gone []string) error
}

// WatchedName is the ConfigMap of the nodes on which a sensor was seen, in Stanch's own namespace. It is there from the
// start, so that the right to change this one object suffices.
const WatchedName = "stanch-watched-nodes"

// ConfigMap is the memory in a cluster: a key for each node, so that replicas do not write over one another.
type ConfigMap struct {
	Client    kubernetes.Interface
	Namespace string
}

var _ Memory = ConfigMap{}

// Recall reads the nodes. What is no time is a node all the same: somebody added it by hand.
func (c ConfigMap) Recall(ctx context.Context) (map[string]time.Time, error) {
	m, err := c.Client.CoreV1().ConfigMaps(c.Namespace).Get(ctx, WatchedName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the ConfigMap %s/%s (`stanch manifests` makes it): %w", c.Namespace, WatchedName, err)
	}
	out := map[string]time.Time{}
	for name, text := range m.Data {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			at = m.CreationTimestamp.Time
		}
		out[name] = at
	}
	return out, nil
}

// Remember changes the keys of these nodes only.
func (c ConfigMap) Remember(ctx context.Context, seen map[string]time.Time, gone []string) error {
	data := map[string]any{}
	for _, name := range gone {
		data[name] = nil
	}
	for name, at := range seen {
		data[name] = at.UTC().Format(time.RFC3339)
	}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return fmt.Errorf("write the ConfigMap %s/%s: %w", c.Namespace, WatchedName, err)
	}
	if _, err := c.Client.CoreV1().ConfigMaps(c.Namespace).Patch(ctx, WatchedName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stanch"}); err != nil {
		return fmt.Errorf("write the ConfigMap %s/%s (`stanch manifests` makes it and the right to it): %w", c.Namespace, WatchedName, err)
	}
	return nil
}

const (
	// recallEvery is how often it is read what other replicas have seen.
	recallEvery = time.Minute
	// rememberAtMost bounds one change of the memory, and all of it.
	rememberAtMost = 1000
	maxRemembered  = 10_000
)

// share brings the memory and what this replica sees together. Only Look uses what it keeps of it.
func (m *Monitor) share(ctx context.Context, now time.Time, expected map[string]Expectation) {
	if m.Memory == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if now.Sub(m.recalled) >= recallEvery {
		m.recalled = now // also of an attempt: what fails is not tried at every look
		shared, err := m.Memory.Recall(ctx)
		if err != nil {
			m.Log.Warn("on which nodes a sensor was seen is not known now", "error", err)
		} else {
			m.shared = shared
		}
	}
	if m.shared == nil {
		return
	}
	seen := map[string]time.Time{}
	m.mu.Lock()
	for name, n := range m.nodes {
		_, known := m.shared[name]
		if _, exists := expected[name]; n.here && exists && !known && len(seen) < rememberAtMost && len(m.shared)+len(seen) < maxRemembered {
			seen[name] = now
		}
	}
	m.mu.Unlock()
	var gone []string
	for name := range m.shared {
		if _, exists := expected[name]; expected != nil && !exists && len(gone) < rememberAtMost {
			gone = append(gone, name) // the node was deleted
		}
	}
	if len(seen)+len(gone) == 0 || now.Before(m.unshared) {
		return
	}
	if err := m.Memory.Remember(ctx, seen, gone); err != nil {
		m.Log.Warn("on which nodes a sensor is seen is not remembered", "error", err)
		m.unshared = now.Add(recallEvery)
		return
	}
	maps.Copy(m.shared, seen)
	for _, name := range gone {
		delete(m.shared, name)
	}
}
