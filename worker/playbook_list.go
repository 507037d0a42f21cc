package worker

import (
	"net/http"
	"slices"

	"stanch/playbooks"
	"stanch/playbooks/display"
)

// PlaybookListEntry is one playbook of a list, with its role in an incident if the list is for one.
type PlaybookListEntry struct {
	Playbook     string `json:"playbook"`
	File         string `json:"file"`
	Origin       string `json:"origin"` // "library" or "user"
	Description  string `json:"description,omitempty"`
	MatchSummary string `json:"match_summary"`
	Priority     int    `json:"priority"`
	WouldStart   *bool  `json:"would_start,omitempty"` // for the given incident
	HasRun       bool   `json:"has_run,omitempty"`     // in that incident
	Reason       string `json:"reason,omitempty"`
}

// ListPlaybooks returns playbooks in order of precedence. For an incident, each entry says whether the playbook would
// start, and why. Playbooks that ran in the incident say so, even if the incident has changed since or they are no
// longer in programs.
func ListPlaybooks(programs []*playbooks.Program, in *playbooks.Incident) []PlaybookListEntry {
	rows := []PlaybookListEntry{}
	var about playbooks.Incident
	if in != nil {
		about = *in
	}
	for _, c := range playbooks.SelectPlaybooks(programs, about) {
		row := PlaybookListEntry{
			Playbook: c.Name, File: c.File, Origin: playbookOrigin(c.Program),
			Description: c.Description, MatchSummary: playbooks.Explain(c.Program).MatchSummary,
		}
		if c.Match != nil {
			row.Priority = c.Priority()
		}
		if c.ReplacedBy != "" {
			row.MatchSummary = "none: replaced by your playbook " + c.ReplacedBy
		}
		if in != nil {
			row.WouldStart, row.Reason = &c.Selected, c.Reason
		}
		rows = append(rows, row)
	}
	for _, run := range about.Playbooks {
		i := slices.IndexFunc(rows, func(r PlaybookListEntry) bool { return r.Playbook == run.Playbook })
		if i < 0 {
			i = len(rows)
			rows = append(rows, PlaybookListEntry{
				Playbook:     run.Playbook,
				MatchSummary: "it is not among the playbooks listed here",
			})
		}
		yes := true
		rows[i].WouldStart, rows[i].HasRun, rows[i].Reason = &yes, true, "it matched when it started: "+
			display.SummarizeRun(about, run)
	}
	return rows
}

func playbookOrigin(p *playbooks.Program) string {
	if p.Shipped {
		return "library"
	}
	return "user"
}

// handleListPlaybooks handles the route that lists this worker's playbooks and, with ?incident=ID, their role in an
// incident.
func (w *Worker) handleListPlaybooks(r *http.Request) (any, error) {
	id := r.URL.Query().Get("incident")
	if id == "" {
		return ListPlaybooks(w.Library.Programs(), nil), nil
	}
	in, err := w.Queries.Incident(r.Context(), id)
	if err != nil {
		return nil, err //nolint:wrapcheck // the error names the incident and has the status
	}
	return ListPlaybooks(w.Library.Programs(), &in), nil
}

// readRoutes returns the read-only routes of the API besides those of the gateway.
func (w *Worker) readRoutes(audit map[string]func(*http.Request) (any, error)) map[string]func(*http.Request) (any,
	error) {
	audit["/v1/playbooks"] = w.handleListPlaybooks
	return audit
}
