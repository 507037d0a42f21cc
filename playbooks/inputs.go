package playbooks

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"stanch/sensors/truncate"
)

// goType returns the Go type of an input's value.
func (in Input) goType() reflect.Type {
	switch in.Type {
	case "string":
		return reflect.TypeFor[string]()
	case "integer":
		return reflect.TypeFor[int]()
	case "number":
		return reflect.TypeFor[float64]()
	case "boolean":
		return reflect.TypeFor[bool]()
	case "strings":
		return reflect.TypeFor[[]string]()
	case "target":
		return reflect.TypeFor[Target]()
	case "targets":
		return reflect.TypeFor[[]Target]()
	}
	return reflect.TypeFor[any]()
}

// boundsTag returns the input's bounds as a struct tag, in the form that action parameters use.
func (in Input) boundsTag() string {
	var tag strings.Builder
	for _, word := range in.Enum {
		tag.WriteString(",enum=" + word)
	}
	if in.Minimum != nil {
		tag.WriteString(",minimum=" + strconv.FormatFloat(*in.Minimum, 'g', -1, 64))
	}
	if in.Maximum != nil {
		tag.WriteString(",maximum=" + strconv.FormatFloat(*in.Maximum, 'g', -1, 64))
	}
	return tag.String()
}

// inputsStructType returns the struct type that expressions see as `inputs`.
func inputsStructType(inputs []Input) reflect.Type {
	var fields []reflect.StructField
	seen := map[string]bool{}
	for _, in := range inputs {
		if identifierPattern.MatchString(in.Name) && !seen[in.Name] {
			seen[in.Name] = true
			fields = append(fields, outputStructField(in.Name, in.goType()))
		}
	}
	return reflect.StructOf(fields)
}

// checkInput checks the declaration of one input.
func (c *checker) checkInput(in *Input, names typeScope) {
	numeric := in.Type == "integer" || in.Type == "number"
	if in.Type == "" {
		return
	}
	if in.Enum != nil && in.Type != "string" {
		c.errorf(in.TypePos, "conflict", "remove it", "`enum` is not allowed for %s", in.Type)
	}
	if (in.Minimum != nil || in.Maximum != nil) && !numeric {
		c.errorf(in.TypePos, "conflict", "remove it", "`minimum` and `maximum` are not allowed for %s", in.Type)
	}
	if in.Minimum != nil && in.Maximum != nil && *in.Minimum > *in.Maximum {
		c.errorf(in.TypePos, "range", "", "the minimum of `%s` is above its maximum", in.Name)
	}
	if in.Default != nil {
		c.checkValue(*in.Default, wantedValue{in.goType(), in.boundsTag(), in.Name}, names, flowContext{})
	} else if c.program.Match != nil {
		c.errorf(in.Pos, "required", "give it a `default`, or remove `match`",
			"the input `%s` has no value when an incident starts the playbook", in.Name)
	}
}

// bindInputs returns the struct of inputs, with defaults for the inputs that are not given.
func (p *Program) bindInputs(given map[string]any, env EvalEnv) (any, error) {
	out := reflect.New(inputsStructType(p.Inputs)).Elem()
	for _, in := range p.Inputs {
		v, ok := given[in.Name]
		if !ok && in.Default != nil {
			var err error
			if v, err = p.evalValue(*in.Default, env); err != nil {
				return nil, fmt.Errorf("the default of input %s: %w", in.Name, err)
			}
		}
		if v == nil {
			return nil, fmt.Errorf("the input %s is missing", in.Name)
		}
		value, err := convertValue(v, in.goType())
		if err == nil {
			err = in.checkBounds(value)
		}
		if err != nil {
			return nil, fmt.Errorf("the input %s %w", in.Name, err)
		}
		out.FieldByName("Out_" + in.Name).Set(value)
	}
	return out.Interface(), nil
}

// checkBounds checks a value against its bounds.
func (in Input) checkBounds(v reflect.Value) error {
	number := 0.0
	switch {
	case v.CanInt():
		number = float64(v.Int())
	case v.CanFloat():
		number = v.Float()
	case v.Kind() == reflect.String && in.Enum != nil && !slices.Contains(in.Enum, v.String()):
		return fmt.Errorf("cannot be %q; use one of %s", truncate.Text(v.String(), 60), quoteList(in.Enum))
	}
	if in.Minimum != nil && number < *in.Minimum {
		return fmt.Errorf("must be at least %v, not %v", *in.Minimum, number)
	}
	if in.Maximum != nil && number > *in.Maximum {
		return fmt.Errorf("must be at most %v, not %v", *in.Maximum, number)
	}
	return nil
}

// convertValue converts the result of an expression, or a value of a file, to a type.
func convertValue(v any, t reflect.Type) (reflect.Value, error) {
	got := reflect.ValueOf(v)
	switch {
	case got.IsValid() && got.Type() == t:
		return got, nil
	case got.IsValid() && t.Kind() == reflect.Slice && got.Kind() == reflect.Slice:
		out := reflect.MakeSlice(t, 0, got.Len())
		for i := range got.Len() {
			element, err := convertValue(got.Index(i).Interface(), t.Elem())
			if err != nil {
				return reflect.Value{}, err
			}
			out = reflect.Append(out, element)
		}
		return out, nil
	case got.IsValid() && t.Kind() == reflect.Float64 && (got.CanInt() || got.CanUint() || got.CanFloat()),
		got.IsValid() && t.Kind() == reflect.Int && (got.CanInt() || got.CanUint()),
		got.IsValid() && t.Kind() == reflect.String && got.Kind() == reflect.String:
		return got.Convert(t), nil
	}
	return reflect.Value{}, fmt.Errorf("must be %s, not %T", describeType(t), v)
}
