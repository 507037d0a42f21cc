package worker

import (
	"net/http"
	"slices"

	"stanch/playbooks"
	"stanch/playbooks/display"
)

// PlaybookListEntry is one playbook of a list and, for an incident that was asked about, what became or would become of it.
type PlaybookListEntry struct {
	Playbook     string `json:"playbook"`
	File         string `json:"file"`
	Origin       string `json:"origin"` // "library" or "user"
	Description  string `json:"description,omitempty"`
	MatchSummary string `json:"match_summary"`
	Priority     int    `json:"priority"`
	WouldStart   *bool  `json:"would_start,omitempty"` // for the incident that was asked about
	HasRun       bool   `json:"has_run,omitempty"`     // in that incident
	Reason       string `json:"reason,omitempty"`
}

// ListPlaybooks lists playbooks in the order in which they would start. For an incident each says whether it starts and
// why; one that ran in it says so, whatever the incident has become since it was matched, also if it is not among those
// given.
func ListPlaybooks(programs []*playbooks.Program, in *playbooks.Incident) []PlaybookListEntry {
	rows := []PlaybookListEntry{}
	var about playbooks.Incident
	if in != nil {
		about = *in
	}
	for _, c := range playbooks.SelectPlaybooks(programs, about) {
		row := PlaybookListEntry{Playbook: c.Name, File: c.File, Origin: playbookOrigin(c.Program), Description: c.Description, MatchSummary: playbooks.Explain(c.Program).MatchSummary}
		if c.Match != nil {
			row.Priority = c.Priority()
		}
		if c.ReplacedBy != "" {
			row.MatchSummary = "none: your playbook " + c.ReplacedBy + " replaces it"
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
			rows = append(rows, PlaybookListEntry{Playbook: run.Playbook, MatchSummary: "it is not among the playbooks listed here"})
		}
		yes := true
		rows[i].WouldStart, rows[i].HasRun, rows[i].Reason = &yes, true, "it matched when it started: "+display.SummarizeRun(about, run)
	}
	return rows
}

func playbookOrigin(p *playbooks.Program) string {
	if p.Shipped {
		return "library"
	}
	return "user"
}

// handleListPlaybooks answers which playbooks this worker runs and, with ?incident=ID, what becomes of each in an incident.
func (w *Worker) handleListPlaybooks(r *http.Request) (any, error) {
	id := r.URL.Query().Get("incident")
	if id == "" {
		return ListPlaybooks(w.Library.Programs(), nil), nil
	}
	in, err := w.QueryService.Incident(r.Context(), id)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the incident and carries the status
	}
	return ListPlaybooks(w.Library.Programs(), &in), nil
}

// readRoutes are the routes of the API that read beside those of the gateway.
func (w *Worker) readRoutes(audit map[string]func(*http.Request) (any, error)) map[string]func(*http.Request) (any, error) {
	audit["/v1/playbooks"] = w.handleListPlaybooks
	return audit
}
