package incident

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/workflows/playbook"
)

func newAttestedDetection(id, title string, severity sensors.Severity, confidence float64, objective sensors.Objective,
	at time.Time,
) AttestedDetection {
	return AttestedDetection{Detection: sensors.Detection{
		ID: id, Rule: id, Title: title, Severity: severity, Confidence: confidence, Objective: objective, Time: at,
		Event: sensors.Event{
			Kind: sensors.KindConnect, Container: sensors.Container{ID: "c1", Name: "web"},
			Process: sensors.Process{Exe: "/bin/" + id}, Network: sensors.Network{Address: "203.0.113.9", Port: 4444},
		},
	}}
}

// The headline is the worst detection, not the first.
func TestSummaryNamesMostSevereDetection(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	s := &incidentState{Attestations: map[string][]attestation.Envelope{}}
	s.addDetection(newAttestedDetection("pool", "Connection to a mining pool's port", "medium", 0.6, "crypto-mining", at),
		at)
	s.recompute()
	require.Equal(
		t,
		"Connection to a mining pool's port in Container/web: /bin/pool connected to 203.0.113.9 port 4444. It looks like crypto-mining (confidence 0.60).",
		s.Incident.Summary,
	)
	s.addDetection(newAttestedDetection("shell", "Reverse shell", "critical", 0.9, "execution", at.Add(time.Second)), at)
	s.addDetection(newAttestedDetection("other", "Shell", "high", 0.95, "execution", at.Add(2*time.Second)), at)
	s.recompute()
	require.Contains(
		t,
		s.Incident.Summary,
		"Reverse shell in Container/web: /bin/shell connected to 203.0.113.9 port 4444. First detection: Connection to a mining pool's port. 1 kind of detection more.",
	)
}

// Reports arrive later than what they report, and are sorted by its time.
func TestTimelineIsSortedByEventTime(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	r := &incidentRun{
		workflows:     &Workflows{Playbooks: &playbook.Workflows{}},
		incidentState: &incidentState{CoveredTargets: map[string]bool{}, Attestations: map[string][]attestation.Envelope{}},
	}
	r.Incident.Playbooks = []playbooks.PlaybookRun{{Playbook: "hold", WorkflowID: "playbook/1", Started: at}}
	r.addTimeline(at, "playbook hold started")
	r.handleLeaseReport(playbooks.LeaseReport{
		ID: "LSE-1", Action: "pod.isolate", Target: "pod:u-1", State: "held",
		Verified: true, At: at.Add(3 * time.Second),
	})
	r.handlePlaybookReport(playbook.Report{
		WorkflowID: "playbook/1", Playbook: "hold", Ended: at.Add(4 * time.Second),
		Outcome: playbooks.OutcomeRefused, Reason: "tickets are not configured; add `ticket:` to stanch.yaml",
		Steps: []playbooks.StepReport{
			{
				Action: "pod.processes", Verb: playbooks.VerbEvidence, Outcome: playbooks.OutcomeSucceeded,
				At: at.Add(time.Second),
			},
			{
				Action: "pod.isolate", Verb: playbooks.VerbContain, Target: "pod:u-1", LeaseID: "LSE-1",
				Outcome: playbooks.OutcomeChanged, At: at.Add(3 * time.Second),
			},
			{
				Action: "create", Verb: playbooks.VerbTicket, Outcome: playbooks.OutcomeRefused,
				Reason: "tickets are not configured; add `ticket:` to stanch.yaml", At: at.Add(4 * time.Second),
			},
		},
	}, at.Add(5*time.Second))
	var story []string
	for _, e := range r.Incident.Timeline {
		story = append(story, e.Text)
	}
	require.Equal(t, []string{
		"playbook hold started", "hold: pod.processes succeeded",
		"lease LSE-1 of pod.isolate on pod u-1: in force, verified", "hold: pod.isolate applied and verified",
		"hold: ticket refused: tickets are not configured; add `ticket:` to stanch.yaml",
		"playbook hold ended: contained: pod.isolate on pod u-1 applied and verified; note: ticket skipped: " +
			"tickets are not configured; add `ticket:` to stanch.yaml",
	}, story)
}
