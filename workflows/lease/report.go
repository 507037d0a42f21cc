package lease

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
)

// Report is a message that the lease owes.
type Report struct {
	To     string                `json:"to"` // workflow id
	Holder string                `json:"holder,omitempty"`
	Lease  playbooks.LeaseReport `json:"lease"`
}

func (m *Machine) report(now time.Time) playbooks.LeaseReport {
	reason := m.Reason
	if m.Fought { // also while it holds: somebody keeps undoing it
		reason = strings.TrimSuffix(fmt.Sprintf("it is being fought over, put back %d times: %s", m.Reapplied, reason), ": ")
	}
	return playbooks.LeaseReport{
		ID: m.Lease, Action: m.Action, Target: m.Target.ID(), Facet: string(m.Facet), State: string(m.State), Outcome: m.Outcome,
		Verified: m.Verified, Undone: m.Undone, Until: m.End(), Reason: reason, At: now, AppliedAt: m.Applied,
	}
}

// Report is the lease as it stands.
func (m *Machine) Report(now time.Time) playbooks.LeaseReport { return m.report(now) }

// tell reports to every incident that holds the lease.
func (m *Machine) tell(now time.Time) {
	seen := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		if key := m.Holders[id].Incident.Key; !seen[key] {
			seen[key] = true
			m.Reports = append(m.Reports, Report{To: "incident/" + key, Lease: m.report(now)})
		}
	}
}

// tellAll reports to incidents and to every holder that waits for its first word.
func (m *Machine) tellAll(now time.Time) {
	m.tellWaiting(now, m.Outcome, m.Reason)
	m.tell(now)
}

func (m *Machine) tellWaiting(now time.Time, outcome playbooks.Outcome, reason string) {
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		h := m.Holders[id]
		if h.ReportTo == "" {
			continue
		}
		r := m.report(now)
		r.Outcome, r.Reason = outcome, reason
		m.Reports = append(m.Reports, Report{To: h.ReportTo, Holder: id, Lease: r})
		h.ReportTo = "" // told
	}
}
