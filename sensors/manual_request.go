package sensors

import (
	"time"

	"stanch/sensors/duration"
)

// KindManualRequest is an event of no sensor: a person asked for a containment or a playbook.
const KindManualRequest Kind = "requested"

// The words of a detection that stands for a person's request. Its objective is no attacker's, so no rule, and no
// playbook of the library, has it.
const (
	RuleManualRequest      = "requested-by-a-person"
	SourceManualRequest    = "person"
	ObjectiveManualRequest = Objective("requested-by-a-person")
)

// ActorPersonPrefix begins the actor of what a person of the configuration did in Stanch: "person:alice".
const ActorPersonPrefix = "person:"

// ManualRequest is what a person asked to be done to the target of a detection. Only the gateway that proved who they are
// makes one: a detection that brings it along is refused.
type ManualRequest struct {
	Person          string `json:"person" expr:"person"`
	AuthenticatedBy string `json:"authenticated_by" expr:"authenticated_by"` // how: "uid 1000 on the local socket"
	Reason          string `json:"reason" expr:"reason"`
	// Action and For are a containment's; Playbook is the name of a playbook. One of them is set.
	Action   string        `json:"action,omitempty" expr:"action"`
	Duration time.Duration `json:"for,omitempty" expr:"for"`
	Playbook string        `json:"playbook,omitempty" expr:"playbook"`
}

// Describe is the request in words: "pod.isolate for 1h", "the playbook shell".
func (r ManualRequest) Describe() string {
	if r.Playbook != "" {
		return "the playbook " + r.Playbook
	}
	return r.Action + " for " + duration.Format(r.Duration)
}
