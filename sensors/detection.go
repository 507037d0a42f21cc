package sensors

import "time"

// Severity is the impact of a detection if it is a true positive.
type Severity string

// The severities, in ascending order.
const (
	SeverityInfo     Severity = "info"
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Severities lists every severity in ascending order.
var Severities = []Severity{SeverityInfo, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical}

// Rank returns the position of s in Severities, from 0 for info to 4 for critical. It returns -1 for an unknown
// severity.
func (s Severity) Rank() int {
	for i, known := range Severities {
		if s == known {
			return i
		}
	}
	return -1
}

// Objective is the probable goal of an attacker. The values are stable, because playbooks match on them.
type Objective string

// The objectives that rules may name.
const (
	ObjectiveCryptoMining     Objective = "crypto-mining"
	ObjectiveCredentialAccess Objective = "credential-access"
	ObjectiveLateralMovement  Objective = "lateral-movement"
	ObjectiveEscape           Objective = "escape"
	ObjectivePersistence      Objective = "persistence"
	ObjectiveExfiltration     Objective = "exfiltration"
	ObjectiveCommandControl   Objective = "command-and-control"
	ObjectiveExecution        Objective = "execution"
	ObjectiveDiscovery        Objective = "discovery"
	ObjectiveDefenseEvasion   Objective = "defense-evasion"
)

// Objectives lists every objective, the most specific first. If several detections of an incident have the highest
// confidence, the incident gets the first of their objectives in this order.
var Objectives = []Objective{
	ObjectiveCryptoMining, ObjectiveEscape, ObjectiveCredentialAccess, ObjectiveCommandControl, ObjectiveExfiltration,
	ObjectiveLateralMovement, ObjectivePersistence, ObjectiveDefenseEvasion, ObjectiveExecution, ObjectiveDiscovery,
}

// Detection is an event that matched a rule. Its JSON is stable: `stanch-sensor watch -o json` prints it and the
// gateway accepts it.
type Detection struct {
	// ID identifies the event and the rule. It stays the same when the detection is sent again.
	ID         string    `json:"id" expr:"id"`
	Rule       string    `json:"rule" expr:"rule"` // unique across rule packs
	Title      string    `json:"title" expr:"title"`
	Severity   Severity  `json:"severity" expr:"severity"`
	Confidence float64   `json:"confidence" expr:"confidence"` // 0 to 1: the confidence of this detection alone
	Objective  Objective `json:"objective" expr:"objective"`
	Technique  string    `json:"technique,omitempty" expr:"technique"` // ATT&CK ID: "T1496"
	// Reasons are sentences for a responder: why the detection matters and how its confidence was determined.
	Reasons []string `json:"reasons,omitempty" expr:"reasons"`
	Source  string   `json:"source" expr:"source"` // "stanch", "falco", …
	// Time is when the event happened. Detected is when the rule matched.
	Time     time.Time `json:"time" expr:"time"`
	Detected time.Time `json:"detected,omitzero" expr:"detected"`
	Node     string    `json:"node,omitempty" expr:"node"`
	// Event is the event that matched the rule.
	Event Event `json:"event" expr:"event"`
	// Count is the number of similar detections that this one represents since the last one was sent. 0 means 1.
	Count int `json:"count,omitempty" expr:"count"`
	// ManualRequest is a person's request. It is nil for a detection of a sensor.
	ManualRequest *ManualRequest `json:"manual_request,omitempty" expr:"manual_request"`
	// TargetConfirmed reports whether the gateway verified the pod, its node and its owner with the API server. It is
	// never read from a message.
	TargetConfirmed bool `json:"-" expr:"-"`
}
