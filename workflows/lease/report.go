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
		Verified: m.Verified, Undone: m.Undone, ExpiresAt: m.End(), Reason: reason, At: now, AppliedAt: m.Applied, Guard: m.Guard,
		Warnings: m.warnings(),
	}
}

// warnings are those of its holders' plans, each once.
func (m *Machine) warnings() (all []string) {
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		for _, w := range m.Holders[id].Plan.Warnings {
			if !slices.Contains(all, w) {
				all = append(all, w)
			}
		}
	}
	return all
}

// releasedBy names who ended it early, for people to read: what was permitted was judged by the grant's signature.
func (m *Machine) releasedBy() string {
	var g attestation.Grant
	if m.Grant == nil || json.Unmarshal(m.Grant.Payload, &g) != nil || len(g.GrantedBy) == 0 {
		return ""
	}
	who := "released by " + strings.Join(g.GrantedBy, ", ")
	if g.Reason != "" {
		who += ": " + g.Reason
	}
	return who
}

// Report is the lease as it stands.
func (m *Machine) Report(now time.Time) playbooks.LeaseReport { return m.report(now) }

// tell reports to every incident that holds the lease.
func (m *Machine) tell(now time.Time) {
	seen := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(m.Holders)) {
		if key := m.Holders[id].Incident.GroupingKey; !seen[key] {
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
