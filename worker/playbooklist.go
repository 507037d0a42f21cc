package worker

import (
	"net/http"
	"slices"

	"stanch/playbooks"
	"stanch/playbooks/display"
)

// PlaybookRow is one playbook of a list and, for an incident that was asked about, what became or would become of it.
type PlaybookRow struct {
	Playbook    string `json:"playbook"`
	File        string `json:"file"`
	Source      string `json:"source"` // "library" or "user"
	Description string `json:"description,omitempty"`
	Handles     string `json:"handles"`
	Priority    int    `json:"priority"`
	Starts      *bool  `json:"starts,omitempty"` // for the incident that was asked about
	Ran         bool   `json:"ran,omitempty"`    // in that incident
	Why         string `json:"why,omitempty"`
}

// ListPlaybooks lists playbooks in the order in which they would start. For an incident each says whether it starts and
// why; one that ran in it says so, whatever the incident has become since it was matched, also if it is not among those
// given.
func ListPlaybooks(programs []*playbooks.Program, in *playbooks.Incident) []PlaybookRow {
	rows := []PlaybookRow{}
	var about playbooks.Incident
	if in != nil {
		about = *in
	}
	for _, c := range playbooks.SelectPlaybooks(programs, about) {
		row := PlaybookRow{Playbook: c.Name, File: c.File, Source: sourceOf(c.Program), Description: c.Description, Handles: playbooks.Explain(c.Program).MatchSummary}
		if c.Match != nil {
			row.Priority = c.Priority()
		}
		if c.ReplacedBy != "" {
			row.Handles = "none: your playbook " + c.ReplacedBy + " replaces it"
		}
		if in != nil {
			row.Starts, row.Why = &c.Selected, c.Reason
		}
		rows = append(rows, row)
	}
	for _, run := range about.Playbooks {
		i := slices.IndexFunc(rows, func(r PlaybookRow) bool { return r.Playbook == run.Playbook })
		if i < 0 {
			i = len(rows)
			rows = append(rows, PlaybookRow{Playbook: run.Playbook, Handles: "it is not among the playbooks listed here"})
		}
		yes := true
		rows[i].Starts, rows[i].Ran, rows[i].Why = &yes, true, "it matched when it started: "+display.SummarizeRun(about, run)
	}
	return rows
}

func sourceOf(p *playbooks.Program) string {
	if p.Shipped {
		return "library"
	}
	return "user"
}

// playbookRoute answers which playbooks this worker runs and, with ?incident=ID, what becomes of each in an incident.
func (w *Worker) playbookRoute(r *http.Request) (any, error) {
	id := r.URL.Query().Get("incident")
	if id == "" {
		return ListPlaybooks(w.Library.Programs(), nil), nil
	}
	in, err := w.Reader.Incident(r.Context(), id)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the incident and carries the status
	}
	return ListPlaybooks(w.Library.Programs(), &in), nil
}

// reads are the routes of the API that read beside those of the gateway.
func (w *Worker) reads(audit map[string]func(*http.Request) (any, error)) map[string]func(*http.Request) (any, error) {
	audit["/v1/playbooks"] = w.playbookRoute
	return audit
}
