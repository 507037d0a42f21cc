package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"stanch/playbooks/display"
	"stanch/sensors/duration"
)

// IncidentChange is the difference between the results of one incident with the baseline and with the current
// playbooks.
type IncidentChange struct {
	RecordingFile string   `json:"recording_file"`
	IncidentID    string   `json:"incident"`
	Kinds         []string `json:"kinds"` // of ChangeKinds
	// FirstDifference is the first decision that differs.
	FirstDifference *FirstDifference `json:"first,omitempty"`
	Descriptions    []string         `json:"descriptions"`
}

// Pluralize returns a number with its noun.
func Pluralize(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// compareResults returns the differences from before to after, and their kinds: runs, approval requests, outcomes and
// durations.
func compareResults(before, after Result) (what, kinds []string) {
	add := func(kind string, lines ...string) {
		if len(lines) > 0 && !slices.Contains(kinds, kind) {
			kinds = append(kinds, kind)
		}
		what = append(what, lines...)
	}
	if before.Error != after.Error {
		add(ChangeError, fmt.Sprintf("the error was %q, now %q", before.Error, after.Error))
	}
	for _, p := range after.Playbooks {
		if !slices.Contains(before.Playbooks, p) {
			add(ChangePlaybooks, "playbook "+p+" runs now")
		}
	}
	for _, p := range before.Playbooks {
		if !slices.Contains(after.Playbooks, p) {
			add(ChangePlaybooks, "playbook "+p+" no longer runs")
		}
	}
	add(ChangeOutcome, stepChanges(before, after)...)
	add(ChangeEffect, effectChanges(before, after)...)
	add(ChangeApprovalRequest, approvalChanges(before, after)...)
	was, is := before.FirstContainmentMS, after.FirstContainmentMS
	switch {
	case was == nil && is != nil:
		add(ChangeTiming, fmt.Sprintf("now first contained after %s; it was never contained before", formatMilliseconds(*is)))
	case was != nil && is == nil:
		add(ChangeTiming, fmt.Sprintf("nothing is contained; the first containment was after %s", formatMilliseconds(*was)))
	case was != nil && max(*was-*is, *is-*was) >= 1000: // smaller differences are random
		add(ChangeTiming, fmt.Sprintf("the first containment is after %s, instead of %s", formatMilliseconds(*is),
			formatMilliseconds(*was)))
	}
	return what, kinds
}

func approvalChanges(before, after Result) []string {
	asked := func(r Result) []string {
		var all []string
		for _, q := range r.ApprovalRequests {
			all = append(all, fmt.Sprintf("%q of %s, quorum %d, within %s", q.Title, q.Approvers, q.Quorum,
				formatMilliseconds(q.TimeoutMS)))
		}
		slices.Sort(all)
		return all
	}
	was, is := asked(before), asked(after)
	var out []string
	for _, q := range is {
		if !slices.Contains(was, q) {
			out = append(out, "new approval request: "+q)
		}
	}
	for _, q := range was {
		if !slices.Contains(is, q) {
			out = append(out, "removed approval request: "+q)
		}
	}
	return out
}

// stepsByKey returns a result's steps by playbook, action and target, in order. A step that only moved is no change.
func stepsByKey(r Result) (map[string][]StepResult, []string) {
	out := map[string][]StepResult{}
	var order []string
	for _, s := range r.Steps {
		k := strings.Join([]string{s.Playbook, s.Action, s.Target}, "\x00")
		if out[k] == nil {
			order = append(order, k)
		}
		out[k] = append(out[k], s)
	}
	return out, order
}

// outcomesByAction returns the outcomes of a playbook's actions on all targets.
func outcomesByAction(r Result) map[string][]string {
	out := map[string][]string{}
	for _, s := range r.Steps {
		k := s.Playbook + "\x00" + s.Action
		kind, _, _ := strings.Cut(s.Target, ":")
		out[k] = append(out[k], kind+" "+string(s.Outcome))
	}
	for _, all := range out {
		slices.Sort(all)
	}
	return out
}

func stepChanges(before, after Result) []string {
	var out []string
	was, order := stepsByKey(before)
	is, more := stepsByKey(after)
	for _, k := range more {
		if was[k] == nil {
			order = append(order, k)
		}
	}
	as, now := outcomesByAction(before), outcomesByAction(after)
	for _, k := range order {
		name, _, _ := strings.Cut(k, "\x00")
		if of := k[:strings.LastIndexByte(k, '\x00')]; slices.Equal(as[of], now[of]) {
			continue // which of several pods uses the budget first is random
		}
		if !slices.Contains(before.Playbooks, name) || !slices.Contains(after.Playbooks, name) {
			continue // that it runs now, or no longer, is already reported
		}
		for i := range max(len(was[k]), len(is[k])) {
			switch {
			case i >= len(was[k]):
				s := is[k][i]
				out = append(out, fmt.Sprintf("%s: %s now %s", s.Playbook, describeStep(s), ReasonSuffix(s)))
			case i >= len(is[k]):
				s := was[k][i]
				out = append(out, fmt.Sprintf("%s: %s no longer runs (it was %s)", s.Playbook, describeStep(s), s.Outcome))
			case was[k][i].Outcome != is[k][i].Outcome:
				s := is[k][i]
				out = append(out, fmt.Sprintf("%s: %s was %s, now %s", s.Playbook, describeStep(s), was[k][i].Outcome,
					ReasonSuffix(s)))
			}
		}
	}
	return out
}

func describeStep(s StepResult) string {
	if s.Target == "" {
		return s.Action
	}
	return s.Action + " on " + ShortTargetID(s.Target)
}

// ReasonSuffix returns a step's outcome, with its reason in parentheses if it has one.
func ReasonSuffix(s StepResult) string {
	if s.Reason == "" {
		return string(s.Outcome)
	}
	return fmt.Sprintf("%s (%s)", s.Outcome, s.Reason)
}

// ShortTargetID returns a readable short form of a target id.
func ShortTargetID(target string) string { return display.ShortTargetID(target) }

func effectChanges(before, after Result) []string {
	var out []string
	for _, e := range after.Effects {
		for _, b := range before.Effects {
			if b.Action != e.Action || b.Target != e.Target {
				continue
			}
			// reports round to seconds
			if d := (e.UndoneAtMS - e.AppliedAtMS) - (b.UndoneAtMS - b.AppliedAtMS); max(d, -d) >= 1500 {
				out = append(out, fmt.Sprintf("%s on %s lasts %s, instead of %s", e.Action, ShortTargetID(e.Target),
					DescribeHeldDuration(e), DescribeHeldDuration(b)))
			}
			if b.Params != e.Params {
				out = append(out, fmt.Sprintf("%s on %s has the parameters %s, instead of %s", e.Action, ShortTargetID(e.Target),
					cmp.Or(e.Params, "none"), cmp.Or(b.Params, "none")))
			}
			break
		}
	}
	return out
}

// DescribeHeldDuration returns how long an effect lasted, rounded to seconds.
func DescribeHeldDuration(e ContainmentEffect) string {
	return duration.Format((time.Duration(e.UndoneAtMS-e.AppliedAtMS) * time.Millisecond).Round(time.Second))
}

func formatMilliseconds(n int64) string { return duration.Format(time.Duration(n) * time.Millisecond) }
