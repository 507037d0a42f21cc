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

// NodeRegistry stores the nodes that had a sensor, for all replicas and beyond their lifetime: removing the sensors and
// restarting the gateway must not make it forget them.
type NodeRegistry interface {
	// LoadNodes returns the nodes that had a sensor, with the time of its first connection.
	LoadNodes(ctx context.Context) (map[string]time.Time, error)
	// UpdateNodes adds and removes nodes.
	UpdateNodes(ctx context.Context, seen map[string]time.Time, gone []string) error
}

// NodeRegistryConfigMap is the ConfigMap of the ConfigMapNodeRegistry, in Stanch's own namespace. It is part of the
// installation, so that Stanch needs permission to change this one object only.
const NodeRegistryConfigMap = "stanch-watched-nodes"

// ConfigMapNodeRegistry is the registry in a cluster: one key per node, so that replicas do not overwrite each other.
type ConfigMapNodeRegistry struct {
	KubeClient kubernetes.Interface
	Namespace  string
}

var _ NodeRegistry = ConfigMapNodeRegistry{}

// LoadNodes reads the nodes. An entry without a valid time is a node that someone added manually.
func (c ConfigMapNodeRegistry) LoadNodes(ctx context.Context) (map[string]time.Time, error) {
	m, err := c.KubeClient.CoreV1().ConfigMaps(c.Namespace).Get(ctx, NodeRegistryConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the ConfigMap %s/%s (`stanch manifests` creates it): %w", c.Namespace,
			NodeRegistryConfigMap, err)
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

// UpdateNodes changes only the keys of these nodes.
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
	if _, err := c.KubeClient.CoreV1().ConfigMaps(c.Namespace).Patch(ctx, NodeRegistryConfigMap, types.MergePatchType,
		patch, metav1.PatchOptions{FieldManager: "stanch"}); err != nil {
		return fmt.Errorf("write the ConfigMap %s/%s (`stanch manifests` creates it and the permission to write it): %w",
			c.Namespace, NodeRegistryConfigMap, err)
	}
	return nil
}

const (
	// registryReadInterval is how often the changes of other replicas are read.
	registryReadInterval = time.Minute
	// maxRegistryChange is the maximum size of one change, and of the registry.
	maxRegistryChange = 1000
	maxRegistryNodes  = 10_000
)

// syncRegistry synchronizes the registry with this replica's nodes. Only CheckOnce uses the result.
func (m *Monitor) syncRegistry(ctx context.Context, now time.Time, expected map[string]NodeExpectation) {
	if m.NodeRegistry == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if now.Sub(m.registryReadAt) >= registryReadInterval {
		m.registryReadAt = now // also for a failed attempt, which is not repeated at every check
		shared, err := m.NodeRegistry.LoadNodes(ctx)
		if err != nil {
			m.Log.Warn("read the nodes on which a sensor was connected", "error", err)
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
		if _, exists := expected[name]; n.connected && exists && !known && len(seen) < maxRegistryChange &&
			len(m.registryNodes)+len(seen) < maxRegistryNodes {
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
		m.Log.Warn("store the nodes on which a sensor is connected", "error", err)
		m.registryRetryAt = now.Add(registryReadInterval)
		return
	}
	maps.Copy(m.registryNodes, seen)
	for _, name := range gone {
		delete(m.registryNodes, name)
	}
}
