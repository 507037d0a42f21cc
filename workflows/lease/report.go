package lease

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// OutgoingReport is a pending report of the lease.
type OutgoingReport struct {
	WorkflowID string                `json:"workflow_id"` // workflow id
	HolderID   string                `json:"holder,omitempty"`
	Lease      playbooks.LeaseReport `json:"lease"`
}

func (m *Machine) buildReport(now time.Time) playbooks.LeaseReport {
	reason := m.Reason
	if m.Contested { // also while it is active: someone repeatedly undoes it
		reason = strings.TrimSuffix(fmt.Sprintf("another writer keeps reverting it, %d times so far: %s", m.ReapplyCount,
			reason), ": ")
	}
	return playbooks.LeaseReport{
		ID: m.LeaseID, Action: m.Action, Target: m.Target.ID(), Facet: string(m.Facet), State: string(m.State),
		Outcome:  m.Outcome,
		Verified: m.Verified, Undone: m.Undone, ExpiresAt: m.LastExpiry(), Reason: reason, At: now, AppliedAt: m.AppliedAt,
		Guard:    m.Guard,
		Warnings: m.planWarnings(),
	}
}

// planWarnings returns the warnings of the holders' plans, without duplicates.
func (m *Machine) planWarnings() (all []string) {
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		for _, w := range m.Holders[id].Plan.Warnings {
			if !slices.Contains(all, w) {
				all = append(all, w)
			}
		}
	}
	return all
}

// releasedBy names the people who ended the lease early, for display only: the grant's signature was checked before.
func (m *Machine) releasedBy() string {
	var g attestation.Grant
	if m.ReleaseGrant == nil || json.Unmarshal(m.ReleaseGrant.Payload, &g) != nil || len(g.GrantedBy) == 0 {
		return ""
	}
	who := "released by " + strings.Join(g.GrantedBy, ", ")
	if g.Reason != "" {
		who += ": " + g.Reason
	}
	return who
}

// CurrentReport returns the current state of the lease.
func (m *Machine) CurrentReport(now time.Time) playbooks.LeaseReport { return m.buildReport(now) }

// reportToIncidents reports to every incident with a holder.
func (m *Machine) reportToIncidents(now time.Time) {
	seen := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		if key := m.Holders[id].IncidentRef.GroupingKey; !seen[key] {
			seen[key] = true
			m.PendingReports = append(m.PendingReports, OutgoingReport{WorkflowID: "incident/" + key, Lease: m.buildReport(now)})
		}
	}
}

// reportToAll reports to incidents, and to every holder that waits for its first report.
func (m *Machine) reportToAll(now time.Time) {
	m.reportToWaitingHolders(now, m.Outcome, m.Reason)
	m.reportToIncidents(now)
}

func (m *Machine) reportToWaitingHolders(now time.Time, outcome playbooks.Outcome, reason string) {
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		h := m.Holders[id]
		if h.ReportToWorkflow == "" {
			continue
		}
		r := m.buildReport(now)
		r.Outcome, r.Reason = outcome, reason
		m.PendingReports = append(m.PendingReports, OutgoingReport{WorkflowID: h.ReportToWorkflow, HolderID: id, Lease: r})
		h.ReportToWorkflow = "" // reported
	}
}
