// Package condition compiles and runs the expressions of rules and playbooks: expr, with an allow-list of
// deterministic builtins and bounds on size, nesting and memory. It refuses whatever cannot be bounded or would
// give another value on replay: clocks, random orders, untyped results.
package expression

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"
)

// Bounds of one expression, MaxSourceBytes for who reads it before. expr has no limit of time of its own: nesting and size are what bounds it.
const (
	MaxSourceBytes = 4 << 10
	maxExprNodes   = 400
	maxExprNesting = 2     // predicates inside of predicates
	maxElements    = 5_000 // elements that one evaluation may make, each of at most maxElementTextBytes bytes of new text
)

// allowedBuiltins is the allow-list: deterministic, typed, without a clock, a random order or a side effect.
var allowedBuiltins = []string{
	"all", "none", "any", "one", "filter", "map", "count", "find", "findIndex", "sum", "len", "min", "max", "mean", "abs", "ceil",
	"floor", "round", "int", "float", "string", "trim", "trimPrefix", "trimSuffix", "upper", "lower", "indexOf",
	"lastIndexOf", "hasPrefix", "hasSuffix", "first", "last", "take", "concat", "flatten", "uniq", "sort", "sortBy", "reverse",
}

// Builtins lists the functions that expressions may call.
func Builtins() []string {
	return slices.Sorted(slices.Values(append([]string{"join", "replace", "split"}, allowedBuiltins...)))
}

// CompileOptions are the options under which every expression of Stanch is compiled, in playbooks and rules alike:
// the allow-list of builtins and the bounds. env is a value whose type is the environment's.
func CompileOptions(env any) []expr.Option {
	options := []expr.Option{expr.Env(env), expr.DisableAllBuiltins(), expr.MaxNodes(maxExprNodes), expr.Patch(namedStringVisitor{}), expr.Patch(&textLimitPatcher{})}
	for _, name := range allowedBuiltins {
		options = append(options, expr.EnableBuiltin(name))
	}
	return append(options, boundedTextFunctions()...)
}

// namedStringVisitor makes a plain string of every field whose Go type is a string by another name, so that people compare
// `incident.objective` with "crypto-mining" as they would expect.
type namedStringVisitor struct{}

func (namedStringVisitor) Visit(node *ast.Node) {
	switch (*node).(type) {
	case *ast.IdentifierNode, *ast.MemberNode:
	default:
		return
	}
	if t := (*node).Type(); t != nil && t.Kind() == reflect.String && t != reflect.TypeFor[string]() {
		ast.Patch(node, &ast.BuiltinNode{Name: "string", Arguments: []ast.Node{*node}})
	}
}

// Error is a problem of one expression; Offset is the character in its line, from 0.
type Error struct {
	Column       int
	Line         int // from 0, within the expression
	SourceOffset int // the character in the whole expression, from 0
	Message      string
}

func (e *Error) Error() string { return e.Message }

// Compile compiles source against an environment under Options. The error is an *Error.
func Compile(source string, env any, more ...expr.Option) (*vm.Program, error) {
	if len(source) > MaxSourceBytes {
		return nil, &Error{Message: fmt.Sprintf("the expression has %d bytes, at most %d are allowed", len(source), MaxSourceBytes)}
	}
	nesting := &nestingVisitor{}
	options := append(CompileOptions(env), more...)
	program, err := expr.Compile(source, options...)
	if err != nil {
		var located *file.Error
		if errors.As(err, &located) {
			return nil, &Error{Column: located.Column, Line: max(located.Line-1, 0), SourceOffset: located.From, Message: located.Message}
		}
		return nil, &Error{Message: firstLine(err.Error())}
	}
	root := program.Node()
	if whole := (&envVariableFinder{}); whole.existsIn(root) {
		return nil, &Error{Message: "`$env` is not known here: name what is read"}
	}
	if err := rejectNonScalarStrings(root); err != nil {
		return nil, err
	}
	nesting.walk(root, 0)
	if nesting.maxDepth > maxExprNesting {
		return nil, &Error{Message: fmt.Sprintf("predicates are nested %d deep, at most %d are allowed", nesting.maxDepth, maxExprNesting)}
	}
	ordered := &stringOrderFinder{}
	ast.Walk(&root, ordered)
	if ordered.found != nil {
		return nil, ordered.toError(source)
	}
	return program, nil
}

// stringOrderFinder finds comparisons of texts by their order. Texts have the order of the alphabet, in which "critical" comes
// before "high", "10" before "9" and "Z" before "a": whoever writes such a comparison means something else.
type stringOrderFinder struct{ found *ast.BinaryNode }

// Visit looks at one node.
func (o *stringOrderFinder) Visit(node *ast.Node) {
	b, ok := (*node).(*ast.BinaryNode)
	if !ok || o.found != nil || !slices.Contains([]string{"<", "<=", ">", ">="}, b.Operator) {
		return
	}
	if isStringNode(b.Left) || isStringNode(b.Right) {
		o.found = b
	}
}

func isStringNode(n ast.Node) bool {
	t := n.Type()
	return t != nil && t.Kind() == reflect.String
}

// toError says where the comparison stands and what to write in its place.
func (o *stringOrderFinder) toError(source string) *Error {
	message := fmt.Sprintf("`%s` compares texts, which have no order but that of the alphabet; compare with `==` or `in [\"…\", \"…\"]`", o.found.Operator)
	if strings.Contains(o.found.String(), "severity") {
		message = fmt.Sprintf("`%s` compares severities as texts, in the order of the alphabet; write for example `incident.severity in [\"high\", \"critical\"]`, or `match: {severity: high}`, which means at least high", o.found.Operator)
	}
	at := o.found.Location().From
	before := []rune(source)[:min(at, len([]rune(source)))]
	e := &Error{SourceOffset: at, Message: message}
	for _, r := range before {
		if e.Column++; r == '\n' {
			e.Line, e.Column = e.Line+1, 0
		}
	}
	return e
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// envVariableFinder finds `$env`, by which names could be read without being named.
type envVariableFinder struct{ found bool }

func (f *envVariableFinder) existsIn(node ast.Node) bool {
	ast.Walk(&node, f)
	return f.found
}

// Visit looks at one node.
func (f *envVariableFinder) Visit(node *ast.Node) {
	if id, ok := (*node).(*ast.IdentifierNode); ok && id.Value == "$env" {
		f.found = true
	}
}

// nestingVisitor measures how deep predicates stand inside of each other.
type nestingVisitor struct{ maxDepth int }

type predicateFinder struct {
	found []ast.Node
}

func (f *predicateFinder) Visit(node *ast.Node) {
	if p, ok := (*node).(*ast.PredicateNode); ok {
		f.found = append(f.found, p.Node)
	}
}

func (v *nestingVisitor) walk(node ast.Node, depth int) {
	v.maxDepth = max(v.maxDepth, depth)
	if depth > maxExprNesting+1 {
		return
	}
	finder := &predicateFinder{}
	ast.Walk(&node, finder)
	for _, inner := range finder.found {
		v.walk(inner, depth+1)
	}
}

// Run evaluates a compiled expression. It is deterministic: the same environment gives the same value.
func Run(program *vm.Program, env any) (any, error) { return new(Evaluator).Run(program, env) }

// Evaluator runs expressions one after the other, and keeps its memory between them. The zero value is ready; it is for
// one goroutine at a time.
type Evaluator struct{ vm vm.VM }

// Run is as the function of that name.
func (m *Evaluator) Run(program *vm.Program, env any) (any, error) {
	m.vm.MemoryBudget = maxElements
	out, err := m.vm.Run(program, env)
	if err != nil {
		return nil, fmt.Errorf("evaluate: %s", firstLine(err.Error()))
	}
	return out, nil
}
