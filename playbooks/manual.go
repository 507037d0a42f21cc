package playbooks

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// ManualContainmentPlaybook returns the playbook of a containment that a person requested: evidence first, then the one
// action, with the same checks as any other playbook. It contains no text that the person wrote.
func ManualContainmentPlaybook(action string, holds time.Duration) SourceFile {
	// an incident keeps the first version of a playbook that it started, so the duration is part of the name
	name := manualPlaybookName(action, duration.Format(holds))
	text := fmt.Sprintf(`playbook: %s
description: A person requested this containment manually.
inputs: { requested: { type: string, default: manually } }
steps:
  - evidence: process.snapshot
  - contain: %q
    id: contain
    for: %s
`, name, action, holds)
	return SourceFile{File: "manual/" + name + ".yaml", Content: []byte(text)}
}

func manualPlaybookName(action, holds string) string {
	return "contain-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, action+"-"+holds)
}

// ParseManualPlaybookName reports whether a playbook is the one that ManualContainmentPlaybook returns for an action,
// and returns the duration of its containment.
func ParseManualPlaybookName(playbook, action string) (time.Duration, bool) {
	text, ok := strings.CutPrefix(playbook, manualPlaybookName(action, ""))
	if !ok {
		return 0, false
	}
	holds, err := duration.Parse(text)
	return holds, err == nil && manualPlaybookName(action, duration.Format(holds)) == playbook
}

// Containments returns the containments of the playbook and its callees, each once in the order of the file, and the
// longest duration among them.
func (p *Program) Containments() (actions []string, longest time.Duration) {
	seen := map[string]bool{}
	for _, book := range append([]*Program{p}, p.TransitiveCallees()...) {
		book.WalkSteps(func(s *Step) {
			if s.Verb != VerbContain {
				return
			}
			longest = max(longest, s.LeaseDuration)
			if !seen[s.Action] {
				seen[s.Action] = true
				actions = append(actions, s.Action)
			}
		})
	}
	return actions, longest
}

// ConstantArguments returns the parameters of a step in the form of EvalArguments. It returns false if an expression
// computes any of them.
func (p *Program) ConstantArguments(s *Step) (json.RawMessage, bool) {
	for _, a := range s.Arguments {
		if !a.Value.isConstant() {
			return nil, false
		}
	}
	raw, err := p.EvalArguments(s, EvalEnv{})
	return raw, err == nil
}

func (v Value) isConstant() bool {
	for _, one := range v.List {
		if !one.isConstant() {
			return false
		}
	}
	for _, one := range v.Map {
		if !one.Value.isConstant() {
			return false
		}
	}
	return v.Expr == nil && v.Template == nil
}
