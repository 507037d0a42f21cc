package health_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/worker/nodeserver"
)

// waitForRepeat waits until the monitor, by its clock, has reported a lost node once more: it has then checked every
// other node too.
func (e *gatewayFixture) waitForRepeat(t *testing.T, node string) {
	t.Helper()
	before := len(incidentDetections(t, e.server, "Node/"+node))
	require.Positive(t, before)
	e.advance(repeatInterval)
	require.Eventually(t, func() bool { return len(incidentDetections(t, e.server, "Node/"+node)) > before },
		20*time.Second, 20*time.Millisecond)
}

// healthEventCounter counts the node events that a monitor receives.
type healthEventCounter struct {
	nodeserver.Monitor
	healthEvents atomic.Int64
}

func (l *healthEventCounter) OnNodeEvent(n nodeserver.Event) {
	if n.Kind == nodeserver.Reported {
		l.healthEvents.Add(1)
	}
	l.Monitor.OnNodeEvent(n)
}

func newStormDetection(node string, n int) sensors.Detection {
	id := fmt.Sprintf("%s-%d", node, n)
	return sensors.Detection{
		ID: id, Rule: "storm", Title: "One of many", Severity: sensors.SeverityLow, Confidence: 0.5,
		Objective: sensors.ObjectiveExecution, Source: "stanch", Time: time.Now(),
		Event: sensors.Event{
			ID: id, Kind: sensors.KindExec, Process: sensors.Process{Exe: "/bin/true", Args: []string{id}},
			Container: sensors.Container{ID: node + "-c"},
		},
	}
}

func stormDetectionIDs(node string, n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s-%d", node, i))
	}
	return out
}

// uniqueDetectionIDs returns the ids of detections without duplicates, as an incident identifies them.
func uniqueDetectionIDs(all []sensors.Detection) []string {
	var out []string
	known := map[string]bool{}
	for _, d := range all {
		if !known[d.ID] {
			out = append(out, d.ID)
		}
		known[d.ID] = true
	}
	return out
}
