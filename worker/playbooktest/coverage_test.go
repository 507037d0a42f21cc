package playbooktest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const loopPlaybook = `playbook: loops
match: { objective: crypto-mining }
steps:
  - foreach: incident.targets
    as: pod
    id: each
    concurrency: 2
    steps:
      - call: hold
        id: sub
        with: { pod: "${pod}" }
  - wait: 10m
  - stop: refused
    if: incident.total_detections > 5
    reason: too many
  - set: { n: "${len(incident.targets)}" }
finally:
  - notify: log
    id: last
    with: { text: "${len(incident.targets)} pods" }
`

const containPlaybook = `playbook: hold
inputs: { pod: { type: target } }
steps:
  - evidence: process.snapshot
    target: inputs.pod
  - contain: pod.isolate
    id: isolate
    target: inputs.pod
    for: 1h
    on_failure:
      - contain: pod.freeze
        target: inputs.pod
        for: 60s
`

// Steps in loops and calls are expected, faked and covered like any other step.
func TestLoopsAndCallsAreCovered(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"loops.yaml": loopPlaybook, "hold.yaml": containPlaybook, "loops_test.yaml": `
tests:
  - name: each pod is held
    detections:
      - { objective: crypto-mining, pod: web-1 }
      - { objective: crypto-mining, pod: web-2 }
    incident: { blast_radius: { replicas: 9 } }
    actions:
      pod.isolate: { target: web-2, outcome: refused, reason: host network }
    expect:
      - { step: "each[0]/sub/isolate", target: web-1, outcome: changed }
      - { step: "each[1]/sub/isolate", target: web-2, outcome: refused, reason: host network }
      - { step: "each[1]/sub/steps[1].on_failure[0]", outcome: changed }
      - { step: "steps[1]", action: wait, outcome: succeeded, at: 10m }
      - { step: last, outcome: succeeded, with: { text: 2 pods } }
  - name: too many
    detections: [{ objective: crypto-mining, count: 6 }]
    expect:
      - { action: stop, outcome: refused, reason: too many }
      - { step: last }
    never: ["steps[3]"]
`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	r := runFiles(t, dir)
	requireAllPassed(t, r)
	for _, c := range r.Coverage {
		require.Empty(t, c.Uncovered, c.File)
	}
}
