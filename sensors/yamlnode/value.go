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
)

// Any is a key with a value of any kind, kept as JSON with the place of each of its keys.
func Any(name, doc string, to *Value) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{} }, Read: func(r *Reader, _, v *yaml.Node) { *to = r.Value(v) }}
}

// Value is a value of any kind, with its node.
type Value struct {
	JSON json.RawMessage
	Node *yaml.Node
}

// Value reads any value. Keys that are not strings, and what JSON cannot hold, are errors.
func (r *Reader) Value(n *yaml.Node) Value {
	raw, err := json.Marshal(r.generic(n))
	if err != nil {
		r.Errorf(At(n), "value", "", "this is no value: %s", Clip(err.Error(), 80))
		return Value{Node: n, JSON: json.RawMessage("null")}
	}
	return Value{JSON: raw, Node: n}
}

func (r *Reader) generic(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		r.Keys(n, func(key, value *yaml.Node) { out[key.Value] = r.generic(value) })
		return out
	case yaml.SequenceNode:
		out := []any{}
		for _, item := range n.Content {
			out = append(out, r.generic(item))
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
			r.Errorf(At(n), "value", "put it in quotes if it is a text", "`%s` is out of range", Clip(n.Value, 40))
		}
	default:
		r.Errorf(At(n), "type", "put it in quotes", "a value of type %s is not known here", Clip(n.Tag, 40))
	}
	return v
}

// Struct is a key whose value is read into a Go struct by its json tags. Keys that it does not have are errors.
func Struct[T any](name, doc string, to *T) Field {
	return Field{Name: name, Doc: doc, Schema: reflected[T], Read: func(r *Reader, _, v *yaml.Node) {
		value := r.Value(v)
		if r.Fits(v, reflect.TypeFor[T](), "`"+name+"`") {
			if err := json.Unmarshal(value.JSON, to); err != nil {
				r.Errorf(At(v), "type", "", "`%s`: %s", name, Clip(err.Error(), 100))
			}
		}
	}}
}

func reflected[T any]() Object {
	reflector := &jsonschema.Reflector{Anonymous: true, DoNotReference: true, RequiredFromJSONSchemaTags: true}
	schema := Object{}
	if raw, err := json.Marshal(reflector.ReflectFromType(reflect.TypeFor[T]())); err == nil {
		_ = json.Unmarshal(raw, &schema)
	}
	delete(schema, "$schema")
	return schema
}

// Fits checks a node against a Go type by its json tags: unknown keys and values of the wrong kind are errors at their
// place. It tells whether it found none.
func (r *Reader) Fits(n *yaml.Node, t reflect.Type, what string) bool {
	before := len(r.Problems)
	r.fits(n, t, what)
	return len(r.Problems) == before
}

func (r *Reader) fits(n *yaml.Node, t reflect.Type, what string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	wrong := func(wanted string) {
		r.Errorf(At(n), "type", "", "%s must be %s, not %s", what, wanted, Kind(n))
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
		fields := jsonFields(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			inner, ok := fields[key.Value]
			if !ok {
				r.Errorf(At(key), "unknown-key", diagnostic.DidYouMean(key.Value, slices.Collect(maps.Keys(fields))), "%s has no key `%s`", what, Clip(key.Value, 40))
				continue
			}
			r.fits(value, inner, "`"+key.Value+"`")
		}
	case t.Kind() == reflect.Map:
		if n.Kind != yaml.MappingNode {
			wrong("a mapping")
			return
		}
		for i := 1; i < len(n.Content); i += 2 {
			r.fits(n.Content[i], t.Elem(), "`"+Clip(n.Content[i-1].Value, 40)+"`")
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		if n.Kind != yaml.SequenceNode {
			wrong("a list")
			return
		}
		for _, item := range n.Content {
			r.fits(item, t.Elem(), "an element of "+what)
		}
	default:
		r.scalar(n, t, wrong)
	}
}

func (r *Reader) scalar(n *yaml.Node, t reflect.Type, wrong func(string)) {
	wanted := "a text"
	switch k := t.Kind(); {
	case k == reflect.Bool:
		wanted = "true or false"
	case k >= reflect.Int && k <= reflect.Uint64:
		wanted = "a whole number"
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

func jsonFields(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			maps.Copy(out, jsonFields(f.Type))
		case !f.IsExported() || name == "-":
		case name == "":
			out[f.Name] = f.Type
		default:
			out[name] = f.Type
		}
	}
	return out
}
