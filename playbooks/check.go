package playbooks

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/vm"

	"stanch/sensors/expression"
	"stanch/sensors/diagnostic"
	"stanch/sensors/yamlnode"
)

// Program is a playbook that was checked against a catalogue: its expressions are compiled and nothing that can be
// known before an incident is wrong with it. It is immutable once loaded and may be used by many runs at once.
type Program struct {
	*Playbook
	// ReplacedBy is the user's playbook that is selected in place of this shipped one; "" is none.
	ReplacedBy string
	// Callees are the playbooks that it calls, by name.
	Callees   map[string]*Program
	catalogue Catalogue
	exprs     map[*Expr]*vm.Program
	reads     map[*Expr][]string // steps whose outputs an expression needs
	values    map[string]any     // of each name that `set` gives: a zero of its type
	loops     map[*ForEach]reflect.Type
	outputs   reflect.Type
}

// Load parses and checks one file that calls no other than the callees given. The program is nil if there is an error.
func Load(file string, source []byte, catalogue Catalogue, callees ...*Program) (*Program, diagnostic.Diagnostics) {
	book, problems := Parse(file, source)
	if problems.HasErrors() && len(book.Steps) == 0 {
		return nil, problems
	}
	program, more := Check(book, catalogue, callees...)
	problems = append(problems, more...).Sorted()
	if problems.HasErrors() {
		return nil, problems.WithoutWarnings()
	}
	return program, problems
}

// stages are what Check does, in turn; each reports everything that it finds, and leaves alone what an earlier one
// could not make sense of.
var stages = []struct {
	name string
	run  func(*checker)
}{
	{"names", (*checker).namesStage},   // every word stands for something: actions, playbooks, ids, objectives
	{"types", (*checker).typesStage},   // every expression and parameter has the type that is needed
	{"flow", (*checker).flowStage},     // every step can be reached, and what it reads has run
	{"safety", (*checker).safetyStage}, // evidence first, disruption only behind approval, leases long enough, no secrets
	{"advice", (*checker).adviceStage}, // what is legal and unwise: warnings
}

// Check checks a parsed playbook: names, types, flow, and what safety forbids. It reports every problem.
func Check(book *Playbook, catalogue Catalogue, callees ...*Program) (*Program, diagnostic.Diagnostics) {
	return check(book, catalogue, len(stages), callees)
}

// forRun are the stages that a run under way needs: it was checked by the rules of its day when it was selected, and a
// rule that came later must not end it.
const forRun = 2

func check(book *Playbook, catalogue Catalogue, upTo int, callees []*Program) (*Program, diagnostic.Diagnostics) {
	c := &checker{
		parser: parser{Reader: yamlnode.Reader{File: book.File}},
		program: &Program{
			Playbook: book, Callees: map[string]*Program{}, catalogue: catalogue, exprs: map[*Expr]*vm.Program{}, reads: map[*Expr][]string{},
			values: map[string]any{}, loops: map[*ForEach]reflect.Type{},
		},
		known: map[string]*Program{}, ids: map[string]Pos{}, born: map[string]place{}, paths: map[string]string{}, bad: map[*Step]bool{}, read: map[string]bool{}, aliases: map[string]bool{},
	}
	for _, callee := range callees {
		c.known[callee.Name] = callee
	}
	for _, stage := range stages[:upTo] {
		stage.run(c)
	}
	book.Hash = HashOf(book.Source, c.program.Sources())
	return c.program, c.Problems.Sorted()
}

type checker struct {
	parser
	program *Program
	known   map[string]*Program // what may be called
	ids     map[string]Pos      // of steps and of values
	bad     map[*Step]bool      // steps of which a name is wrong: their types are not judged
	born    map[string]place    // where each name gets its value
	paths   map[string]string   // of the steps with an id
	uses    []use
	plans   bool            // what is compiled now decides what is planned
	read    map[string]bool // names that an expression reads
	aliases map[string]bool // names of elements of loops
}

func (c *checker) warn(pos Pos, code, hint, format string, args ...any) {
	before := len(c.Problems)
	c.errorf(pos, code, hint, format, args...)
	if len(c.Problems) > before {
		c.Problems[before].Severity = "warning"
	}
}

// compile type-checks an expression; want nil accepts any type. It returns the type, or nil where it is in error.
func (c *checker) compile(e *Expr, names scope, at place, want reflect.Type) reflect.Type {
	if e == nil {
		return nil
	}
	program, err := expression.Compile(e.Source, map[string]any(names), expression.LimitUpperLower())
	if err != nil {
		var located *expression.Error
		pos, message := e.Pos, err.Error()
		if errors.As(err, &located) {
			if located.Line > 0 {
				pos = Pos{Line: pos.Line + located.Line, Column: pos.Column + located.Column}
			} else {
				pos.Column += located.Column
			}
		}
		hint := c.exprHint(message, names)
		message, hint = inWords(message, hint)
		if m := noField.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("there is no field `%s` here", m[2])
		}
		if m := unknownName.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("`%s` is not known here", m[1])
			if first, ok := c.ids[m[1]]; ok {
				message, hint = fmt.Sprintf("`%s` has no value here", m[1]), fmt.Sprintf("it gets its value at line %d, which is later, in another branch or inside of a loop", first.Line)
			}
		}
		c.errorf(pos, "expression", hint, "%s", message)
		return nil
	}
	got := typeOfNode(program.Node())
	if want != nil && (got == nil || got.Kind() == reflect.Interface || !assignable(got, want)) {
		c.errorf(e.Pos, "type", "", "the expression gives %s where %s is needed", typeName(got), typeName(want))
		return nil
	}
	c.program.exprs[e] = program
	for _, word := range badOutcomes(program.Node()) {
		var known []string
		for _, o := range Outcomes {
			known = append(known, string(o))
		}
		c.errorf(e.Pos, "value", diagnostic.DidYouMean(word, known), "no outcome is ever `%s`", clip(word, 40))
	}
	found := readsOf(program.Node())
	c.uses = append(c.uses, use{e, found, at, c.plans})
	for name, how := range found {
		c.read[name] = true
		if how.outputs && !how.outcome && c.isStep(name) {
			c.program.reads[e] = append(c.program.reads[e], name)
		}
	}
	slices.Sort(c.program.reads[e])
	return got
}

// isStep tells whether a name is a step's and not a value's.
func (c *checker) isStep(name string) bool {
	_, isID := c.ids[name]
	_, isValue := c.program.values[name]
	return isID && !isValue
}

func (c *checker) exprHint(message string, names scope) string {
	if m := unknownName.FindStringSubmatch(message); m != nil {
		near := diagnostic.DidYouMean(m[1], slices.Concat(slices.Collect(maps.Keys(names)), expression.Builtins()))
		if near == "" {
			near = "put it into quotes if it is a text; known here: " + strings.Join(slices.Sorted(maps.Keys(names)), ", ") + ", and the functions of `stanch help expressions`"
		}
		return near
	}
	if m := noField.FindStringSubmatch(message); m != nil {
		known := exprNames(reflect.TypeFor[Incident]())
		if path := nested(m[2]); path != "" && strings.HasSuffix(m[1], ".Incident") {
			return fmt.Sprintf("did you mean `%s`?", path)
		}
		if !strings.HasSuffix(m[1], ".Incident") {
			known = nil
			for _, name := range exprTag.FindAllStringSubmatch(m[1], -1) {
				known = append(known, name[1])
			}
			if known == nil {
				known = knownFields(m[1])
			}
		}
		return diagnostic.DidYouMean(m[2], known)
	}
	return ""
}

// What expr says of a name or a field that is missing, and the names in the type that it prints.
var (
	unknownName = regexp.MustCompile(`^unknown name (\S+)`)
	noField     = regexp.MustCompile(`^type (.*) has no field (\S+)$`)
	exprTag     = regexp.MustCompile(`expr:\\"([a-z0-9_]+)\\"`)
)

// knownFields are the fields of the types that an incident is made of, by the name that expr prints.
func knownFields(name string) []string {
	for _, v := range []any{WorkloadIdentity{}, BlastRadius{}, ContextState{}, Target{}, DetectionSummary{}, Change{}, LeaseReport{}, PlaybookRun{}, StepReport{}, EvidenceRef{}} {
		if t := reflect.TypeOf(v); strings.TrimPrefix(name, "*") == t.String() {
			return exprNames(t)
		}
	}
	return nil
}

// nested is where in the incident a field of the name stands, if it is one level down.
func nested(name string) string {
	for f := range reflect.TypeFor[Incident]().Fields() {
		t := f.Type
		if t.Kind() == reflect.Struct && slices.Contains(exprNames(t), name) {
			return f.Tag.Get("expr") + "." + name
		}
	}
	return ""
}

// What expr says, and what it means to who writes a playbook.
var exprWords = []struct{ said, means, hint string }{
	{`unexpected token Operator("=")`, "`=` compares nothing", "write `==`"},
	{`unexpected token Identifier("AND")`, "", "write `&&` or `and`"},
	{`unexpected token Identifier("OR")`, "", "write `||` or `or`"},
	{`unexpected token EOF`, "the expression ends too early", "is a bracket not closed, or a value missing?"},
	{`unexpected token Operator(".")`, "", "`.field` stands for a list's element inside of a function that looks at each: `any(incident.detections, .rule == \"drift\")`"},
	{`unclosed`, "", "close it"},
}

var typeWords = strings.NewReplacer("float64", "number", "[]interface {}", "list", "interface {}", "any value", "bool", "true or false", "int", "whole number")

// inWords says in words what expr says of types and tokens.
func inWords(message, hint string) (string, string) {
	for _, w := range exprWords {
		if strings.Contains(message, w.said) {
			if w.means != "" {
				message = w.means
			}
			if hint == "" {
				hint = w.hint
			}
			return message, hint
		}
	}
	if strings.Contains(message, "mismatched types") {
		message = typeWords.Replace(message)
	}
	return message, hint
}

func exprNames(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		if name := field.Tag.Get("expr"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func (c *checker) text(t *Text, names scope, at place) {
	if t == nil {
		return
	}
	for _, part := range t.Parts {
		c.compile(part.Expr, names, at, nil)
	}
}
