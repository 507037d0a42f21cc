package playbooks

import (
	"maps"
	"reflect"
	"slices"

	"github.com/expr-lang/expr/ast"
)

// flowContext is a position in the control flow.
type flowContext struct {
	conditions          []string // conditions that are true when it runs
	outcomeCheckedSteps []string // steps whose outcome one of the conditions reads
}

// withCondition returns the context inside a condition.
func (p flowContext) withCondition(condition string, checked ...string) flowContext {
	return flowContext{append(slices.Clone(p.conditions), condition), append(slices.Clone(p.outcomeCheckedSteps),
		checked...)}
}

// exprUse is an expression and its context.
type exprUse struct {
	expr        *Expr
	stepReads   map[string]readKind
	flow        flowContext
	affectsPlan bool // a containment, or a step that leads to one, depends on it
}

// readKind says which parts of a step an expression reads.
type readKind struct{ readsOutcome, readsOutputs bool }

// findReads returns the names that an expression reads. `x.outcome`, `x.targets` and `x.failed` are available for every
// step, other fields only for a step that has run.
func findReads(node ast.Node) map[string]readKind {
	v := &readVisitor{
		readsByName: map[string]readKind{}, alwaysReadableCounts: map[string]int{},
		readCounts: map[string]int{},
	}
	ast.Walk(&node, v)
	for name, n := range v.readCounts {
		h := v.readsByName[name]
		h.readsOutputs = n > v.alwaysReadableCounts[name]
		v.readsByName[name] = h
	}
	return v.readsByName
}

// findInvalidOutcomes returns the values that an expression compares with an outcome and that are no valid outcome.
func findInvalidOutcomes(node ast.Node) []string {
	v := &outcomeVisitor{}
	ast.Walk(&node, v)
	return v.invalidOutcomes
}

type outcomeVisitor struct{ invalidOutcomes []string }

func (v *outcomeVisitor) Visit(node *ast.Node) {
	b, ok := (*node).(*ast.BinaryNode)
	if !ok {
		return
	}
	for _, pair := range [][2]ast.Node{{b.Left, b.Right}, {b.Right, b.Left}} {
		member, isMember := pair[0].(*ast.MemberNode)
		if !isMember {
			continue
		}
		property, isWord := member.Property.(*ast.StringNode)
		if _, plain := member.Node.(*ast.IdentifierNode); !plain || !isWord || property.Value != "outcome" {
			continue
		}
		switch other := pair[1].(type) {
		case *ast.StringNode:
			v.checkOutcome(other.Value)
		case *ast.ConstantNode:
			switch values := other.Value.(type) {
			case map[string]struct{}:
				for _, word := range slices.Sorted(maps.Keys(values)) {
					v.checkOutcome(word)
				}
			case []any:
				for _, word := range values {
					if s, ok := word.(string); ok {
						v.checkOutcome(s)
					}
				}
			}
		}
	}
}

func (v *outcomeVisitor) checkOutcome(word string) {
	if !slices.Contains(Outcomes, Outcome(word)) {
		v.invalidOutcomes = append(v.invalidOutcomes, word)
	}
}

type readVisitor struct {
	readsByName                      map[string]readKind
	alwaysReadableCounts, readCounts map[string]int
}

func (v *readVisitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		v.readCounts[n.Value]++
	case *ast.MemberNode:
		id, isName := n.Node.(*ast.IdentifierNode)
		property, isWord := n.Property.(*ast.StringNode)
		if !isName || !isWord {
			return
		}
		switch property.Value {
		case "outcome":
			v.alwaysReadableCounts[id.Value]++
			v.readsByName[id.Value] = readKind{readsOutcome: true}
		case "targets", "failed":
			v.alwaysReadableCounts[id.Value]++
		}
	}
}

// inferNodeType returns the type of an expression. If expr knows only that it is a list, the element type is inferred
// from its source.
func inferNodeType(node ast.Node) reflect.Type {
	t := node.Type()
	if t == nil || t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Interface {
		return t
	}
	if element := inferElementType(node); element != nil {
		return reflect.SliceOf(element)
	}
	return t
}

func inferElementType(node ast.Node) reflect.Type {
	switch n := node.(type) {
	case *ast.ChainNode:
		return inferElementType(n.Node)
	case *ast.SliceNode:
		return inferElementType(n.Node)
	case *ast.ConditionalNode:
		if a, b := inferElementType(n.Exp1), inferElementType(n.Exp2); a == b {
			return a
		}
	case *ast.ArrayNode:
		return commonType(n.Nodes, func(e ast.Node) reflect.Type { return e.Type() })
	case *ast.ConstantNode:
		return listElementType(reflect.ValueOf(n.Value))
	case *ast.BuiltinNode:
		switch n.Name {
		case "filter", "take", "reverse", "sort", "sortBy", "uniq":
			return inferElementType(n.Arguments[0])
		case "concat":
			return commonType(n.Arguments, inferElementType)
		case "map":
			if p, ok := n.Arguments[1].(*ast.PredicateNode); ok {
				return concreteType(p.Node.Type())
			}
		}
	}
	if t := node.Type(); t != nil && t.Kind() == reflect.Slice {
		return concreteType(t.Elem())
	}
	return nil
}

// listElementType returns the type that all elements of a list have, or nil.
func listElementType(list reflect.Value) (t reflect.Type) {
	if list.Kind() != reflect.Slice {
		return nil
	}
	for i := range list.Len() {
		element := list.Index(i)
		if element.Kind() == reflect.Interface {
			element = element.Elem()
		}
		if !element.IsValid() || t != nil && t != element.Type() {
			return nil
		}
		t = element.Type()
	}
	return t
}

// commonType returns the type that all nodes have, or nil.
func commonType(nodes []ast.Node, of func(ast.Node) reflect.Type) reflect.Type {
	var all reflect.Type
	for i, n := range nodes {
		t := concreteType(of(n))
		if t == nil || i > 0 && t != all {
			return nil
		}
		all = t
	}
	return all
}

func concreteType(t reflect.Type) reflect.Type {
	if t == nil || t.Kind() == reflect.Interface {
		return nil
	}
	return t
}
