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
	"stanch/sensors/truncate"
)

// Object is a JSON object in a schema. It is marshaled with sorted keys.
type Object = map[string]any

// Field is one key of a mapping: its documentation, its schema, and how it is read. Schema returns the JSON Schema of
// the value. Read reads the value and records problems in r; key is the node of the key.
type Field struct {
	Name, Doc string
	Required  bool
	Schema    func() Object
	Read      func(r *Reader, key, value *yaml.Node)
}

// AsRequired returns a copy of the field that is required.
func (f Field) AsRequired() Field {
	f.Required = true
	return f
}

// ReadMapping reads a mapping by its fields, and reports unknown, duplicate and missing keys. what names the mapping
// in messages. It returns false only if n is not a mapping; callers find other problems in r.Problems.
func (r *Reader) ReadMapping(n *yaml.Node, what string, fields []Field) bool {
	if n.Kind != yaml.MappingNode {
		r.Errorf(PositionOf(n), "type", "", "%s must be a mapping, not %s", what, DescribeKind(n))
		return false
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.Name
	}
	seen := r.VisitKeys(n, func(key, value *yaml.Node) {
		i := slices.Index(known, key.Value)
		if i < 0 {
			r.Errorf(PositionOf(key), "unknown-key", diagnostic.DidYouMean(key.Value, known), "%s has no key `%s`", what,
				truncate.Text(key.Value, 40))
			return
		}
		fields[i].Read(r, key, value)
	})
	for _, f := range fields {
		if _, ok := seen[f.Name]; f.Required && !ok {
			r.Errorf(PositionOf(n), "required", f.Doc, "%s has no `%s`", what, f.Name)
		}
	}
	return true
}

// VisitKeys calls visit once for each key of a mapping, and returns the positions of the keys. It reports duplicate
// keys and does not visit them again.
func (r *Reader) VisitKeys(n *yaml.Node, visit func(key, value *yaml.Node)) map[string]Position {
	seen := map[string]Position{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if first, twice := seen[key.Value]; twice {
			r.Errorf(PositionOf(key), "duplicate-key", "remove one of them", "`%s` is given twice; the first is at line %d",
				truncate.Text(key.Value, 40), first.Line)
			continue
		}
		seen[key.Value] = PositionOf(key)
		visit(key, value)
	}
	return seen
}

// Schema returns the JSON Schema of a mapping with these fields.
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

// ReadString returns the value of a string node. For another node it reports a problem and returns "".
func (r *Reader) ReadString(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		r.Errorf(PositionOf(n), "type", "put it in quotes if it is a string", "`%s` must be a string, not %s", what,
			DescribeKind(n))
		return ""
	}
	return n.Value
}

// StringField returns a field with a string.
func StringField(name, doc string, to *string) Field {
	return Field{
		Name: name, Doc: doc, Schema: func() Object { return Object{"type": "string"} },
		Read: func(r *Reader, _, v *yaml.Node) { *to = r.ReadString(v, name) },
	}
}

// EnumField returns a field with one of the known values.
func EnumField[T ~string](name, doc string, to *T, known []T) Field {
	words := make([]string, len(known))
	for i, k := range known {
		words[i] = string(k)
	}
	return Field{
		Name: name, Doc: doc, Schema: func() Object { return Object{"enum": words} },
		Read: func(r *Reader, _, v *yaml.Node) {
			text := r.ReadString(v, name)
			if text != "" && !slices.Contains(words, text) {
				r.Errorf(PositionOf(v), "value", diagnostic.DidYouMean(text, words), "`%s` cannot be `%s`", name,
					truncate.Text(text, 40))
				return
			}
			*to = T(text)
		},
	}
}

// StringListField returns a field with a string or a list of strings.
func StringListField(name, doc string, to *[]string) Field {
	one := Object{"type": "string"}
	return Field{Name: name, Doc: doc, Schema: func() Object {
		return Object{"oneOf": []any{
			one,
			Object{"type": "array", "items": one},
		}}
	}, Read: func(r *Reader, _, v *yaml.Node) {
		switch v.Kind {
		case yaml.SequenceNode:
			*to = []string{}
			for _, item := range v.Content {
				*to = append(*to, r.ReadString(item, name))
			}
		default:
			*to = []string{r.ReadString(v, name)}
		}
	}}
}

// BoolField returns a field with true or false. *to stays nil if the key is missing or invalid.
func BoolField(name, doc string, to **bool) Field {
	return Field{
		Name: name, Doc: doc, Schema: func() Object { return Object{"type": "boolean"} },
		Read: func(r *Reader, _, v *yaml.Node) {
			var b bool
			if v.Kind != yaml.ScalarNode || v.Tag != "!!bool" || v.Decode(&b) != nil {
				r.Errorf(PositionOf(v), "type", "", "`%s` must be true or false, not %s", name, DescribeKind(v))
				return
			}
			*to = &b
		},
	}
}

// IntField returns a field with an integer from least to most.
func IntField(name, doc string, to *int, least, most int) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object {
		return Object{
			"type": "integer", "minimum": least,
			"maximum": most,
		}
	}, Read: func(r *Reader, _, v *yaml.Node) {
		var i int
		if v.Kind != yaml.ScalarNode || v.Tag != "!!int" || v.Decode(&i) != nil {
			r.Errorf(PositionOf(v), "type", "", "`%s` must be an integer, not %s", name, DescribeKind(v))
			return
		}
		if i < least || i > most {
			r.Errorf(PositionOf(v), "range", "", "`%s` must be from %d to %d", name, least, most)
			return
		}
		*to = i
	}}
}

// FractionField returns a field with a number from 0 to 1. *to stays nil if the key is missing or invalid.
func FractionField(name, doc string, to **float64) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object {
		return Object{
			"type": "number", "minimum": 0,
			"maximum": 1,
		}
	}, Read: func(r *Reader, _, v *yaml.Node) {
		var f float64
		if v.Kind != yaml.ScalarNode || v.Tag != "!!float" && v.Tag != "!!int" || v.Decode(&f) != nil || !(f >= 0 && f <= 1) {
			r.Errorf(PositionOf(v), "range", "", "`%s` must be a number from 0 to 1, not %s", name, DescribeKind(v))
			return
		}
		*to = &f
	}}
}

// maxDuration is the maximum of a duration field. No simulation takes longer.
const maxDuration = 30 * 24 * time.Hour

// DurationField returns a field with a duration such as 90s, from 0s to 30 days.
func DurationField(name, doc string, to *time.Duration) Field {
	return Field{Name: name, Doc: doc, Schema: func() Object {
		return Object{
			"type":    "string",
			"pattern": duration.Pattern,
		}
	}, Read: func(r *Reader, _, v *yaml.Node) {
		d, err := duration.Parse(strings.TrimSpace(v.Value))
		if v.Kind != yaml.ScalarNode || err != nil || d < 0 || d > maxDuration {
			r.Errorf(PositionOf(v), "duration", "for example, write `90s`, `15m` or `1d`",
				"`%s` must be a duration of at most 30 days, not %s", name, DescribeKind(v))
			return
		}
		*to = d
	}}
}

// MappingField returns a field with a mapping. what names it in messages. begin is called with the key before the
// mapping is read; it may be nil.
func MappingField(name, doc, what string, fields []Field, begin func(*yaml.Node)) Field {
	return Field{
		Name: name, Doc: doc, Schema: func() Object { return Schema(fields) },
		Read: func(r *Reader, key, v *yaml.Node) {
			if begin != nil {
				begin(key)
			}
			r.ReadMapping(v, what, fields)
		},
	}
}

// ListField returns a field with a list of at most most mappings. begin is called before the list is read; it may be
// nil. item is called for each element, and returns the fields that read it. It is called with nil to get the fields
// for the schema.
func ListField(name, doc, what string, most int, begin func(key, list *yaml.Node),
	item func(n *yaml.Node) []Field,
) Field {
	return Field{
		Name: name, Doc: doc, Schema: func() Object {
			return Object{
				"type": "array", "maxItems": most,
				"items": Schema(item(nil)),
			}
		},
		Read: func(r *Reader, key, v *yaml.Node) {
			if v.Kind != yaml.SequenceNode {
				if begin != nil && v.Kind == yaml.ScalarNode && v.Tag == "!!null" {
					begin(key, v) // the list is still empty
					return
				}
				r.Errorf(PositionOf(v), "type", fmt.Sprintf("begin each %s with `- `", what), "`%s` must be a list, not %s", name,
					DescribeKind(v))
				return
			}
			if len(v.Content) > most {
				r.Errorf(PositionOf(v), "too-large", "split the file", "`%s` has %d elements; the maximum is %d", name,
					len(v.Content), most)
				return
			}
			if begin != nil {
				begin(key, v)
			}
			for _, n := range v.Content {
				r.ReadMapping(n, article(what), item(n))
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
