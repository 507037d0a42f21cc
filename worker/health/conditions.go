package health

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"stanch/sensors"
)

// conditionKind is one kind of telemetry failure. The kinds are a table in the code and not a rule pack, so that nobody
// can hide failures by editing or disabling rules.
type conditionKind struct {
	ruleName   string
	title      string
	severity   sensors.Severity
	confidence float64
	technique  string
	reason     string
	// alias is a well-known name of the kind.
	alias string
	// repeatInterval is how often the condition is reported while it lasts; 0 means Timing.RepeatInterval.
	repeatInterval time.Duration
}

// The kinds. It is certain that telemetry is missing, but not that an attacker caused it, so the confidence stays below
// what permits automatic containment.
var (
	telemetryLost = conditionKind{
		ruleName: "telemetry-lost", title: "A node is no longer monitored", severity: sensors.SeverityHigh, confidence: 0.6,
		technique: "T1685",
		reason:    "Nothing on the node is detected while its sensor is stopped.",
	}
	sensorBlind = conditionKind{
		ruleName: "heartbeat-failing", title: "A sensor is running but not receiving events", severity: sensors.SeverityHigh,
		confidence: 0.7, technique: "T1685",
		reason: "A sensor that responds but receives no events looks healthy from the outside; an attacker may have blinded it.",
	}
	eventsDropped = conditionKind{
		ruleName: "events-dropped", title: "Events were lost on a node", severity: sensors.SeverityMedium, confidence: 0.5,
		technique: "T1685",
		reason:    "Lost events were not evaluated: an attacker may have hidden one event in a flood of others.",
		alias:     "Falco internal: syscall event drop", repeatInterval: time.Minute,
	}
	eventsFlooded = conditionKind{
		ruleName: "event-flood", title: "A container produced more events than the sensor could process",
		severity: sensors.SeverityMedium, confidence: 0.5, technique: "T1685",
		reason: "Flooding the sensor hides other events. A busy program can cause this too.",
		alias:  "Falco internal: syscall event drop", repeatInterval: time.Minute,
	}
	spoofedCgroup = conditionKind{
		ruleName: "spoofed-cgroup", title: "A cgroup has another container's name", severity: sensors.SeverityHigh,
		confidence: 0.7, technique: "T1036.005",
		reason: "No container runtime creates two cgroups with the same name. An attacker who creates the second can redirect " +
			"an action on the container.",
	}
	clockSkew = conditionKind{
		ruleName: "clock-skew", title: "A node's clock is wrong", severity: sensors.SeverityLow, confidence: 0.5,
		technique: "T1685",
		reason: "Its timestamps cannot be compared with those of other nodes, and leases and certificates are checked against " +
			"an incorrect clock.",
	}
	certificateExpiring = conditionKind{
		ruleName: "certificate-expiring", title: "A certificate expires soon and was not renewed",
		severity: sensors.SeverityLow, confidence: 0.5, technique: "T1685",
		reason: "After it expires, connections that need it fail.", repeatInterval: 24 * time.Hour,
	}
	nodeOverRate = conditionKind{
		ruleName: "node-rate-limited", title: "A node exceeds its detection rate limit", severity: sensors.SeverityMedium,
		confidence: 0.5, technique: "T1685",
		reason: "While the node waits, its spool fills; detections that no longer fit are lost.",
	}
	sourceLost = conditionKind{
		ruleName: "source-lost", title: "Another sensor stopped reporting", severity: sensors.SeverityMedium, confidence: 0.4,
		technique: "T1685",
		reason:    "It reported regularly before.",
	}
	sourceEventsUndecodable = conditionKind{
		ruleName: "source-events-unreadable", title: "Events of another source could not be decoded",
		severity: sensors.SeverityMedium, confidence: 0.4, technique: "T1685",
		reason: "Events that could not be decoded were not evaluated. An attacker can craft a request that cannot be " +
			"decoded, to hide it.", repeatInterval: time.Minute,
	}
	sourceEventsDropped = conditionKind{
		ruleName: "source-events-dropped", title: "Another sensor lost events", severity: sensors.SeverityMedium,
		confidence: 0.4, technique: "T1685",
		reason: "Lost events were not evaluated.", alias: "Falco internal: syscall event drop", repeatInterval: time.Minute,
	}
)

// telemetryCondition is one kind of failure of one subject.
type telemetryCondition struct {
	kind    conditionKind
	subject sensors.Subject
	node    string
	// container is set if a container is the cause; the detection is then about the container and joins its incident.
	container  sensors.Container
	sourceNode string // the node that reports it; "" is the gateway
	causedBy   string // the node or source whose reports caused the gateway's; "" is none
	severity   sensors.Severity
	reasons    []string
	count      int
	since      time.Time
}

func (c telemetryCondition) dedupKey() string {
	return strings.Join([]string{c.kind.ruleName, c.subject.Kind, c.subject.Name, c.container.ID, c.container.Pod.UID},
		"\x00")
}

// reporter returns the key of the reporter's capacity: a node's reports about its containers count separately from
// those about itself.
func (c telemetryCondition) reporter() string {
	if c.sourceNode != "" {
		return c.causedBy + " containers"
	}
	return c.causedBy
}

// toDetection returns the condition as a detection. Its id is the same in every replica of the gateway that detects the
// condition in the same interval, so that it becomes one detection.
func (c telemetryCondition) toDetection(now time.Time, again time.Duration) sensors.Detection {
	sum := sha256.Sum256([]byte(c.dedupKey()))
	id := fmt.Sprintf("health-%s-%s-%d", c.kind.ruleName, hex.EncodeToString(sum[:8]), now.Truncate(again).UnixMilli())
	severity := c.kind.severity
	if c.severity != "" {
		severity = c.severity
	}
	since := c.since
	if since.IsZero() || since.After(now) {
		since = now
	}
	reasons := append(c.reasons, c.kind.reason)
	if c.kind.alias != "" {
		reasons = append(reasons, "Falco calls this “"+c.kind.alias+"”.")
	}
	return sensors.Detection{
		ID: id, Rule: c.kind.ruleName, Title: c.kind.title, Severity: severity, Confidence: c.kind.confidence,
		Objective: sensors.ObjectiveDefenseEvasion,
		Technique: c.kind.technique, Reasons: reasons, Source: "stanch", Time: since, Detected: now, Node: c.node,
		Event: sensors.Event{
			ID: id, Kind: sensors.KindSensorHealth, Time: since, Node: c.node, Subject: c.subject, Container: c.container,
			Count:   c.count,
			Syscall: sensors.Syscall{Name: c.kind.ruleName},
		},
	}
}

func newNodeSubject(name string) sensors.Subject { return sensors.Subject{Kind: "Node", Name: name} }
