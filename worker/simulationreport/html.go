package simulationreport

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"

	"stanch/playbooks"
	"stanch/sensors/redact"
	"stanch/worker/simulate"
)

//go:embed report.html
var pageTemplate string

// Limits of a page about a corpus; beyond them it shows only counts.
const (
	maxPageTimelines = 30  // incidents with timelines
	maxPageRows      = 500 // rows of the list
)

// HTML writes a report as one self-contained page that is suitable for printing. It keeps only what it shows in
// memory.
type HTML struct {
	w           io.Writer
	hasBaseline bool
	timelines   []incidentTimeline
	rows        []pageRow
	omittedRows int
}

// NewHTML returns a report that is written to w; against means that there is a baseline.
func NewHTML(w io.Writer, against bool) *HTML {
	return &HTML{w: w, hasBaseline: against}
}

// pageRow is an incident in the list.
type pageRow struct {
	Result         simulate.Result // without its events
	Change         *simulate.IncidentChange
	TimelineNumber int // number of its timeline; 0 without one
}

// Add adds an outcome. With a baseline, unchanged incidents are only counted.
func (p *HTML) Add(o simulate.RecordingOutcome) error {
	if p.hasBaseline && o.Change == nil && o.Result.Error == "" {
		return nil
	}
	row := pageRow{Change: o.Change}
	if len(p.timelines) < maxPageTimelines {
		p.timelines = append(p.timelines, newIncidentTimeline(o, len(p.timelines)+1))
		row.TimelineNumber = len(p.timelines)
	}
	if len(p.rows) == maxPageRows {
		p.omittedRows++
		return nil
	}
	row.Result = o.Result
	row.Result.Events, row.Result.Steps, row.Result.Decisions = nil, nil, nil
	p.rows = append(p.rows, row)
	return nil
}

// barSegment is a part of a stacked bar.
type barSegment struct {
	Name, Doc       string
	Count           int
	Percent         float64
	FirstRecordings []string
}

// Close writes the page.
func (p *HTML) Close(all *simulate.Totals) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"plain":   redact.EscapeControlChars,
		"short":   func(s string) string { return redact.EscapeControlChars(simulate.ShortTargetID(s)) },
		"at":      simulate.FormatMoment,
		"span":    simulate.FormatDuration,
		"held":    simulate.DescribeHeldDuration,
		"verdict": func(d simulate.GuardDecision) string { return simulate.VerdictTexts[d.Verdict] },
	}).Parse(pageTemplate)
	if err != nil {
		return fmt.Errorf("parse the page template: %w", err)
	}
	total := 0
	for _, n := range all.StepOutcomes {
		total += n
	}
	var outcomes, kinds, ran []barSegment
	for _, o := range playbooks.Outcomes {
		if n := all.StepOutcomes[string(o)]; n > 0 {
			outcomes = append(outcomes, barSegment{Name: string(o), Count: n, Percent: 100 * float64(n) / float64(total)})
		}
	}
	for _, k := range simulate.ChangeKinds {
		if of := all.ChangesByKind[k.Name]; of.Incidents > 0 {
			kinds = append(kinds, barSegment{
				k.Name, k.Doc, of.Incidents,
				100 * float64(of.Incidents) / float64(max(1, all.Incidents)), of.FirstRecordings,
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all.PlaybookRuns)) {
		ran = append(ran, barSegment{
			Name: name, Count: all.PlaybookRuns[name],
			Percent: 100 * float64(all.PlaybookRuns[name]) / float64(max(1, all.Incidents)),
		})
	}
	err = t.Execute(p.w, map[string]any{
		"Summary": all.Summarize(), "Totals": all, "Against": p.hasBaseline, "Outcomes": outcomes, "Kinds": kinds,
		"Playbooks": ran, "Incidents": p.timelines, "Rows": p.rows, "More": p.omittedRows, "Corpus": all.Incidents > 1,
	})
	if err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}
