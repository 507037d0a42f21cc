package playbooks

import (
	"fmt"
	"slices"
	"strings"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
)

// reserved are names that an id cannot have: expressions know them already.
var reserved = []string{"incident", "inputs", "live", "true", "false", "nil", "in", "and", "or", "not", "let", "if", "else", "matches", "contains"}

// namesStage finds what every word stands for.
func (c *checker) namesStage() {
	book := c.program.Playbook
	if m := book.Match; m != nil {
		for _, o := range m.Objectives {
			if !slices.Contains(sensors.Objectives, sensors.Objective(o.Text)) {
				known := make([]string, len(sensors.Objectives))
				for i, k := range sensors.Objectives {
					known[i] = string(k)
				}
				c.errorf(o.Pos, "unknown-objective", diagnostic.DidYouMean(o.Text, known), "no rule has the objective `%s`", clip(o.Text, 40))
			}
		}
		if s := m.Severity; s.Text != "" && sensors.Severity(s.Text).Rank() < 0 {
			c.errorf(s.Pos, "value", "info, low, medium, high or critical", "`%s` is not a severity", clip(s.Text, 40))
		}
	}
	for _, steps := range [][]Step{book.Steps, book.Finally} {
		walk(steps, c.namesOf)
	}
}

func (c *checker) namesOf(s *Step) {
	if s.ID != "" && c.free(s.ID, s.IDPos) {
		c.declare(s.ID, s.IDPos, "id")
	}
	if f := s.ForEach; f != nil {
		pos := f.AsPos
		if pos == (Pos{}) {
			pos = s.Pos
		}
		if c.free(f.As, pos) {
			c.aliases[f.As] = true
		}
	}
	for _, a := range s.Set {
		if !c.free(a.Name, a.Pos) {
			continue
		}
		if _, again := c.program.values[a.Name]; !again {
			c.declare(a.Name, a.Pos, "name")
		}
		c.program.values[a.Name] = nil // its type is found later
	}
	switch {
	case s.Action != "":
		c.actionNamed(s)
	case s.Verb != "":
		c.bad[s] = true // it was reported that the action is no word
	case s.Call != nil && s.Call.Playbook != "":
		c.callNamed(s)
	}
}

// free tells whether a name may be given.
func (c *checker) free(name string, pos Pos) bool {
	if slices.Contains(reserved, name) {
		c.errorf(pos, "name", "choose another name", "the name `%s` is taken", name)
		return false
	}
	return true
}

func (c *checker) declare(name string, pos Pos, what string) {
	if first, ok := c.ids[name]; ok {
		c.errorf(pos, "duplicate-id", "choose another "+what, "the id `%s` is used twice; the first is at line %d", name, first.Line)
		return
	}
	c.ids[name] = pos
}

func (c *checker) actionNamed(s *Step) {
	spec, ok := c.program.catalogue[s.Action]
	if ok && spec.Verb == s.Verb {
		return
	}
	c.bad[s] = true
	var known []string
	for name, other := range c.program.catalogue {
		if other.Verb == s.Verb {
			known = append(known, name)
		}
	}
	hint := diagnostic.DidYouMean(s.Action, known)
	if ok {
		hint = fmt.Sprintf("write `%s: %s`", spec.Verb, s.Action)
	}
	c.errorf(s.ActionPos, "unknown-action", hint, "there is no `%s` action `%s`", s.Verb, clip(s.Action, 60))
}

func (c *checker) callNamed(s *Step) {
	name := s.Call.Playbook
	if callee, ok := c.known[name]; ok {
		c.program.Callees[name] = callee
		return
	}
	c.bad[s] = true
	if name == c.program.Name {
		c.errorf(s.Call.Pos, "cycle", "use `foreach` to repeat steps", "the playbook `%s` calls itself", clip(name, 40))
		return
	}
	var known []string
	for other := range c.known {
		known = append(known, other)
	}
	hint := diagnostic.DidYouMean(name, known)
	if hint == "" {
		hint = "put it into the folder beside this one; `stanch playbooks` lists those that are there"
	}
	c.errorf(s.Call.Pos, "unknown-playbook", hint, "there is no playbook `%s`", clip(name, 40))
}

// quoted lists words for a message.
func quoted(words []string) string { return "`" + strings.Join(words, "`, `") + "`" }
