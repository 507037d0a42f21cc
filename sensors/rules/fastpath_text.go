package rules

import (
	"reflect"
	"strings"

	"github.com/expr-lang/expr/ast"
)

// fieldPath returns the dotted name of a field, such as "container.pod.namespace", or "" if the node is not a field.
func fieldPath(node ast.Node) string {
	switch n := node.(type) {
	case *ast.IdentifierNode:
		return n.Value
	case *ast.MemberNode:
		inner := fieldPath(n.Node)
		property, isText := n.Property.(*ast.StringNode)
		if inner == "" || !isText || n.Optional || n.Method {
			return ""
		}
		return inner + "." + property.Value
	}
	return ""
}

// textGetter returns a getter for a string expression, or nil if it is not supported.
func textGetter(node ast.Node, at fastpathScope) func(*conditionEnv) string {
	switch n := node.(type) {
	case *ast.StringNode:
		return func(*conditionEnv) string { return n.Value }
	case *ast.IdentifierNode:
		return textField(n.Value)
	case *ast.PointerNode:
		if n.Name == "" && at.element == textElement {
			return func(v *conditionEnv) string { return v.textElement }
		}
	case *ast.BinaryNode:
		left, right := textGetter(n.Left, at), textGetter(n.Right, at)
		if n.Operator == "+" && left != nil && right != nil {
			return func(v *conditionEnv) string { return left(v) + right(v) }
		}
	case *ast.MemberNode:
		if of, isPointer := n.Node.(*ast.PointerNode); isPointer && of.Name == "" && at.element == ancestorElement {
			return ancestorField(n.Property)
		}
		key, isText := n.Property.(*ast.StringNode)
		if get := mapField(fieldPath(n.Node)); get != nil && isText && n.Node.Type().Kind() == reflect.Map {
			return func(v *conditionEnv) string { return get(v)[key.Value] }
		}
		return textField(fieldPath(n))
	case *ast.CallNode, *ast.BuiltinNode:
		name, arguments := callNameAndArgs(n)
		if len(arguments) != 1 {
			return nil
		}
		if of, isPointer := arguments[0].(*ast.PointerNode); isPointer && of.Name == "" && name == "program" &&
			at.element == ancestorElement {
			return func(v *conditionEnv) string { return v.ancestorElement.ExeName() }
		}
		inner := textGetter(arguments[0], at)
		if inner == nil {
			return nil
		}
		switch name {
		case "string":
			return inner
		case "base":
			return func(v *conditionEnv) string { return baseName(inner(v)) }
		case "lower":
			return func(v *conditionEnv) string { return strings.ToLower(inner(v)) }
		}
	}
	return nil
}

// numberGetter returns a getter for an integer expression, or nil if it is not supported.
func numberGetter(node ast.Node, at fastpathScope) func(*conditionEnv) int {
	switch n := node.(type) {
	case *ast.IntegerNode:
		return func(*conditionEnv) int { return n.Value }
	case *ast.IdentifierNode, *ast.MemberNode:
		return numberField(fieldPath(n))
	case *ast.BuiltinNode:
		if n.Name == "indexOf" && len(n.Arguments) == 2 {
			if in, what := textGetter(n.Arguments[0], at), textGetter(n.Arguments[1], at); in != nil && what != nil {
				return func(v *conditionEnv) int { return strings.Index(in(v), what(v)) }
			}
		}
		if n.Name == "len" && len(n.Arguments) == 1 {
			of := fieldPath(n.Arguments[0])
			if of == "process.ancestors" {
				return func(v *conditionEnv) int { return len(v.event.Process.Ancestors) }
			}
			if list := requestListField(of); list != nil {
				return func(v *conditionEnv) int { return len(list(v)) }
			}
		}
	}
	return nil
}
