package playbooks

import (
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
}

// how an expression reads a step.
type how struct{ outcome, outputs bool }

// readsOf finds the names that an expression reads: `x.outcome` and `x.targets` are known of every step, the rest only
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
		case "targets":
			v.always[id.Value]++
		}
	}
}
