package integrations

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// jsonValue is JSON whose structure differs between versions and encoders of a sensor. Field names are looked up in
// the form of the protocol definition and in protobuf's camel case.
type jsonValue struct{ value any }

func parseJSONValue(raw []byte) (jsonValue, error) {
	var v any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return jsonValue{}, fmt.Errorf("decode: %w", err)
	}
	if decoder.More() {
		return jsonValue{}, fmt.Errorf("unexpected data after the first object")
	}
	return jsonValue{v}, nil
}

// lookup follows a path of field names. The result is empty if a field is missing.
func (t jsonValue) lookup(path ...string) jsonValue {
	for _, name := range path {
		fields, ok := t.value.(map[string]any)
		if !ok {
			return jsonValue{}
		}
		v, ok := fields[name]
		if !ok {
			v = fields[toCamelCase(name)]
		}
		t = jsonValue{v}
	}
	return t
}

func toCamelCase(name string) string {
	if !strings.Contains(name, "_") {
		return name
	}
	var b strings.Builder
	upper := false
	for i, r := range name {
		if r == '_' && i > 0 {
			upper = true
			continue
		}
		if upper && r >= 'a' && r <= 'z' {
			r -= 'a' - 'A'
		}
		upper = false
		b.WriteRune(r)
	}
	return b.String()
}

func (t jsonValue) exists() bool { return t.value != nil }

// scalar returns the value as text. It unwraps {"value":…}.
func (t jsonValue) scalar() scalar {
	switch v := t.value.(type) {
	case string:
		return scalar(v)
	case json.Number:
		return scalar(v)
	case bool:
		return scalar(fmt.Sprint(v))
	case map[string]any:
		if inner, ok := v["value"]; ok {
			switch inner.(type) {
			case string, json.Number, bool:
				return jsonValue{inner}.scalar()
			}
		}
	}
	return ""
}

func (t jsonValue) textAt(path ...string) string { return string(t.lookup(path...).scalar()) }

func (t jsonValue) elements() []jsonValue {
	all, _ := t.value.([]any)
	out := make([]jsonValue, 0, len(all))
	for _, v := range all {
		out = append(out, jsonValue{v})
	}
	return out
}

// textElements returns the elements that are scalars, as text.
func (t jsonValue) textElements() []string {
	var out []string
	for _, v := range t.elements() {
		if s := v.scalar(); s != "" {
			out = append(out, string(s))
		}
	}
	return out
}

func (t jsonValue) stringMap() map[string]string {
	fields, _ := t.value.(map[string]any)
	if len(fields) == 0 || len(fields) > maxLabels {
		return nil
	}
	out := map[string]string{}
	for k, v := range fields {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

// timestamp returns a time in RFC 3339, in protobuf's seconds and nanos, or in Unix nanoseconds.
func (t jsonValue) timestamp() timestamp {
	if n := t.scalar().nanoseconds(); !n.IsZero() {
		return timestamp{n}
	}
	var i timestamp
	raw, err := json.Marshal(t.value)
	if err == nil {
		_ = i.UnmarshalJSON(raw)
	}
	return i
}
