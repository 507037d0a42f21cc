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

// decisions are what a reader of the timeline would call decisions, in time: which playbooks run, what the guards say, who
// is asked, what becomes of each step, and how long it holds. What happens at once stands in that order.
func decisions(r Result) []decision {
	var all []decision
	for _, e := range r.Events {
		if e.Kind == "playbook" {
			all = append(all, decision{e.AtMS, 0, e.What})
		}
	}
	for _, d := range r.Decisions {
		if !d.Before {
			all = append(all, decision{d.AtMS, 1, fmt.Sprintf("%s on %s: %s (%s: %s)", d.Action, short(d.Target), verdicts[d.Verdict], d.Guard, d.Reason)})
		}
	}
	for _, q := range r.Questions {
		all = append(all, decision{q.AtMS, 2, fmt.Sprintf("%s: %s would be asked: %s", q.Playbook, q.Approvers, q.Title)})
	}
	for _, s := range r.Steps {
		all = append(all, decision{s.AtMS, 3, fmt.Sprintf("%s: %s is %s", s.Playbook, step(s), because(s))})
	}
	for _, e := range r.Effects {
		all = append(all, decision{e.FromMS, 4, fmt.Sprintf("%s on %s holds for %s", e.Action, short(e.Target), held(e))})
	}
	slices.SortStableFunc(all, func(a, b decision) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.rank, b.rank), strings.Compare(a.what, b.what))
	})
	return all
}

type decision struct {
	at   int64
	rank int
	what string
}

func (d decision) String() string { return at(d.at) + " " + d.what }

// firstDecision is where both first part. That the same is decided a moment later is no parting.
func firstDecision(before, after Result) *Parting {
	was, is := decisions(before), decisions(after)
	for i := range max(len(was), len(is)) {
		switch {
		case i >= len(was):
			return &Parting{Now: is[i].String()}
		case i >= len(is):
			return &Parting{Was: was[i].String()}
		case was[i].what != is[i].what:
			return &Parting{Was: was[i].String(), Now: is[i].String()}
		}
	}
	return nil
}

// Parting is the first decision that differs; one that is empty is not taken.
type Parting struct {
	Was string `json:"was,omitempty"`
	Now string `json:"now,omitempty"`
}
