package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/sensors/agent"
	"stanch/sensors/duration"
	"stanch/worker/nodeserver"
)

// nodeHealth is the report of a node, with what the gateway measured of its connection.
type nodeHealth struct {
	agent.StatusReport
	Gateway nodeserver.NodeStreamState `json:"gateway"`
}

const (
	// maxClockSkew and certExpiryWarning are the limits beyond which Stanch also opens an incident.
	maxClockSkew      = 5 * time.Second
	certExpiryWarning = 14 * 24 * time.Hour
)

// checkNodes checks the heartbeat, lost events, clock and certificate of each connected node, sorted by name.
func checkNodes(nodes map[string]nodeHealth) []checkResult {
	var out []checkResult
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[name]
		var details, remedies []string
		if c := n.Gateway.ClockSkew; c != nil {
			details = append(details, fmt.Sprintf("clock off by %s (± %s)", duration.FormatApprox(c.Offset),
				duration.FormatApprox(c.MaxError)))
			if c.Offset.Abs() > maxClockSkew {
				remedies = append(remedies, "set its clock")
			}
		}
		if ends := n.Gateway.CertificateExpiresAt; !ends.IsZero() {
			details = append(details, "certificate valid until "+ends.UTC().Format(time.DateOnly))
			if time.Until(ends) < certExpiryWarning {
				remedies = append(remedies, "its certificate was not renewed; check the log of its sensor")
			}
		}
		switch {
		case n.Heartbeat.Failing:
			details, remedies = append(details, "does not receive its own heartbeat"),
				append(remedies, "restart its sensor: "+n.Heartbeat.FailureReason)
		case !n.Heartbeat.LastReceived.IsZero():
			details = append(details, fmt.Sprintf("received its own heartbeat at %s after %.0f ms",
				n.Heartbeat.LastReceived.UTC().Format(time.TimeOnly), n.Heartbeat.LatencyMS))
		}
		if lost := n.Drops.KernelEvents + n.Drops.SpooledDetections; lost > 0 {
			details = append(details, fmt.Sprintf("lost %d events and %d detections since it started",
				n.Drops.KernelEvents, n.Drops.SpooledDetections))
		}
		out = append(out, checkResult{
			Name: "node " + name, OK: len(remedies) == 0,
			Detail: strings.Join(details, "; "), Remedy: strings.Join(remedies, "; "),
		})
	}
	return out
}
