package integrations

import (
	"strings"

	"stanch/sensors"
)

// Tetragon has no rules that are enabled by default: users write the policies, and their tags say what they are for.

// tetragonObjective returns the objective for the tags that Tetragon itself defines.
func tetragonObjective(tags []string) (sensors.Objective, bool) {
	for _, tag := range tags {
		switch strings.ToLower(tag) {
		case "observability.privilege_escalation":
			return sensors.ObjectiveEscape, true
		case "observability.process":
			return sensors.ObjectiveExecution, true
		case "observability.filesystem":
			// The tag does not say which file is observed and why.
			return sensors.ObjectiveDiscovery, true
		}
	}
	return "", false
}

// tetragonSeverities are the tags that set the severity of a policy, such as `tags: ["severity.high"]`. Tetragon
// itself has no severities.
var tetragonSeverities = map[string]sensors.Severity{
	"severity.info": sensors.SeverityInfo, "severity.low": sensors.SeverityLow, "severity.medium": sensors.SeverityMedium,
	"severity.high": sensors.SeverityHigh, "severity.critical": sensors.SeverityCritical,
	"severity:info": sensors.SeverityInfo, "severity:low": sensors.SeverityLow, "severity:medium": sensors.SeverityMedium,
	"severity:high": sensors.SeverityHigh, "severity:critical": sensors.SeverityCritical,
}

// tetragonActions describe what Tetragon did in response.
var tetragonActions = map[string]string{
	"KPROBE_ACTION_SIGKILL":        "Tetragon killed the process.",
	"KPROBE_ACTION_SIGNAL":         "Tetragon sent the process a signal.",
	"KPROBE_ACTION_OVERRIDE":       "Tetragon made the call fail.",
	"KPROBE_ACTION_NOTIFYENFORCER": "Tetragon notified its enforcer to stop it.",
}
