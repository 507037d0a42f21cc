package expression

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
)

// Limits of the text that an expression creates. Without them, repeated concatenation of a text with itself doubles it
// each time.
const (
	maxTextBytes = 64 << 10
	// maxElementTextBytes is the limit inside a predicate, where each list element may create a text.
	maxElementTextBytes = 4 << 10
)

// The names of the functions that replace operators and builtins. Expressions cannot contain these names.
const (
	boundedPlusName  = "text plus"
	boundedUpperName = "text upper"
	boundedLowerName = "text lower"
	elementSuffix    = " inside" // appended for the smaller limit
)

// boundedTextFunctions returns the functions that create text, each with the limit for a complete value and for a list
// element.
func boundedTextFunctions() []expr.Option {
	var out []expr.Option
	for suffix, most := range map[string]int{"": maxTextBytes, elementSuffix: maxElementTextBytes} {
		b := textLimit(most)
		out = append(out,
			expr.Function("replace"+suffix, b.replace, new(func(string, string, string) string)),
			expr.Function("split"+suffix, b.split, new(func(string, string) []string), new(func(string, string, int) []string)),
			expr.Function("join"+suffix, b.join, new(func([]string) string), new(func([]string, string) string),
				new(func([]any) string), new(func([]any, string) string)),
			expr.Function(boundedPlusName+suffix, b.concatenate, new(func(string, string) string)),
			expr.Function(boundedUpperName+suffix, b.wrap(strings.ToUpper), new(func(string) string)),
			expr.Function(boundedLowerName+suffix, b.wrap(strings.ToLower), new(func(string) string)),
		)
	}
	return out
}

// textLimit is the maximum size of a text, in bytes.
type textLimit int

func (b textLimit) checkSize(size int) error {
	if size > int(b) {
		return fmt.Errorf("the string would have more than %d bytes", int(b))
	}
	return nil
}

func (b textLimit) concatenate(params ...any) (any, error) {
	x, y := params[0].(string), params[1].(string) //nolint:forcetypeassert // type-checked
	if err := b.checkSize(len(x) + len(y)); err != nil {
		return nil, err
	}
	return x + y, nil
}

func (b textLimit) wrap(f func(string) string) func(...any) (any, error) {
	return func(params ...any) (any, error) {
		s := params[0].(string) //nolint:forcetypeassert // type-checked
		if err := b.checkSize(len(s)); err != nil {
			return nil, err
		}
		return f(s), nil
	}
}

func (b textLimit) replace(params ...any) (any, error) {
	s, old, with := params[0].(string), params[1].(string), params[2].(string) //nolint:forcetypeassert // type-checked
	if err := b.checkSize(len(s) + strings.Count(s, old)*max(len(with)-len(old), 0)); err != nil {
		return nil, err
	}
	return strings.ReplaceAll(s, old, with), nil
}

// maxSplitParts is the maximum number of parts of a split text, because expr does not count the elements of this list.
const maxSplitParts = 4096

func (b textLimit) split(params ...any) (any, error) {
	s, sep, n := params[0].(string), params[1].(string), -1 //nolint:forcetypeassert // type-checked
	if len(params) > 2 {
		n = params[2].(int) //nolint:forcetypeassert // type-checked
	}
	most := maxSplitParts
	if b == maxElementTextBytes {
		most = maxSplitParts / 16 // per element of a list
	}
	parts := strings.Count(s, sep) + 1
	if n >= 0 {
		parts = min(parts, n)
	}
	if parts > most {
		return nil, fmt.Errorf("the string would be split into more than %d parts", most)
	}
	return strings.SplitN(s, sep, n), nil
}

func (b textLimit) join(params ...any) (any, error) {
	var parts []string
	switch list := params[0].(type) {
	case []string:
		parts = list
	case []any:
		for _, part := range list {
			s, ok := part.(string)
			if !ok {
				return nil, fmt.Errorf("join takes strings, not %T", part)
			}
			parts = append(parts, s)
		}
	}
	between, size := "", 0
	if len(params) > 1 {
		between = params[1].(string) //nolint:forcetypeassert // type-checked
	}
	for _, part := range parts {
		size += len(part) + len(between)
		if err := b.checkSize(size); err != nil {
			return nil, err
		}
	}
	return strings.Join(parts, between), nil
}

// textLimitPatcher replaces operations that create text by functions with a limit, because expr counts elements and
// not bytes.
type textLimitPatcher struct {
	// upperLower also limits upper and lower. Rules do not need it, because the texts of an event are short.
	upperLower bool
}

// LimitUpperLower returns an option for Compile that also limits upper and lower. It is for environments whose texts
// may be long.
func LimitUpperLower() expr.Option { return expr.Patch(&textLimitPatcher{upperLower: true}) }

// Visit replaces one node. expr visits inner nodes first.
func (p *textLimitPatcher) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.BinaryNode:
		if n.Operator == "+" && isStringExpr(n.Left) && isStringExpr(n.Right) {
			replaceWithCall(node, boundedPlusName, n.Left, n.Right)
		}
	case *ast.BuiltinNode:
		if p.upperLower && (n.Name == "upper" || n.Name == "lower") {
			replaceWithCall(node, "text "+n.Name, n.Arguments...)
		}
	case *ast.PredicateNode:
		ast.Walk(&n.Node, elementLimitPatcher{})
	}
}

// elementLimitPatcher selects the functions with the smaller limit in a predicate.
type elementLimitPatcher struct{}

// Visit replaces one node.
func (elementLimitPatcher) Visit(node *ast.Node) {
	c, ok := (*node).(*ast.CallNode)
	if !ok {
		return
	}
	id, ok := c.Callee.(*ast.IdentifierNode)
	if !ok {
		return
	}
	switch id.Value {
	case boundedPlusName, boundedUpperName, boundedLowerName, "join", "replace", "split":
		id.Value += elementSuffix
	}
}

func replaceWithCall(node *ast.Node, function string, arguments ...ast.Node) {
	n := &ast.CallNode{Callee: &ast.IdentifierNode{Value: function}, Arguments: arguments}
	n.SetType(reflect.TypeFor[string]())
	ast.Patch(node, n)
}

func isStringExpr(n ast.Node) bool {
	t := n.Type()
	return t != nil && t.Kind() == reflect.String
}

// nonScalarStringFinder finds `string(…)` of a list or a map, which would create text of any size.
type nonScalarStringFinder struct{ found *Error }

// Visit checks one node.
func (f *nonScalarStringFinder) Visit(node *ast.Node) {
	if p, ok := (*node).(*ast.PredicateNode); ok && f.found == nil {
		inner := &nestedUniqFinder{}
		ast.Walk(&p.Node, inner)
		f.found = inner.found
		return
	}
	b, ok := (*node).(*ast.BuiltinNode)
	if !ok || b.Name != "string" || len(b.Arguments) != 1 || f.found != nil {
		return
	}
	switch t := b.Arguments[0].Type(); {
	case t == nil:
	case t.Kind() == reflect.Slice, t.Kind() == reflect.Array, t.Kind() == reflect.Map, t.Kind() == reflect.Struct,
		t.Kind() == reflect.Interface:
		at := b.Location()
		f.found = &Error{
			Column: at.From, SourceOffset: at.From,
			Message: "`string` takes a number, a boolean or a string, not " + t.String() + "; use `join` for a list of strings",
		}
	}
}

// nestedUniqFinder finds `uniq` in a predicate. It compares all pairs of elements, and would do so for every element
// of the outer list.
type nestedUniqFinder struct{ found *Error }

// Visit checks one node.
func (f *nestedUniqFinder) Visit(node *ast.Node) {
	if b, ok := (*node).(*ast.BuiltinNode); ok && b.Name == "uniq" && f.found == nil {
		at := b.Location()
		f.found = &Error{
			Column: at.From, SourceOffset: at.From,
			Message: "`uniq` is not allowed inside a predicate; apply it to the whole list outside the predicate, or in an earlier `set` step",
		}
	}
}

func rejectNonScalarStrings(root ast.Node) error {
	f := &nonScalarStringFinder{}
	ast.Walk(&root, f)
	if f.found != nil {
		return f.found
	}
	return nil
}

// EstimateSize returns the approximate memory of a value in bytes: the bytes of its texts, and 16 for each element and
// field. It stops counting when the size exceeds limit.
func EstimateSize(v any, limit int) int {
	n := 0
	addSize(reflect.ValueOf(v), limit, &n)
	return n
}

func addSize(v reflect.Value, limit int, n *int) {
	if *n += 16; *n > limit {
		return
	}
	switch v.Kind() {
	case reflect.String:
		*n += v.Len()
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			*n += v.Len()
			return
		}
		for i := 0; i < v.Len() && *n <= limit; i++ {
			addSize(v.Index(i), limit, n)
		}
	case reflect.Map:
		for iter := v.MapRange(); iter.Next() && *n <= limit; {
			addSize(iter.Key(), limit, n)
			addSize(iter.Value(), limit, n)
		}
	case reflect.Struct:
		for i := 0; i < v.NumField() && *n <= limit; i++ {
			addSize(v.Field(i), limit, n)
		}
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			addSize(v.Elem(), limit, n)
		}
	default: // numbers, and empty values
	}
}
