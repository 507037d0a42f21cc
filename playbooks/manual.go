package playbooks

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// ManualContainmentPlaybook is the playbook of a containment that a person asked for by hand: evidence first, then the one action, as any
// other playbook would do it. Nothing of what the person wrote is in it.
func ManualContainmentPlaybook(action string, holds time.Duration) SourceFile {
	name := manualPlaybookName(action, duration.Format(holds)) // an incident keeps the version of a playbook that it started first
	text := fmt.Sprintf(`playbook: %s
description: A person asked for this containment by hand.
inputs: { asked: { type: string, default: by hand } }
steps:
  - evidence: process.snapshot
  - contain: %q
    id: contain
    for: %s
`, name, action, holds)
	return SourceFile{File: "by-hand/" + name + ".yaml", Content: []byte(text)}
}

func manualPlaybookName(action, holds string) string {
	return "contain-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, action+"-"+holds)
}

// ParseManualPlaybookName reports whether a playbook is the one that ManualContainmentPlaybook makes of an action, and for how long it contains.
func ParseManualPlaybookName(playbook, action string) (time.Duration, bool) {
	text, ok := strings.CutPrefix(playbook, manualPlaybookName(action, ""))
	if !ok {
		return 0, false
	}
	holds, err := duration.Parse(text)
	return holds, err == nil && manualPlaybookName(action, duration.Format(holds)) == playbook
}

// Containments are the containments that a playbook and those that it calls may ask for, each once in the order of the
// file, and how long the longest of them holds.
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

// ConstantArguments are the parameters of a step that are the same in every run, as Arguments gives them; false where an
// expression makes them.
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
