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

// NodeRegistry keeps for all replicas, longer than any of them lives, on which nodes a sensor was seen: who takes the sensors
// away and then restarts the gateway must not make it forget that there were any.
type NodeRegistry interface {
	// LoadNodes gives the nodes on which a sensor was seen, and when it was first.
	LoadNodes(ctx context.Context) (map[string]time.Time, error)
	// UpdateNodes adds nodes and takes others away.
	UpdateNodes(ctx context.Context, seen map[string]time.Time, gone []string) error
}

// NodeRegistryConfigMap is the ConfigMapNodeRegistry of the nodes on which a sensor was seen, in Stanch's own namespace. It is there from the
// start, so that the right to change this one object suffices.
const NodeRegistryConfigMap = "stanch-watched-nodes"

// ConfigMapNodeRegistry is the memory in a cluster: a key for each node, so that replicas do not write over one another.
type ConfigMapNodeRegistry struct {
	KubeClient kubernetes.Interface
	Namespace  string
}

var _ NodeRegistry = ConfigMapNodeRegistry{}

// LoadNodes reads the nodes. What is no time is a node all the same: somebody added it by hand.
func (c ConfigMapNodeRegistry) LoadNodes(ctx context.Context) (map[string]time.Time, error) {
	m, err := c.KubeClient.CoreV1().ConfigMaps(c.Namespace).Get(ctx, NodeRegistryConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the ConfigMap %s/%s (`stanch manifests` makes it): %w", c.Namespace, NodeRegistryConfigMap, err)
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

// UpdateNodes changes the keys of these nodes only.
func (c ConfigMapNodeRegistry) UpdateNodes(ctx context.Context, seen map[string]time.Time, gone []string) error {
	data := map[string]any{}
	for _, name := range gone {
		data[name] = nil
	}
	for name, at := range seen {
		data[name] = at.UTC().Format(time.RFC3339)
	}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return fmt.Errorf("write the ConfigMap %s/%s: %w", c.Namespace, NodeRegistryConfigMap, err)
	}
	if _, err := c.KubeClient.CoreV1().ConfigMaps(c.Namespace).Patch(ctx, NodeRegistryConfigMap, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "stanch"}); err != nil {
		return fmt.Errorf("write the ConfigMap %s/%s (`stanch manifests` makes it and the right to it): %w", c.Namespace, NodeRegistryConfigMap, err)
	}
	return nil
}

const (
	// registryReadInterval is how often it is read what other replicas have seen.
	registryReadInterval = time.Minute
	// maxRegistryChange bounds one change of the memory, and all of it.
	maxRegistryChange = 1000
	maxRegistryNodes  = 10_000
)

// syncRegistry brings the memory and what this replica sees together. Only Look uses what it keeps of it.
func (m *Monitor) syncRegistry(ctx context.Context, now time.Time, expected map[string]NodeExpectation) {
	if m.NodeRegistry == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if now.Sub(m.registryReadAt) >= registryReadInterval {
		m.registryReadAt = now // also of an attempt: what fails is not tried at every look
		shared, err := m.NodeRegistry.LoadNodes(ctx)
		if err != nil {
			m.Log.Warn("on which nodes a sensor was seen is not known now", "error", err)
		} else {
			m.registryNodes = shared
		}
	}
	if m.registryNodes == nil {
		return
	}
	seen := map[string]time.Time{}
	m.mu.Lock()
	for name, n := range m.nodes {
		_, known := m.registryNodes[name]
		if _, exists := expected[name]; n.connected && exists && !known && len(seen) < maxRegistryChange && len(m.registryNodes)+len(seen) < maxRegistryNodes {
			seen[name] = now
		}
	}
	m.mu.Unlock()
	var gone []string
	for name := range m.registryNodes {
		if _, exists := expected[name]; expected != nil && !exists && len(gone) < maxRegistryChange {
			gone = append(gone, name) // the node was deleted
		}
	}
	if len(seen)+len(gone) == 0 || now.Before(m.registryRetryAt) {
		return
	}
	if err := m.NodeRegistry.UpdateNodes(ctx, seen, gone); err != nil {
		m.Log.Warn("on which nodes a sensor is seen is not remembered", "error", err)
		m.registryRetryAt = now.Add(registryReadInterval)
		return
	}
	maps.Copy(m.registryNodes, seen)
	for _, name := range gone {
		delete(m.registryNodes, name)
	}
}
