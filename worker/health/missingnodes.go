package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"stanch/sensors"
	"stanch/sensors/durablefile"
	"stanch/sensors/duration"
)

// NodeExpectation is the cluster's data about a node that should have a sensor.
type NodeExpectation struct {
	Ready bool
	// Cordoned means that the node is being taken out of service.
	Cordoned bool
	// ExpectedSince is the earliest time at which a sensor could run there.
	ExpectedSince time.Time
	// SensorPodStatus is the status of the sensor's pod: "Running", "CrashLoopBackOff"; "" means that there is no pod.
	SensorPodStatus string
}

// nodeRecord is the stored record of a node.
type nodeRecord struct {
	SeenAt  time.Time `json:"seen_at"`
	Stopped bool      `json:"stopped,omitempty"`
}

// nodeForgetAfter is the time after which a node that is not expected is forgotten.
const nodeForgetAfter = 7 * 24 * time.Hour

// loadNodeRecords loads the nodes that were connected before this process started.
func (m *Monitor) loadNodeRecords() error {
	if m.StateFile == "" {
		return nil
	}
	raw, err := os.ReadFile(m.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", m.StateFile, err)
	}
	var known map[string]nodeRecord
	if err := json.Unmarshal(raw, &known); err != nil {
		return fmt.Errorf("read %s: %w", m.StateFile, err)
	}
	for name, r := range known {
		// They had no time to connect since this process started.
		n := newNodeState()
		n.stopped, n.lastSeen, n.disconnectedAt = r.Stopped, r.SeenAt, m.startedAt
		m.nodes[name] = n
	}
	return nil
}

// saveNodeRecords stores the nodes that were connected.
func (m *Monitor) saveNodeRecords() {
	if m.StateFile == "" {
		return
	}
	m.mu.Lock()
	m.recordChanges++
	change := m.recordChanges
	m.mu.Unlock()
	m.saveMu.Lock()
	defer m.saveMu.Unlock()
	if m.savedChanges >= change {
		return // when many nodes connect at once, one write serves all that waited for the one before
	}
	m.mu.Lock()
	change = m.recordChanges
	known := map[string]nodeRecord{}
	for name, n := range m.nodes {
		known[name] = nodeRecord{SeenAt: n.lastSeen.UTC(), Stopped: n.stopped}
	}
	m.mu.Unlock()
	raw, err := json.Marshal(known)
	if err == nil {
		if err = durablefile.MakeDirectory(filepath.Dir(m.StateFile), 0o700); err == nil {
			err = durablefile.Write(m.StateFile, raw, 0o600)
		}
	}
	if err != nil {
		m.Log.Warn("store the connected nodes", "error", err)
		return
	}
	m.savedChanges = change
}

// missingNode is a node that is not connected, and since when.
type missingNode struct {
	name         string
	missingSince time.Time
	seenBefore   bool // it was connected before
	stopped      bool
}

// reportMissingNodes reports nodes that should be connected and are not.
func (m *Monitor) reportMissingNodes(ctx context.Context) {
	now := m.Now()
	var expected map[string]NodeExpectation
	if m.ClusterNodes != nil {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		var err error
		if expected, err = m.ClusterNodes.ExpectedNodes(ctx); err != nil {
			m.Log.Warn("list the nodes that should be monitored", "error", err)
			expected = nil
		}
	}
	if expected != nil {
		m.syncRegistry(ctx, now, expected)
	}
	for _, a := range m.findMissingNodes(now, expected) {
		e, should := expected[a.name]
		c, tell := m.assessMissingNode(a, e, should, expected != nil, now)
		if !tell {
			continue
		}
		if m.ReplicaChecker != nil {
			served, err := m.ReplicaChecker.ServesNode(ctx, a.name)
			if err != nil {
				m.Log.Warn("check whether another gateway serves a node", "node", a.name, "error", err)
				continue // Temporal is unavailable, so nothing could be reported
			}
			if served {
				continue
			}
		}
		m.reportCondition(c)
	}
}

// findMissingNodes returns the nodes that are not connected, sorted, and forgets those that are gone for long.
func (m *Monitor) findMissingNodes(now time.Time, expected map[string]NodeExpectation) []missingNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []missingNode
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[name]
		if n.connected {
			continue
		}
		_, should := expected[name]
		if !should && now.Sub(n.lastSeen) > nodeForgetAfter || expected != nil && !should &&
			now.Sub(n.disconnectedAt) > m.Timing.LostAfter {
			delete(m.nodes, name) // the node was deleted
			continue
		}
		out = append(out, missingNode{name: name, missingSince: n.disconnectedAt, seenBefore: true, stopped: n.stopped})
	}
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		e := expected[name]
		if m.nodes[name] != nil {
			continue
		}
		if _, was := m.registryNodes[name]; e.SensorPodStatus == "" && !was {
			continue // no sensor was expected there
		}
		since := m.startedAt
		if e.ExpectedSince.After(since) {
			since = e.ExpectedSince
		}
		out = append(out, missingNode{name: name, missingSince: since})
	}
	return out
}

// assessMissingNode decides whether a missing node is a condition, and its severity.
func (m *Monitor) assessMissingNode(a missingNode, e NodeExpectation, should, cluster bool,
	now time.Time,
) (telemetryCondition, bool) {
	away := now.Sub(a.missingSince)
	limit := m.Timing.LostAfter
	if a.stopped || cluster && e.SensorPodStatus == "" {
		limit = m.Timing.StoppedAfter
	}
	switch {
	case away < limit:
		return telemetryCondition{}, false
	case !cluster && a.stopped:
		return telemetryCondition{}, false // a regular shutdown of a node that is not expected
	case cluster && !should:
		return telemetryCondition{}, false // the node was deleted
	case cluster && e.Cordoned && !e.Ready:
		return telemetryCondition{}, false // the node was drained and is down
	}
	c := telemetryCondition{kind: telemetryLost, subject: newNodeSubject(a.name), node: a.name, since: a.missingSince}
	switch {
	case a.seenBefore && a.stopped:
		c.reasons = append(c.reasons, fmt.Sprintf("The sensor on node %s was stopped %s ago and has not reconnected.", a.name,
			duration.FormatApprox(away)))
	case a.seenBefore:
		c.reasons = append(c.reasons, fmt.Sprintf("The sensor on node %s disconnected %s ago without announcing a shutdown.",
			a.name, duration.FormatApprox(away)))
	default:
		c.reasons = append(c.reasons, fmt.Sprintf("The sensor on node %s has not connected for %s.", a.name,
			duration.FormatApprox(away)))
	}
	switch {
	case !cluster:
	case e.Ready && e.SensorPodStatus == "":
		c.reasons = append(
			c.reasons,
			"Kubernetes reports the node as ready, but no pod of the sensor is scheduled there anymore: it was removed.",
		)
		if m.NodeRegistry != nil {
			c.reasons = append(c.reasons, "If this was intended, remove the node from the ConfigMap "+NodeRegistryConfigMap+" "+
				"and restart the worker.")
		}
	case e.Ready:
		c.reasons = append(c.reasons, fmt.Sprintf("Kubernetes reports the node as ready; its sensor's pod: %s.",
			detail(e.SensorPodStatus)))
	default:
		c.severity = sensors.SeverityMedium
		c.reasons = append(c.reasons, "Kubernetes reports the node as not ready: the machine itself may be down.")
	}
	return c, true
}
