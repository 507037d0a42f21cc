package rules

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// tristate is the result of a fast path: false, true, or unknown without expr.
type tristate uint8

const (
	triFalse tristate = iota
	triTrue
	triUnknown
)

// fastpath evaluates a condition from its syntax tree, about twenty times faster than expr, which reads fields by
// reflection. It supports the comparisons that rules commonly use. It returns triUnknown for everything else, and expr
// is then used. A test compares it with expr on events of all shapes.
type fastpath func(*conditionEnv) tristate

func tristateOf(b bool) tristate {
	if b {
		return triTrue
	}
	return triFalse
}

func alwaysUnknown(*conditionEnv) tristate { return triUnknown }

// polarity is how the result of a subexpression affects the condition. expr evaluates from left to right and stops at
// an error. A result to the right of an unknown operand may therefore be used only if the condition is false either
// way.
type polarity uint8

// elementKind is the type of `#` in a predicate.
type elementKind uint8

const (
	noElement elementKind = iota
	textElement
	ancestorElement
)

// fastpathScope is the context of a subexpression.
type fastpathScope struct {
	polarity polarity
	element  elementKind
}

func (s fastpathScope) negate() fastpathScope { return fastpathScope{s.polarity.negate(), s.element} }

const (
	anyPolarity      polarity = iota
	positivePolarity          // the condition is true only if this is true
	negativePolarity          // the condition is true only if this is false
)

func (s polarity) negate() polarity {
	switch s {
	case positivePolarity:
		return negativePolarity
	case negativePolarity:
		return positivePolarity
	default:
		return anyPolarity
	}
}

// forOperand returns the scope of an operand: `&&` preserves the positive polarity, and `||` the negative one.
func (s fastpathScope) forOperand(keeps polarity) fastpathScope {
	if s.polarity != keeps {
		s.polarity = anyPolarity
	}
	return s
}

func fastpathBool(node ast.Node, at fastpathScope) fastpath {
	switch n := node.(type) {
	case *ast.BoolNode:
		a := tristateOf(n.Value)
		return func(*conditionEnv) tristate { return a }
	case *ast.IdentifierNode, *ast.MemberNode:
		if get := boolField(fieldPath(n)); get != nil {
			return func(v *conditionEnv) tristate { return tristateOf(get(v)) }
		}
	case *ast.UnaryNode:
		if n.Operator == "!" || n.Operator == "not" {
			inner := fastpathBool(n.Node, at.negate())
			return func(v *conditionEnv) tristate {
				switch inner(v) {
				case triFalse:
					return triTrue
				case triTrue:
					return triFalse
				default:
					return triUnknown
				}
			}
		}
	case *ast.BinaryNode:
		return fastpathBinary(n, at)
	case *ast.CallNode, *ast.BuiltinNode:
		name, arguments := callNameAndArgs(n)
		return fastpathCall(name, arguments, at)
	}
	return alwaysUnknown
}

func fastpathBinary(n *ast.BinaryNode, at fastpathScope) fastpath {
	switch n.Operator {
	case "&&", "and":
		inner := at.forOperand(positivePolarity)
		left, right := fastpathBool(n.Left, inner), fastpathBool(n.Right, inner)
		return func(v *conditionEnv) tristate {
			a := left(v)
			if a == triFalse {
				return triFalse
			}
			if a == triUnknown && at.polarity != positivePolarity {
				return triUnknown
			}
			if b := right(v); b == triFalse || a == triTrue {
				return b
			}
			return triUnknown
		}
	case "||", "or":
		inner := at.forOperand(negativePolarity)
		left, right := fastpathBool(n.Left, inner), fastpathBool(n.Right, inner)
		return func(v *conditionEnv) tristate {
			a := left(v)
			if a == triTrue {
				return triTrue
			}
			if a == triUnknown && at.polarity != negativePolarity {
				return triUnknown
			}
			if b := right(v); b == triTrue || a == triFalse {
				return b
			}
			return triUnknown
		}
	case "==", "!=", "<", "<=", ">", ">=":
		return fastpathCompare(n, at)
	case "in":
		return fastpathIn(n, at)
	case "contains", "startsWith", "endsWith":
		return fastpathText(n.Left, n.Right, at, map[string]func(string, string) bool{
			"contains": strings.Contains, "startsWith": strings.HasPrefix, "endsWith": strings.HasSuffix,
		}[n.Operator])
	case "matches":
		pattern, isText := n.Right.(*ast.StringNode)
		left := textGetter(n.Left, at)
		if !isText || left == nil {
			return alwaysUnknown
		}
		compiled, err := regexp.Compile(pattern.Value)
		if err != nil {
			return alwaysUnknown
		}
		return func(v *conditionEnv) tristate { return tristateOf(compiled.MatchString(left(v))) }
	}
	return alwaysUnknown
}

func fastpathText(left, right ast.Node, at fastpathScope, test func(string, string) bool) fastpath {
	a, b := textGetter(left, at), textGetter(right, at)
	if a == nil || b == nil || test == nil {
		return alwaysUnknown
	}
	return func(v *conditionEnv) tristate { return tristateOf(test(a(v), b(v))) }
}

func fastpathCompare(n *ast.BinaryNode, at fastpathScope) fastpath {
	if a, b := textGetter(n.Left, at), textGetter(n.Right, at); a != nil && b != nil {
		switch n.Operator {
		case "==":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) == b(v)) }
		case "!=":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) != b(v)) }
		}
		return alwaysUnknown
	}
	if a, b := numberGetter(n.Left, at), numberGetter(n.Right, at); a != nil && b != nil {
		switch n.Operator {
		case "==":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) == b(v)) }
		case "!=":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) != b(v)) }
		case "<":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) < b(v)) }
		case "<=":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) <= b(v)) }
		case ">":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) > b(v)) }
		case ">=":
			return func(v *conditionEnv) tristate { return tristateOf(a(v) >= b(v)) }
		}
	}
	if b, ok := n.Right.(*ast.BoolNode); ok && (n.Operator == "==" || n.Operator == "!=") {
		inner := fastpathBool(n.Left, fastpathScope{anyPolarity, at.element})
		want, other := tristateOf(b.Value == (n.Operator == "==")), tristateOf(b.Value != (n.Operator == "=="))
		return func(v *conditionEnv) tristate {
			switch inner(v) {
			case triTrue:
				return want
			case triFalse:
				return other
			default:
				return triUnknown
			}
		}
	}
	return alwaysUnknown
}

// fastpathIn handles `in` with a list field, or with a constant list of strings or integers.
func fastpathIn(n *ast.BinaryNode, at fastpathScope) fastpath {
	if left, list := textGetter(n.Left, at), requestListField(fieldPath(n.Right)); left != nil && list != nil {
		return func(v *conditionEnv) tristate { return tristateOf(slices.Contains(list(v), left(v))) }
	}
	texts, ints, ok := constantElements(n.Right)
	if !ok {
		return alwaysUnknown
	}
	if left := textGetter(n.Left, at); left != nil && ints == nil {
		set := make(map[string]struct{}, len(texts))
		for _, t := range texts {
			set[t] = struct{}{}
		}
		return func(v *conditionEnv) tristate {
			_, in := set[left(v)]
			return tristateOf(in)
		}
	}
	if left := numberGetter(n.Left, at); left != nil && texts == nil {
		set := make(map[int]struct{}, len(ints))
		for _, i := range ints {
			set[i] = struct{}{}
		}
		return func(v *conditionEnv) tristate {
			_, in := set[left(v)]
			return tristateOf(in)
		}
	}
	return alwaysUnknown
}

// constantElements returns the elements of a list literal or a named list.
func constantElements(node ast.Node) (texts []string, ints []int, ok bool) {
	switch n := node.(type) {
	case *ast.ConstantNode:
		switch values := n.Value.(type) {
		case []string:
			return values, nil, true
		case []int:
			return nil, values, true
		case map[string]struct{}:
			return sortedKeys(values), nil, true
		}
	case *ast.ArrayNode:
		for _, item := range n.Nodes {
			switch i := item.(type) {
			case *ast.StringNode:
				texts = append(texts, i.Value)
			case *ast.IntegerNode:
				ints = append(ints, i.Value)
			default:
				return nil, nil, false
			}
		}
		return texts, ints, texts == nil || ints == nil
	}
	return nil, nil, false
}

func fastpathCall(name string, arguments []ast.Node, at fastpathScope) fastpath {
	switch {
	case (name == "any" || name == "all" || name == "none") && len(arguments) == 2:
		return fastpathEach(name, arguments[0], arguments[1])
	case name == "cidr" && len(arguments) == 2:
		address := textGetter(arguments[0], at)
		network, isText := arguments[1].(*ast.StringNode)
		if !isText || address == nil {
			return alwaysUnknown
		}
		prefix, err := netip.ParsePrefix(network.Value)
		if err != nil {
			return alwaysUnknown
		}
		return func(v *conditionEnv) tristate { return tristateOf(isInNetwork(address(v), prefix)) }
	case name == "contains_any" && len(arguments) == 2:
		from := textGetter(arguments[0], at)
		words, ints, ok := constantElements(arguments[1])
		if from == nil || !ok || ints != nil {
			return alwaysUnknown
		}
		return func(v *conditionEnv) tristate { return tristateOf(containsAny(from(v), words)) }
	case name == "has_bits" && len(arguments) == 2:
		bits, mask := numberGetter(arguments[0], at), numberGetter(arguments[1], at)
		if bits == nil || mask == nil {
			return alwaysUnknown
		}
		return func(v *conditionEnv) tristate { m := mask(v); return tristateOf(bits(v)&m == m) }
	case name == "egress_declared" && len(arguments) == 1 && fieldPath(arguments[0]) == "container":
		return func(v *conditionEnv) tristate {
			_, declared := v.event.Container.Pod.Annotations[EgressAnnotation]
			return tristateOf(declared)
		}
	case name == "hasPrefix" && len(arguments) == 2:
		return fastpathText(arguments[0], arguments[1], at, strings.HasPrefix)
	case name == "hasSuffix" && len(arguments) == 2:
		return fastpathSuffix(arguments[0], arguments[1], at)
	}
	return alwaysUnknown
}
