package rules_test

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/rules"
)

func TestEveryShippedRulePassesItsOwnTests(t *testing.T) {
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	require.Len(t, set.Rules(), 10)
}

func TestARuleThatDoesNotFireOnItsOwnEventIsAnError(t *testing.T) {
	pack := `
rules:
  - rule: broken
    title: t
    on: exec
    condition: process.uid == 7
    severity: low
    confidence: 0.5
    objective: execution
    technique: T1059
    reason: r
    tests: { fires: { process: { uid: 8 } }, silent: { process: { uid: 9 } } }
  - rule: misspelt
    title: t
    on: exec
    condition: process.uidd == 7
    severty: low
    confidence: 0.5
    objective: execution
    technique: T1059
    reason: r
    tests: { fires: { process: { uid: 8 } }, silent: { process: { uid: 9 } } }
  - rule: unknown-name
    title: t
    on: exec
    condition: proces.uid == 7
    severity: low
    confidence: 0.5
    objective: execution
    technique: T1059
    reason: r
    tests: { fires: { process: { uid: 8 } }, silent: { process: { uid: 9 } } }
`
	set, problems := rules.Load(fstest.MapFS{"p.yaml": {Data: []byte(pack)}})
	require.Empty(t, set.Rules())
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	require.Equal(t, []string{
		"p.yaml:12:12: error: rule `broken` does not pass its test `fires` (fired: false, error: <nil>) [test]",
		"p.yaml:13:5: error: rule `misspelt` has no `severity` [required]",
		"p.yaml:17:5: error: a rule has no key `severty` [unknown-key]",
		"p.yaml:26:16: error: rule `unknown-name`: unknown name proces [expression]", //nolint:misspell // it is misspelt
	}, lines)
}

func TestADetectionSaysWhatAndWhy(t *testing.T) {
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	event := sensors.Event{
		ID: "n/1", Kind: sensors.KindExec, Container: sensors.Container{ID: "c"},
		Process: sensors.Process{PID: 7, Exe: "/tmp/xmrig", Args: []string{"xmrig"}, UpperLayer: true},
	}
	found, errs := set.Evaluate(event)
	require.Empty(t, errs)
	require.Len(t, found, 2, "the miner and the drift")
	again, _ := set.Evaluate(event)
	require.Equal(t, found[0].ID, again[0].ID, "the id is the event's and the rule's")
	require.NotEqual(t, found[0].ID, found[1].ID)
}

func BenchmarkEvaluateNoMatch(b *testing.B) {
	set, err := rules.LoadShipped()
	require.NoError(b, err)
	event := sensors.Event{
		ID: "n/1", Kind: sensors.KindExec, Container: sensors.Container{ID: "c"},
		Process: sensors.Process{PID: 7, Exe: "/usr/bin/nginx", Args: []string{"nginx", "-g", "daemon off;"}},
	}
	for b.Loop() {
		set.Evaluate(event)
	}
}
