// Package auditpage renders timelines of package audit as HTML pages. It computes nothing: each sentence and number is
// in the timeline.
package auditpage

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/sensors/duration"
	"stanch/sensors/redact"
	"stanch/worker/audit"
)

//go:embed timeline.html
var pageTemplate string

// WriteHTML writes the timeline as one self-contained page that is suitable for printing. Attacker-controlled strings
// are always escaped, and unprintable characters become dots.
func WriteHTML(w io.Writer, s audit.Timeline) error {
	runs := map[string]int{}
	for _, h := range s.Histories {
		runs[h.WorkflowID]++
	}
	t, err := template.New("timeline").Funcs(template.FuncMap{
		"plain": redact.EscapeControlChars,
		"time":  func(t time.Time) string { return t.UTC().Format("15:04:05.000") },
		"day":   func(t time.Time) string { return t.UTC().Format(time.DateOnly) },
		"moment": func(t time.Time) string {
			if t.IsZero() {
				return "–"
			}
			return t.UTC().Format(time.DateTime)
		},
		"lasted": func(e audit.ContainmentEffect) string {
			if e.UndoneEvent == nil || e.AppliedAt.IsZero() {
				return ""
			}
			return duration.FormatApprox(e.UndoneAt.Sub(e.AppliedAt))
		},
		"ref": func(r audit.EventRef) string {
			switch {
			case r.WorkflowID == "":
				return ""
			case r.EventID == 0:
				return redact.EscapeControlChars(r.WorkflowID)
			case runs[r.WorkflowID] > 1:
				return redact.EscapeControlChars(fmt.Sprintf("%s run %s #%d", r.WorkflowID, r.RunID, r.EventID))
			}
			return redact.EscapeControlChars(fmt.Sprintf("%s #%d", r.WorkflowID, r.EventID))
		},
		"join": func(list []string) string { return redact.EscapeControlChars(strings.Join(list, ", ")) },
		"newday": func(lines []audit.TimelineEntry, i int) bool {
			return i == 0 || lines[i].At.UTC().Format(time.DateOnly) != lines[i-1].At.UTC().Format(time.DateOnly)
		},
		"source": func(s string) string {
			if s == "archive" {
				return "the archive"
			}
			return "Temporal"
		},
		"extras": extraDetails,
	}).Parse(pageTemplate)
	if err != nil {
		return fmt.Errorf("parse the page template: %w", err)
	}
	if err := t.Execute(w, s); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

// renderedDetailKeys are the details that the sentence or a separate table already shows.
var renderedDetailKeys = map[string]bool{
	"reason": true, "action": true, "target": true, "text": true, "rule": true, "node": true, "source": true,
	"confidence": true, "severity": true, "run": true, "file": true,
	"playbook": true, "targets": true, "verdict": true, "lease": true, "undone": true, "bytes": true, "name": true,
	"outcome": true, "scope": true, "phase": true, "key": true,
	"steps": true, "until": true, "request": true, "person": true, "vote": true, "deadline": true, "approvers": true,
	"changes": true, "for": true, "ends": true, "quorum": true, "missing": true, "dangerous_permissions": true,
	"objective": true, "reasons": true,
}

// extraDetails returns the details that an auditor compares with other records.
func extraDetails(l audit.TimelineEntry) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(l.Details)) {
		v := l.Details[k]
		text := fmt.Sprint(v)
		if list, ok := v.([]string); ok {
			text = strings.Join(list, "; ")
		}
		if list, ok := v.([]any); ok {
			parts := make([]string, len(list))
			for i := range list {
				parts[i] = fmt.Sprint(list[i])
			}
			text = strings.Join(parts, "; ")
		}
		if renderedDetailKeys[k] || text == "" || text == "<nil>" || text == "null" || text == "false" && k == "gone" ||
			text == "{}" || strings.Contains(l.Text, text) {
			continue
		}
		out = append(out, redact.EscapeControlChars(strings.ReplaceAll(k, "_", " ")+": "+text))
	}
	return out
}
