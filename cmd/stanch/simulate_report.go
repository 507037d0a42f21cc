package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/worker/simulate"
)

func reportWriter(out io.Writer, o simulateOptions, one bool) (simulate.ReportWriter, error) {
	switch o.output {
	case "json":
		return simulate.NewJSONReport(out, o.baseline != "")
	case "html":
		return simulate.NewHTMLReport(out, o.baseline != ""), nil
	}
	return &textReport{out: out, against: o.baseline != "", whole: one || o.whole}, nil
}

// textReport is a report for a terminal: one incident whole, a corpus a line each; with a baseline what changes.
type textReport struct {
	out            io.Writer
	against, whole bool
}

func (t *textReport) p(format string, a ...any) {
	fmt.Fprintln(t.out, strings.TrimRight(plain(fmt.Sprintf(format, a...)), " "))
}

// Add shows one outcome.
func (t *textReport) Add(o simulate.RecordingOutcome) error {
	r := o.Result
	switch {
	case r.Error != "" && r.IncidentID == "":
		t.p("ERROR       %s", r.Error)
	case t.against && o.Change == nil && r.Error == "":
	case t.against && o.Change != nil:
		t.change(*o.Change)
	case t.whole:
		t.incident(r)
	default:
		t.line(r)
	}
	return nil
}

func (t *textReport) change(c simulate.IncidentChange) {
	t.p("%s  %s", c.IncidentID, c.RecordingFile)
	if c.FirstDifference != nil {
		t.p("  first differs  was: %s", either(c.FirstDifference.Baseline))
		t.p("                 now: %s", either(c.FirstDifference.Current))
	}
	for _, w := range c.Descriptions {
		t.p("  %s", w)
	}
}

func either(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func (t *textReport) line(r simulate.Result) {
	contained := "not contained"
	if r.FirstContainmentMS != nil {
		contained = "contained after " + offset(*r.FirstContainmentMS)
	}
	text := fmt.Sprintf("%s  %s  phase %d  %s", r.IncidentID, r.Workload, r.Phase, contained)
	if n := len(r.ApprovalRequests); n > 0 {
		text += fmt.Sprintf(", %d asked", n)
	}
	if n := len(r.AssumedResults); n > 0 {
		text += fmt.Sprintf(", %d answers assumed", n)
	}
	if len(r.Playbooks) == 0 {
		text += ", no playbook matches"
	}
	if r.Error != "" {
		text += ", ERROR " + r.Error
	}
	t.p("%s  (%s)", text, r.RecordingFile)
}

func (t *textReport) incident(r simulate.Result) {
	drill := ""
	if r.Drill {
		drill = ", a drill"
	}
	t.p("%s  %s  scope %s, phase %d%s  (%s)", r.IncidentID, r.Workload, r.Scope, r.Phase, drill, r.RecordingFile)
	for _, e := range r.Events {
		t.p("  %10s  %-12s %s", "+"+offset(e.AtMS), e.Kind, e.Text)
	}
	for _, s := range r.Steps {
		target, reason := s.Target, ""
		if target != "" {
			target = " on " + target[:min(len(target), 24)]
		}
		if s.Reason != "" {
			reason = ": " + s.Reason
		}
		if s.Assumed {
			reason += " [assumed]"
		}
		t.p("  step        %-10s %s %s%s%s", s.Outcome, s.Playbook, s.Action, target, reason)
	}
	for _, d := range r.Decisions {
		if !d.AtEnforcement {
			t.p("  guards      %-10s %s on %s: %s (%s)", d.Verdict, d.Action, d.Target[:min(len(d.Target), 24)], d.Reason, d.Guard)
		}
	}
	for _, m := range r.AssumedResults {
		t.p("  assumed     %s: not in the recording", m)
	}
	if r.FirstContainmentMS != nil {
		t.p("  first containment after %s", offset(*r.FirstContainmentMS))
	}
	for _, q := range r.ApprovalRequests {
		t.p("  asked       %q of %s, open for %s: %s", q.Title, q.Approvers, offset(q.WaitedMS), either(strings.Join(q.Answers, "; ")))
	}
	if r.Error != "" {
		t.p("  ERROR       %s", r.Error)
	}
	t.p("")
}

// Close shows the sums.
func (t *textReport) Close(all *simulate.Totals) error {
	if all.Incidents > 1 && !t.against {
		t.p("")
		t.p("first containment  half within %s, nine tenths within %s, at most %s (of %d)", offset(all.TimeToContainment.P50), offset(all.TimeToContainment.P90), offset(all.TimeToContainment.Max), all.ContainedIncidents)
		var outcomes []string
		for _, o := range playbooks.Outcomes {
			if n := all.StepOutcomes[string(o)]; n > 0 {
				outcomes = append(outcomes, fmt.Sprintf("%d %s", n, o))
			}
		}
		t.p("steps              %s", strings.Join(outcomes, ", "))
		for _, name := range slices.Sorted(maps.Keys(all.PlaybookRuns)) {
			t.p("playbook           %s ran %d times", name, all.PlaybookRuns[name])
		}
	}
	if t.against {
		for _, k := range simulate.ChangeKinds {
			if of := all.ChangesByKind[k.Name]; of.Incidents > 0 {
				more := ""
				if of.Incidents > len(of.FirstRecordings) {
					more = ", …"
				}
				t.p("%-10s %d: %s (%s%s)", k.Name, of.Incidents, k.Doc, strings.Join(of.FirstRecordings, ", "), more)
			}
		}
	}
	t.p("%s", all.Summarize())
	return nil
}

// offset is a time since the incident was opened.
func offset(ms int64) string { return duration.FormatApprox(time.Duration(ms) * time.Millisecond) }
