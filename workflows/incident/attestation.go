package incident

import (
	"time"

	"stanch/sensors"
	"stanch/sensors/attestation"
)

// Acceptance is what is decided about a detection when it is accepted.
type Acceptance struct {
	Scope           string
	Drill           *attestation.DrillRegistration // nil outside of drills
	ManualRequest   *attestation.ManualRequest     // a person's request; nil for a detection
	TargetConfirmed bool                           // the API server confirmed the target
	At              time.Time
}

// NewAttestation returns the unsigned statement that a detection was accepted. Production and simulation sign the same
// one.
func NewAttestation(d sensors.Detection, a Acceptance) attestation.Attestation {
	return attestation.Attestation{
		DetectionID: d.ID, DetectionHash: attestation.HashJSON(d), TargetID: TargetOfDetection(d).ID(), Rule: d.Rule,
		Objective: string(d.Objective), Severity: string(d.Severity), Confidence: d.Confidence, Node: d.Node,
		Namespace: d.Event.Container.Pod.Namespace, Workload: WorkloadOfDetection(d).String(), Scope: a.Scope,
		Drill: a.Drill, AcceptedAt: a.At, TargetConfirmed: a.TargetConfirmed, ManualRequest: a.ManualRequest,
	}
}
