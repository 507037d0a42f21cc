package simulate

import (
	"context"
	"fmt"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/workflows/incident"
)

// ManualRequestMatcher returns the playbooks of manual requests, as a worker's library does.
type ManualRequestMatcher interface {
	MatchManualRequest(ctx context.Context, r sensors.ManualRequest) (incident.SelectedPlaybook, error)
	ProgramForRequest(r sensors.ManualRequest) (*playbooks.Program, error)
}

// noManualRequests is a library without manual requests.
type noManualRequests struct{}

func (noManualRequests) MatchManualRequest(_ context.Context, r sensors.ManualRequest) (incident.SelectedPlaybook,
	error,
) {
	return incident.SelectedPlaybook{}, fmt.Errorf("%s is not in this simulation", r.Describe())
}

func (noManualRequests) ProgramForRequest(r sensors.ManualRequest) (*playbooks.Program, error) {
	return nil, fmt.Errorf("%s is not in this simulation", r.Describe())
}

// manualRequestOf returns what a manual request permits, as the gateway attested it; nil for a detection.
func (s *simulation) manualRequestOf(d sensors.Detection) *attestation.ManualRequest {
	if d.ManualRequest == nil {
		return nil
	}
	out := &attestation.ManualRequest{
		Person: d.ManualRequest.Person, AuthenticatedBy: d.ManualRequest.AuthenticatedBy,
		Reason: d.ManualRequest.Reason,
	}
	program, err := s.requestMatcher.ProgramForRequest(*d.ManualRequest)
	if err != nil {
		s.addEvent("error", "%v", err)
		return out
	}
	out.Actions, out.MaxDuration = program.Containments()
	return out
}
