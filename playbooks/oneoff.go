package playbooks

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// OneOff is the playbook of a containment that a person asked for by hand: evidence first, then the one action, as any
// other playbook would do it. Nothing of what the person wrote is in it.
func OneOff(action string, holds time.Duration) Source {
	name := oneOff(action, duration.Format(holds)) // an incident keeps the version of a playbook that it started first
	text := fmt.Sprintf(`playbook: %s
description: A person asked for this containment by hand.
inputs: { asked: { type: string, default: by hand } }
steps:
  - evidence: process.snapshot
  - contain: %q
    id: contain
    for: %s
`, name, action, holds)
	return Source{File: "by-hand/" + name + ".yaml", Source: []byte(text)}
}

func oneOff(action, holds string) string {
	return "contain-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, action+"-"+holds)
}

// OneOffFor reports whether a playbook is the one that OneOff makes of an action, and for how long it contains.
func OneOffFor(playbook, action string) (time.Duration, bool) {
	text, ok := strings.CutPrefix(playbook, oneOff(action, ""))
	if !ok {
		return 0, false
	}
	holds, err := duration.Parse(text)
	return holds, err == nil && oneOff(action, duration.Format(holds)) == playbook
}

// Containments are the containments that a playbook and those that it calls may ask for, each once in the order of the
// file, and how long the longest of them holds.
func (p *Program) Containments() (actions []string, longest time.Duration) {
	seen := map[string]bool{}
	for _, book := range append([]*Program{p}, p.Called()...) {
		book.Walk(func(s *Step) {
			if s.Verb != VerbContain {
				return
			}
			longest = max(longest, s.For)
			if !seen[s.Action] {
				seen[s.Action] = true
				actions = append(actions, s.Action)
			}
		})
	}
	return actions, longest
}

// FixedArguments are the parameters of a step that are the same in every run, as Arguments gives them; false where an
// expression makes them.
func (p *Program) FixedArguments(s *Step) (json.RawMessage, bool) {
	for _, a := range s.With {
		if !a.Value.fixed() {
			return nil, false
		}
	}
	raw, err := p.Arguments(s, Env{})
	return raw, err == nil
}

func (v Value) fixed() bool {
	for _, one := range v.List {
		if !one.fixed() {
			return false
		}
	}
	for _, one := range v.Map {
		if !one.Value.fixed() {
			return false
		}
	}
	return v.Expr == nil && v.Text == nil
}
