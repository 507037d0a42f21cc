package playbooks_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
)

const miningPlaybookHead = "match: { objective: crypto-mining }\nsteps:\n"

// countEvidenceErrors returns how many containments of a playbook precede evidence of their targets. called is the file
// of a playbook that it may call, or "".
func countEvidenceErrors(t *testing.T, steps, called string) int {
	t.Helper()
	sources := []playbooks.SourceFile{{File: "p.yaml", Content: []byte("playbook: p\n" + miningPlaybookHead + steps)}}
	if called != "" {
		sources = append(sources, playbooks.SourceFile{File: "c.yaml", Content: []byte("playbook: c\n" + called)})
	}
	_, problems := playbooks.LoadPlaybooks(sources, newTestCatalog())
	n := 0
	for _, p := range problems {
		if p.Code == "evidence-first" {
			n++
			continue
		}
		require.NotEqual(t, "error", p.Severity, fmt.Sprint(problems))
	}
	return n
}

func TestEvidenceOfAnotherTargetDoesNotCount(t *testing.T) {
	for name, c := range map[string]struct{ steps, called string }{
		"another element of the same list": {steps: `
  - foreach: incident.targets
    as: a
    steps:
      - foreach: incident.targets
        as: b
        steps:
          - { evidence: process.snapshot, target: a }
          - { contain: pod.isolate, for: 2h, target: b }
`},
		"value that is set again": {steps: `
  - set: { t: '${incident.targets[0]}' }
  - { evidence: process.snapshot, target: t }
  - set: { t: '${incident.targets[1]}' }
  - { contain: pod.isolate, for: 2h, target: t }
`},
		"value that is set again conditionally": {steps: `
  - set: { t: '${incident.targets[0]}' }
  - { evidence: process.snapshot, target: t }
  - set: { t: '${incident.targets[1]}' }
    if: incident.confidence > 0.9
  - { contain: pod.isolate, for: 2h, target: t }
`},
		"value that a branch sets again": {steps: `
  - set: { t: '${incident.targets[0]}' }
  - { evidence: process.snapshot, target: t }
  - parallel:
      - set: { t: '${incident.targets[1]}' }
      - notify: log
        with: { text: x }
  - { contain: pod.isolate, for: 2h, target: t }
`},
		"condition whose value is set again": {steps: `
  - set: { deep: '${incident.confidence > 0.9}' }
  - { evidence: process.snapshot, if: deep }
  - set: { deep: '${incident.confidence > 0.1}' }
  - { contain: pod.isolate, for: 2h, if: deep }
`},
		"called playbook that stops before": {steps: `
  - call: c
  - { contain: pod.isolate, for: 2h }
`, called: `
inputs:
  unused: { type: string, default: x, description: makes it callable }
steps:
  - stop: unchanged
    if: incident.confidence < 0.5
  - evidence: process.snapshot
`},
		"block with a timeout": {steps: `
  - parallel:
      - evidence: process.snapshot
      - { wait: 10s }
    timeout: 5s
  - { contain: pod.isolate, for: 2h }
`},
		"list with more elements": {steps: `
  - evidence: process.snapshot
    target: incident.targets[0]
  - { contain: pod.isolate, for: 2h, target: "flatten([[incident.targets[0]], incident.targets])" }
`},
		"list of which one element was captured": {steps: `
  - evidence: process.snapshot
    target: incident.targets[0]
  - { contain: pod.isolate, for: 2h, target: incident.targets }
`},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, 1, countEvidenceErrors(t, c.steps, c.called)) })
	}
}

func TestEvidenceOfListCoversItsElements(t *testing.T) {
	for name, c := range map[string]struct{ steps, called string }{
		"an element of it": {steps: `
  - evidence: process.snapshot
  - foreach: incident.targets
    as: a
    steps: [{ contain: pod.isolate, for: 2h, target: a }]
`},
		"the same element": {steps: `
  - foreach: incident.targets
    as: a
    steps:
      - { evidence: process.snapshot, target: a }
      - { contain: pod.isolate, for: 2h, target: a }
`},
		"a selection of it": {steps: `
  - evidence: process.snapshot
  - { contain: pod.isolate, for: 2h, target: 'filter(incident.targets, #.namespace == "shop")' }
`},
		"value with the same expression": {steps: `
  - evidence: process.snapshot
  - set: { t: '${take(incident.targets, 2)}' }
  - { contain: pod.isolate, for: 2h, target: t }
`},
		"concatenated parts": {steps: `
  - evidence: process.snapshot
  - { contain: pod.isolate, for: 2h, target: "concat(take(incident.targets, 1), incident.targets[1:2])" }
`},
		"before the stop of a called playbook": {steps: `
  - call: c
  - { contain: pod.isolate, for: 2h }
`, called: `
inputs:
  unused: { type: string, default: x, description: makes it callable }
steps:
  - evidence: process.snapshot
  - stop: unchanged
    if: incident.confidence < 0.5
  - notify: log
    with: { text: x }
`},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, 0, countEvidenceErrors(t, c.steps, c.called)) })
	}
}
