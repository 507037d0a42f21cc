package simulate

import (
	"context"
	"fmt"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/workflows/incident"
)

// Requests finds the playbooks of what people asked for, as a worker's library does.
type Requests interface {
	Requested(ctx context.Context, r sensors.ManualRequest) (incident.SelectedPlaybook, error)
	ProgramOf(r sensors.ManualRequest) (*playbooks.Program, error)
}

// noRequests is a library that finds none.
type noRequests struct{}

func (noRequests) Requested(_ context.Context, r sensors.ManualRequest) (incident.SelectedPlaybook, error) {
	return incident.SelectedPlaybook{}, fmt.Errorf("%s is not simulated here", r.Describe())
}

func (noRequests) ProgramOf(r sensors.ManualRequest) (*playbooks.Program, error) {
	return nil, fmt.Errorf("%s is not simulated here", r.Describe())
}

// requested is what a person's request permits, as the gateway attested it; nil of what was detected.
func (s *sim) requested(d sensors.Detection) *attestation.ManualRequest {
	if d.ManualRequest == nil {
		return nil
	}
	out := &attestation.ManualRequest{Person: d.ManualRequest.Person, AuthenticatedBy: d.ManualRequest.AuthenticatedBy, Reason: d.ManualRequest.Reason}
	program, err := s.requests.ProgramOf(*d.ManualRequest)
	if err != nil {
		s.event("error", "%v", err)
		return out
	}
	out.Actions, out.MaxDuration = program.Containments()
	return out
}
