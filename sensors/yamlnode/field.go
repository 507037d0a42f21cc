package yamlnode

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"stanch/sensors/diagnostic"
	"stanch/sensors/duration"
)

// Object is a JSON object of a schema; maps marshal with sorted keys.
type Object = map[string]any

// Field is one key of a mapping: what it is, and how it is read.
type Field struct {
	Name, Doc string
	Required  bool
	Schema    func() Object
	Read      func(r *Reader, key, value *yaml.Node)
}

// Must is the field as one that has to be there.
func (f Field) Must() Field {
	f.Required = true
	return f
}

// Mapping reads a mapping by its fields; what names it in messages. Unknown, duplicate and missing keys are errors.
func (r *Reader) Mapping(n *yaml.Node, what string, fields []Field) bool {
	if n.Kind != yaml.MappingNode {
		r.Errorf(At(n), "type", "", "%s must be a mapping, not %s", what, Kind(n))
		return false
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.Name
	}
	seen := r.Keys(n, func(key, value *yaml.Node) {
		i := slices.Index(known, key.Value)
		if i < 0 {
			r.Errorf(At(key), "unknown-key", diagnostic.DidYouMean(key.Value, known), "%s has no key `%s`", what, Clip(key.Value, 40))
			return
		}
		fields[i].Read(r, key, value)
	})
	for _, f := range fields {
		if _, ok := seen[f.Name]; f.Required && !ok {
			r.Errorf(At(n), "required", f.Doc, "%s has no `%s`", what, f.Name)
		}
	}
	return true
}

// Keys visits each key of a mapping once; a duplicate is an error at the key.
func (r *Reader) Keys(n *yaml.Node, visit func(key, value *yaml.Node)) map[string]Pos {
	seen := map[string]Pos{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if first, twice := seen[key.Value]; twice {
			r.Errorf(At(key), "duplicate-key", "remove one of them", "`%s` is given twice; the first is at line %d", Clip(key.Value, 40), first.Line)
			continue
		}
		seen[key.Value] = At(key)
		visit(key, value)
	}
	return seen
}

// Schema is the JSON Schema of a mapping with these fields.
func Schema(fields []Field) Object {
	properties, required := Object{}, []string{}
	for _, f := range fields {
		one := Object{"description": f.Doc}
		maps.Copy(one, f.Schema())
		properties[f.Name] = one
		if f.Required {
			required = append(required, f.Name)
		}
	}
	out := Object{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

// String reads a string.
func (r *Reader) String(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.Errorf(At(n), "type", "put it in quotes if it is one", "`%s` must be a string, not %s", what, Kind(n))
		return ""
	}
	return n.Value
}

// Text is a key with a string.
func Text(name, doc string, to *string) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"type": "string"} }, Read: func(r *Reader, _, v *yaml.Node) { *to = r.String(v, name) }}
}

// Word is a key with one of a few words.
func Word[T ~string](name, doc string, to *T, known []T) Field {
	words := make([]string, len(known))
	for i, k := range known {
		words[i] = string(k)
	}
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"enum": words} }, Read: func(r *Reader, _, v *yaml.Node) {
		text := r.String(v, name)
		if text != "" && !slices.Contains(words, text) {
			r.Errorf(At(v), "value", diagnostic.DidYouMean(text, words), "`%s` cannot be `%s`", name, Clip(text, 40))
			return
		}
		*to = T(text)
	}}
}

// Texts is a key with a string or a list of strings.
func Texts(name, doc string, to *[]string) Field {
	one := Object{"type": "string"}
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"oneOf": []any{one, Object{"type": "array", "items": one}}} }, Read: func(r *Reader, _, v *yaml.Node) {
		switch v.Kind {
		case yaml.SequenceNode:
			*to = []string{}
			for _, item := range v.Content {
				*to = append(*to, r.String(item, name))
			}
		default:
			*to = []string{r.String(v, name)}
		}
	}}
}

// Bool is a key with true or false; it stays nil where the key is not given.
func Bool(name, doc string, to **bool) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"type": "boolean"} }, Read: func(r *Reader, _, v *yaml.Node) {
		var b bool
		if v.Kind != yaml.ScalarNode || v.Tag != "!!bool" || v.Decode(&b) != nil {
			r.Errorf(At(v), "type", "", "`%s` must be true or false, not %s", name, Kind(v))
			return
		}
		*to = &b
	}}
}

// Int is a key with a whole number.
func Int(name, doc string, to *int, least, most int) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"type": "integer", "minimum": least, "maximum": most} }, Read: func(r *Reader, _, v *yaml.Node) {
		var i int
		if v.Kind != yaml.ScalarNode || v.Tag != "!!int" || v.Decode(&i) != nil {
			r.Errorf(At(v), "type", "", "`%s` must be a whole number, not %s", name, Kind(v))
			return
		}
		if i < least || i > most {
			r.Errorf(At(v), "range", "", "`%s` must be from %d to %d", name, least, most)
			return
		}
		*to = i
	}}
}

// Share is a key with a number from 0 to 1; it stays nil where the key is not given.
func Share(name, doc string, to **float64) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"type": "number", "minimum": 0, "maximum": 1} }, Read: func(r *Reader, _, v *yaml.Node) {
		var f float64
		if v.Kind != yaml.ScalarNode || v.Tag != "!!float" && v.Tag != "!!int" || v.Decode(&f) != nil || !(f >= 0 && f <= 1) {
			r.Errorf(At(v), "range", "", "`%s` must be a number from 0 to 1, not %s", name, Kind(v))
			return
		}
		*to = &f
	}}
}

// longest bounds a duration: nothing that is simulated takes longer.
const longest = 30 * 24 * time.Hour

// Duration is a key with a duration such as 90s; 0s is one.
func Duration(name, doc string, to *time.Duration) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Object{"type": "string", "pattern": duration.Pattern} }, Read: func(r *Reader, _, v *yaml.Node) {
		d, err := duration.Parse(strings.TrimSpace(v.Value))
		if v.Kind != yaml.ScalarNode || err != nil || d < 0 || d > longest {
			r.Errorf(At(v), "duration", "write for example `90s`, `15m` or `1d`", "`%s` must be a duration of at most 30 days, not %s", name, Kind(v))
			return
		}
		*to = d
	}}
}

// Nested is a key with a mapping; what names it in messages.
func Nested(name, doc, what string, fields []Field, begin func(*yaml.Node)) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object { return Schema(fields) }, Read: func(r *Reader, key, v *yaml.Node) {
		if begin != nil {
			begin(key)
		}
		r.Mapping(v, what, fields)
	}}
}

// List is a key with a list of mappings. item appends an element and gives the fields that
// fill it; of nil it gives them for the schema.
func List(name, doc, what string, most int, begin func(key, list *yaml.Node), item func(n *yaml.Node) []Field) Field {
	return Field{
		Name: name, Doc: doc, Schema: func() Object { return Object{"type": "array", "maxItems": most, "items": Schema(item(nil))} },
		Read: func(r *Reader, key, v *yaml.Node) {
			if v.Kind != yaml.SequenceNode {
				if begin != nil && v.Kind == yaml.ScalarNode && v.Tag == "!!null" {
					begin(key, v) // nothing stands there yet
					return
				}
				r.Errorf(At(v), "type", fmt.Sprintf("begin each %s with `- `", what), "`%s` must be a list, not %s", name, Kind(v))
				return
			}
			if len(v.Content) > most {
				r.Errorf(At(v), "too-large", "split the file", "`%s` has %d elements, at most %d are read", name, len(v.Content), most)
				return
			}
			if begin != nil {
				begin(key, v)
			}
			for _, n := range v.Content {
				r.Mapping(n, article(what), item(n))
			}
		},
	}
}

func article(what string) string {
	if strings.ContainsAny(what[:1], "aeiou") {
		return "an " + what
	}
	return "a " + what
}
