package sensors

import (
	"time"

	"stanch/sensors/duration"
)

// KindRequested is an event of no sensor: a person asked for a containment or a playbook.
const KindRequested Kind = "requested"

// The words of a detection that stands for a person's request. Its objective is no attacker's, so no rule, and no
// playbook of the library, has it.
const (
	RuleRequested      = "requested-by-a-person"
	SourcePerson       = "person"
	ObjectiveRequested = Objective("requested-by-a-person")
)

// ActorPerson begins the actor of what a person of the configuration did in Stanch: "person:alice".
const ActorPerson = "person:"

// Requested is what a person asked to be done to the target of a detection. Only the gateway that proved who they are
// makes one: a detection that brings it along is refused.
type Requested struct {
	Person string `json:"person" expr:"person"`
	Proved string `json:"proved" expr:"proved"` // how: "uid 1000 on the local socket"
	Reason string `json:"reason" expr:"reason"`
	// Action and For are a containment's; Playbook is the name of a playbook. One of them is set.
	Action   string        `json:"action,omitempty" expr:"action"`
	For      time.Duration `json:"for,omitempty" expr:"for"`
	Playbook string        `json:"playbook,omitempty" expr:"playbook"`
}

// What is the request in words: "pod.isolate for 1h", "the playbook shell".
func (r Requested) What() string {
	if r.Playbook != "" {
		return "the playbook " + r.Playbook
	}
	return r.Action + " for " + duration.Format(r.For)
}
