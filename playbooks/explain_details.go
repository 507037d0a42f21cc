package playbooks

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"stanch/sensors/duration"
)

// details are what a step was given beyond what its sentence says: a line for each key, so that nothing of a playbook is
// left out of its explanation.
func details(s *Step) []string {
	var out []string
	add := func(format string, a ...any) { out = append(out, fmt.Sprintf(format, a...)) }
	if s.ID != "" {
		add("id: %s (later steps read it by this name)", s.ID)
	}
	for _, a := range s.With {
		add("with %s: %s", a.Name, a.Value.plain())
	}
	for _, a := range s.Set {
		add("%s = %s", a.Name, a.Value.plain())
	}
	if s.Action != "" && s.Timeout > 0 {
		add("timeout: %s", duration.Format(s.Timeout))
	}
	if r := s.Retry; r != nil {
		add("retry: up to %d attempts, %s apart and doubling, while it fails", r.Attempts, duration.Format(r.Backoff))
	}
	if a := s.Approval; a != nil && a.Ask != nil {
		add("asks: %s", a.Ask.plain())
	}
	if e := s.ForEach; e != nil && e.Max != MaxItems {
		add("max: more than %d elements are refused", e.Max)
	}
	if s.Stop != nil && s.Stop.Reason != nil {
		add("reason: %s", s.Stop.Reason.plain())
	}
	return out
}

// plain is a text as it is written.
func (t *Text) plain() string {
	var b strings.Builder
	for _, part := range t.Parts {
		if part.Expr != nil {
			b.WriteString("${" + normal(part.Expr.Source) + "}")
			continue
		}
		b.WriteString(part.Literal)
	}
	return normal(b.String())
}

// plain is a value as it is written, in one line.
func (v Value) plain() string {
	switch {
	case v.Expr != nil:
		return "${" + normal(v.Expr.Source) + "}"
	case v.Text != nil:
		return strconv.Quote(v.Text.plain())
	case v.IsList:
		parts := make([]string, len(v.List))
		for i, one := range v.List {
			parts[i] = one.plain()
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case v.IsMap:
		parts := make([]string, len(v.Map))
		for i, one := range v.Map {
			parts[i] = one.Name + ": " + one.Value.plain()
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	raw, err := json.Marshal(v.Literal)
	if err != nil {
		return fmt.Sprint(v.Literal)
	}
	return string(raw)
}

// takes is an input in one line: its name, type, default and bounds.
func (in Input) takes() string {
	text := in.Name + ", " + in.Type
	if in.Default == nil {
		text += ", required"
	} else {
		text += ", default " + in.Default.plain()
	}
	if len(in.Enum) > 0 {
		text += ", one of " + strings.Join(in.Enum, ", ")
	}
	if in.Minimum != nil {
		text += ", at least " + strconv.FormatFloat(*in.Minimum, 'g', -1, 64)
	}
	if in.Maximum != nil {
		text += ", at most " + strconv.FormatFloat(*in.Maximum, 'g', -1, 64)
	}
	if in.Description != "" {
		text += ": " + in.Description
	}
	return text
}
