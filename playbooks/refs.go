package playbooks

import (
	"maps"
	"reflect"
	"slices"

	"github.com/expr-lang/expr/ast"
)

// place is where in the flow something stands.
type place struct {
	conditions []string // each that must have held for it to run
	checked    []string // steps whose outcome one of the conditions looks at
}

// under is the place inside of a condition.
func (p place) under(condition string, checked ...string) place {
	return place{append(slices.Clone(p.conditions), condition), append(slices.Clone(p.checked), checked...)}
}

// use is an expression and where it stands.
type use struct {
	expr  *Expr
	reads map[string]how
	at    place
	plans bool // a containment, or what leads to one, is planned with it
}

// how an expression reads a step.
type how struct{ outcome, outputs bool }

// readsOf finds the names that an expression reads: `x.outcome`, `x.targets` and `x.failed` are known of every step, the rest only
// of one that has run.
func readsOf(node ast.Node) map[string]how {
	v := &readVisitor{found: map[string]how{}, always: map[string]int{}, all: map[string]int{}}
	ast.Walk(&node, v)
	for name, n := range v.all {
		h := v.found[name]
		h.outputs = n > v.always[name]
		v.found[name] = h
	}
	return v.found
}

// badOutcomes finds comparisons of an outcome with what no outcome is.
func badOutcomes(node ast.Node) []string {
	v := &outcomeVisitor{}
	ast.Walk(&node, v)
	return v.bad
}

type outcomeVisitor struct{ bad []string }

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
			v.check(other.Value)
		case *ast.ConstantNode:
			switch values := other.Value.(type) {
			case map[string]struct{}:
				for _, word := range slices.Sorted(maps.Keys(values)) {
					v.check(word)
				}
			case []any:
				for _, word := range values {
					if s, ok := word.(string); ok {
						v.check(s)
					}
				}
			}
		}
	}
}

func (v *outcomeVisitor) check(word string) {
	if !slices.Contains(Outcomes, Outcome(word)) {
		v.bad = append(v.bad, word)
	}
}

type readVisitor struct {
	found       map[string]how
	always, all map[string]int
}

func (v *readVisitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		v.all[n.Value]++
	case *ast.MemberNode:
		id, isName := n.Node.(*ast.IdentifierNode)
		property, isWord := n.Property.(*ast.StringNode)
		if !isName || !isWord {
			return
		}
		switch property.Value {
		case "outcome":
			v.always[id.Value]++
			v.found[id.Value] = how{outcome: true}
		case "targets", "failed":
			v.always[id.Value]++
		}
	}
}

// typeOfNode is the type of an expression. Where expr knows only that it is a list, what the list is made from tells
// what is in it.
func typeOfNode(node ast.Node) reflect.Type {
	t := node.Type()
	if t == nil || t.Kind() != reflect.Slice || t.Elem().Kind() != reflect.Interface {
		return t
	}
	if element := elementOf(node); element != nil {
		return reflect.SliceOf(element)
	}
	return t
}

func elementOf(node ast.Node) reflect.Type {
	switch n := node.(type) {
	case *ast.ChainNode:
		return elementOf(n.Node)
	case *ast.SliceNode:
		return elementOf(n.Node)
	case *ast.ConditionalNode:
		if a, b := elementOf(n.Exp1), elementOf(n.Exp2); a == b {
			return a
		}
	case *ast.ArrayNode:
		return same(n.Nodes, func(e ast.Node) reflect.Type { return e.Type() })
	case *ast.ConstantNode:
		return elementOfValue(reflect.ValueOf(n.Value))
	case *ast.BuiltinNode:
		switch n.Name {
		case "filter", "take", "reverse", "sort", "sortBy", "uniq":
			return elementOf(n.Arguments[0])
		case "concat":
			return same(n.Arguments, elementOf)
		case "map":
			if p, ok := n.Arguments[1].(*ast.PredicateNode); ok {
				return known(p.Node.Type())
			}
		}
	}
	if t := node.Type(); t != nil && t.Kind() == reflect.Slice {
		return known(t.Elem())
	}
	return nil
}

// elementOfValue is the type that all elements of a list have, or nil.
func elementOfValue(list reflect.Value) (t reflect.Type) {
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

// same is the type that all of the nodes have, or nil.
func same(nodes []ast.Node, of func(ast.Node) reflect.Type) reflect.Type {
	var all reflect.Type
	for i, n := range nodes {
		t := known(of(n))
		if t == nil || i > 0 && t != all {
			return nil
		}
		all = t
	}
	return all
}

func known(t reflect.Type) reflect.Type {
	if t == nil || t.Kind() == reflect.Interface {
		return nil
	}
	return t
}
