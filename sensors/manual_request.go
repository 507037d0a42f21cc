package sensors

import (
	"time"

	"stanch/sensors/duration"
)

// KindManualRequest is the kind of an event that no sensor produced: a person requested a containment or a playbook.
const KindManualRequest Kind = "requested"

// The constants of a detection that represents a person's request. Rules and library playbooks never use this
// objective.
const (
	RuleManualRequest      = "requested-by-a-person"
	SourceManualRequest    = "person"
	ObjectiveManualRequest = Objective("requested-by-a-person")
)

// ActorPersonPrefix is the prefix of the actor for an action in Stanch by a person of the configuration:
// "person:alice".
const ActorPersonPrefix = "person:"

// ManualRequest is a person's request for the target of a detection. Only the gateway creates one, after it
// authenticated the person: a detection that arrives with a manual request is rejected.
type ManualRequest struct {
	Person          string `json:"person" expr:"person"`
	AuthenticatedBy string `json:"authenticated_by" expr:"authenticated_by"` // method: "uid 1000 on the local socket"
	Reason          string `json:"reason" expr:"reason"`
	// Action and Duration are the requested containment and how long it lasts. Playbook is the name of the requested
	// playbook. Either Action or Playbook is set.
	Action   string        `json:"action,omitempty" expr:"action"`
	Duration time.Duration `json:"for,omitempty" expr:"for"`
	Playbook string        `json:"playbook,omitempty" expr:"playbook"`
}

// Describe returns the request as text: "pod.isolate for 1h", "the playbook shell".
func (r ManualRequest) Describe() string {
	if r.Playbook != "" {
		return "the playbook " + r.Playbook
	}
	return r.Action + " for " + duration.Format(r.Duration)
}
