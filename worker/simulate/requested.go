package simulate

import (
	"context"
	"fmt"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/proof"
	"stanch/workflows/incident"
)

// Requests finds the playbooks of what people asked for, as a worker's library does.
type Requests interface {
	Requested(ctx context.Context, r sensors.Requested) (incident.Selected, error)
	ProgramOf(r sensors.Requested) (*playbooks.Program, error)
}

// noRequests is a library that finds none.
type noRequests struct{}

func (noRequests) Requested(_ context.Context, r sensors.Requested) (incident.Selected, error) {
	return incident.Selected{}, fmt.Errorf("%s is not simulated here", r.What())
}

func (noRequests) ProgramOf(r sensors.Requested) (*playbooks.Program, error) {
	return nil, fmt.Errorf("%s is not simulated here", r.What())
}

// requested is what a person's request permits, as the gateway attested it; nil of what was detected.
func (s *sim) requested(d sensors.Detection) *proof.Requested {
	if d.Requested == nil {
		return nil
	}
	out := &proof.Requested{Person: d.Requested.Person, Proved: d.Requested.Proved, Reason: d.Requested.Reason}
	program, err := s.requests.ProgramOf(*d.Requested)
	if err != nil {
		s.event("error", "%v", err)
		return out
	}
	out.Actions, out.For = program.Containments()
	return out
}
