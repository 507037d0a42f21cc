package simulate

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"time"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/redact"
)

//go:embed report.html
var page string

// What one page shows of a corpus: past these bounds it counts.
const (
	pageIncidents = 30  // with their timelines
	pageRows      = 500 // in the list
)

// Page writes a report as one page that needs nothing else, and prints well. It holds what it shows and no more.
type Page struct {
	w       io.Writer
	against bool
	shown   []picture
	rows    []pageRow
	more    int
}

// NewHTML starts a page; against says that there is a baseline.
func NewHTML(w io.Writer, against bool) *Page { return &Page{w: w, against: against} }

// pageRow is an incident in the list.
type pageRow struct {
	Result Result // without its events
	Change *Change
	Shown  int // its timeline's number, 0 if there is none
}

// Add takes in an outcome. With a baseline what does not change is only counted.
func (p *Page) Add(o Outcome) error {
	if p.against && o.Change == nil && o.Result.Error == "" {
		return nil
	}
	row := pageRow{Change: o.Change}
	if len(p.shown) < pageIncidents {
		p.shown = append(p.shown, draw(o, len(p.shown)+1))
		row.Shown = len(p.shown)
	}
	if len(p.rows) == pageRows {
		p.more++
		return nil
	}
	row.Result = o.Result
	row.Result.Events, row.Result.Steps, row.Result.Decisions = nil, nil, nil
	p.rows = append(p.rows, row)
	return nil
}

// share is a part of a whole, for a bar.
type share struct {
	Name, Doc string
	N         int
	Percent   float64
	First     []string
}

// Close writes the page.
func (p *Page) Close(all *Tally) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"plain": redact.EscapeControlChars, "short": func(s string) string { return redact.EscapeControlChars(short(s)) }, "at": at, "span": span, "held": held,
		"verdict": func(d Decision) string { return verdicts[d.Verdict] },
	}).Parse(page)
	if err != nil {
		return fmt.Errorf("the page's template: %w", err)
	}
	total := 0
	for _, n := range all.Outcomes {
		total += n
	}
	var outcomes, kinds, ran []share
	for _, o := range playbooks.Outcomes {
		if n := all.Outcomes[string(o)]; n > 0 {
			outcomes = append(outcomes, share{Name: string(o), N: n, Percent: 100 * float64(n) / float64(total)})
		}
	}
	for _, k := range ChangeKinds {
		if of := all.ByKind[k.Name]; of.Incidents > 0 {
			kinds = append(kinds, share{k.Name, k.Doc, of.Incidents, 100 * float64(of.Incidents) / float64(max(1, all.Incidents)), of.First})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all.Playbooks)) {
		ran = append(ran, share{Name: name, N: all.Playbooks[name], Percent: 100 * float64(all.Playbooks[name]) / float64(max(1, all.Incidents))})
	}
	err = t.Execute(p.w, map[string]any{
		"Summary": all.Summary(), "Tally": all, "Against": p.against, "Outcomes": outcomes, "Kinds": kinds, "Playbooks": ran, "Incidents": p.shown, "Rows": p.rows, "More": p.more, "Corpus": all.Incidents > 1,
	})
	if err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

// HTML writes a report that is there whole.
func HTML(w io.Writer, r Report) error {
	p, t := NewHTML(w, r.Changes != nil), NewTally(r.Changes != nil)
	for _, one := range r.Results {
		o := Outcome{Result: one}
		if i := slices.IndexFunc(r.Changes, func(c Change) bool { return c.Recording == one.Recording }); i >= 0 {
			o.Change = &r.Changes[i]
		}
		t.Add(o)
		if err := p.Add(o); err != nil {
			return err
		}
	}
	return p.Close(t)
}

// at is a moment since the incident was opened, span a length of time.
func at(n int64) string { return "+" + span(n) }

func span(n int64) string { return duration.FormatApprox(time.Duration(n) * time.Millisecond) }
