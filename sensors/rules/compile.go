package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"
	"go.yaml.in/yaml/v3"

	"stanch/sensors"
	"stanch/sensors/expression"
)

// compiledCondition is a compiled condition: the expr program, and a fast path that avoids most evaluations of it.
type compiledCondition struct {
	program    *vm.Program
	syntaxTree ast.Node // type-checked, with macros and lists expanded, not optimized
	fastpath   fastpath
}

// evaluate reports whether the condition is true for an event.
func (c *compiledCondition) evaluate(v *conditionEnv) (bool, error) {
	switch c.fastpath(v) {
	case triFalse:
		return false, nil
	case triTrue:
		return true, nil
	default:
	}
	return c.evaluateWithExpr(v)
}

// evaluateWithExpr evaluates the condition with expr. The fast path must agree with it.
func (c *compiledCondition) evaluateWithExpr(v *conditionEnv) (bool, error) {
	out, err := v.evaluator.Run(c.program, v.fillAll())
	return out == true, err //nolint:wrapcheck // it names the operation
}

// compileRule compiles the condition and the exceptions of a rule, and reports whether it succeeded.
func (l *loader) compileRule(r *Rule) bool {
	before := len(r.file.reader.Problems)
	if at := r.nodes["condition"]; at != nil && r.Condition != "" {
		r.compiled = l.compileCondition(r.file, "the condition of `"+r.Name+"`", r.Condition, at)
	}
	l.compileExceptions(r.file, "`"+r.Name+"`", r.Exceptions)
	return len(r.file.reader.Problems) == before && r.compiled != nil
}

// compileCondition compiles one condition. If that fails, it reports the problem at its position and returns nil.
func (l *loader) compileCondition(f *packFile, what, source string, at *yaml.Node) *compiledCondition {
	c, err := l.compileSource(source)
	if err == nil {
		return c
	}
	message, hint := l.explainError(err)
	code := "expression"
	offset := 0
	var located *expression.Error
	if errors.As(err, &located) {
		offset = located.SourceOffset
	}
	var broken *brokenMacroError
	if errors.As(err, &broken) {
		offset, code = broken.offset, "macro"
	}
	f.reader.Errorf(f.positionInScalar(at, offset), code, hint, "%s: %s", what, message)
	return nil
}

func (l *loader) compileSource(source string) (*compiledCondition, error) {
	if len(source) > expression.MaxSourceBytes {
		return nil, &expression.Error{Message: fmt.Sprintf("the expression is %d bytes long; the maximum is %d", len(source),
			expression.MaxSourceBytes)}
	}
	if err := l.checkExpandable(source); err != nil {
		return nil, err
	}
	tree, err := expression.Compile(source, &conditionEnv{}, append(l.compileOptions(), expr.Optimize(false))...)
	if err != nil {
		return nil, err //nolint:wrapcheck // it has a position, and becomes a diagnostic
	}
	constants := &constantChecker{}
	root := tree.Node()
	if ast.Walk(&root, constants); constants.problem != nil {
		return nil, constants.problem
	}
	program, err := expression.Compile(source, &conditionEnv{}, l.compileOptions()...)
	if err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	return &compiledCondition{
		program: program, syntaxTree: root,
		fastpath: fastpathBool(root, fastpathScope{polarity: positivePolarity}),
	}, nil
}

// constantChecker finds constant arguments with which a function would fail on every event.
type constantChecker struct{ problem *expression.Error }

// Visit checks one node.
func (c *constantChecker) Visit(node *ast.Node) {
	name, arguments := callNameAndArgs(*node)
	if name != "cidr" || len(arguments) != 2 || c.problem != nil {
		return
	}
	if s, ok := arguments[1].(*ast.StringNode); ok {
		if _, err := netip.ParsePrefix(s.Value); err != nil {
			c.problem = &expression.Error{
				SourceOffset: s.Location().From,
				Message:      fmt.Sprintf("invalid network %q; use the form 10.0.0.0/8", s.Value),
			}
		}
	}
}

// callNameAndArgs returns the name and the arguments of a function call.
func callNameAndArgs(node ast.Node) (string, []ast.Node) {
	switch n := node.(type) {
	case *ast.CallNode:
		if id, ok := n.Callee.(*ast.IdentifierNode); ok {
			return id.Value, n.Arguments
		}
	case *ast.BuiltinNode:
		return n.Name, n.Arguments
	}
	return "", nil
}

// listPatcher replaces the names of lists with their values. It turns a list of strings on the right of `in` into a
// set.
type listPatcher struct{ loader *loader }

// Visit replaces the node if it is the name of a list.
func (p *listPatcher) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if values := p.loader.lists[n.Value]; values != nil {
			p.loader.usedNames[n.Value] = true
			ast.Patch(node, &ast.ConstantNode{Value: values.value()})
		}
	case *ast.BinaryNode:
		constant, ok := n.Right.(*ast.ConstantNode)
		if values, isTexts := constantTexts(constant); ok && isTexts && n.Operator == "in" &&
			n.Left.Type() == reflect.TypeFor[string]() {
			set := make(map[string]struct{}, len(values))
			for _, v := range values {
				set[v] = struct{}{}
			}
			ast.Patch(&n.Right, &ast.ConstantNode{Value: set})
		}
	}
}

func constantTexts(n *ast.ConstantNode) ([]string, bool) {
	if n == nil {
		return nil, false
	}
	texts, ok := n.Value.([]string)
	return texts, ok
}

var (
	unknownNamePattern  = regexp.MustCompile(`^unknown name (\S+)`)
	unknownFieldPattern = regexp.MustCompile(`^type \*?(\S+) has no field (\S+)`)
)

// explainError rewrites an error of expr in terms of rule packs, and suggests a similar name.
func (l *loader) explainError(err error) (message, hint string) {
	message = err.Error()
	if m := unknownNamePattern.FindStringSubmatch(message); m != nil {
		known := slices.Concat(envNames(), sortedKeys(l.lists), sortedKeys(l.macros), expression.Builtins())
		for _, f := range Functions() {
			known = append(known, f.Name)
		}
		return fmt.Sprintf("unknown field, list, macro or function `%s`", m[1]), didYouMean(m[1], known)
	}
	if m := unknownFieldPattern.FindStringSubmatch(message); m != nil {
		for name, t := range collectStructs(reflect.TypeFor[sensors.Event](), map[string]reflect.Type{}) {
			if name == m[1] {
				return fmt.Sprintf("`%s` has no field `%s`", strings.ToLower(t.Name()), m[2]),
					didYouMean(m[2], sortedKeys(exprFieldTypes(t)))
			}
		}
	}
	return message, ""
}

// collectStructs returns the structs that conditions can reach, by their name in errors of expr.
func collectStructs(t reflect.Type, into map[string]reflect.Type) map[string]reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || into[t.String()] != nil {
		return into
	}
	into[t.String()] = t
	for _, inner := range exprFieldTypes(t) {
		collectStructs(inner, into)
	}
	return into
}
