package sensors

import "time"

// Severity says how bad it is if a detection is right.
type Severity string

// The severities, in rising order.
const (
	SeverityInfo     Severity = "info"
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Severities lists every severity in rising order.
var Severities = []Severity{SeverityInfo, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical}

// Rank orders severities; an unknown one ranks below all others.
func (s Severity) Rank() int {
	for i, known := range Severities {
		if s == known {
			return i
		}
	}
	return -1
}

// Objective is what an attacker seems to be after. The words are fixed: playbooks match on them.
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

// Objectives lists every objective, the most telling first: an incident's objective is the first of these that
// its detections name with the highest confidence.
var Objectives = []Objective{
	ObjectiveCryptoMining, ObjectiveEscape, ObjectiveCredentialAccess, ObjectiveCommandControl, ObjectiveExfiltration,
	ObjectiveLateralMovement, ObjectivePersistence, ObjectiveDefenseEvasion, ObjectiveExecution, ObjectiveDiscovery,
}

// Detection is an event that a rule says matters. Its JSON is stable and is what `stanch-sensor watch -o json`
// prints and what the gateway accepts.
type Detection struct {
	// ID is the same for the same event and rule, however often it is sent.
	ID         string    `json:"id" expr:"id"`
	Rule       string    `json:"rule" expr:"rule"` // the rule's name, unique over packs
	Title      string    `json:"title" expr:"title"`
	Severity   Severity  `json:"severity" expr:"severity"`
	Confidence float64   `json:"confidence" expr:"confidence"` // 0 to 1: how sure the rule is, alone
	Objective  Objective `json:"objective" expr:"objective"`
	Technique  string    `json:"technique,omitempty" expr:"technique"` // ATT&CK id, "T1496"
	// Reasons are sentences for a responder: why this matters and why this confidence.
	Reasons []string `json:"reasons,omitempty" expr:"reasons"`
	Source  string   `json:"source" expr:"source"` // "stanch", "falco", …
	// Time is when the event happened; Detected when the rule fired.
	Time     time.Time `json:"time" expr:"time"`
	Detected time.Time `json:"detected,omitzero" expr:"detected"`
	Node     string    `json:"node,omitempty" expr:"node"`
	// Event is the one that fired the rule.
	Event Event `json:"event" expr:"event"`
	// Count is how many alike were folded into this one since the last was sent; 0 counts as 1.
	Count int `json:"count,omitempty" expr:"count"`
	// ManualRequest is what a person asked for; nil of everything that a sensor saw.
	ManualRequest *ManualRequest `json:"manual_request,omitempty" expr:"manual_request"`
	// TargetConfirmed: the gateway found the pod, its node and its owner at the API server. It is never read from a message.
	TargetConfirmed bool `json:"-" expr:"-"`
}
