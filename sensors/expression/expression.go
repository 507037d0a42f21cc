// Package expression compiles and runs the expressions of rules and playbooks. The language is expr with an allow-list
// of deterministic builtins and with limits on size, nesting and memory. It refuses everything that cannot be bounded
// or would give another value on replay: clocks, random order and untyped results.
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

// Limits of one expression. MaxSourceBytes is exported for callers that read the source before. expr has no time limit
// of its own; the limits on nesting and size bound the time.
const (
	MaxSourceBytes = 4 << 10
	maxExprNodes   = 400
	maxExprNesting = 2     // nested predicates
	maxElements    = 5_000 // list elements per evaluation, each with maxElementTextBytes of new text
)

// allowedBuiltins is the allow-list: deterministic and typed functions without a clock, random order or side effects.
var allowedBuiltins = []string{
	"all", "none", "any", "one", "filter", "map", "count", "find", "findIndex", "sum", "len", "min", "max", "mean", "abs",
	"ceil",
	"floor", "round", "int", "float", "string", "trim", "trimPrefix", "trimSuffix", "upper", "lower", "indexOf",
	"lastIndexOf", "hasPrefix", "hasSuffix", "first", "last", "take", "concat", "flatten", "uniq", "sort", "sortBy",
	"reverse",
}

// Builtins returns the names of the functions that expressions may call, in alphabetical order.
func Builtins() []string {
	return slices.Sorted(slices.Values(append([]string{"join", "replace", "split"}, allowedBuiltins...)))
}

// CompileOptions returns the expr options of every expression in playbooks and rules: the allow-list of builtins and
// the limits. env is a value of the type that contains the variables.
func CompileOptions(env any) []expr.Option {
	options := []expr.Option{
		expr.Env(env), expr.DisableAllBuiltins(), expr.MaxNodes(maxExprNodes),
		expr.Patch(namedStringVisitor{}), expr.Patch(&textLimitPatcher{}),
	}
	for _, name := range allowedBuiltins {
		options = append(options, expr.EnableBuiltin(name))
	}
	return append(options, boundedTextFunctions()...)
}

// namedStringVisitor converts fields of a named string type to string, so that authors can compare
// `incident.objective` with "crypto-mining".
type namedStringVisitor struct{}

// Visit converts one node.
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

// Error is a problem of one expression. Column is the offset in characters within its line, from 0.
type Error struct {
	Column       int
	Line         int // from 0, within the expression
	SourceOffset int // offset in characters within the complete expression, from 0
	Message      string
}

// Error returns the message without the position.
func (e *Error) Error() string { return e.Message }

// Compile compiles source for the type of env, with CompileOptions and the additional options. It rejects oversized
// and deeply nested expressions, `$env`, and comparisons of strings by order. The error is an *Error.
func Compile(source string, env any, more ...expr.Option) (*vm.Program, error) {
	if len(source) > MaxSourceBytes {
		return nil, &Error{Message: fmt.Sprintf("the expression is %d bytes long; the maximum is %d", len(source),
			MaxSourceBytes)}
	}
	nesting := &nestingVisitor{}
	options := append(CompileOptions(env), more...)
	program, err := expr.Compile(source, options...)
	if err != nil {
		var located *file.Error
		if errors.As(err, &located) {
			return nil, &Error{
				Column: located.Column, Line: max(located.Line-1, 0), SourceOffset: located.From,
				Message: located.Message,
			}
		}
		return nil, &Error{Message: firstLine(err.Error())}
	}
	root := program.Node()
	if whole := (&envVariableFinder{}); whole.existsIn(root) {
		return nil, &Error{Message: "`$env` is not allowed; name the variable"}
	}
	if err := rejectNonScalarStrings(root); err != nil {
		return nil, err
	}
	nesting.walk(root, 0)
	if nesting.maxDepth > maxExprNesting {
		return nil, &Error{Message: fmt.Sprintf("predicates are nested %d levels deep; the maximum is %d", nesting.maxDepth,
			maxExprNesting)}
	}
	ordered := &stringOrderFinder{}
	ast.Walk(&root, ordered)
	if ordered.found != nil {
		return nil, ordered.toError(source)
	}
	return program, nil
}

// stringOrderFinder finds comparisons of strings by order. Strings are ordered alphabetically, where "critical" comes
// before "high", "10" before "9" and "Z" before "a", so such a comparison is almost certainly a mistake.
type stringOrderFinder struct{ found *ast.BinaryNode }

// Visit checks one node.
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

// toError returns the position of the comparison and an alternative.
func (o *stringOrderFinder) toError(source string) *Error {
	message := fmt.Sprintf("`%s` compares strings in alphabetical order; compare with `==` or `in [\"…\", \"…\"]`",
		o.found.Operator)
	if strings.Contains(o.found.String(), "severity") {
		message = fmt.Sprintf(
			"`%s` compares severities as strings, in alphabetical order; for example, write `incident.severity in [\"high\", \"critical\"]`, or `match: {severity: high}`, which means at least high",
			o.found.Operator,
		)
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

// envVariableFinder finds `$env`, which gives access to variables without naming them.
type envVariableFinder struct{ found bool }

func (f *envVariableFinder) existsIn(node ast.Node) bool {
	ast.Walk(&node, f)
	return f.found
}

// Visit checks one node.
func (f *envVariableFinder) Visit(node *ast.Node) {
	if id, ok := (*node).(*ast.IdentifierNode); ok && id.Value == "$env" {
		f.found = true
	}
}

// nestingVisitor measures how deep predicates are nested.
type nestingVisitor struct{ maxDepth int }

type predicateFinder struct {
	found []ast.Node
}

// Visit collects the predicates.
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

// Run evaluates a compiled expression. It is deterministic: the same environment gives the same value. It returns an
// error if the evaluation fails or exceeds the memory limit.
func Run(program *vm.Program, env any) (any, error) { return new(Evaluator).Run(program, env) }

// Evaluator evaluates expressions one after the other and reuses its memory. The zero value is ready to use. It is not
// safe for concurrent use.
type Evaluator struct{ vm vm.VM }

// Run evaluates a compiled expression like the function Run.
func (m *Evaluator) Run(program *vm.Program, env any) (any, error) {
	m.vm.MemoryBudget = maxElements
	out, err := m.vm.Run(program, env)
	if err != nil {
		return nil, fmt.Errorf("evaluate: %s", firstLine(err.Error()))
	}
	return out, nil
}
