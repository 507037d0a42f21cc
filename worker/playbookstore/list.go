package playbookstore

import (
	"slices"

	"stanch/playbooks"
	"stanch/playbooks/display"
)

// ListEntry is one playbook of a list, with its role in an incident if the list is for one.
type ListEntry struct {
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

// List returns playbooks in order of precedence. For an incident, each entry says whether the playbook would
// start, and why. Playbooks that ran in the incident say so, even if the incident has changed since or they are no
// longer in programs.
func List(programs []*playbooks.Program, in *playbooks.Incident) []ListEntry {
	rows := []ListEntry{}
	var about playbooks.Incident
	if in != nil {
		about = *in
	}
	for _, c := range playbooks.SelectPlaybooks(programs, about) {
		row := ListEntry{
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
		i := slices.IndexFunc(rows, func(r ListEntry) bool { return r.Playbook == run.Playbook })
		if i < 0 {
			i = len(rows)
			rows = append(rows, ListEntry{
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
