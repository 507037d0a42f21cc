package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/sensors/agent"
	"stanch/sensors/duration"
	"stanch/worker/gateway"
)

// nodeHealth is what a node tells of itself, and what the gateway knows of it.
type nodeHealth struct {
	agent.StatusReport
	Gateway gateway.NodeStreamState `json:"gateway"`
}

const (
	// maxClockSkew and certExpiryWarning are the bounds from which on it is an incident too.
	maxClockSkew      = 5 * time.Second
	certExpiryWarning = 14 * 24 * time.Hour
)

// checkNodes tells of each connected node whether it sees, loses nothing, knows the time and goes on being trusted.
func checkNodes(nodes map[string]nodeHealth) []checkResult {
	var out []checkResult
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[name]
		var words, bad []string
		if c := n.Gateway.ClockSkew; c != nil {
			words = append(words, fmt.Sprintf("clock off by %s (± %s)", duration.FormatApprox(c.Offset), duration.FormatApprox(c.MaxError)))
			if c.Offset.Abs() > maxClockSkew {
				bad = append(bad, "set its clock")
			}
		}
		if ends := n.Gateway.CertificateExpiresAt; !ends.IsZero() {
			words = append(words, "certificate until "+ends.UTC().Format(time.DateOnly))
			if time.Until(ends) < certExpiryWarning {
				bad = append(bad, "its certificate was not renewed: look at its sensor's log")
			}
		}
		switch {
		case n.Heartbeat.Failing:
			words, bad = append(words, "does not see its own heartbeat"), append(bad, "restart its sensor: "+n.Heartbeat.FailureReason)
		case !n.Heartbeat.LastReceived.IsZero():
			words = append(words, fmt.Sprintf("saw its own heartbeat at %s after %.0f ms", n.Heartbeat.LastReceived.UTC().Format(time.TimeOnly), n.Heartbeat.LatencyMS))
		}
		if lost := n.Drops.KernelEvents + n.Drops.SpooledDetections; lost > 0 {
			words = append(words, fmt.Sprintf("lost %d events and %d detections since its start", n.Drops.KernelEvents, n.Drops.SpooledDetections))
		}
		out = append(out, checkResult{Name: "node " + name, OK: len(bad) == 0, Detail: strings.Join(words, "; "), Remedy: strings.Join(bad, "; ")})
	}
	return out
}
