package rules

import (
	"strings"

	"github.com/expr-lang/expr/ast"
)

// quickEach is `any`, `all` or `none` of the process's arguments, of its ancestors or of a list. What a predicate cannot
// answer of one element leaves the whole unknown.
func quickEach(name string, of, predicate ast.Node) quick {
	body, ok := predicate.(*ast.PredicateNode)
	if !ok {
		return unknowable
	}
	stop, then, otherwise := yes, yes, no // of any: the first that is true
	switch name {
	case "all":
		stop, then, otherwise = no, no, yes
	case "none":
		stop, then, otherwise = yes, no, yes
	}
	texts, ints, constant := constants(of)
	path := fieldPath(of)
	list := requestList(path)
	switch {
	case path == "process.ancestors":
		inner := quickBool(body.Node, scope{either, ancestorItem})
		return func(v *env) answer {
			outer := v.ancestor
			defer func() { v.ancestor = outer }()
			for i := range v.event.Process.Ancestors {
				v.ancestor = &v.event.Process.Ancestors[i]
				if a := inner(v); a == unknown {
					return unknown
				} else if a == stop {
					return then
				}
			}
			return otherwise
		}
	case list != nil || constant && ints == nil:
		inner := quickBool(body.Node, scope{either, textItem})
		return func(v *env) answer {
			outer := v.item
			defer func() { v.item = outer }()
			items := texts
			if !constant {
				items = list(v)
			}
			for _, v.item = range items {
				if a := inner(v); a == unknown {
					return unknown
				} else if a == stop {
					return then
				}
			}
			return otherwise
		}
	}
	return unknowable
}

// quickSuffix is hasSuffix, without putting together a suffix of two parts for every element of a list.
func quickSuffix(of, suffix ast.Node, at scope) quick {
	sum, isSum := suffix.(*ast.BinaryNode)
	if !isSum || sum.Operator != "+" {
		return quickText(of, suffix, at, strings.HasSuffix)
	}
	whole, first, second := text(of, at), text(sum.Left, at), text(sum.Right, at)
	if whole == nil || first == nil || second == nil {
		return unknowable
	}
	return func(v *env) answer {
		rest, ok := strings.CutSuffix(whole(v), second(v))
		return maybe(ok && strings.HasSuffix(rest, first(v)))
	}
}

// ancestorField gives a text of the ancestor that a predicate is about.
func ancestorField(property ast.Node) func(*env) string {
	name, ok := property.(*ast.StringNode)
	switch {
	case !ok:
	case name.Value == "name":
		return func(v *env) string { return v.ancestor.Name }
	case name.Value == "exe":
		return func(v *env) string { return v.ancestor.Exe }
	}
	return nil
}
