package simulate

import (
	"fmt"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks/recording"
	"stanch/sensors/duration"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// asRecorded reports whether people answer as they did: then they also end and extend leases as they did.
func (a Answers) asRecorded() bool { return !a.All && !a.None && len(a.List) == 0 }

// releases schedules what people did to the recorded lease of an effect: when they did it, or so long after it was
// applied where that is later here, so that nothing that came before it comes after it. A
// drill ends what it made happen: that is nobody's decision.
func (s *sim) releases(r activities.Request) {
	if !s.o.Answers.asRecorded() || s.rec.Incident.Drill {
		return
	}
	now := s.after()
	for _, l := range s.rec.Leases {
		if l.Report.Action != r.Action || l.Report.Target != r.Target.ID() || l.Report.AppliedAt.IsZero() {
			continue
		}
		// A recording holds the lease's reports at each change: its releases are scheduled once.
		applied := l.Report.AppliedAt.Sub(s.started).Milliseconds()
		for i, release := range s.rec.LeaseChanges {
			s.mu.Lock()
			known := s.released[i]
			s.released[i] = known || release.LeaseID == l.Report.ID
			s.mu.Unlock()
			if known || release.LeaseID != l.Report.ID {
				continue
			}
			s.env.RegisterDelayedCallback(func() { s.release(r, release) }, max(time.Duration(release.OffsetMS-min(applied, now))*time.Millisecond, time.Millisecond))
		}
	}
}

// release ends or extends the simulated lease of a target. One that has ended already is left alone.
func (s *sim) release(r activities.Request, was recording.LeaseChange) {
	s.mu.Lock()
	ids := append([]string(nil), s.leases...)
	s.mu.Unlock()
	for _, id := range ids {
		var m lease.Machine
		value, err := s.env.QueryWorkflowByID(id, workflows.QueryLease)
		if err != nil || value.Get(&m) != nil || m.Action != r.Action || m.Target.ID() != r.Target.ID() || m.State != lease.StateHeld {
			continue
		}
		now := s.env.Now()
		g := attestation.Grant{
			Nonce: fmt.Sprintf("simulated-%s-%d", m.LeaseID, was.OffsetMS), Operation: attestation.OperationRelease, LeaseID: m.LeaseID, IncidentID: m.IncidentRef.ID, Namespace: m.Target.Namespace, DrillOnly: s.rec.Incident.Drill,
			Targets: []string{m.Target.ID()}, GrantedBy: was.GrantedBy, IssuedAt: now, ExpiresAt: now.Add(time.Hour),
		}
		who := strings.Join(was.GrantedBy, ", ")
		if was.ExtendedUntilMS == 0 {
			signed, err := s.keys.Sign(attestation.PayloadTypeGrant, g)
			if err == nil && s.env.SignalWorkflowByID(id, workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: signed}) == nil {
				s.event("release", "%s ends %s on %s", who, r.Action, r.Target)
			}
			continue
		}
		until := now.Add(time.Duration(was.ExtendedUntilMS-was.OffsetMS) * time.Millisecond)
		g.Operation, g.NewEnd = attestation.OperationExtend, until
		signed, err := s.keys.Sign(attestation.PayloadTypeGrant, g)
		if err == nil && s.env.SignalWorkflowByID(id, workflows.SignalExtendLease, lease.ExtendSignal{ExpiresAt: until, Grant: signed}) == nil {
			s.event("release", "%s extends %s on %s by %s", who, r.Action, r.Target, duration.Format(until.Sub(now)))
		}
	}
}
