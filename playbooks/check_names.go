package playbooks

import (
	"fmt"
	"slices"
	"strings"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
)

// reservedNames are names that expressions already use, so no id may have them.
var reservedNames = []string{
	"incident", "inputs", "live", "true", "false", "nil", "in", "and", "or", "not", "let",
	"if", "else", "matches", "contains",
}

// checkNames resolves every name in the playbook.
func (c *checker) checkNames() {
	book := c.program.Playbook
	if m := book.Match; m != nil {
		for _, o := range m.Objectives {
			if !slices.Contains(sensors.Objectives, sensors.Objective(o.Text)) {
				known := make([]string, len(sensors.Objectives))
				for i, k := range sensors.Objectives {
					known[i] = string(k)
				}
				c.errorf(o.Pos, "unknown-objective", diagnostic.DidYouMean(o.Text, known), "no rule has the objective `%s`",
					truncate.Text(o.Text, 40))
			}
		}
		if s := m.Severity; s.Text != "" && sensors.Severity(s.Text).Rank() < 0 {
			c.errorf(s.Pos, "value", "use info, low, medium, high or critical", "unknown severity `%s`", truncate.Text(s.Text,
				40))
		}
	}
	for _, steps := range [][]Step{book.Steps, book.Finally} {
		walkSteps(steps, c.checkStepNames)
	}
}

func (c *checker) checkStepNames(s *Step) {
	if s.ID != "" && c.checkNameAvailable(s.ID, s.IDPos) {
		c.declareName(s.ID, s.IDPos, "id")
	}
	if f := s.ForEach; f != nil {
		pos := f.VariablePos
		if pos == (Pos{}) {
			pos = s.Pos
		}
		if c.checkNameAvailable(f.Variable, pos) {
			c.loopVariables[f.Variable] = true
		}
	}
	for _, a := range s.Assignments {
		if !c.checkNameAvailable(a.Name, a.Pos) {
			continue
		}
		if _, again := c.program.assignedZeroValues[a.Name]; !again {
			c.declareName(a.Name, a.Pos, "name")
		}
		c.program.assignedZeroValues[a.Name] = nil // its type is inferred later
	}
	switch {
	case s.Action != "":
		c.checkActionName(s)
	case s.Verb != "":
		c.stepsWithUnknownNames[s] = true // the unknown action is already reported
	case s.Call != nil && s.Call.Playbook != "":
		c.checkCalledPlaybook(s)
	}
}

// checkNameAvailable reports whether a name is not reserved; it adds a diagnostic otherwise.
func (c *checker) checkNameAvailable(name string, pos Pos) bool {
	if slices.Contains(reservedNames, name) {
		c.errorf(pos, "name", "choose another name", "the name `%s` is already used", name)
		return false
	}
	return true
}

func (c *checker) declareName(name string, pos Pos, what string) {
	if first, ok := c.declaredPositions[name]; ok {
		c.errorf(pos, "duplicate-id", "choose another "+what, "the id `%s` is used twice; the first is at line %d", name,
			first.Line)
		return
	}
	c.declaredPositions[name] = pos
}

func (c *checker) checkActionName(s *Step) {
	spec, ok := c.program.catalog[s.Action]
	if ok && spec.Verb == s.Verb {
		return
	}
	c.stepsWithUnknownNames[s] = true
	var known []string
	for name, other := range c.program.catalog {
		if other.Verb == s.Verb {
			known = append(known, name)
		}
	}
	hint := diagnostic.DidYouMean(s.Action, known)
	if ok {
		hint = fmt.Sprintf("write `%s: %s`", spec.Verb, s.Action)
	}
	c.errorf(s.ActionPos, "unknown-action", hint, "unknown `%s` action `%s`", s.Verb, truncate.Text(s.Action, 60))
}

func (c *checker) checkCalledPlaybook(s *Step) {
	name := s.Call.Playbook
	if callee, ok := c.callablePrograms[name]; ok {
		c.program.Callees[name] = callee
		return
	}
	c.stepsWithUnknownNames[s] = true
	if name == c.program.Name {
		c.errorf(s.Call.Pos, "cycle", "use `foreach` to repeat steps", "the playbook `%s` calls itself", truncate.Text(name,
			40))
		return
	}
	var known []string
	for other := range c.callablePrograms {
		known = append(known, other)
	}
	hint := diagnostic.DidYouMean(name, known)
	if hint == "" {
		hint = "put its file in the same directory; `stanch playbooks` lists all playbooks"
	}
	c.errorf(s.Call.Pos, "unknown-playbook", hint, "unknown playbook `%s`", truncate.Text(name, 40))
}

// quoteList formats names for a message.
func quoteList(words []string) string { return "`" + strings.Join(words, "`, `") + "`" }
