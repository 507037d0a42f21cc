package playbooks

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
)

// checkArguments checks `with` against the action's parameters: names, types, bounds.
func (c *checker) checkArguments(s *Step, spec ActionSpec, names typeScope, at flowContext) {
	params := spec.ParamType()
	fields := map[string]reflect.StructField{}
	var known []string
	if params != nil {
		for field := range params.Fields() {
			if name := jsonFieldName(field); name != "" {
				fields[name] = field
				known = append(known, name)
			}
		}
	}
	given := map[string]bool{}
	constant := map[string]any{}
	complete := true
	for _, arg := range s.Arguments {
		field, ok := fields[arg.Name]
		if !ok {
			hint := diagnostic.DidYouMean(arg.Name, known)
			if len(known) == 0 {
				hint = "it has no parameters"
			}
			c.errorf(arg.Pos, "unknown-parameter", hint, "`%s` has no parameter `%s`", s.Action, truncate.Text(arg.Name, 40))
			complete = false
			continue
		}
		given[arg.Name] = true
		if v, isConstant := c.checkValue(arg.Value,
			wantedValue{field.Type, field.Tag.Get("jsonschema"), arg.Name}, names, at); isConstant {
			constant[arg.Name] = v
		} else {
			complete = false
		}
	}
	for _, name := range known {
		if hasTagOption(fields[name].Tag.Get("jsonschema"), "required") && !given[name] {
			c.errorf(s.ActionPos, "required", fmt.Sprintf("add `with: {%s: …}`", name), "`%s` requires the parameter `%s`",
				s.Action, name)
			complete = false
		}
	}
	if !complete || params == nil {
		return
	}
	c.checkParams(s, params, constant)
}

// checkParams lets the parameters of an action check themselves, if all of them are constant.
func (c *checker) checkParams(s *Step, params reflect.Type, constant map[string]any) {
	value := reflect.New(params)
	raw, err := json.Marshal(constant)
	if err != nil || json.Unmarshal(raw, value.Interface()) != nil {
		return // its types are already reported above
	}
	check, ok := value.Interface().(ParamsChecker)
	if !ok {
		return
	}
	if name, problem := check.Check(); problem != "" {
		pos := s.ActionPos
		for _, arg := range s.Arguments {
			if arg.Name == name {
				pos = arg.Pos
			}
		}
		c.errorf(pos, "value", "", "%s", problem)
	}
}

func hasTagOption(tag, word string) bool { return slices.Contains(strings.Split(tag, ","), word) }

// wantedValue is what a parameter or an input must be: its type, the bounds in its tag, and its name for messages.
type wantedValue struct {
	goType    reflect.Type
	tag, name string
}

// checkValue checks one value against a Go type. It returns the value and true if the value contains no expression.
func (c *checker) checkValue(v Value, w wantedValue, names typeScope, at flowContext) (any, bool) {
	want, name := w.goType, w.name
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	switch {
	case v.Expr != nil:
		if got := c.compileExpr(v.Expr, names, at, nil); got != nil && !isAssignable(got, want) {
			c.errorf(v.Expr.Pos, "type", "", "`%s` must be %s, but the expression returns %s", name, describeType(want),
				describeType(got))
		}
		return nil, false
	case v.Template != nil:
		if want.Kind() != reflect.String {
			c.errorf(v.Pos, "type", "", "`%s` must be %s, not a string", name, describeType(want))
		}
		c.checkTemplate(v.Template, names, at)
		return nil, false
	case v.IsList:
		if want.Kind() != reflect.Slice {
			c.errorf(v.Pos, "type", "", "`%s` must be %s, not a list", name, describeType(want))
			return nil, false
		}
		out, constant := []any{}, true
		for _, item := range v.List {
			element, ok := c.checkValue(item, wantedValue{want.Elem(), "", name}, names, at)
			out, constant = append(out, element), constant && ok
		}
		return out, constant
	case v.IsMap:
		if want.Kind() != reflect.Map {
			c.errorf(v.Pos, "type", "", "`%s` must be %s, not a mapping", name, describeType(want))
			return nil, false
		}
		out, constant := map[string]any{}, true
		for _, entry := range v.Map {
			element, ok := c.checkValue(entry.Value, wantedValue{want.Elem(), "", entry.Name}, names, at)
			out[entry.Name], constant = element, constant && ok
		}
		return out, constant
	}
	return v.Literal, c.checkLiteral(v, want, w.tag, name)
}

func (c *checker) checkLiteral(v Value, want reflect.Type, tag, name string) bool {
	if v.Literal == nil {
		c.errorf(v.Pos, "type", "remove the key or give it a value", "`%s` is empty", name)
		return false
	}
	got := reflect.TypeOf(v.Literal)
	if !isAssignable(got, want) {
		what := describeType(got)
		if f, ok := v.Literal.(float64); ok && isIntegerType(want) {
			what = fmt.Sprint(f)
		}
		c.errorf(v.Pos, "type", "", "`%s` must be %s, not %s", name, describeType(want), what)
		return false
	}
	number, isNumber := 0.0, false
	switch n := v.Literal.(type) {
	case int:
		number, isNumber = float64(n), true
	case float64:
		number, isNumber = n, true
	}
	var enum []string
	for rule := range strings.SplitSeq(tag, ",") {
		key, bound, _ := strings.Cut(rule, "=")
		limit, err := strconv.ParseFloat(bound, 64)
		switch {
		case key == "enum":
			enum = append(enum, bound)
		case !isNumber || err != nil:
		case key == "minimum" && number < limit:
			c.errorf(v.Pos, "range", "", "`%s` must be at least %s", name, bound)
			return false
		case key == "maximum" && number > limit:
			c.errorf(v.Pos, "range", "", "`%s` must be at most %s", name, bound)
			return false
		}
	}
	if text, ok := v.Literal.(string); ok && len(enum) > 0 && !slices.Contains(enum, text) {
		c.errorf(v.Pos, "value", diagnostic.DidYouMean(text, enum), "`%s` cannot be `%s`", name, truncate.Text(text, 40))
		return false
	}
	return true
}

// isAssignable reports whether a value of one type can be used where another is required. An integer can be used as any
// number.
func isAssignable(got, want reflect.Type) bool {
	if got == nil || got.AssignableTo(want) {
		return true
	}
	if got.Kind() == reflect.Interface || want.Kind() == reflect.Interface {
		return true
	}
	switch {
	case isIntegerType(want):
		return isIntegerType(got)
	case want.Kind() == reflect.Float64 || want.Kind() == reflect.Float32:
		return isIntegerType(got) || got.Kind() == reflect.Float64 || got.Kind() == reflect.Float32
	case want.Kind() == reflect.Slice:
		return got.Kind() == reflect.Slice && isAssignable(got.Elem(), want.Elem())
	}
	return got.Kind() == want.Kind() && got.Kind() != reflect.Struct
}

func isIntegerType(t reflect.Type) bool { return t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64 }

func describeType(t reflect.Type) string {
	switch {
	case t == nil:
		return "nothing"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.String:
		return "a string"
	case isIntegerType(t):
		return "an integer"
	case t.Kind() == reflect.Float64, t.Kind() == reflect.Float32:
		return "a number"
	case t.Kind() == reflect.Slice:
		return "a list"
	case t.Kind() == reflect.Map, t.Kind() == reflect.Struct:
		return "a mapping"
	}
	return t.String()
}

func isTargetListType(t reflect.Type) bool {
	target := reflect.TypeFor[Target]()
	return t == target || (t.Kind() == reflect.Slice && (t.Elem() == target || t.Elem().Kind() == reflect.Interface))
}
