package rules_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
)

// vendorPackYAML is a pack by another author with one rule and two lists.
var vendorPackYAML = "lists: { tools: [nc, curl], ports: [3333] }\nrules:\n" +
	strings.Replace(ruleYAML("tool", "in_container && (exe in tools || network.port in ports)",
		"{ container: { id: c }, process: { exe: /bin/nc } }", "{ container: { id: c }, process: { exe: /bin/cat } }"),
		"title: t", `aliases: ["Launch Suspicious Network Tool"], title: t`, 1)

// loadWithVendorPack loads the vendor pack together with own.
func loadWithVendorPack(t *testing.T, own string) (*rules.Set, []string) {
	t.Helper()
	set, problems := rules.LoadSources(
		rules.PackSource{FS: fstest.MapFS{"theirs.yaml": {Data: []byte(vendorPackYAML)}}},
		rules.PackSource{FS: fstest.MapFS{"mine.yaml": {Data: []byte(own)}}, Name: "etc"},
	)
	return set, textList(problems)
}

func textList(problems diagnostic.Diagnostics) []string {
	var out []string
	for _, p := range problems {
		line := p.String()
		if p.Hint != "" {
			line += " (" + p.Hint + ")"
		}
		out = append(out, line)
	}
	return out
}

func execEvent(exe string, container sensors.Container) sensors.Event {
	if container.ID == "" {
		container.ID = "c"
	}
	return sensors.Event{ID: "1", Kind: sensors.KindExec, Process: sensors.Process{Exe: exe}, Container: container}
}

func requireOneDetection(t *testing.T, set *rules.Set, e sensors.Event) sensors.Detection {
	t.Helper()
	found, errs := set.Evaluate(e)
	require.Empty(t, errs)
	require.Len(t, found, 1)
	return found[0]
}

func requireNoDetection(t *testing.T, set *rules.Set, e sensors.Event) {
	t.Helper()
	found, errs := set.Evaluate(e)
	require.Empty(t, errs)
	require.Empty(t, found)
}

func TestAppendExtendsListOfAnotherPack(t *testing.T) {
	set, problems := loadWithVendorPack(t, "lists: { tools: { append: [socat] }, ports: { append: [4444] } }")
	require.Empty(t, problems)
	requireOneDetection(t, set, execEvent("/usr/bin/socat", sensors.Container{}))
	requireOneDetection(t, set, execEvent("/usr/bin/nc", sensors.Container{}))
	e := execEvent("/bin/x", sensors.Container{})
	e.Network.Port = 4444
	requireOneDetection(t, set, e)

	_, problems = loadWithVendorPack(
		t,
		"lists:\n  tols: { append: [socat] }\n  ports: { append: [x] }\n  tools: [a]\n  mixed: [a, 1]\n  exe: [b]\n",
	)
	require.Equal(t, []string{
		"etc/mine.yaml:2:3: error: unknown list `tols` [unknown-list] (did you mean `tools`?)",
		"etc/mine.yaml:3:3: error: the list `ports` at theirs.yaml:1 and the appended elements must be all strings or all integers [type]",
		"etc/mine.yaml:4:3: error: the list `tools` is already defined at theirs.yaml:1 [duplicate-name] (`tools: { append: […] }` adds to it)",
		"etc/mine.yaml:5:14: error: the elements of the list `mixed` must be all strings or all integers, not `1` [type] (put it in quotes if it is a string)",
		"etc/mine.yaml:6:3: error: the name `exe` is reserved [name] (choose another name)",
	}, problems)
}

func TestOverrideAddsExceptionForWorkload(t *testing.T) {
	set, problems := loadWithVendorPack(t, `
overrides:
  - rule: launch suspicious network tool
    exceptions:
      - name: build-pods
        workload: { kind: deployment, name: "ci-*" }
        namespace: [ci, "ci-*"]
        labels: { app: ci }
        image: ["registry.example.com/ci/*"]
        when: exe == "nc"
        reason: the build waits for its database with it
`)
	require.Empty(t, problems)
	all := sensors.Container{
		Image: "registry.example.com/ci/builder:7", Workload: sensors.Workload{Kind: "Deployment", Name: "ci-runner"},
		Pod: sensors.Pod{Namespace: "ci", Name: "x", Labels: map[string]string{"app": "ci"}},
	}
	requireNoDetection(t, set, execEvent("/bin/nc", all))
	for name, change := range map[string]func(*sensors.Container){
		"namespace": func(c *sensors.Container) { c.Pod.Namespace = "cix" },
		"host":      func(c *sensors.Container) { c.Pod.Namespace = "" },
		"label":     func(c *sensors.Container) { c.Pod.Labels = nil },
		"kind":      func(c *sensors.Container) { c.Workload.Kind = "Pod" },
		"workload":  func(c *sensors.Container) { c.Workload.Name = "web" },
		"image":     func(c *sensors.Container) { c.Image = "registry.example.com/ci/deep/builder:7" },
		"registry":  func(c *sensors.Container) { c.Image = "registry.example.com.evil.org/ci/builder" },
	} {
		t.Run(name, func(t *testing.T) {
			c := all
			change(&c)
			requireOneDetection(t, set, execEvent("/bin/nc", c))
		})
	}
	requireOneDetection(t, set, execEvent("/bin/curl", all))
	require.Equal(
		t,
		"except workload deployment/ci-*, namespace ci or ci-*, label app=ci, image registry.example.com/ci/*, when exe == \"nc\"",
		set.Find("tool").Overrides[0].DescribeChanges()[0],
	)
	require.Equal(t, "etc/mine.yaml:3", set.Find("tool").Overrides[0].Position)
}

func TestWorkloadIsInferredFromThePod(t *testing.T) {
	set, problems := loadWithVendorPack(
		t,
		`overrides: [{ rule: tool, exceptions: [{ workload: { kind: Deployment, name: web } }] }]`,
	)
	require.Empty(t, problems)
	pod := sensors.Pod{
		Namespace: "shop", Name: "web-6d4cf56db6-bcdfg",
		Labels: map[string]string{"pod-template-hash": "6d4cf56db6"},
	}
	requireNoDetection(t, set, execEvent("/bin/nc", sensors.Container{Pod: pod}))

	// A pod of another Deployment, and one whose name was not made from the label, are other workloads.
	other := pod
	other.Name = "api-6d4cf56db6-bcdfg"
	requireOneDetection(t, set, execEvent("/bin/nc", sensors.Container{Pod: other}))
	for _, labels := range []map[string]string{nil, {"pod-template-hash": "7d9c4"}} {
		unproven := pod
		unproven.Labels = labels
		requireOneDetection(t, set, execEvent("/bin/nc", sensors.Container{Pod: unproven}))
	}
}

func TestImagePatternsMatchNormalizedReferences(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, c := range []struct {
		pattern, image string
		matches        bool
	}{
		{"nginx", "docker.io/library/nginx:1.29", true},
		{"nginx", "nginx", true},
		{"docker.io/nginx", "docker.io/library/nginx", true},
		{"nginx", "evil/nginx", false},
		{"nginx", "registry.example.com/library/nginx", false},
		{"nginx:1.*", "docker.io/library/nginx:1.29", true},
		{"nginx:1.*", "docker.io/library/nginx:2", false},
		{"nginx:1.*", "docker.io/library/nginx", false},
		{"bitnami/redis", "docker.io/bitnami/redis:7", true},
		{"localhost:5000/app", "localhost:5000/app:dev", true},
		{"registry.example.com/**", "registry.example.com/a/b/c:1", true},
		{"registry.example.com/a/**", "registry.example.com/b/c", false},
		{"registry.example.com/**", "registry.example.com.evil.org/a", false},
		{"registry.example.com/*/app", "registry.example.com/team/app@" + digest, true},
		// by the digest that the runtime reports
		{"registry.example.com/app@" + digest, "registry.example.com/app:1", true},
		{"registry.example.com/app@sha256:b*", "registry.example.com/app:1", false},
		{"*/app", "ghcr.io/app", true},
	} {
		set, problems := loadWithVendorPack(t, "overrides: [{ rule: tool, exceptions: [{ image: '"+c.pattern+"' }] }]")
		require.Empty(t, problems, c.pattern)
		found, _ := set.Evaluate(execEvent("/bin/nc", sensors.Container{Image: c.image, ImageDigest: digest}))
		require.Equal(t, c.matches, len(found) == 0, "%s and %s", c.pattern, c.image)
	}
	_, problems := loadWithVendorPack(
		t,
		"overrides: [{ rule: tool, exceptions: [{ image: '**' }, { image: ['[a'] }, {}] }]",
	)
	require.Len(t, problems, 3)
}

func TestMostSpecificNamespacePatternSetsSeverity(t *testing.T) {
	own := strings.Replace(ruleYAML("mine", `exe == "x"`, "{ process: { exe: /x } }", "{}"), "severity: low",
		`severity: { default: medium, namespaces: { "prod-*": critical, "*": low, prod-test: info } }`, 1)
	set, problems := loadWithVendorPack(t, "rules:\n"+own)
	require.Empty(t, problems)
	for namespace, want := range map[string]sensors.Severity{
		"": "medium", "dev": "low", "prod-eu": "critical",
		"prod-test": "info",
	} {
		d := requireOneDetection(t, set, execEvent("/x", sensors.Container{Pod: sensors.Pod{Namespace: namespace}}))
		require.Equal(t, want, d.Severity, namespace)
		if namespace == "prod-eu" {
			require.Equal(t, []string{"r", "In the namespace prod-eu the rule's severity is critical instead of medium."},
				d.Reasons)
		}
	}
}

func TestDetectionNamesItsOverride(t *testing.T) {
	set, problems := loadWithVendorPack(t, `
overrides:
  - rule: tool
    severity: { namespaces: { prod: high } }
    confidence: 0.2
    reason: engineers debug with these
`)
	require.Empty(t, problems)
	d := requireOneDetection(t, set, execEvent("/bin/nc", sensors.Container{Pod: sensors.Pod{Namespace: "prod"}}))
	require.Equal(t, sensors.SeverityHigh, d.Severity)
	require.InDelta(t, 0.2, d.Confidence, 0)
	require.Equal(t, []string{
		"r",
		"The confidence was lowered from 0.50 to 0.20 by the override at etc/mine.yaml:3: engineers debug with these",
		"The severity was raised in the namespace prod from low to high by the override at etc/mine.yaml:3: engineers debug with these",
	}, d.Reasons)
	d = requireOneDetection(t, set, execEvent("/bin/nc", sensors.Container{Pod: sensors.Pod{Namespace: "dev"}}))
	require.Equal(t, sensors.SeverityLow, d.Severity)
	require.Len(t, d.Reasons, 2)
}

func TestDisabledRuleDoesNotFireAndStaysListed(t *testing.T) {
	set, problems := loadWithVendorPack(t, "overrides: [{ rule: tool, disable: true, reason: we know }]")
	require.Empty(t, problems)
	requireNoDetection(t, set, execEvent("/bin/nc", sensors.Container{}))
	require.True(t, set.Find("tool").Disabled)
	require.Len(t, set.Rules(), 1)
	require.Empty(t, set.Stats())
}

func TestInvalidOverrideKeepsTheRule(t *testing.T) {
	set, problems := loadWithVendorPack(t, `
overrides:
  - rule: tol
    disable: true
  - rule: tool
    severity: hihg
  - rule: tool
    condition: "false"
  - rule: tool
    exceptions:
      - workload: { nmae: web }
      - when: exe in tolls
  - rule: tool
    reason: x
  - rule: tool
    severity: high
  - rule: tool
    severity: info
  - rule: tool
    exceptions: [exe == "nc"]
    tests: { silent: { process: { exe: /bin/nc } }, fires: { container: { id: c }, process: { exe: /bin/nc } } }
`)
	require.Equal(t, []string{
		"etc/mine.yaml:3:5: error: `reason` is required to disable a rule [required] (for example, write `reason: we debug with it every day`)",
		"etc/mine.yaml:3:11: error: unknown rule `tol` [unknown-rule] (did you mean `tool`?)",
		"etc/mine.yaml:6:15: error: `severity` cannot be `hihg` [value] (did you mean `high`?)",
		"etc/mine.yaml:8:5: error: an override has no key `condition` [unknown-key] (use one of: confidence, disable, exceptions, reason, rule, severity, tests)",
		"etc/mine.yaml:11:21: error: `workload` has no key `nmae` [unknown-key] (did you mean `name`?)",
		"etc/mine.yaml:12:22: error: exception 2 of the override of `tool`: unknown field, list, macro or function `tolls` [expression] (did you mean `tools`?)",
		"etc/mine.yaml:13:5: error: the override changes nothing [required] (add disable, severity, confidence or exceptions)",
		"etc/mine.yaml:18:15: error: the `severity` of `tool` is already overridden at etc/mine.yaml:15 [duplicate-override] (remove one of them)",
		"etc/mine.yaml:21:60: error: test of rule `tool`: it should fire, but an exception applies: etc/mine.yaml:20 [test]",
	}, problems)
	require.Equal(t, sensors.SeverityHigh, requireOneDetection(t, set, execEvent("/bin/nc", sensors.Container{})).Severity)
}

func TestErrorPositionInFoldedAndQuotedStrings(t *testing.T) {
	pack := `
macros:
  a: >-
    in_container &&
      exe == 7
rules:
  - rule: folded
    title: t
    on: exec
    condition: >
      in_container &&

      exe in shels
    exceptions:
      - 'exe == ''x'' || exee == "y"'
      - "exe == \"x\" || exxe == 'y'"
      - in_container &&
          parrent == "x"
      - |
        in_container &&
          commandd == "x"
    severity: low
    confidence: 0.5
    objective: execution
    technique: T1059
    reason: r
    tests: { fires: {}, silent: { nme: x, process: { exxe: 7 } } }
    tests: {}
`
	_, got := loadPack(t, pack)
	require.Equal(t, []string{
		"p.yaml:5:11: error: the macro `a`: invalid operation: == (mismatched types string and int) [expression]",
		"p.yaml:13:14: error: the condition of `folded`: unknown field, list, macro or function `shels` [expression]",
		"p.yaml:15:26: error: exception 1 of `folded`: unknown field, list, macro or function `exee` [expression]",
		"p.yaml:16:26: error: exception 2 of `folded`: unknown field, list, macro or function `exxe` [expression]",
		"p.yaml:18:11: error: exception 3 of `folded`: unknown field, list, macro or function `parrent` [expression]",
		"p.yaml:21:11: error: exception 4 of `folded`: unknown field, list, macro or function `commandd` [expression]",
		"p.yaml:27:35: error: an event has no key `nme` [unknown-key]",
		"p.yaml:27:54: error: `process` has no key `exxe` [unknown-key]",
		"p.yaml:28:5: error: `tests` is given twice; the first is at line 27 [duplicate-key]",
	}, got)
}

func TestRuleTestWithAnotherEventKindFails(t *testing.T) {
	_, problems := loadPack(t, "rules:\n"+ruleYAML("r", "exe == \"x\"", "{ process: { exe: x } }",
		"[{ name: elsewhere, kind: open }, { process: { exe: y } }]"))
	require.Equal(
		t,
		[]string{
			"p.yaml:3:56: error: test `elsewhere` of rule `r`: the event is of kind `open`, but the rule evaluates `exec` [test]",
		},
		problems,
	)
}

func TestFailingExceptionDoesNotSuppressDetection(t *testing.T) {
	set, problems := loadWithVendorPack(t, `overrides: [{ rule: tool, exceptions: ['process.args[0] == "x"'] }]`)
	require.Empty(t, problems)
	found, errs := set.Evaluate(execEvent("/bin/nc", sensors.Container{}))
	require.Len(t, found, 1)
	require.Len(t, errs, 1)
}

func TestRuleStatsCountEvaluationsAndMatches(t *testing.T) {
	set, problems := loadWithVendorPack(t, `overrides: [{ rule: tool, exceptions: ['exe == "nc"'] }]`)
	require.Empty(t, problems)
	for _, exe := range []string{"/bin/nc", "/bin/curl", "/bin/cat", "/bin/curl"} {
		_, _ = set.Evaluate(execEvent(exe, sensors.Container{}))
	}
	stats := set.Stats()
	require.Len(t, stats, 1)
	require.Equal(t, uint64(1), stats[0].Sampled)
	require.Positive(t, stats[0].MeanEvaluationTime)
	stats[0].MeanEvaluationTime = 0
	require.Equal(t, rules.RuleStats{
		Rule: "tool", Kind: sensors.KindExec, Evaluated: 4, Fired: 2, Excepted: 1,
		Sampled: 1,
	}, stats[0])
}
