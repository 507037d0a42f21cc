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
	"stanch/sensors/condition"
)

// check is a compiled condition: the program, and the short way to most of its answers.
type check struct {
	program *vm.Program
	tree    ast.Node // checked, with macros and lists written out, not optimised
	quick   quick
}

// holds tells whether the condition is true of an event.
func (c *check) holds(v *env) (bool, error) {
	switch c.quick(v) {
	case no:
		return false, nil
	case yes:
		return true, nil
	default:
	}
	return c.slow(v)
}

// slow asks expr itself, which is what the short way has to agree with.
func (c *check) slow(v *env) (bool, error) {
	out, err := v.machine.Run(c.program, v.all())
	return out == true, err //nolint:wrapcheck // it says what it was doing
}

// compile compiles a rule's condition and exceptions.
func (l *loader) compile(r *Rule) bool {
	before := len(r.file.r.Problems)
	if at := r.nodes["condition"]; at != nil && r.Condition != "" {
		r.condition = l.check(r.file, "the condition of `"+r.Name+"`", r.Condition, at)
	}
	l.compileExceptions(r.file, "`"+r.Name+"`", r.Exceptions)
	return len(r.file.r.Problems) == before && r.condition != nil
}

// check compiles one condition; nil after a problem, which it tells at its place.
func (l *loader) check(f *file, what, source string, at *yaml.Node) *check {
	c, err := l.compileSource(source)
	if err == nil {
		return c
	}
	message, hint := l.explain(err)
	code := "expression"
	offset := 0
	var located *condition.Error
	if errors.As(err, &located) {
		offset = located.At
	}
	var broken *brokenMacro
	if errors.As(err, &broken) {
		offset, code = broken.at, "macro"
	}
	f.r.Errorf(f.placeIn(at, offset), code, hint, "%s: %s", what, message)
	return nil
}

func (l *loader) compileSource(source string) (*check, error) {
	if len(source) > condition.MaxBytes {
		return nil, &condition.Error{Message: fmt.Sprintf("the expression has %d bytes, at most %d are allowed", len(source), condition.MaxBytes)}
	}
	if err := l.expandable(source); err != nil {
		return nil, err
	}
	tree, err := condition.Compile(source, &env{}, append(l.options(), expr.Optimize(false))...)
	if err != nil {
		return nil, err //nolint:wrapcheck // it is located, and made into a diagnostic
	}
	constants := &constantChecker{}
	root := tree.Node()
	if ast.Walk(&root, constants); constants.problem != nil {
		return nil, constants.problem
	}
	program, err := condition.Compile(source, &env{}, l.options()...)
	if err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	return &check{program: program, tree: root, quick: quickBool(root, scope{side: plain})}, nil
}

// constantChecker finds constants with which a function would fail on every event.
type constantChecker struct{ problem *condition.Error }

// Visit looks at one node.
func (c *constantChecker) Visit(node *ast.Node) {
	name, arguments := called(*node)
	if name != "cidr" || len(arguments) != 2 || c.problem != nil {
		return
	}
	if s, ok := arguments[1].(*ast.StringNode); ok {
		if _, err := netip.ParsePrefix(s.Value); err != nil {
			c.problem = &condition.Error{At: s.Location().From, Message: fmt.Sprintf("%q is not a network such as 10.0.0.0/8", s.Value)}
		}
	}
}

// called gives the name and the arguments of a call.
func called(node ast.Node) (string, []ast.Node) {
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

// listPatcher puts lists in where they are named. `in` looks a text up in a list as in a set.
type listPatcher struct{ l *loader }

// Visit replaces one name.
func (p *listPatcher) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if values := p.l.lists[n.Value]; values != nil {
			p.l.used[n.Value] = true
			ast.Patch(node, &ast.ConstantNode{Value: values.value()})
		}
	case *ast.BinaryNode:
		constant, ok := n.Right.(*ast.ConstantNode)
		if values, isTexts := constantTexts(constant); ok && isTexts && n.Operator == "in" && n.Left.Type() == reflect.TypeFor[string]() {
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
	unknownName  = regexp.MustCompile(`^unknown name (\S+)`)
	unknownField = regexp.MustCompile(`^type \*?(\S+) has no field (\S+)`)
)

// explain says what expr says in the words of packs, with what was probably meant.
func (l *loader) explain(err error) (message, hint string) {
	message = err.Error()
	if m := unknownName.FindStringSubmatch(message); m != nil {
		known := slices.Concat(envNames(), keysOf(l.lists), keysOf(l.macros), condition.Builtins())
		for _, f := range Functions() {
			known = append(known, f.Name)
		}
		return fmt.Sprintf("there is no field, list, macro or function `%s`", m[1]), didYouMean(m[1], known)
	}
	if m := unknownField.FindStringSubmatch(message); m != nil {
		for name, t := range namedStructs(reflect.TypeFor[sensors.Event](), map[string]reflect.Type{}) {
			if name == m[1] {
				return fmt.Sprintf("`%s` has no field `%s`", strings.ToLower(t.Name()), m[2]), didYouMean(m[2], keysOf(exprFields(t)))
			}
		}
	}
	return message, ""
}

// namedStructs are the structs that conditions can reach, by the names that expr gives them.
func namedStructs(t reflect.Type, into map[string]reflect.Type) map[string]reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || into[t.String()] != nil {
		return into
	}
	into[t.String()] = t
	for _, inner := range exprFields(t) {
		namedStructs(inner, into)
	}
	return into
}
