package rules

import (
	"strings"

	"github.com/expr-lang/expr/ast"
)

// fastpathEach handles `any`, `all` and `none` over the process arguments, the ancestors or a list. If the predicate
// is unknown for one element, the result is unknown.
func fastpathEach(name string, of, predicate ast.Node) fastpath {
	body, ok := predicate.(*ast.PredicateNode)
	if !ok {
		return alwaysUnknown
	}
	stop, then, otherwise := triTrue, triTrue, triFalse // for any: stop at the first true
	switch name {
	case "all":
		stop, then, otherwise = triFalse, triFalse, triTrue
	case "none":
		stop, then, otherwise = triTrue, triFalse, triTrue
	}
	texts, ints, constant := constantElements(of)
	path := fieldPath(of)
	list := requestListField(path)
	switch {
	case path == "process.ancestors":
		inner := fastpathBool(body.Node, fastpathScope{anyPolarity, ancestorElement})
		return func(v *conditionEnv) tristate {
			outer := v.ancestorElement
			defer func() { v.ancestorElement = outer }()
			for i := range v.event.Process.Ancestors {
				v.ancestorElement = &v.event.Process.Ancestors[i]
				if a := inner(v); a == triUnknown {
					return triUnknown
				} else if a == stop {
					return then
				}
			}
			return otherwise
		}
	case list != nil || constant && ints == nil:
		inner := fastpathBool(body.Node, fastpathScope{anyPolarity, textElement})
		return func(v *conditionEnv) tristate {
			outer := v.textElement
			defer func() { v.textElement = outer }()
			items := texts
			if !constant {
				items = list(v)
			}
			for _, v.textElement = range items {
				if a := inner(v); a == triUnknown {
					return triUnknown
				} else if a == stop {
					return then
				}
			}
			return otherwise
		}
	}
	return alwaysUnknown
}

// fastpathSuffix handles hasSuffix. If the suffix is a concatenation of two parts, it avoids concatenating them for
// every element of a list.
func fastpathSuffix(of, suffix ast.Node, at fastpathScope) fastpath {
	sum, isSum := suffix.(*ast.BinaryNode)
	if !isSum || sum.Operator != "+" {
		return fastpathText(of, suffix, at, strings.HasSuffix)
	}
	whole, first, second := textGetter(of, at), textGetter(sum.Left, at), textGetter(sum.Right, at)
	if whole == nil || first == nil || second == nil {
		return alwaysUnknown
	}
	return func(v *conditionEnv) tristate {
		rest, ok := strings.CutSuffix(whole(v), second(v))
		return tristateOf(ok && strings.HasSuffix(rest, first(v)))
	}
}

// ancestorField returns a getter for a text field of the current ancestor in a predicate.
func ancestorField(property ast.Node) func(*conditionEnv) string {
	name, ok := property.(*ast.StringNode)
	switch {
	case !ok:
	case name.Value == "name":
		return func(v *conditionEnv) string { return v.ancestorElement.Name }
	case name.Value == "exe":
		return func(v *conditionEnv) string { return v.ancestorElement.Exe }
	}
	return nil
}
