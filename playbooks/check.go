package playbooks

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr/vm"

	"stanch/sensors"
	"stanch/sensors/condition"
	"stanch/sensors/diagnostic"
)

// Program is a playbook that was checked against a catalogue: its expressions are compiled and nothing that can be
// known before an incident is wrong with it. It is immutable and may be used by many runs at once.
type Program struct {
	*Playbook
	catalogue Catalogue
	exprs     map[*Expr]*vm.Program
}

// Load parses and checks one file. The program is nil if there is an error.
func Load(file string, source []byte, catalogue Catalogue) (*Program, diagnostic.Diagnostics) {
	book, problems := Parse(file, source)
	if problems.HasErrors() && len(book.Steps) == 0 {
		return nil, problems
	}
	program, more := Check(book, catalogue)
	problems = append(problems, more...).Sorted()
	if problems.HasErrors() {
		return nil, problems
	}
	return program, problems
}

// Check checks a parsed playbook: names, types, and what safety forbids. It reports every problem.
func Check(book *Playbook, catalogue Catalogue) (*Program, diagnostic.Diagnostics) {
	c := &checker{
		parser:  parser{file: book.File},
		program: &Program{Playbook: book, catalogue: catalogue, exprs: map[*Expr]*vm.Program{}},
		ids:     map[string]Pos{},
	}
	names := scope{"incident": Incident{}}
	for _, o := range book.Match.Objectives {
		if !slices.Contains(sensors.Objectives, sensors.Objective(o)) {
			known := make([]string, len(sensors.Objectives))
			for i, k := range sensors.Objectives {
				known[i] = string(k)
			}
			c.errorf(c.find(o), "unknown-objective", diagnostic.DidYouMean(o, known), "no rule has the objective `%s`", clip(o, 40))
		}
	}
	if s := book.Match.Severity; s != "" && sensors.Severity(s).Rank() < 0 {
		c.errorf(c.find(s), "value", "info, low, medium, high or critical", "`%s` is not a severity", clip(s, 40))
	}
	c.compile(book.Match.When, names, reflect.TypeOf(true))
	c.steps(book.Steps, names, flow{})
	c.evidence(book.Steps, nil, nil)
	return c.program, c.problems.Sorted()
}

type checker struct {
	parser
	program *Program
	ids     map[string]Pos
}

// flow says where in the tree a step stands.
type flow struct{ inApproval bool }

// find is the place of a word in the source, for values that the tree keeps as plain strings.
func (c *checker) find(word string) Pos {
	for i, line := range strings.Split(string(c.program.Source), "\n") {
		if at := strings.Index(line, word); at >= 0 {
			return Pos{i + 1, len([]rune(line[:at])) + 1}
		}
	}
	return Pos{1, 1}
}

// compile type-checks an expression; want nil accepts any type. It returns the type, or nil where it is in error.
func (c *checker) compile(e *Expr, names scope, want reflect.Type) reflect.Type {
	if e == nil {
		return nil
	}
	program, err := condition.Compile(e.Source, map[string]any(names))
	if err != nil {
		var located *condition.Error
		pos, message := e.Pos, err.Error()
		if errors.As(err, &located) {
			pos.Column += located.Offset
			pos.Line += located.Line
		}
		hint := c.exprHint(message, names)
		if m := noField.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("there is no field `%s` here", m[2])
		}
		c.errorf(pos, "expression", hint, "%s", message)
		return nil
	}
	got := program.Node().Type()
	if want != nil && (got == nil || got.Kind() == reflect.Interface || !assignable(got, want)) {
		c.errorf(e.Pos, "type", "", "the expression gives %s where %s is needed", typeName(got), typeName(want))
		return nil
	}
	c.program.exprs[e] = program
	return got
}

func (c *checker) exprHint(message string, names scope) string {
	if rest, ok := strings.CutPrefix(message, "unknown name "); ok {
		word, _, _ := strings.Cut(rest, " ")
		return diagnostic.DidYouMean(word, slices.Collect(maps.Keys(names)))
	}
	if m := noField.FindStringSubmatch(message); m != nil {
		known := exprNames(reflect.TypeOf(Incident{}))
		if !strings.HasSuffix(m[1], ".Incident") {
			known = nil
			for _, name := range exprTag.FindAllStringSubmatch(m[1], -1) {
				known = append(known, name[1])
			}
		}
		return diagnostic.DidYouMean(m[2], known)
	}
	return ""
}

// What expr says of a field that is missing, and the names in the type that it prints.
var (
	noField = regexp.MustCompile(`^type (.*) has no field (\S+)$`)
	exprTag = regexp.MustCompile(`expr:\\"([a-z0-9_]+)\\"`)
)

func exprNames(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("expr"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func (c *checker) text(t *Text, names scope) {
	if t == nil {
		return
	}
	for _, part := range t.Parts {
		c.compile(part.Expr, names, nil)
	}
}

// steps checks a sequence. The scope that it is given gains the ids of the sequence, for those that follow.
func (c *checker) steps(steps []Step, names scope, in flow) {
	for i := range steps {
		c.step(&steps[i], names, in)
	}
}

func (c *checker) step(s *Step, names scope, in flow) {
	c.compile(s.If, names, reflect.TypeOf(true))
	if s.Target != nil {
		if t := c.compile(s.Target, names, nil); t != nil && !isTargets(t) {
			c.errorf(s.Target.Pos, "type", "use for example `incident.targets` or `filter(incident.targets, .name == \"web\")`",
				"`target` must give targets, not %s", typeName(t))
		}
	}
	switch {
	case s.Approval != nil:
		c.text(s.Approval.Ask, names)
		if in.inApproval {
			c.errorf(s.Pos, "nested-approval", "give the outer one a higher quorum", "an approval inside of an approval")
		}
		c.forbid(s, "approval")
		c.steps(s.Approval.Steps, names, flow{inApproval: true})
	case s.Parallel != nil:
		c.forbid(s, "parallel")
		// Branches are isolated: each sees what came before, and only what follows sees them all.
		for i := range s.Parallel {
			branch := maps.Clone(names)
			c.step(&s.Parallel[i], branch, in)
		}
		for i := range s.Parallel {
			c.declareAll(&s.Parallel[i], names)
		}
	case s.Action != "":
		c.action(s, names, in)
	}
	c.declare(s, names)
	c.steps(s.OnFailure, names, in)
	c.steps(s.OnDenied, names, in)
}

func (c *checker) declareAll(s *Step, names scope) {
	if s.ID != "" {
		names[s.ID] = zeroStep(c.program.catalogue[s.Action].OutputType())
	}
	for i := range s.Parallel {
		c.declareAll(&s.Parallel[i], names)
	}
}

func (c *checker) declare(s *Step, names scope) {
	if s.ID == "" {
		return
	}
	if s.ID == "incident" {
		c.errorf(s.Pos, "name", "choose another id", "the id `incident` is taken")
		return
	}
	if first, ok := c.ids[s.ID]; ok {
		c.errorf(s.Pos, "duplicate-id", "choose another id", "the id `%s` is used twice; the first is at line %d", s.ID, first.Line)
		return
	}
	c.ids[s.ID] = s.Pos
	names[s.ID] = zeroStep(c.program.catalogue[s.Action].OutputType())
}

// forbid reports keys that a step without an action cannot have.
func (c *checker) forbid(s *Step, what string) {
	if s.For != 0 {
		c.errorf(s.ForPos, "conflict", "give it to the contain steps inside", "`for` has no meaning on `%s`", what)
	}
	if s.With != nil {
		c.errorf(s.With[0].Pos, "conflict", "", "`with` has no meaning on `%s`", what)
	}
	if s.Target != nil {
		c.errorf(s.Target.Pos, "conflict", "give it to the steps inside", "`target` has no meaning on `%s`", what)
	}
	if s.Retry != nil {
		c.errorf(s.Pos, "conflict", "give it to the steps inside", "`retry` has no meaning on `%s`", what)
	}
}

func (c *checker) action(s *Step, names scope, in flow) {
	spec, ok := c.program.catalogue[s.Action]
	if !ok || spec.Verb != s.Verb {
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
		return
	}
	switch {
	case spec.Reversible && s.For == 0 && s.ForPos == (Pos{}):
		c.errorf(s.ActionPos, "for-required", "say how long: `for: 30m`", "`%s` is a lease and needs `for`", s.Action)
	case !spec.Reversible && s.ForPos != (Pos{}):
		c.errorf(s.ForPos, "for-forbidden", "remove it", "`%s` is not reversible: it has no `for`", s.Action)
	case spec.Reversible && s.For > 0 && s.For < 5*time.Second:
		c.errorf(s.ForPos, "range", "", "a lease shorter than 5s is not a containment")
	case s.For > 7*24*time.Hour:
		c.errorf(s.ForPos, "range", "extend it when the time comes", "a lease is at most 168h")
	}
	if spec.Class == ClassDisrupt && !in.inApproval {
		c.errorf(s.ActionPos, "needs-approval", "put it under the `steps` of an approval", "`%s` disrupts: it is allowed only inside of an approval", s.Action)
	}
	if s.OnDenied != nil && spec.Class == ClassObserve {
		c.errorf(s.Pos, "unreachable", "remove it", "`on_denied` can never run: nobody is asked for `%s`", s.Action)
	}
	c.arguments(s, spec, names)
}
