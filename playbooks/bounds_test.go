package playbooks_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"stanch/playbooks"
)

// evalSetSteps runs the `set` steps of a playbook in order, as the interpreter does, and returns the first error.
func evalSetSteps(t *testing.T, steps string) error {
	t.Helper()
	p, problems := playbooks.LoadPlaybook("p.yaml", []byte("playbook: p\nmatch: { objective: crypto-mining }\nsteps:\n"+
		steps), newTestCatalog())
	require.NotNil(t, p, problems)
	env, err := p.NewEvalEnv(playbooks.Incident{Summary: strings.Repeat("s", 1000)}, nil)
	require.NoError(t, err)
	for i := range p.Steps {
		if err := p.EvalAssignments(&p.Steps[i], env); err != nil {
			return err
		}
	}
	return nil
}

func allocatedBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestDoublingValueFailsAtTheSizeLimit(t *testing.T) {
	for name, c := range map[string]struct{ first, again, reason string }{
		"string in a template": {"set: { s: '${incident.summary}' }", "set: { s: '${s+s+s+s}' }", "more than 65536 bytes"},
		"a text": {
			"set: { s: '${incident.summary + \"\"}' }", "set: { s: '${join([s, s, s, s])}' }",
			"more than 65536 bytes",
		},
		"a list": {"set: { l: '${[incident.summary]}' }", "set: { l: '${concat(l, l, l, l)}' }", "bytes"},
		"list of strings": {
			"set: { l: '${[incident.summary]}' }", "set: { l: '${map(l, # + # + # + #)}' }",
			"more than 4096 bytes",
		},
		"many parts of a string": {
			"set: { s: '${join(map(1..60, incident.summary))}' }",
			"set: { l: '${map(split(s, \"\"), s + #)}' }", "more than 4096 ",
		},
		"upper case of each part": {
			"set: { s: '${join(map(1..60, incident.summary))}' }",
			"set: { l: '${map(split(s, \"\"), upper(s))}' }", "more than 4096 parts",
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := allocatedBytes()
			err := evalSetSteps(t, "  - "+c.first+"\n"+strings.Repeat("  - "+c.again+"\n", 16))
			require.ErrorContains(t, err, c.reason)
			require.Less(t, allocatedBytes()-before, uint64(64<<20), "bytes allocated")
		})
	}
}

func TestSetValuesOfOneRunHaveATotalLimit(t *testing.T) {
	var steps strings.Builder
	for i := range 100 {
		fmt.Fprintf(&steps, "  - set: { s%d: '${join(map(1..60, incident.summary))}' }\n", i)
	}
	require.ErrorContains(t, evalSetSteps(t, steps.String()), "in total")
}

func TestStringOfListIsAnError(t *testing.T) {
	_, problems := playbooks.LoadPlaybook(
		"p.yaml",
		[]byte(
			"playbook: p\nmatch: { objective: crypto-mining, when: 'string(incident.targets) != \"\"' }\nsteps: [{ evidence: process.snapshot }]\n",
		),
		newTestCatalog(),
	)
	require.Contains(t, fmt.Sprint(problems), "use `join` for a list of strings")
}
