package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kinds of change, in the order in which reports show them.
const (
	ChangeError     = "error"     // it can be simulated to the end in one version only
	ChangePlaybooks = "playbooks" // another playbook runs, or one no longer does
	ChangeOutcome   = "outcome"   // a step becomes something else
	ChangeEffect    = "effect"    // something holds longer or shorter, or with other parameters
	ChangeQuestion  = "question"  // people are asked something else
	ChangeTiming    = "timing"    // the first containment comes earlier or later
)

// ChangeKinds are the kinds of change with what they say.
var ChangeKinds = []struct{ Name, Doc string }{
	{ChangeError, "could be simulated to the end in one version only"},
	{ChangePlaybooks, "other playbooks run"},
	{ChangeOutcome, "a step goes otherwise"},
	{ChangeEffect, "a containment holds longer, shorter or with other parameters"},
	{ChangeQuestion, "people are asked otherwise"},
	{ChangeTiming, "the first containment comes earlier or later"},
}

// Compare says how an incident goes otherwise than with the baseline; nil is not at all.
func Compare(before, after Result) *Change {
	what, kinds := differences(before, after)
	if len(what) == 0 {
		return nil
	}
	return &Change{Recording: after.Recording, Incident: after.Incident, Kinds: kinds, First: firstDecision(before, after), What: what}
}

// decisions are what a reader of the timeline would call decisions, in time: what runs, is asked, and becomes of steps.
func decisions(r Result) []string {
	type line struct {
		at   int64
		what string
	}
	var all []line
	for _, d := range r.Decisions {
		if !d.Before {
			all = append(all, line{d.AtMS, fmt.Sprintf("%s on %s: %s (%s: %s)", d.Action, short(d.Target), verdicts[d.Verdict], d.Guard, d.Reason)})
		}
	}
	for _, q := range r.Questions {
		all = append(all, line{q.AtMS, fmt.Sprintf("%s: %s would be asked: %s", q.Playbook, q.Approvers, q.Title)})
	}
	for _, s := range r.Steps {
		what := fmt.Sprintf("%s: %s is %s", s.Playbook, step(s), because(s))
		all = append(all, line{s.AtMS, what})
	}
	slices.SortStableFunc(all, func(a, b line) int { return cmp.Or(cmp.Compare(a.at, b.at), strings.Compare(a.what, b.what)) })
	out := make([]string, len(all))
	for i, l := range all {
		out[i] = "+" + ms(l.at).String() + " " + l.what
	}
	return out
}

// firstDecision is where both first part.
func firstDecision(before, after Result) *Parting {
	was, is := decisions(before), decisions(after)
	for i := range max(len(was), len(is)) {
		switch {
		case i >= len(was):
			return &Parting{Now: is[i]}
		case i >= len(is):
			return &Parting{Was: was[i]}
		case was[i] != is[i]:
			return &Parting{Was: was[i], Now: is[i]}
		}
	}
	return nil
}

// Parting is the first decision that differs; one that is empty is not taken.
type Parting struct {
	Was string `json:"was,omitempty"`
	Now string `json:"now,omitempty"`
}
