package incident

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows/playbook"
)

// An incident keeps a limited number of steps. A run whose steps do not fit has still contained its target: no other
// playbook contains it as well.
func TestTruncatedRunKeepsItsContainedTargets(t *testing.T) {
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	catalog := playbooks.Catalog{"pod.isolate": {Name: "pod.isolate", Verb: playbooks.VerbContain}}
	for name, earlier := range map[string]int{"in a short incident": 1, "in a long one": maxStepReports} {
		r := &incidentRun{
			workflows:     &Workflows{Playbooks: &playbook.Workflows{Catalog: catalog}},
			incidentState: &incidentState{CoveredTargets: map[string]bool{}, Attestations: map[string][]attestation.Envelope{}},
		}
		r.Incident.Playbooks = []playbooks.PlaybookRun{{
			WorkflowID: "playbook/1", Ended: at,
			Steps: make([]playbooks.StepReport, earlier),
		}, {WorkflowID: "playbook/2", Started: at}}
		r.recordContainingRun(SelectedPlaybook{Name: "mine", CanContain: true}, "playbook/2",
			[]playbooks.Target{{Kind: playbooks.TargetPod, UID: "1"}})
		r.handlePlaybookReport(playbook.Report{
			WorkflowID: "playbook/2", Ended: at, Error: "it was terminated",
			Steps: []playbooks.StepReport{
				{
					Action: "pod.isolate", Verb: playbooks.VerbContain, Target: "pod:1", LeaseID: "LSE-1",
					Outcome: playbooks.OutcomeChanged, At: at,
				},
			},
		}, at)
		require.False(t, r.fallbackPending, name)
		require.Len(t, r.ContainingRuns, 1, name)
	}
}
