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

	"stanch/sensors/diagnostic"
	"stanch/sensors/expression"
	"stanch/sensors/truncate"
	"stanch/sensors/yamlnode"
)

// Program is a playbook that was checked against a catalog, with compiled expressions. It is immutable after loading
// and safe for concurrent use.
type Program struct {
	*Playbook
	// ReplacedBy is the user's playbook that is selected instead of this shipped one; "" if there is none.
	ReplacedBy string
	// Callees are the playbooks that it calls, by name.
	Callees            map[string]*Program
	catalog            Catalog
	compiledExprs      map[*Expr]*vm.Program
	stepsReadByExpr    map[*Expr][]string // steps whose outputs an expression reads
	assignedZeroValues map[string]any     // by name of a `set`: a zero value of its type
	loopElementTypes   map[*ForEach]reflect.Type
	outputsType        reflect.Type
}

// LoadPlaybook parses and checks one file, which may call the given callees only. The program is nil if there is an
// error.
func LoadPlaybook(file string, source []byte, catalog Catalog, callees ...*Program) (*Program, diagnostic.Diagnostics) {
	book, problems := ParsePlaybook(file, source)
	if problems.HasErrors() && len(book.Steps) == 0 {
		return nil, problems
	}
	program, more := CheckPlaybook(book, catalog, callees...)
	problems = append(problems, more...).Sorted()
	if problems.HasErrors() {
		return nil, problems.WithoutWarnings()
	}
	return program, problems
}

// checkStages are the stages of CheckPlaybook, in order. Each reports everything that it finds, and skips what an
// earlier stage rejected.
var checkStages = []struct {
	name string
	run  func(*checker)
}{
	{"names", (*checker).checkNames}, // every name is known: actions, playbooks, ids, objectives
	{"types", (*checker).checkTypes}, // every expression and parameter has the required type
	{"flow", (*checker).checkFlow},   // every step is reachable, and expressions read only steps that have run
	// evidence first, disruption only with approval, valid lease durations, no secrets
	{"safety", (*checker).checkSafety},
	{"advice", (*checker).lintPlaybook}, // valid but unwise constructs: warnings
}

// CheckPlaybook checks a parsed playbook: names, types, flow and safety. It reports every problem; the program is nil
// if there is an error.
func CheckPlaybook(book *Playbook, catalog Catalog, callees ...*Program) (*Program, diagnostic.Diagnostics) {
	return runCheckStages(book, catalog, len(checkStages), callees)
}

// stagesForActiveRun is the number of stages for a run in progress. The run was checked completely when it was
// selected, and a rule of a later version must not end it.
const stagesForActiveRun = 2

func runCheckStages(book *Playbook, catalog Catalog, upTo int, callees []*Program) (*Program, diagnostic.Diagnostics) {
	c := &checker{
		parser: parser{Reader: yamlnode.Reader{File: book.File}},
		program: &Program{
			Playbook: book, Callees: map[string]*Program{}, catalog: catalog, compiledExprs: map[*Expr]*vm.Program{},
			stepsReadByExpr:    map[*Expr][]string{},
			assignedZeroValues: map[string]any{}, loopElementTypes: map[*ForEach]reflect.Type{},
		},
		callablePrograms: map[string]*Program{}, declaredPositions: map[string]Pos{}, declaredAt: map[string]flowContext{},
		stepPaths: map[string]string{}, stepsWithUnknownNames: map[*Step]bool{}, namesRead: map[string]bool{},
		loopVariables: map[string]bool{},
	}
	for _, callee := range callees {
		c.callablePrograms[callee.Name] = callee
	}
	for _, stage := range checkStages[:upTo] {
		stage.run(c)
	}
	book.Hash = HashWithCallees(book.SourceText, c.program.CalleeSources())
	return c.program, c.Problems.Sorted()
}

type checker struct {
	parser
	program               *Program
	callablePrograms      map[string]*Program    // playbooks that `call` may name
	declaredPositions     map[string]Pos         // of steps and values
	stepsWithUnknownNames map[*Step]bool         // their types are not checked
	declaredAt            map[string]flowContext // where each name gets its value
	stepPaths             map[string]string      // by step id
	expressionUses        []exprUse
	affectsPlan           bool            // the current expression affects the plan
	namesRead             map[string]bool // names that expressions read
	loopVariables         map[string]bool // names of loop elements
}

func (c *checker) warnf(pos Pos, code, hint, format string, args ...any) {
	before := len(c.Problems)
	c.errorf(pos, code, hint, format, args...)
	if len(c.Problems) > before {
		c.Problems[before].Severity = "warning"
	}
}

// compileExpr type-checks an expression; a nil want accepts any type. It returns the type, or nil for an expression
// with an error.
func (c *checker) compileExpr(e *Expr, names typeScope, at flowContext, want reflect.Type) reflect.Type {
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
		hint := c.hintForExprError(message, names)
		message, hint = explainExprError(message, hint)
		if m := missingFieldPattern.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("unknown field `%s`", m[2])
		}
		if m := unknownNamePattern.FindStringSubmatch(message); m != nil {
			message = fmt.Sprintf("unknown name `%s`", m[1])
			if first, ok := c.declaredPositions[m[1]]; ok {
				message, hint = fmt.Sprintf("`%s` has no value here", m[1]),
					fmt.Sprintf("it gets its value at line %d, which is later, in another branch or inside a loop", first.Line)
			}
		}
		c.errorf(pos, "expression", hint, "%s", message)
		return nil
	}
	got := inferNodeType(program.Node())
	if want != nil && (got == nil || got.Kind() == reflect.Interface || !isAssignable(got, want)) {
		c.errorf(e.Pos, "type", "", "the expression returns %s, but %s is required", describeType(got), describeType(want))
		return nil
	}
	c.program.compiledExprs[e] = program
	for _, word := range findInvalidOutcomes(program.Node()) {
		var known []string
		for _, o := range Outcomes {
			known = append(known, string(o))
		}
		c.errorf(e.Pos, "value", diagnostic.DidYouMean(word, known), "unknown outcome `%s`", truncate.Text(word, 40))
	}
	found := findReads(program.Node())
	c.expressionUses = append(c.expressionUses, exprUse{e, found, at, c.affectsPlan})
	for name, how := range found {
		c.namesRead[name] = true
		if how.readsOutputs && !how.readsOutcome && c.isStepName(name) {
			c.program.stepsReadByExpr[e] = append(c.program.stepsReadByExpr[e], name)
		}
	}
	slices.Sort(c.program.stepsReadByExpr[e])
	return got
}

// isStepName reports whether a name is a step's id and not a value.
func (c *checker) isStepName(name string) bool {
	_, isID := c.declaredPositions[name]
	_, isValue := c.program.assignedZeroValues[name]
	return isID && !isValue
}

func (c *checker) hintForExprError(message string, names typeScope) string {
	if m := unknownNamePattern.FindStringSubmatch(message); m != nil {
		near := diagnostic.DidYouMean(m[1], slices.Concat(slices.Collect(maps.Keys(names)), expression.Builtins()))
		if near == "" {
			near = "put it in quotes if it is a string, or use one of: " +
				strings.Join(slices.Sorted(maps.Keys(names)), ", ") + ", and the functions in `stanch help expressions`"
		}
		return near
	}
	if m := missingFieldPattern.FindStringSubmatch(message); m != nil {
		known := exprFieldNames(reflect.TypeFor[Incident]())
		if path := nestedFieldPath(m[2]); path != "" && strings.HasSuffix(m[1], ".Incident") {
			return fmt.Sprintf("did you mean `%s`?", path)
		}
		if !strings.HasSuffix(m[1], ".Incident") {
			known = nil
			for _, name := range exprTagPattern.FindAllStringSubmatch(m[1], -1) {
				known = append(known, name[1])
			}
			if known == nil {
				known = incidentTypeFields(m[1])
			}
		}
		return diagnostic.DidYouMean(m[2], known)
	}
	return ""
}

// Patterns of expr's messages about a missing name or field, and of the type names in them.
var (
	unknownNamePattern  = regexp.MustCompile(`^unknown name (\S+)`)
	missingFieldPattern = regexp.MustCompile(`^type (.*) has no field (\S+)$`)
	exprTagPattern      = regexp.MustCompile(`expr:\\"([a-z0-9_]+)\\"`)
)

// incidentTypeFields returns the fields of a type that is part of an incident, by the type name that expr prints.
func incidentTypeFields(name string) []string {
	for _, v := range []any{
		WorkloadIdentity{},
		BlastRadius{},
		ContextStatus{},
		Target{},
		DetectionSummary{},
		RecentChange{},
		LeaseReport{},
		PlaybookRun{},
		StepReport{},
		EvidenceRef{},
	} {
		if t := reflect.TypeOf(v); strings.TrimPrefix(name, "*") == t.String() {
			return exprFieldNames(t)
		}
	}
	return nil
}

// nestedFieldPath returns the path of a field one level below the incident, or "".
func nestedFieldPath(name string) string {
	for f := range reflect.TypeFor[Incident]().Fields() {
		t := f.Type
		if t.Kind() == reflect.Struct && slices.Contains(exprFieldNames(t), name) {
			return f.Tag.Get("expr") + "." + name
		}
	}
	return ""
}

// exprErrorMessages translates expr's messages for authors of playbooks.
var exprErrorMessages = []struct{ said, means, hint string }{
	{`unexpected token Operator("=")`, "`=` is not a comparison", "write `==`"},
	{`unexpected token Identifier("AND")`, "", "write `&&` or `and`"},
	{`unexpected token Identifier("OR")`, "", "write `||` or `or`"},
	{`unexpected token EOF`, "the expression is incomplete", "close all brackets, and add the missing value"},
	{
		`unexpected token Operator(".")`,
		"",
		"`.field` is a field of a list element, and is allowed only inside a function on a list: `any(incident.detections, .rule == \"drift\")`",
	},
	{`unclosed`, "", "close it"},
}

var typeNameReplacer = strings.NewReplacer("float64", "number", "[]interface {}", "list", "interface {}", "any value",
	"bool", "true or false", "int", "integer")

// explainExprError translates expr's messages about types and tokens.
func explainExprError(message, hint string) (string, string) {
	for _, w := range exprErrorMessages {
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
		message = typeNameReplacer.Replace(message)
	}
	return message, hint
}

func exprFieldNames(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		if name := field.Tag.Get("expr"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func (c *checker) checkTemplate(t *Template, names typeScope, at flowContext) {
	if t == nil {
		return
	}
	for _, part := range t.Parts {
		c.compileExpr(part.Expr, names, at, nil)
	}
}
