package rules_test

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"stanch/sensors"
	"stanch/sensors/rules"
)

// FuzzLoad loads arbitrary input: it must not crash, every problem must have a position in the file, and loaded rules
// must be evaluable.
func FuzzLoad(f *testing.F) {
	f.Add(vendorPackYAML)
	f.Add("lists: {a: {append: [b]}}\nmacros: {m: m || a}\noverrides: [{rule: x, disable: true}]")
	f.Add("rules:\n" + ruleYAML("r", "any(process.ancestors, .name in [\"a\"]) && cidr(network.address, \"10.0.0.0/8\")",
		"{}", "[{name: x, time: 7}]"))
	f.Add(
		"overrides: [{rule: r, severity: {default: low, namespaces: {'[': high}}, exceptions: [{image: '**:@', labels: {a: '*'}, when: >-\n  x\n }]}]",
	)
	f.Fuzz(func(t *testing.T, text string) {
		set, problems := rules.Lint(rules.PackSource{FS: fstest.MapFS{"a.yaml": {Data: []byte(vendorPackYAML)}}},
			rules.PackSource{FS: fstest.MapFS{"p.yaml": {Data: []byte(text)}}})
		for _, p := range problems {
			require.NotEmpty(t, p.Message)
			require.Positive(t, p.Line)
			require.Positive(t, p.Column)
			_ = p.Render([]byte(text))
		}
		for _, kind := range rules.SupportedKinds {
			_, _ = set.Evaluate(sensors.Event{
				Kind: kind, Process: sensors.Process{Exe: "/bin/nc", Args: []string{"nc"}},
				Container: sensors.Container{ID: "c", Image: "a/b:c"},
			})
		}
		_ = set.Stats()
	})
}
