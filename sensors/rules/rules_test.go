package rules_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/rules"
)

func TestShippedRulesPassTheirTests(t *testing.T) {
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	require.Greater(t, len(set.Rules()), 50)
	ran := map[string]map[bool]bool{}
	for _, r := range set.TestResults() {
		require.True(t, r.Passed, "%s: %s", r.Rule, r.FailureReason)
		if ran[r.Rule] == nil {
			ran[r.Rule] = map[bool]bool{}
		}
		ran[r.Rule][r.ShouldFire] = true
	}
	for _, r := range set.Rules() {
		require.Equal(t, map[bool]bool{true: true, false: true}, ran[r.Name],
			"%s needs a test where it fires and one where it does not", r.Name)
	}
}

func TestRuleThatFailsItsTestIsAnError(t *testing.T) {
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
  - rule: misspelled
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
		"p.yaml:12:21: error: test of rule `broken`: it should fire, but the condition is false [test]",
		"p.yaml:13:5: error: a rule has no `severity` [required]",
		"p.yaml:16:24: error: the condition of `misspelled`: `process` has no field `uidd` [expression]",
		"p.yaml:17:5: error: a rule has no key `severty` [unknown-key]",
		"p.yaml:26:16: error: the condition of `unknown-name`: unknown field, list, macro or function `proces` [expression]", //nolint:misspell // intentionally misspelled
	}, lines)
}

func TestDetectionHasTitleAndReasons(t *testing.T) {
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	event := sensors.Event{
		ID: "n/1", Kind: sensors.KindExec, Container: sensors.Container{ID: "c"},
		Process: sensors.Process{PID: 7, Exe: "/tmp/xmrig", Args: []string{"xmrig"}, ExeInUpperLayer: true},
	}
	found, errs := set.Evaluate(event)
	require.Empty(t, errs)
	require.GreaterOrEqual(t, len(found), 2, "miner and drift")
	again, _ := set.Evaluate(event)
	require.Equal(t, found[0].ID, again[0].ID, "the ID depends on the event and the rule")
	require.NotEqual(t, found[0].ID, found[1].ID)
}

func ruleYAML(name, condition, fires, silent string) string {
	return "  - {rule: " + name + ", title: t, on: exec, condition: '" + condition +
		"', severity: low, confidence: 0.5, objective: execution, technique: T1059, reason: r,\n" +
		"     tests: { fires: " + fires + ", silent: " + silent + " } }\n"
}

func loadPack(t *testing.T, pack string) (*rules.Set, []string) {
	t.Helper()
	set, problems := rules.Load(fstest.MapFS{"p.yaml": {Data: []byte(pack)}})
	var out []string
	for _, p := range problems {
		out = append(out, p.String())
	}
	return set, out
}

func TestMacroExpandsToItsCondition(t *testing.T) {
	set, problems := loadPack(t, `
lists: { shells: [sh, bash] }
macros:
  root: process.uid == 0
  root_shell: root && exe in shells
rules:
`+ruleYAML("a", "root_shell && !in_container", "{ process: { uid: 0, exe: /bin/sh } }", "{ process: { uid: 1, exe: /bin/sh } }"))
	require.Empty(t, problems)
	found, errs := set.Evaluate(sensors.Event{Kind: sensors.KindExec, Process: sensors.Process{Exe: "/bin/bash"}})
	require.Empty(t, errs)
	require.Len(t, found, 1)
	found, _ = set.Evaluate(sensors.Event{Kind: sensors.KindExec, Process: sensors.Process{Exe: "/bin/cat"}})
	require.Empty(t, found)
}

func TestMacroCycleIsAnErrorAtItsPosition(t *testing.T) {
	set, problems := loadPack(t, `
macros:
  a: b || in_container
  b: c
  c: a
  d: exe == 7
rules:
`+ruleYAML("r", "a", "{}", "{}")+ruleYAML("s", "d", "{}", "{}"))
	require.Empty(t, set.Rules())
	require.Equal(t, []string{
		"p.yaml:3:3: error: the macro `a` uses itself: a → b → c → a [cycle]",
		"p.yaml:6:10: error: the macro `d`: invalid operation: == (mismatched types string and int) [expression]",
		"p.yaml:8:47: error: the condition of `r`: the macro `a` has errors [macro]",
		"p.yaml:10:47: error: the condition of `s`: the macro `d` has errors [macro]",
	}, problems)
}

func TestNestedMacroExpansionIsBounded(t *testing.T) {
	pack := "macros:\n  m0: in_container || in_container\n"
	for i := range 200 {
		pack += fmt.Sprintf("  m%d: m%d || m%d\n", i+1, i, i)
	}
	_, problems := loadPack(t, pack)
	require.Contains(t, strings.Join(problems, "\n"), "too-large")
}

func TestRuleIsFoundByItsFalcoName(t *testing.T) {
	pack := strings.Replace(ruleYAML("a", "in_container", "{ container: { id: c } }", "{}"), "title: t",
		`aliases: ["Terminal shell in container"], title: t`, 1)
	set, problems := loadPack(t, "rules:\n"+pack)
	require.Empty(t, problems)
	require.Equal(t, "a", set.Find("terminal shell in container").Name)
	require.Equal(t, "a", set.Find("a").Name)
	require.Nil(t, set.Find("b"))
	_, problems = loadPack(t, "rules:\n"+pack+strings.Replace(pack, "rule: a", "rule: b", 1))
	require.Len(t, problems, 1)
	require.Contains(t, problems[0],
		"p.yaml:4:25: error: the rule `Terminal shell in container` is already defined at p.yaml:2")
}
