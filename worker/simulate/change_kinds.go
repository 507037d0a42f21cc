package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/sensors/duration"
)

// The kinds of changes, in the order of reports.
const (
	ChangeError           = "error"            // only one of the versions can be simulated to its end
	ChangePlaybooks       = "playbooks"        // another playbook runs, or one no longer runs
	ChangeOutcome         = "outcome"          // the outcome of a step differs
	ChangeEffect          = "effect"           // the duration or the parameters of an effect differ
	ChangeApprovalRequest = "approval-request" // the approval requests differ
	ChangeTiming          = "timing"           // the time of the first containment differs
)

// ChangeKinds lists the kinds of changes with their descriptions.
var ChangeKinds = []struct{ Name, Doc string }{
	{ChangeError, "only one version could be simulated to the end"},
	{ChangePlaybooks, "other playbooks run"},
	{ChangeOutcome, "the outcome of a step differs"},
	{ChangeEffect, "the duration or the parameters of a containment differ"},
	{ChangeApprovalRequest, "the approval requests differ"},
	{ChangeTiming, "the first containment is earlier or later"},
}

// CompareResults returns the differences from the baseline's result; nil if there are none.
func CompareResults(before, after Result) *IncidentChange {
	what, kinds := compareResults(before, after)
	if len(what) == 0 {
		return nil
	}
	return &IncidentChange{
		RecordingFile: after.RecordingFile, IncidentID: after.IncidentID, Kinds: kinds,
		FirstDifference: findFirstDifference(before, after), Descriptions: what,
	}
}

// timelineDecisions returns the decisions in the order of time: which playbooks run, the guards' decisions, approval
// requests, outcomes and durations. Decisions at the same time are in that order.
func timelineDecisions(r Result) []timelineDecision {
	var all []timelineDecision
	for _, e := range r.Events {
		if e.Kind == "playbook" {
			all = append(all, timelineDecision{e.AtMS, 0, e.Text})
		}
	}
	for _, d := range r.Decisions {
		if !d.AtEnforcement {
			all = append(all, timelineDecision{d.AtMS, 1, fmt.Sprintf("%s on %s: %s (%s: %s)", d.Action, ShortTargetID(d.Target),
				VerdictTexts[d.Verdict], d.Guard, d.Reason)})
		}
	}
	for _, q := range r.ApprovalRequests {
		all = append(all, timelineDecision{q.AskedAtMS, 2, fmt.Sprintf("%s: %s would be asked for approval: %s", q.Playbook,
			q.Approvers, q.Title)})
	}
	for _, s := range r.Steps {
		all = append(all, timelineDecision{s.AtMS, 3, fmt.Sprintf("%s: %s is %s", s.Playbook, describeStep(s),
			ReasonSuffix(s))})
	}
	for _, e := range r.Effects {
		all = append(all, timelineDecision{e.AppliedAtMS, 4, fmt.Sprintf("%s on %s lasts %s", e.Action,
			ShortTargetID(e.Target), DescribeHeldDuration(e))})
	}
	slices.SortStableFunc(all, func(a, b timelineDecision) int {
		return cmp.Or(cmp.Compare(a.atMS, b.atMS), cmp.Compare(a.sortOrder, b.sortOrder), strings.Compare(a.description,
			b.description))
	})
	return all
}

type timelineDecision struct {
	atMS        int64
	sortOrder   int
	description string
}

func (d timelineDecision) String() string { return FormatMoment(d.atMS) + " " + d.description }

// findFirstDifference returns the first difference between two results; the same decision at another time is none.
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

// FirstDifference is the first decision that differs; an empty side has no such decision.
type FirstDifference struct {
	Baseline string `json:"baseline,omitempty"`
	Current  string `json:"current,omitempty"`
}

// FormatMoment formats a time since the incident was opened.
func FormatMoment(n int64) string { return "+" + FormatDuration(n) }

// FormatDuration formats a number of milliseconds for people.
func FormatDuration(n int64) string {
	return duration.FormatApprox(time.Duration(n) * time.Millisecond)
}
