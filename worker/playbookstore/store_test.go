package playbookstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/playbookstore"
)

// The library is checked against the real actions, as in a worker.
func TestShippedLibraryIsValid(t *testing.T) {
	library, problems, err := playbookstore.Open(config.Default(), actions.Catalog())
	require.NoError(t, err)
	for _, p := range problems {
		t.Error(p.String(), p.Hint)
	}
	require.Len(t, library.Programs(), 18)
}

func TestEvidenceOfPodCountsForItsRole(t *testing.T) {
	load := func(steps string) (messages []string) {
		_, problems := playbooks.LoadPlaybook("p.yaml",
			[]byte("playbook: p\ndescription: x\nmatch: { objective: credential-access }\nsteps:\n"+steps),
			actions.Catalog())
		for _, p := range problems {
			messages = append(messages, p.Message)
		}
		return messages
	}
	const contain = "  - enrich: aws.identity\n    id: cloud\n  - contain: aws.key.disable\n    target: cloud.access_keys\n    for: 1h\n"
	require.Empty(t, load("  - evidence: process.snapshot\n"+contain))
	require.Equal(t, []string{"`aws.key.disable` runs before any evidence of its target"}, load(contain))
	require.Contains(
		t,
		load(
			"  - evidence: process.snapshot\n  - enrich: aws.identity\n    id: cloud\n  - contain: aws.role.revoke-sessions\n    target: cloud.role\n    for: 12h\n",
		),
		"`aws.role.revoke-sessions` is disruptive, so it is allowed only inside an approval",
	)
}

// Every kind of incident has a matching playbook, and the library never contains it with two playbooks.
func TestOnlyOneShippedPlaybookContainsAnIncident(t *testing.T) {
	library, _, err := playbookstore.Open(config.Default(), actions.Catalog())
	require.NoError(t, err)
	contains := map[string]bool{}
	for _, p := range library.Programs() {
		for _, book := range append([]*playbooks.Program{p}, p.TransitiveCallees()...) {
			book.WalkSteps(func(s *playbooks.Step) { contains[p.Name] = contains[p.Name] || s.Verb == playbooks.VerbContain })
		}
	}
	techniques := map[sensors.Objective][]string{
		sensors.ObjectiveCredentialAccess: {"T1528", "T1552.001", "T1552.005"},
		sensors.ObjectiveEscape:           {"T1611", "T1548.001"},
		sensors.ObjectivePersistence:      {"T1105", "T1098", "T1525"},
	}
	started, contained := map[string]bool{}, 0
	for _, objective := range sensors.Objectives {
		for _, technique := range append(techniques[objective], "") {
			for _, confidence := range []float64{0.3, 0.6, 0.75, 0.9, 0.99} {
				for _, pods := range []int{1, 2, 6} {
					for _, shape := range []string{"", "host network", "drill", "second objective", "node not watched"} {
						in := playbooks.Incident{
							Objective: objective, Confidence: confidence, Severity: sensors.SeverityHigh,
							Drill: shape == "drill",
						}
						in.Detections = []playbooks.DetectionSummary{{
							Rule: "r", Objective: objective, Technique: technique,
							Confidence: confidence,
						}}
						if shape == "second objective" {
							in.Detections = append(in.Detections, playbooks.DetectionSummary{
								Rule:      "s",
								Objective: sensors.ObjectiveDiscovery, Technique: "T1082",
							})
						}
						for _, d := range in.Detections {
							if d.Technique != "" {
								in.Techniques = append(in.Techniques, d.Technique)
							}
						}
						if shape == "node not watched" {
							in.Workload, pods = playbooks.WorkloadIdentity{Kind: "Node", Name: "node-a"}, 0
						}
						for i := range pods {
							in.Targets = append(in.Targets, playbooks.Target{
								Kind: playbooks.TargetPod, UID: string(rune('a' + i)),
								HostNetwork: shape == "host network",
							})
						}
						var all, containing []string
						for _, c := range playbooks.SelectPlaybooks(library.Programs(), in) {
							if !c.Selected {
								continue
							}
							all, started[c.Name] = append(all, c.Name), true
							if contains[c.Name] {
								containing = append(containing, c.Name)
							}
						}
						what := fmt.Sprintf("%s %s, confidence %.2f, %d pods, %s", objective, technique, confidence, pods, shape)
						require.LessOrEqual(t, len(containing), 1, what)
						contained += len(containing)
						if shape != "drill" {
							require.NotEmpty(t, all, what)
						}
					}
				}
			}
		}
	}
	for _, p := range library.Programs() {
		require.True(t, started[p.Name] || p.Match == nil, "%s never starts", p.Name)
	}
	require.Positive(t, contained, "no shipped playbook contains")
}
