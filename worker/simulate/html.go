package simulate

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"time"

	"stanch/sensors/redact"
)

//go:embed report.html
var page string

// HTML writes a report as one page that needs nothing else and prints well.
func HTML(w io.Writer, r Report) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"plain": redact.Plain,
		"short": func(s string) string { return redact.Plain(short(s)) },
		"at": func(ms int64) string {
			d := time.Duration(ms) * time.Millisecond
			if d < time.Minute {
				return fmt.Sprintf("+%.1f s", d.Seconds())
			}
			return "+" + d.Round(time.Second).String()
		},
		"show": func(one Result) bool {
			return r.Changes == nil || slices.ContainsFunc(r.Changes, func(c Change) bool { return c.Recording == one.Recording })
		},
		"held": func(e Effect) string { return held(e).String() },
	}).Parse(page)
	if err != nil {
		return fmt.Errorf("the page's template: %w", err)
	}
	if err := t.Execute(w, r); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}
