package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kinds of change, in the order in which reports show them.
const (
	ChangeError           = "error"     // it can be simulated to the end in one version only
	ChangePlaybooks       = "playbooks" // another playbook runs, or one no longer does
	ChangeOutcome         = "outcome"   // a step becomes something else
	ChangeEffect          = "effect"    // something holds longer or shorter, or with other parameters
	ChangeApprovalRequest = "question"  // people are asked something else
	ChangeTiming          = "timing"    // the first containment comes earlier or later
)

// ChangeKinds are the kinds of change with what they say.
var ChangeKinds = []struct{ Name, Doc string }{
	{ChangeError, "could be simulated to the end in one version only"},
	{ChangePlaybooks, "other playbooks run"},
	{ChangeOutcome, "a step goes otherwise"},
	{ChangeEffect, "a containment holds longer, shorter or with other parameters"},
	{ChangeApprovalRequest, "people are asked otherwise"},
	{ChangeTiming, "the first containment comes earlier or later"},
}

// CompareResults says how an incident goes otherwise than with the baseline; nil is not at all.
func CompareResults(before, after Result) *IncidentChange {
	what, kinds := compareResults(before, after)
	if len(what) == 0 {
		return nil
	}
	return &IncidentChange{RecordingFile: after.RecordingFile, IncidentID: after.IncidentID, Kinds: kinds, FirstDifference: findFirstDifference(before, after), Descriptions: what}
}

// timelineDecisions are what a reader of the timeline would call decisions, in time: which playbooks run, what the guards say, who
// is asked, what becomes of each step, and how long it holds. What happens at once stands in that order.
func timelineDecisions(r Result) []timelineDecision {
	var all []timelineDecision
	for _, e := range r.Events {
		if e.Kind == "playbook" {
			all = append(all, timelineDecision{e.AtMS, 0, e.Text})
		}
	}
	for _, d := range r.Decisions {
		if !d.AtEnforcement {
			all = append(all, timelineDecision{d.AtMS, 1, fmt.Sprintf("%s on %s: %s (%s: %s)", d.Action, shortTargetID(d.Target), verdictTexts[d.Verdict], d.Guard, d.Reason)})
		}
	}
	for _, q := range r.ApprovalRequests {
		all = append(all, timelineDecision{q.AskedAtMS, 2, fmt.Sprintf("%s: %s would be asked: %s", q.Playbook, q.Approvers, q.Title)})
	}
	for _, s := range r.Steps {
		all = append(all, timelineDecision{s.AtMS, 3, fmt.Sprintf("%s: %s is %s", s.Playbook, describeStep(s), reasonSuffix(s))})
	}
	for _, e := range r.Effects {
		all = append(all, timelineDecision{e.AppliedAtMS, 4, fmt.Sprintf("%s on %s holds for %s", e.Action, shortTargetID(e.Target), describeHeldDuration(e))})
	}
	slices.SortStableFunc(all, func(a, b timelineDecision) int {
		return cmp.Or(cmp.Compare(a.atMS, b.atMS), cmp.Compare(a.sortOrder, b.sortOrder), strings.Compare(a.description, b.description))
	})
	return all
}

type timelineDecision struct {
	atMS        int64
	sortOrder   int
	description string
}

func (d timelineDecision) String() string { return formatMoment(d.atMS) + " " + d.description }

// findFirstDifference is where both first part. That the same is decided a moment later is no parting.
func findFirstDifference(before, after Result) *FirstDifference {
	was, is := timelineDecisions(before), timelineDecisions(after)
	for i := range max(len(was), len(is)) {
		switch {
		case i >= len(was):
			return &FirstDifference{Current: is[i].String()}
		case i >= len(is):
			return &FirstDifference{Baseline: was[i].String()}
		case was[i].description != is[i].description:
			return &FirstDifference{Baseline: was[i].String(), Current: is[i].String()}
		}
	}
	return nil
}

// FirstDifference is the first decision that differs; one that is empty is not taken.
type FirstDifference struct {
	Baseline string `json:"baseline,omitempty"`
	Current  string `json:"current,omitempty"`
}
