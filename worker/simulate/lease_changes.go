package simulate

import (
	"fmt"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// isAsRecorded reports whether people answer as recorded; they then also end and extend leases as recorded.
func (a ApprovalAnswers) isAsRecorded() bool {
	return !a.ApproveAll && !a.NoAnswers && len(a.ExplicitAnswers) == 0
}

// scheduleLeaseChanges schedules the recorded changes of an effect's lease: at the recorded time, or at the recorded
// delay after its apply if that is later, so that the order is kept. The end of a drill is no person's decision, and
// not scheduled.
func (s *simulation) scheduleLeaseChanges(r activities.Request) {
	if !s.options.ApprovalAnswers.isAsRecorded() || s.recording.Incident.Drill {
		return
	}
	now := s.elapsedMS()
	for _, l := range s.recording.Leases {
		if l.Report.Action != r.Action || l.Report.Target != r.Target.ID() || l.Report.AppliedAt.IsZero() {
			continue
		}
		// A recording contains the lease's reports at each change: its releases are scheduled once.
		applied := l.Report.AppliedAt.Sub(s.started).Milliseconds()
		for i, release := range s.recording.LeaseChanges {
			s.mu.Lock()
			known := s.scheduledLeaseChanges[i]
			s.scheduledLeaseChanges[i] = known || release.LeaseID == l.Report.ID
			s.mu.Unlock()
			if known || release.LeaseID != l.Report.ID {
				continue
			}
			s.testEnvironment.RegisterDelayedCallback(func() { s.applyLeaseChange(r, release) },
				max(time.Duration(release.OffsetMS-min(applied, now))*time.Millisecond, time.Millisecond))
		}
	}
}

// applyLeaseChange ends or extends the simulated lease of a target, unless it has ended.
func (s *simulation) applyLeaseChange(r activities.Request, was recording.LeaseChange) {
	s.mu.Lock()
	ids := append([]string(nil), s.leaseWorkflowIDs...)
	s.mu.Unlock()
	for _, id := range ids {
		var m lease.Machine
		value, err := s.testEnvironment.QueryWorkflowByID(id, workflows.QueryLease)
		if err != nil || value.Get(&m) != nil || m.Action != r.Action || m.Target.ID() != r.Target.ID() ||
			m.State != lease.StateHeld {
			continue
		}
		now := s.testEnvironment.Now()
		g := attestation.Grant{
			Nonce: fmt.Sprintf("simulated-%s-%d", m.LeaseID, was.OffsetMS), Operation: attestation.OperationRelease,
			LeaseID: m.LeaseID, IncidentID: m.IncidentRef.ID, Namespace: m.Target.Namespace,
			DrillOnly: s.recording.Incident.Drill,
			Targets:   []string{m.Target.ID()}, GrantedBy: was.GrantedBy, IssuedAt: now, ExpiresAt: now.Add(time.Hour),
		}
		who := strings.Join(was.GrantedBy, ", ")
		if was.ExtendedUntilMS == 0 {
			signed, err := s.authority.Sign(attestation.PayloadTypeGrant, g)
			if err == nil && s.testEnvironment.SignalWorkflowByID(id, workflows.SignalReleaseLease,
				lease.ReleaseSignal{Grant: signed}) == nil {
				s.addEvent("release", "%s releases %s on %s", who, r.Action, r.Target)
			}
			continue
		}
		until := now.Add(time.Duration(was.ExtendedUntilMS-was.OffsetMS) * time.Millisecond)
		g.Operation, g.NewEnd = attestation.OperationExtend, until
		signed, err := s.authority.Sign(attestation.PayloadTypeGrant, g)
		if err == nil && s.testEnvironment.SignalWorkflowByID(id, workflows.SignalExtendLease,
			lease.ExtendSignal{ExpiresAt: until, Grant: signed}) == nil {
			s.addEvent("release", "%s extends %s on %s by %s", who, r.Action, r.Target, duration.Format(until.Sub(now)))
		}
	}
}
