package rules

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// answer is what is known of a condition without asking expr.
type answer uint8

const (
	no answer = iota
	yes
	unknown
)

// quick answers a condition from its syntax tree, some twenty times faster than expr's machine, which reads fields by
// reflection. It knows the comparisons that rules are made of. What it does not know is unknown, and then expr is asked:
// so it can be wrong about nothing, and a test holds it to expr over events of all shapes.
type quick func(*env) answer

func maybe(b bool) answer {
	if b {
		return yes
	}
	return no
}

func unknowable(*env) answer { return unknown }

// side is where in a condition something stands. expr reads from left to right, and what it cannot evaluate ends it: so
// a later answer counts before an earlier unknown one only where both ways the condition as a whole does not hold.
type side uint8

// item is what `#` is in a predicate.
type item uint8

const (
	noItem item = iota
	textItem
	ancestorItem
)

// scope is where a part of a condition stands.
type scope struct {
	side side
	item item
}

func (s scope) flip() scope { return scope{s.side.flip(), s.item} }

const (
	either  side = iota
	plain        // the condition holds only if this does
	negated      // only if this does not
)

func (s side) flip() side {
	switch s {
	case plain:
		return negated
	case negated:
		return plain
	default:
		return either
	}
}

// below is the scope of an operand: `&&` keeps one side only, and `||` the other.
func (s scope) below(keeps side) scope {
	if s.side != keeps {
		s.side = either
	}
	return s
}

func quickBool(node ast.Node, at scope) quick {
	switch n := node.(type) {
	case *ast.BoolNode:
		a := maybe(n.Value)
		return func(*env) answer { return a }
	case *ast.IdentifierNode, *ast.MemberNode:
		if get := boolField(fieldPath(n)); get != nil {
			return func(v *env) answer { return maybe(get(v)) }
		}
	case *ast.UnaryNode:
		if n.Operator == "!" || n.Operator == "not" {
			inner := quickBool(n.Node, at.flip())
			return func(v *env) answer {
				switch inner(v) {
				case no:
					return yes
				case yes:
					return no
				default:
					return unknown
				}
			}
		}
	case *ast.BinaryNode:
		return quickBinary(n, at)
	case *ast.CallNode, *ast.BuiltinNode:
		name, arguments := called(n)
		return quickCall(name, arguments, at)
	}
	return unknowable
}

func quickBinary(n *ast.BinaryNode, at scope) quick {
	switch n.Operator {
	case "&&", "and":
		inner := at.below(plain)
		left, right := quickBool(n.Left, inner), quickBool(n.Right, inner)
		return func(v *env) answer {
			a := left(v)
			if a == no {
				return no
			}
			if a == unknown && at.side != plain {
				return unknown
			}
			if b := right(v); b == no || a == yes {
				return b
			}
			return unknown
		}
	case "||", "or":
		inner := at.below(negated)
		left, right := quickBool(n.Left, inner), quickBool(n.Right, inner)
		return func(v *env) answer {
			a := left(v)
			if a == yes {
				return yes
			}
			if a == unknown && at.side != negated {
				return unknown
			}
			if b := right(v); b == yes || a == no {
				return b
			}
			return unknown
		}
	case "==", "!=", "<", "<=", ">", ">=":
		return quickCompare(n, at)
	case "in":
		return quickIn(n, at)
	case "contains", "startsWith", "endsWith":
		return quickText(n.Left, n.Right, at, map[string]func(string, string) bool{
			"contains": strings.Contains, "startsWith": strings.HasPrefix, "endsWith": strings.HasSuffix,
		}[n.Operator])
	case "matches":
		pattern, isText := n.Right.(*ast.StringNode)
		left := text(n.Left, at)
		if !isText || left == nil {
			return unknowable
		}
		compiled, err := regexp.Compile(pattern.Value)
		if err != nil {
			return unknowable
		}
		return func(v *env) answer { return maybe(compiled.MatchString(left(v))) }
	}
	return unknowable
}

func quickText(left, right ast.Node, at scope, test func(string, string) bool) quick {
	a, b := text(left, at), text(right, at)
	if a == nil || b == nil || test == nil {
		return unknowable
	}
	return func(v *env) answer { return maybe(test(a(v), b(v))) }
}

func quickCompare(n *ast.BinaryNode, at scope) quick {
	if a, b := text(n.Left, at), text(n.Right, at); a != nil && b != nil {
		switch n.Operator {
		case "==":
			return func(v *env) answer { return maybe(a(v) == b(v)) }
		case "!=":
			return func(v *env) answer { return maybe(a(v) != b(v)) }
		}
		return unknowable
	}
	if a, b := number(n.Left, at), number(n.Right, at); a != nil && b != nil {
		switch n.Operator {
		case "==":
			return func(v *env) answer { return maybe(a(v) == b(v)) }
		case "!=":
			return func(v *env) answer { return maybe(a(v) != b(v)) }
		case "<":
			return func(v *env) answer { return maybe(a(v) < b(v)) }
		case "<=":
			return func(v *env) answer { return maybe(a(v) <= b(v)) }
		case ">":
			return func(v *env) answer { return maybe(a(v) > b(v)) }
		case ">=":
			return func(v *env) answer { return maybe(a(v) >= b(v)) }
		}
	}
	if b, ok := n.Right.(*ast.BoolNode); ok && (n.Operator == "==" || n.Operator == "!=") {
		inner := quickBool(n.Left, scope{either, at.item})
		want, other := maybe(b.Value == (n.Operator == "==")), maybe(b.Value != (n.Operator == "=="))
		return func(v *env) answer {
			switch inner(v) {
			case yes:
				return want
			case no:
				return other
			default:
				return unknown
			}
		}
	}
	return unknowable
}

// quickIn looks a text or a number up in what is constant.
func quickIn(n *ast.BinaryNode, at scope) quick {
	if left, list := text(n.Left, at), requestList(fieldPath(n.Right)); left != nil && list != nil {
		return func(v *env) answer { return maybe(slices.Contains(list(v), left(v))) }
	}
	texts, ints, ok := constants(n.Right)
	if !ok {
		return unknowable
	}
	if left := text(n.Left, at); left != nil && ints == nil {
		set := make(map[string]struct{}, len(texts))
		for _, t := range texts {
			set[t] = struct{}{}
		}
		return func(v *env) answer {
			_, in := set[left(v)]
			return maybe(in)
		}
	}
	if left := number(n.Left, at); left != nil && texts == nil {
		set := make(map[int]struct{}, len(ints))
		for _, i := range ints {
			set[i] = struct{}{}
		}
		return func(v *env) answer {
			_, in := set[left(v)]
			return maybe(in)
		}
	}
	return unknowable
}

// constants are the elements of a list that is written out or named.
func constants(node ast.Node) (texts []string, ints []int, ok bool) {
	switch n := node.(type) {
	case *ast.ConstantNode:
		switch values := n.Value.(type) {
		case []string:
			return values, nil, true
		case []int:
			return nil, values, true
		case map[string]struct{}:
			return keysOf(values), nil, true
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

func quickCall(name string, arguments []ast.Node, at scope) quick {
	switch {
	case (name == "any" || name == "all" || name == "none") && len(arguments) == 2:
		return quickEach(name, arguments[0], arguments[1])
	case name == "cidr" && len(arguments) == 2:
		address := text(arguments[0], at)
		network, isText := arguments[1].(*ast.StringNode)
		if !isText || address == nil {
			return unknowable
		}
		prefix, err := netip.ParsePrefix(network.Value)
		if err != nil {
			return unknowable
		}
		return func(v *env) answer { return maybe(inNetwork(address(v), prefix)) }
	case name == "contains_any" && len(arguments) == 2:
		from := text(arguments[0], at)
		words, ints, ok := constants(arguments[1])
		if from == nil || !ok || ints != nil {
			return unknowable
		}
		return func(v *env) answer { return maybe(containsAny(from(v), words)) }
	case name == "has_bits" && len(arguments) == 2:
		bits, mask := number(arguments[0], at), number(arguments[1], at)
		if bits == nil || mask == nil {
			return unknowable
		}
		return func(v *env) answer { m := mask(v); return maybe(bits(v)&m == m) }
	case name == "egress_declared" && len(arguments) == 1 && fieldPath(arguments[0]) == "container":
		return func(v *env) answer {
			_, declared := v.event.Container.Pod.Annotations[EgressAnnotation]
			return maybe(declared)
		}
	case name == "hasPrefix" && len(arguments) == 2:
		return quickText(arguments[0], arguments[1], at, strings.HasPrefix)
	case name == "hasSuffix" && len(arguments) == 2:
		return quickSuffix(arguments[0], arguments[1], at)
	}
	return unknowable
}
