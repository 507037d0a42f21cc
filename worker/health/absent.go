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
	"stanch/sensors/duration"
)

// Expectation is what the cluster says of a node on which a sensor should run.
type Expectation struct {
	Ready bool
	// Cordoned: somebody takes the node out of service.
	Cordoned bool
	// Since is when a sensor could have been there at the earliest.
	Since time.Time
	// Pod is what the cluster says of the sensor's pod there, in words: "Running", "CrashLoopBackOff".
	// "" is none.
	Pod string
}

// remembered is what the file keeps of a node.
type remembered struct {
	Seen    time.Time `json:"seen"`
	Stopped bool      `json:"stopped,omitempty"`
}

// forgotten is after how long a node that nobody expects is forgotten.
const forgotten = 7 * 24 * time.Hour

// recall reads which nodes were here before this process.
func (m *Monitor) recall() error {
	if m.File == "" {
		return nil
	}
	raw, err := os.ReadFile(m.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", m.File, err)
	}
	var known map[string]remembered
	if err := json.Unmarshal(raw, &known); err != nil {
		return fmt.Errorf("read %s: %w", m.File, err)
	}
	for name, r := range known {
		// They have had no time to dial since this process began.
		n := newNode()
		n.stopped, n.seen, n.left = r.Stopped, r.Seen, m.began
		m.nodes[name] = n
	}
	return nil
}

// remember writes which nodes were here.
func (m *Monitor) remember() {
	if m.File == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	known := map[string]remembered{}
	for name, n := range m.nodes {
		known[name] = remembered{Seen: n.seen.UTC(), Stopped: n.stopped}
	}
	raw, err := json.Marshal(known)
	if err == nil {
		next := m.File + ".new"
		if err = os.MkdirAll(filepath.Dir(m.File), 0o700); err == nil {
			if err = os.WriteFile(next, raw, 0o600); err == nil {
				err = os.Rename(next, m.File)
			}
		}
	}
	if err != nil {
		m.Log.Warn("which nodes are here is not remembered", "error", err)
	}
}

// missing is a node that is not here, and since when.
type missing struct {
	name    string
	since   time.Time
	known   bool // it was here before
	stopped bool
}

// absent tells of nodes that should be here and are not.
func (m *Monitor) absent(ctx context.Context) {
	now := m.Now()
	var expected map[string]Expectation
	if m.Cluster != nil {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		var err error
		if expected, err = m.Cluster.Expected(ctx); err != nil {
			m.Log.Warn("which nodes should be watched is not known now", "error", err)
			expected = nil
		}
	}
	if expected != nil {
		m.share(ctx, now, expected)
	}
	for _, a := range m.missing(now, expected) {
		e, should := expected[a.name]
		c, tell := m.judge(a, e, should, expected != nil, now)
		if !tell {
			continue
		}
		if m.Elsewhere != nil {
			served, err := m.Elsewhere.Serves(ctx, a.name)
			if err != nil {
				m.Log.Warn("whether another gateway has a node is not known now", "node", a.name, "error", err)
				continue // Temporal is away: nothing could be reported either
			}
			if served {
				continue
			}
		}
		m.tell(c)
	}
}

// missing lists the nodes that are not here, in order, and forgets those that are gone for long.
func (m *Monitor) missing(now time.Time, expected map[string]Expectation) []missing {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []missing
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[name]
		if n.here {
			continue
		}
		_, should := expected[name]
		if !should && now.Sub(n.seen) > forgotten || expected != nil && !should && now.Sub(n.left) > m.Timing.Lost {
			delete(m.nodes, name) // it was deleted
			continue
		}
		out = append(out, missing{name: name, since: n.left, known: true, stopped: n.stopped})
	}
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		e := expected[name]
		if m.nodes[name] != nil {
			continue
		}
		if _, was := m.shared[name]; e.Pod == "" && !was {
			continue // no sensor was ever meant to be there
		}
		since := m.began
		if e.Since.After(since) {
			since = e.Since
		}
		out = append(out, missing{name: name, since: since})
	}
	return out
}

// judge decides whether a node's absence is a matter, and of what weight.
func (m *Monitor) judge(a missing, e Expectation, should, cluster bool, now time.Time) (condition, bool) {
	away := now.Sub(a.since)
	limit := m.Timing.Lost
	if a.stopped || cluster && e.Pod == "" {
		limit = m.Timing.Stopped
	}
	switch {
	case away < limit:
		return condition{}, false
	case !cluster && a.stopped:
		return condition{}, false // somebody stopped it, and nobody says that it should run
	case cluster && !should:
		return condition{}, false // the node was deleted
	case cluster && e.Cordoned && !e.Ready:
		return condition{}, false // it was drained, and is down
	}
	c := condition{kind: telemetryLost, subject: nodeSubject(a.name), node: a.name, since: a.since}
	switch {
	case a.known && a.stopped:
		c.reasons = append(c.reasons, fmt.Sprintf("The sensor of node %s was told to stop %s ago, and has not come back.", a.name, duration.FormatApprox(away)))
	case a.known:
		c.reasons = append(c.reasons, fmt.Sprintf("The sensor of node %s fell silent %s ago, and did not say that it would.", a.name, duration.FormatApprox(away)))
	default:
		c.reasons = append(c.reasons, fmt.Sprintf("The sensor of node %s has not dialled in for %s.", a.name, duration.FormatApprox(away)))
	}
	switch {
	case !cluster:
	case e.Ready && e.Pod == "":
		c.reasons = append(c.reasons, "Kubernetes says that the node is ready, and that no pod of the sensor's is to run there any more: somebody took it away.")
		if m.Memory != nil {
			c.reasons = append(c.reasons, "If that was meant, take the node out of the ConfigMap "+WatchedName+" and restart the worker.")
		}
	case e.Ready:
		c.reasons = append(c.reasons, fmt.Sprintf("Kubernetes says that the node is ready; its sensor's pod: %s.", clip(e.Pod)))
	default:
		c.severity = sensors.SeverityMedium
		c.reasons = append(c.reasons, "Kubernetes says that the node is not ready: the machine itself may be down.")
	}
	return c, true
}
