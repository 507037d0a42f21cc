package foreign

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// tree is JSON whose shape differs between versions of the same sensor, and between encoders of the same message: field
// names are looked up as they stand in the protocol's definition and in protobuf's camel case.
type tree struct{ value any }

func parseTree(raw []byte) (tree, error) {
	var v any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return tree{}, fmt.Errorf("decode: %w", err)
	}
	if decoder.More() {
		return tree{}, fmt.Errorf("more follows after the first object")
	}
	return tree{v}, nil
}

// at goes down by names; what is not there is the empty tree.
func (t tree) at(path ...string) tree {
	for _, name := range path {
		fields, ok := t.value.(map[string]any)
		if !ok {
			return tree{}
		}
		v, ok := fields[name]
		if !ok {
			v = fields[camel(name)]
		}
		t = tree{v}
	}
	return t
}

func camel(name string) string {
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

func (t tree) exists() bool { return t.value != nil }

// scalar is the value as text; a wrapper {"value":…} is its value.
func (t tree) scalar() scalar {
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
				return tree{inner}.scalar()
			}
		}
	}
	return ""
}

func (t tree) text(path ...string) string { return string(t.at(path...).scalar()) }

func (t tree) list() []tree {
	all, _ := t.value.([]any)
	out := make([]tree, 0, len(all))
	for _, v := range all {
		out = append(out, tree{v})
	}
	return out
}

// texts are the elements that are text.
func (t tree) texts() []string {
	var out []string
	for _, v := range t.list() {
		if s := v.scalar(); s != "" {
			out = append(out, string(s))
		}
	}
	return out
}

func (t tree) labels() map[string]string {
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

// instant is a time: RFC 3339, protobuf's seconds and nanos, or Unix time in nanoseconds.
func (t tree) instant() instant {
	if n := t.scalar().nanoseconds(); !n.IsZero() {
		return instant{n}
	}
	var i instant
	raw, err := json.Marshal(t.value)
	if err == nil {
		_ = i.UnmarshalJSON(raw)
	}
	return i
}
