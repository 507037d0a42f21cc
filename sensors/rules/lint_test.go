package rules_test

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"stanch/sensors/rules"
)

func TestLintWarnsOnlyAboutOwnPacks(t *testing.T) {
	pack := "lists: { idle: [x] }\nmacros: { spare: in_container }\nrules:\n" +
		strings.Replace(ruleYAML("net", "in_container && network.port == 7", "{ container: { id: c }, network: { port: 7 } }",
			"{}"), "severity: low, confidence: 0.5", "severity: high, confidence: 0.4", 1) +
		strings.Replace(ruleYAML("loud", `exe == "loud"`, "{ process: { exe: loud } }", "{}"),
			"severity: low, confidence: 0.5", "severity: critical, confidence: 0.6", 1) +
		ruleYAML("double", "in_container && network.port == 7 && exe == \"x\"",
			"{ container: { id: c }, network: { port: 7 }, process: { exe: x } }", "{}") +
		"overrides: [{ rule: tool, exceptions: [{ labels: { app: x } }, 'command == \"x\"'] }]\n"
	_, problems := rules.Lint(
		rules.PackSource{FS: fstest.MapFS{"theirs.yaml": {Data: []byte("lists: { unused: [a] }\n" +
			strings.Replace(vendorPackYAML, "lists: {", "#", 1))}}, SuppressProblems: true},
		rules.PackSource{FS: fstest.MapFS{"mine.yaml": {Data: []byte(strings.ReplaceAll(pack, "rule: tool", "rule: net"))}}},
	)
	var codes []string
	for _, p := range problems {
		if p.File == "mine.yaml" {
			require.Equal(t, "warning", p.Severity, p.String())
			codes = append(codes, p.Code)
		}
	}
	require.ElementsMatch(t, []string{
		"unused", "unused", "unsure", "no-exception", "never", "never", "wide", "reason",
		"forgeable",
	}, codes)
}

func TestLintReportsShadowedRule(t *testing.T) {
	load := func(second string) []string {
		_, problems := rules.Lint(rules.PackSource{FS: fstest.MapFS{"p.yaml": {Data: []byte("rules:\n" + ruleYAML("wide",
			"exe == \"x\"", "{ process: { exe: x } }", "{}") + second)}}})
		return textList(problems)
	}
	narrow := ruleYAML("narrow", "process.uid == 0 && exe == \"x\"", "{ process: { exe: x } }", "{}")
	require.Equal(
		t,
		[]string{
			"p.yaml:4:51: warning: `wide` at p.yaml:2 fires on every event on which `narrow` does, with at least the same severity and confidence [shadowed] (remove it, or narrow the other rule)",
		},
		load(narrow),
	)
	require.Empty(t, load(strings.Replace(narrow, "severity: low", "severity: medium", 1)), "a higher severity")
	require.Len(t, load(ruleYAML("same", "exe == \"x\"", "{ process: { exe: x } }", "{}")), 1,
		"the later of two equal rules")
	require.Empty(t, load(ruleYAML("other", "exe == \"y\"", "{ process: { exe: y } }", "{}")))
}

func TestSchemaHasAllKeys(t *testing.T) {
	raw, err := json.Marshal(rules.Schema())
	require.NoError(t, err)
	for _, key := range []string{"overrides", "macros", "append", "namespaces", "reason", "fires", "ancestors"} {
		require.Contains(t, string(raw), `"`+key+`"`)
	}
}
