package health

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"stanch/sensors"
)

// reportExpiringCertificates reports certificates that end soon and should have been renewed.
func (m *Monitor) reportExpiringCertificates() {
	now := m.Now()
	type expiringCertificate struct {
		name, renewalFailure string
		expiresAt            time.Time
	}
	var soon []expiringCertificate
	m.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[name]
		if n.connected && !n.certificateExpiresAt.IsZero() && n.certificateExpiresAt.Sub(now) < m.Timing.CertificateWarning {
			soon = append(soon, expiringCertificate{name, n.renewalFailure, n.certificateExpiresAt})
		}
	}
	m.mu.Unlock()
	for _, e := range soon {
		reasons := []string{fmt.Sprintf("The certificate of node %s expires at %s and was not renewed.", e.name,
			e.expiresAt.UTC().Format(time.RFC3339))}
		if e.renewalFailure != "" {
			reasons = append(reasons, "The renewal failed: "+detail(e.renewalFailure))
		} else {
			reasons = append(reasons, "Its sensor did not request a renewal; a sensor older than this gateway cannot. `stanch "+
				"cert node "+e.name+"` issues a certificate manually.")
		}
		m.reportCondition(telemetryCondition{
			kind: certificateExpiring, subject: newNodeSubject(e.name), node: e.name,
			severity: expirySeverity(e.expiresAt, now), reasons: reasons,
		})
	}
	if m.CertificateAuthority == nil {
		return
	}
	if ends := m.CertificateAuthority.ExpiresAt(); ends.Sub(now) < m.Timing.CertificateWarning {
		m.reportCondition(telemetryCondition{kind: certificateExpiring, subject: sensors.Subject{
			Kind: "Authority",
			Name: "certificates",
		}, severity: expirySeverity(ends, now), reasons: []string{
			fmt.Sprintf("The installation's certificate authority expires at %s, and every certificate with it.",
				ends.UTC().Format(time.RFC3339)),
			"Create a new one with `stanch cert authority`, and enroll the nodes again.",
		}})
	}
}

// expirySeverity returns a higher severity when little time is left.
func expirySeverity(ends, now time.Time) sensors.Severity {
	switch left := ends.Sub(now); {
	case left < 24*time.Hour:
		return sensors.SeverityHigh
	case left < 72*time.Hour:
		return sensors.SeverityMedium
	}
	return ""
}
