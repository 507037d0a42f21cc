package playbooks

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"stanch/sensors/duration"
)

// describeStepDetails returns one line for each key of a step that its description does not mention, so that an
// explanation is complete.
func describeStepDetails(s *Step) []string {
	var out []string
	add := func(format string, a ...any) { out = append(out, fmt.Sprintf(format, a...)) }
	if s.ID != "" {
		add("id: %s (the name for later steps)", s.ID)
	}
	for _, a := range s.Arguments {
		add("with %s: %s", a.Name, a.Value.sourceText())
	}
	for _, a := range s.Assignments {
		add("%s = %s", a.Name, a.Value.sourceText())
	}
	if s.Action != "" && s.Timeout > 0 {
		add("timeout: %s", duration.Format(s.Timeout))
	}
	if r := s.Retry; r != nil {
		add("retry: up to %d attempts, %s apart (doubling), while it fails", r.Attempts, duration.Format(r.Backoff))
	}
	if a := s.Approval; a != nil && a.Question != nil {
		add("question: %s", a.Question.sourceText())
	}
	if e := s.ForEach; e != nil && e.MaxItems != MaxItems {
		add("max: refused with more than %d elements", e.MaxItems)
	}
	if s.Stop != nil && s.Stop.Reason != nil {
		add("reason: %s", s.Stop.Reason.sourceText())
	}
	return out
}

// sourceText returns a text as it is written in the playbook.
func (t *Template) sourceText() string {
	var b strings.Builder
	for _, part := range t.Parts {
		if part.Expr != nil {
			b.WriteString("${" + normalizeSpaces(part.Expr.Source) + "}")
			continue
		}
		b.WriteString(part.Literal)
	}
	return normalizeSpaces(b.String())
}

// sourceText returns a value as it is written in the playbook, in one line.
func (v Value) sourceText() string {
	switch {
	case v.Expr != nil:
		return "${" + normalizeSpaces(v.Expr.Source) + "}"
	case v.Template != nil:
		return strconv.Quote(v.Template.sourceText())
	case v.IsList:
		parts := make([]string, len(v.List))
		for i, one := range v.List {
			parts[i] = one.sourceText()
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case v.IsMap:
		parts := make([]string, len(v.Map))
		for i, one := range v.Map {
			parts[i] = one.Name + ": " + one.Value.sourceText()
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	raw, err := json.Marshal(v.Literal)
	if err != nil {
		return fmt.Sprint(v.Literal)
	}
	return string(raw)
}

// describe returns an input in one line: its name, type, default and bounds.
func (in Input) describe() string {
	text := in.Name + ", " + in.Type
	if in.Default == nil {
		text += ", required"
	} else {
		text += ", default " + in.Default.sourceText()
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
