package playbooks_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
)

const allConstructsPlaybook = `
playbook: everything
match: { objective: crypto-mining }
inputs:
  hours: { type: integer, default: 31, minimum: 30, maximum: 32 }
  tone: { type: string, default: kind, enum: [kind, blunt] }
steps:
  - evidence: process.snapshot
  - evidence: pod.logs
    id: seen
    if: incident.confidence > 0.11
    target: incident.targets
    with: { tail: 1234, previous: "${incident.phase > 1}" }
    timeout: 47s
    retry: { attempts: 6, backoff: 7s }
    on_failure:
      - notify: log
        with: { text: "failed on ${incident.id}" }
  - set: { wide: "${incident.total_detections > 13}" }
  - parallel:
      - wait: 19s
    timeout: 23m
  - foreach: incident.targets
    as: victim
    concurrency: 3
    max: 9
    timeout: 29m
    steps:
      - contain: pod.isolate
        target: victim
        for: 37m
  - approval: the title
    ask: The question of ${incident.workload.name}?
    from: { groups: [first], users: [second], quorum: 2, escalate: { after: 4m, groups: [third] } }
    timeout: 14m
    on_timeout: deny
    steps:
      - contain: workload.scale
        with: { replicas: 0 }
        for: 41m
    on_denied:
      - wait: { until: live.assignee != "nobody", timeout: 43m }
  - stop: unchanged
    if: wide
    reason: because of ${incident.id}
`

func TestExplanationContainsEveryValueOfThePlaybook(t *testing.T) {
	p, problems := playbooks.LoadPlaybook("everything.yaml", []byte(allConstructsPlaybook), newTestCatalog())
	require.NotNil(t, p, "%v", problems.Err())
	e := playbooks.Explain(p)
	text := strings.Join(e.Inputs, "\n")
	for _, l := range e.Lines {
		text += "\n" + l.Text
	}
	for _, want := range []string{
		"default 31", "at least 30", "at most 32", "one of kind, blunt", "id: seen", "incident.confidence > 0.11",
		"on incident.targets", "with tail: 1234", "with previous: ${incident.phase > 1}",
		"timeout: 47s", "up to 6 attempts, 7s apart", "with text: \"failed on ${incident.id}\"",
		"wide = ${incident.total_detections > 13}", "19s", "23m", "each victim", "3 in parallel",
		"max: refused with more than 9", "29m", "37m",
		"the title", "The question of ${incident.workload.name}?", "first", "second", "2 of", "after 4m also third", "14m",
		"with replicas: 0", "41m", `live.assignee != "nobody"`, "43m", "because of ${incident.id}",
	} {
		require.Contains(t, text, want)
	}
}
