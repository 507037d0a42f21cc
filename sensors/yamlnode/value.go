package yamlnode

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/invopop/jsonschema"
	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/truncate"
)

// AnyField returns a field with a value of any type, which is stored as JSON together with its node.
func AnyField(name, doc string, to *Value) Field {
	return Field{
		Name: name, Doc: doc, Schema: func() Object { return Object{} },
		Read: func(r *Reader, _, v *yaml.Node) { *to = r.ReadValue(v) },
	}
}

// Value is a value of any type. Node gives the positions of its parts.
type Value struct {
	JSON json.RawMessage
	Node *yaml.Node
}

// ReadValue converts a node of any kind to JSON. It reports duplicate keys and values that JSON cannot represent; the
// JSON may then be null.
func (r *Reader) ReadValue(n *yaml.Node) Value {
	raw, err := json.Marshal(r.toGeneric(n))
	if err != nil {
		r.Errorf(PositionOf(n), "value", "", "invalid value: %s", truncate.Text(err.Error(), 80))
		return Value{Node: n, JSON: json.RawMessage("null")}
	}
	return Value{JSON: raw, Node: n}
}

func (r *Reader) toGeneric(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		r.VisitKeys(n, func(key, value *yaml.Node) { out[key.Value] = r.toGeneric(value) })
		return out
	case yaml.SequenceNode:
		out := []any{}
		for _, item := range n.Content {
			out = append(out, r.toGeneric(item))
		}
		return out
	default: // a scalar
	}
	var v any
	switch n.Tag {
	case "!!str", "!!timestamp":
		v = n.Value
	case "!!int", "!!float", "!!bool", "!!null":
		if err := n.Decode(&v); err != nil {
			r.Errorf(PositionOf(n), "value", "put it in quotes if it is a string", "`%s` is out of range", truncate.Text(n.Value, 40))
		}
	default:
		r.Errorf(PositionOf(n), "type", "put it in quotes", "unknown YAML type %s", truncate.Text(n.Tag, 40))
	}
	return v
}

// StructField returns a field whose value is decoded into a Go struct by its json tags. Unknown keys are errors.
func StructField[T any](name, doc string, to *T) Field {
	return Field{Name: name, Doc: doc, Schema: schemaOf[T], Read: func(r *Reader, _, v *yaml.Node) {
		value := r.ReadValue(v)
		if r.CheckType(v, reflect.TypeFor[T](), "`"+name+"`") {
			if err := json.Unmarshal(value.JSON, to); err != nil {
				r.Errorf(PositionOf(v), "type", "", "`%s`: %s", name, truncate.Text(err.Error(), 100))
			}
		}
	}}
}

func schemaOf[T any]() Object {
	reflector := &jsonschema.Reflector{Anonymous: true, DoNotReference: true, RequiredFromJSONSchemaTags: true}
	schema := Object{}
	if raw, err := json.Marshal(reflector.ReflectFromType(reflect.TypeFor[T]())); err == nil {
		_ = json.Unmarshal(raw, &schema)
	}
	delete(schema, "$schema")
	return schema
}

// CheckType checks a node against a Go type by its json tags, and reports unknown keys and values of the wrong type at
// their positions. what names the value in messages. It returns whether it found no problem.
func (r *Reader) CheckType(n *yaml.Node, t reflect.Type, what string) bool {
	before := len(r.Problems)
	r.checkType(n, t, what)
	return len(r.Problems) == before
}

func (r *Reader) checkType(n *yaml.Node, t reflect.Type, what string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	wrong := func(wanted string) {
		r.Errorf(PositionOf(n), "type", "", "%s must be %s, not %s", what, wanted, DescribeKind(n))
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null", t.Kind() == reflect.Interface:
	case t == reflect.TypeFor[time.Time]():
		if _, err := time.Parse(time.RFC3339, n.Value); n.Kind != yaml.ScalarNode || err != nil {
			wrong("a time such as 2026-11-23T03:00:00Z")
		}
	case t.Kind() == reflect.Struct:
		if n.Kind != yaml.MappingNode {
			wrong("a mapping")
			return
		}
		fields := jsonFieldTypes(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			inner, ok := fields[key.Value]
			if !ok {
				r.Errorf(PositionOf(key), "unknown-key", diagnostic.DidYouMean(key.Value, slices.Collect(maps.Keys(fields))),
					"%s has no key `%s`", what, truncate.Text(key.Value, 40))
				continue
			}
			r.checkType(value, inner, "`"+key.Value+"`")
		}
	case t.Kind() == reflect.Map:
		if n.Kind != yaml.MappingNode {
			wrong("a mapping")
			return
		}
		for i := 1; i < len(n.Content); i += 2 {
			r.checkType(n.Content[i], t.Elem(), "`"+truncate.Text(n.Content[i-1].Value, 40)+"`")
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		if n.Kind != yaml.SequenceNode {
			wrong("a list")
			return
		}
		for _, item := range n.Content {
			r.checkType(item, t.Elem(), "an element of "+what)
		}
	default:
		r.checkScalarType(n, t, wrong)
	}
}

func (r *Reader) checkScalarType(n *yaml.Node, t reflect.Type, wrong func(string)) {
	wanted := "a string"
	switch k := t.Kind(); {
	case k == reflect.Bool:
		wanted = "true or false"
	case k >= reflect.Int && k <= reflect.Uint64:
		wanted = "an integer"
	case k == reflect.Float32 || k == reflect.Float64:
		wanted = "a number"
	}
	if n.Kind != yaml.ScalarNode {
		wrong(wanted)
		return
	}
	var v any = n.Value
	if n.Tag != "!!str" && n.Tag != "!!timestamp" {
		if n.Decode(&v) != nil {
			wrong(wanted)
			return
		}
	}
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, reflect.New(t).Interface())
	}
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) || err != nil {
		wrong(wanted)
	}
}

func jsonFieldTypes(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			maps.Copy(out, jsonFieldTypes(f.Type))
		case !f.IsExported() || name == "-":
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}
