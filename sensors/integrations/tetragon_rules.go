package integrations

import (
	"strings"

	"stanch/sensors"
)

// Tetragon ships no rules that are on by default: its policies are its users', and their tags say what they are for.

// tetragonObjective maps the tags of Tetragon's own namespace.
func tetragonObjective(tags []string) (sensors.Objective, bool) {
	for _, tag := range tags {
		switch strings.ToLower(tag) {
		case "observability.privilege_escalation":
			return sensors.ObjectiveEscape, true
		case "observability.process":
			return sensors.ObjectiveExecution, true
		case "observability.filesystem":
			// Which file it is, and why somebody watches it, the tag does not say.
			return sensors.ObjectiveDiscovery, true
		}
	}
	return "", false
}

// tetragonSeverities are the tags by which a policy says how bad it is, since Tetragon has no word for it:
// `tags: ["severity.high"]`.
var tetragonSeverities = map[string]sensors.Severity{
	"severity.info": sensors.SeverityInfo, "severity.low": sensors.SeverityLow, "severity.medium": sensors.SeverityMedium,
	"severity.high": sensors.SeverityHigh, "severity.critical": sensors.SeverityCritical,
	"severity:info": sensors.SeverityInfo, "severity:low": sensors.SeverityLow, "severity:medium": sensors.SeverityMedium,
	"severity:high": sensors.SeverityHigh, "severity:critical": sensors.SeverityCritical,
}

// tetragonActions are what Tetragon did about it, where it did something.
var tetragonActions = map[string]string{
	"KPROBE_ACTION_SIGKILL":        "Tetragon killed the process.",
	"KPROBE_ACTION_SIGNAL":         "Tetragon sent the process a signal.",
	"KPROBE_ACTION_OVERRIDE":       "Tetragon made the call fail.",
	"KPROBE_ACTION_NOTIFYENFORCER": "Tetragon's enforcer was told to stop it.",
}
