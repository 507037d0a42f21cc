package interpreter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/workflows"
)

// counterPlaybook is a playbook that others call: it holds what it is given, and says how many there were.
const counterPlaybook = `
playbook: counter
inputs:
  pods: { type: targets }
  floor: { type: integer, default: 5 }
outputs:
  found: seen.count
  many: seen.count > inputs.floor
steps:
  - enrich: ctx
    id: seen
    target: inputs.pods
  - contain: isolate
    id: hold
    target: inputs.pods
    for: 1h
`

// Each line of wantLines is a line of the report: the step's name, its action, its outcome and the start of its reason.
func TestEveryConstructRuns(t *testing.T) {
	for name, s := range map[string]struct {
		testScenario
		outcome playbooks.Outcome // of the run
		inOrder bool
	}{
		"a loop runs its steps for each element, and its names stay inside": {
			testScenario: testScenario{
				stepsYAML: `
  - evidence: snapshot
  - foreach: incident.targets
    id: each
    as: pod
    steps:
      - enrich: ctx
        id: c
        target: pod
      - contain: isolate
        target: pod
        if: c.count == 7
        for: 1h
  - notify: tell
    target: incident.targets[0]
    if: each.outcome == "changed" && each.targets == 2
`,
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded", "each[0]/c ctx succeeded",
					"each[0]/steps[1].steps[1] isolate changed",
					"each[1]/c ctx succeeded", "each[1]/steps[1].steps[1] isolate changed", "steps[2] tell succeeded",
				},
			}, outcome: "changed", inOrder: true,
		},
		"a loop's outcome is the worst of its rounds, and the others run": {
			testScenario: testScenario{
				errorsByAction: map[string][]error{"isolate": {activities.Refusef("host network"), nil}},
				stepsYAML: `
  - evidence: snapshot
  - foreach: incident.targets
    steps:
      - contain: isolate
        target: item
        for: 1h
    on_failure:
      - notify: tell
        target: incident.targets[0]
`,
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded",
					"steps[1][0]/steps[1].steps[0] isolate refused (host network)",
					"steps[1][1]/steps[1].steps[0] isolate changed", "steps[1].on_failure[0] tell succeeded",
				},
			}, outcome: "succeeded", inOrder: true,
		},
		"what failed is known, and only that is mended": {
			testScenario: testScenario{
				errorsByAction: map[string][]error{"isolate": {activities.Refusef("host network"), nil}},
				stepsYAML:      "\n  - evidence: snapshot\n  - contain: isolate\n    id: hold\n    for: 1h\n    on_failure:\n      - contain: freeze\n        for: 1h\n        target: hold.failed\n",
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded", "hold isolate refused",
					"hold isolate changed", "steps[1].on_failure[0] freeze changed",
				},
				check: func(t *testing.T, w *fakeBackend) { require.Len(t, w.heldTargets, 2) },
			}, outcome: "changed",
		},
		"a called playbook keeps its own ceiling": {
			testScenario: testScenario{
				callablePlaybooks: []string{"playbook: sub\nmax_phase: 1\ninputs: {}\nsteps:\n  - contain: isolate\n    target: incident.targets[0]\n    for: 1h\n"},
				stepsYAML:         "\n  - evidence: snapshot\n  - call: sub\n",
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded",
					"steps[1]/steps[0] isolate proposed", "steps[1] call proposed",
				},
			}, outcome: "proposed",
		},
		"a value keeps what the branch gave it that set it": {
			testScenario: testScenario{
				stepsYAML: `
  - set: { bad: false }
  - parallel:
      - set: { bad: true }
      - set: { bad: false }
        if: incident.total_detections > 100
  - notify: tell
    target: incident.targets[0]
    if: bad
`,
				wantLines: []string{
					"steps[0] set succeeded", "steps[1].parallel[0] set succeeded",
					"steps[1].parallel[1] set skipped", "steps[2] tell succeeded",
				},
			}, outcome: "succeeded",
		},
		"evidence is taken although what it asks for cannot be known": {
			testScenario: testScenario{
				errorsByAction: map[string][]error{"ctx": {activities.Refusef("away")}},
				stepsYAML:      "\n  - enrich: ctx\n    id: c\n    target: incident.targets[0]\n  - evidence: snapshot\n    target: filter(incident.targets, c.count > 3)\n  - contain: isolate\n    for: 1h\n    target: incident.targets[0]\n",
				wantLines: []string{
					"c ctx refused", "steps[1] snapshot succeeded", "steps[1] snapshot succeeded",
					"steps[2] isolate changed",
				},
			}, outcome: "refused",
		},
		"what is planned twice is asked once, and what is set under a false if is not planned": {
			testScenario: testScenario{
				decisionsByAction: map[string]activities.GuardDecision{"scale": {Verdict: activities.VerdictAskApproval}},
				approverVote:      voteYes(),
				stepsYAML: `
  - evidence: snapshot
  - approval: sure
    ask: "Really?"
    from: { groups: [people] }
    timeout: 5s
    on_timeout: deny
    steps:
      - set: { one: "${[incident.targets[0]]}" }
      - set: { one: "${incident.targets}" }
        if: incident.total_detections > 100
      - contain: scale
        target: one
        for: 1h
      - contain: scale
        target: one
        if: incident.total_detections > 100
        for: 1h
`,
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded", "steps[1] approval succeeded",
					"steps[1].steps[0] set succeeded", "steps[1].steps[1] set skipped",
					"steps[1].steps[2] scale changed", "steps[1].steps[3] scale skipped",
				},
				check: func(t *testing.T, w *fakeBackend) {
					require.LessOrEqual(t, w.planCounts["scale a"], 3)
					require.Zero(t, w.planCounts["scale b"])
				},
			}, outcome: "succeeded",
		},
		"a list that is too long is refused before anything runs": {
			testScenario: testScenario{
				stepsYAML: "\n  - foreach: incident.targets\n    max: 1\n    steps:\n      - enrich: ctx\n        target: item\n    on_failure:\n      - notify: tell\n        target: incident.targets[0]\n",
				wantLines: []string{
					"steps[0] foreach refused (the list has 2 elements; the maximum is 1)",
					"steps[0].on_failure[0] tell succeeded",
				},
			}, outcome: "succeeded",
		},
		"a loop over nothing is skipped": {
			testScenario: testScenario{
				stepsYAML: "\n  - foreach: filter(incident.targets, .name == \"nobody\")\n    concurrency: 2\n    steps:\n      - enrich: ctx\n        target: item\n",
				wantLines: []string{"steps[0] foreach skipped (the list is empty)"},
			}, outcome: "skipped",
		},
		"a call gives inputs and reads outputs": {
			testScenario: testScenario{
				callablePlaybooks: []string{counterPlaybook},
				stepsYAML: `
  - evidence: snapshot
  - call: counter
    id: sub
    with: { pods: "${incident.targets}" }
  - notify: tell
    target: incident.targets[0]
    if: sub.found == 7 && sub.many
`,
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded", "sub/seen ctx succeeded", "sub/seen ctx succeeded",
					"sub/hold isolate changed", "sub/hold isolate changed",
					"sub call changed", "steps[2] tell succeeded",
				},
			}, outcome: "changed",
		},
		"a call that fails runs on_failure, and its outputs cannot be read": {
			testScenario: testScenario{
				callablePlaybooks: []string{counterPlaybook},
				errorsByAction:    map[string][]error{"isolate": {activities.Refusef("no")}},
				stepsYAML: `
  - evidence: snapshot
  - call: counter
    id: sub
    with: { pods: "${[incident.targets[0]]}" }
    on_failure:
      - notify: tell
        target: incident.targets[0]
  - notify: tell
    if: sub.many
`,
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded", "sub/seen ctx succeeded",
					"sub/hold isolate refused (no)", "sub call refused (no)",
					"steps[1].on_failure[0] tell succeeded",
					"steps[2] tell failed (`if`: the outputs of step sub cannot be read: its outcome is refused)",
				},
			}, outcome: "failed", inOrder: true,
		},
		"a stop ends the playbook with its outcome, and finally runs": {
			testScenario: testScenario{
				headerYAML: "finally:\n  - notify: tell\n    target: incident.targets[0]\n",
				stepsYAML: `
  - enrich: ctx
    id: c
    target: incident.targets[0]
  - stop: unchanged
    if: c.count > 5
    reason: "a scan, ${c.count} of it"
  - enrich: ctx
`,
				wantLines: []string{"c ctx succeeded", "steps[1] stop unchanged (a scan, 7 of it)", "finally[0] tell succeeded"},
			}, outcome: "unchanged", inOrder: true,
		},
		"a stop in a called playbook ends that one only": {
			testScenario: testScenario{
				callablePlaybooks: []string{"playbook: early\ninputs: {}\nsteps:\n  - parallel:\n      - stop: skipped\n      - wait: 1s\n  - enrich: ctx\n"},
				stepsYAML:         "\n  - call: early\n    id: sub\n  - notify: tell\n    target: incident.targets[0]\n    if: sub.outcome == \"skipped\"\n",
				wantLines: []string{
					"sub/steps[0].parallel[0] stop skipped",
					"sub/steps[0].parallel[1] wait succeeded (waited for 1s)", "sub call skipped", "steps[1] tell succeeded",
				},
			}, outcome: "succeeded",
		},
		"values keep their names, through branches and not out of loops": {
			testScenario: testScenario{
				stepsYAML: `
  - set: { wide: false, why: "nobody knows" }
  - parallel:
      - set: { wide: "${len(incident.targets) == 2}" }
      - enrich: ctx
  - foreach: incident.targets
    steps:
      - set: { name: "${item.name}" }
      - notify: tell
        target: item
        if: wide && name == "b"
  - notify: tell
    target: incident.targets[0]
    if: wide && why startsWith "nobody"
`,
				wantLines: []string{
					"steps[0] set succeeded (wide, why)", "steps[1].parallel[0] set succeeded (wide)",
					"steps[1].parallel[1] ctx succeeded", "steps[1].parallel[1] ctx succeeded",
					"steps[2][0]/steps[2].steps[0] set succeeded (name)", "steps[2][0]/steps[2].steps[1] tell skipped",
					"steps[2][1]/steps[2].steps[0] set succeeded (name)",
					"steps[2][1]/steps[2].steps[1] tell succeeded", "steps[3] tell succeeded",
				},
			}, outcome: "succeeded",
		},
		"what is not done in time has failed": {
			testScenario: testScenario{
				stepsYAML: "\n  - parallel:\n      - wait: 1h\n      - enrich: ctx\n        target: incident.targets[0]\n    timeout: 1s\n    on_failure:\n      - notify: tell\n        target: incident.targets[0]\n",
				wantLines: []string{
					"steps[0].parallel[1] ctx succeeded", "steps[0].parallel[0] wait failed (interrupted)",
					"steps[0] parallel failed (timed out after 1s",
					"steps[0].on_failure[0] tell succeeded",
				},
			}, outcome: "succeeded", inOrder: true,
		},
		"a branch that fails makes the parallel fail": {
			testScenario: testScenario{
				errorsByAction: map[string][]error{"isolate": {activities.Refusef("no")}},
				stepsYAML:      "\n  - evidence: snapshot\n    target: incident.targets[0]\n  - parallel:\n      - contain: isolate\n        for: 1h\n        target: incident.targets[0]\n      - wait: 10ms\n    on_failure:\n      - stop: refused\n        reason: no\n",
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[1].parallel[0] isolate refused (no)",
					"steps[1].parallel[1] wait succeeded", "steps[1].on_failure[0] stop refused (no)",
				},
			}, outcome: "refused",
		},
		"a run that began with the first version goes on with it": {
			testScenario: testScenario{
				languageVersion: 1, errorsByAction: map[string][]error{
					"isolate": {activities.Refusef("no")},
					"ctx":     {errUnavailable, errUnavailable, errUnavailable},
				},
				stepsYAML: "\n  - evidence: snapshot\n    target: incident.targets[0]\n  - parallel:\n      - contain: isolate\n        for: 1h\n        target: incident.targets[0]\n      - enrich: ctx\n        id: c\n        target: incident.targets[0]\n    on_failure:\n      - stop: refused\n  - notify: tell\n    if: c.count > 0\n",
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[1].parallel[0] isolate refused (no)", "c ctx failed",
					"steps[2] tell skipped",
				},
			}, outcome: "succeeded",
		},
		"an approval permits what a loop and a call inside of it hold": {
			testScenario: testScenario{
				callablePlaybooks: []string{counterPlaybook},
				decisionsByAction: map[string]activities.GuardDecision{
					"isolate": {Verdict: activities.VerdictAskApproval},
					"scale":   {Verdict: activities.VerdictAskApproval},
				}, approverVote: voteYes(),
				stepsYAML: `
  - evidence: snapshot
  - approval: all of it
    ask: "Hold ${len(incident.targets)} pods?"
    from: { groups: [people] }
    timeout: 5s
    on_timeout: deny
    steps:
      - call: counter
        id: sub
        with: { pods: "${incident.targets}" }
      - foreach: incident.targets
        as: pod
        concurrency: 2
        steps:
          - contain: scale
            target: pod
            for: 1h
`,
				wantLines: []string{
					"steps[0] snapshot succeeded", "steps[0] snapshot succeeded", "steps[1] approval succeeded",
					"sub/seen ctx succeeded", "sub/seen ctx succeeded", "sub/hold isolate changed",
					"sub/hold isolate changed", "sub call changed", "steps[1].steps[1][0]/steps[1].steps[1].steps[0] scale changed",
					"steps[1].steps[1][1]/steps[1].steps[1].steps[0] scale changed",
				},
			}, outcome: "succeeded",
		},
		"a wait for what never holds fails": {
			testScenario: testScenario{
				stepsYAML: "\n  - wait: { until: live.total_detections > 3, timeout: 1s }\n    on_failure:\n      - stop: failed\n        reason: it is over\n",
				wantLines: []string{
					"steps[0] wait failed (the condition was not true within 1s)",
					"steps[0].on_failure[0] stop failed (it is over)",
				},
			}, outcome: "failed",
		},
		"a wait ends when the incident is as it waits for": {
			testScenario: testScenario{
				stepsYAML: "\n  - wait: { until: live.total_detections > incident.total_detections + 1, timeout: 1m }\n  - notify: tell\n    target: incident.targets[0]\n",
				wantLines: []string{"steps[0] wait succeeded (the condition became true after", "steps[1] tell succeeded"},
				afterStart: func(t *testing.T, c client.Client, id string, _ func(func())) {
					for total := range 3 {
						require.NoError(t, c.SignalWorkflow(t.Context(), id, "", workflows.SignalIncidentState,
							playbooks.Incident{TotalDetections: total}))
					}
				},
			}, outcome: "succeeded", inOrder: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, report := runScenario(t, s.testScenario)
			if s.check != nil {
				s.check(t, w)
			}
			var got []string
			for _, step := range report.Steps {
				got = append(got, strings.TrimSuffix(fmt.Sprintf("%s %s %s (%s)", step.Step, step.Action, step.Outcome,
					step.Reason), " ()"))
			}
			compareLines(t, s.wantLines, got)
			for i := range got {
				require.True(t, !s.inOrder || strings.HasPrefix(got[i], s.wantLines[i]), "line %d is %q, not %q", i, got[i],
					s.wantLines[i])
			}
			require.Equal(t, s.outcome, report.Outcome, report.Reason)
		})
	}
}
