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
	"stanch/worker/simulationreport"
)

// newReportWriter returns the writer for the output format. single prints the timeline of the only incident.
func newReportWriter(out io.Writer, o simulateOptions, single bool) (simulationreport.Writer, error) {
	switch o.output {
	case "json":
		return simulationreport.NewJSON(out, o.baselinePath != "")
	case "html":
		return simulationreport.NewHTML(out, o.baselinePath != ""), nil
	}
	return &textReport{out: out, hasBaseline: o.baselinePath != "", fullTimelines: single || o.fullTimelines}, nil
}

// textReport is a report for a terminal: the timeline of a single incident, one line for each of several, or the
// changes from a baseline.
type textReport struct {
	out                        io.Writer
	hasBaseline, fullTimelines bool
}

func (t *textReport) printf(format string, a ...any) {
	fmt.Fprintln(t.out, strings.TrimRight(escapeForTerminal(fmt.Sprintf(format, a...)), " "))
}

// Add prints one outcome.
func (t *textReport) Add(o simulate.RecordingOutcome) error {
	r := o.Result
	switch {
	case r.Error != "" && r.IncidentID == "":
		t.printf("ERROR       %s", r.Error)
	case t.hasBaseline && o.Change == nil && r.Error == "":
	case t.hasBaseline && o.Change != nil:
		t.printChange(*o.Change)
	case t.fullTimelines:
		t.printIncident(r)
	default:
		t.printLine(r)
	}
	return nil
}

func (t *textReport) printChange(c simulate.IncidentChange) {
	t.printf("%s  %s", c.IncidentID, c.RecordingFile)
	if c.FirstDifference != nil {
		t.printf("  first difference  was: %s", orNothing(c.FirstDifference.Baseline))
		t.printf("                    now: %s", orNothing(c.FirstDifference.Current))
	}
	for _, w := range c.Descriptions {
		t.printf("  %s", w)
	}
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func (t *textReport) printLine(r simulate.Result) {
	contained := "not contained"
	if r.FirstContainmentMS != nil {
		contained = "contained after " + formatOffset(*r.FirstContainmentMS)
	}
	text := fmt.Sprintf("%s  %s  phase %d  %s", r.IncidentID, r.Workload, r.Phase, contained)
	if n := len(r.ApprovalRequests); n > 0 {
		text += fmt.Sprintf(", %s", formatCount(n, "approval", "approvals"))
	}
	if n := len(r.AssumedResults); n > 0 {
		text += fmt.Sprintf(", %s assumed", formatCount(n, "result", "results"))
	}
	if len(r.Playbooks) == 0 {
		text += ", no playbook matches"
	}
	if r.Error != "" {
		text += ", ERROR " + r.Error
	}
	t.printf("%s  (%s)", text, r.RecordingFile)
}

func (t *textReport) printIncident(r simulate.Result) {
	drill := ""
	if r.Drill {
		drill = ", a drill"
	}
	t.printf("%s  %s  scope %s, phase %d%s  (%s)", r.IncidentID, r.Workload, r.Scope, r.Phase, drill, r.RecordingFile)
	for _, e := range r.Events {
		t.printf("  %10s  %-16s %s", "+"+formatOffset(e.AtMS), e.Kind, e.Text)
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
		t.printf("  step        %-10s %s %s%s%s", s.Outcome, s.Playbook, s.Action, target, reason)
	}
	for _, d := range r.Decisions {
		if !d.AtEnforcement {
			t.printf("  guards      %-10s %s on %s: %s (%s)", d.Verdict, d.Action, d.Target[:min(len(d.Target), 24)], d.Reason,
				d.Guard)
		}
	}
	for _, m := range r.AssumedResults {
		t.printf("  assumed     %s: not in the recording", m)
	}
	if r.FirstContainmentMS != nil {
		t.printf("  first containment after %s", formatOffset(*r.FirstContainmentMS))
	}
	for _, q := range r.ApprovalRequests {
		t.printf("  approval    %q by %s, open for %s: %s", q.Title, q.Approvers, formatOffset(q.WaitedMS),
			orNothing(strings.Join(q.Answers, "; ")))
	}
	if r.Error != "" {
		t.printf("  ERROR       %s", r.Error)
	}
	t.printf("")
}

// Close prints the totals.
func (t *textReport) Close(all *simulate.Totals) error {
	if all.Incidents > 1 && !t.hasBaseline {
		t.printf("")
		t.printf("first containment  median %s, 90%% within %s, at most %s (of %d)",
			formatOffset(all.TimeToContainment.P50), formatOffset(all.TimeToContainment.P90),
			formatOffset(all.TimeToContainment.Max), all.ContainedIncidents)
		var outcomes []string
		for _, o := range playbooks.Outcomes {
			if n := all.StepOutcomes[string(o)]; n > 0 {
				outcomes = append(outcomes, fmt.Sprintf("%d %s", n, o))
			}
		}
		t.printf("steps              %s", strings.Join(outcomes, ", "))
		for _, name := range slices.Sorted(maps.Keys(all.PlaybookRuns)) {
			t.printf("playbook           %s ran %s", name, formatCount(all.PlaybookRuns[name], "time", "times"))
		}
	}
	if t.hasBaseline {
		for _, k := range simulate.ChangeKinds {
			if of := all.ChangesByKind[k.Name]; of.Incidents > 0 {
				more := ""
				if of.Incidents > len(of.FirstRecordings) {
					more = ", …"
				}
				t.printf("%-10s %d: %s (%s%s)", k.Name, of.Incidents, k.Doc, strings.Join(of.FirstRecordings, ", "), more)
			}
		}
	}
	t.printf("%s", all.Summarize())
	return nil
}

// formatOffset formats a time since the incident was opened, in milliseconds.
func formatOffset(ms int64) string {
	return duration.FormatApprox(time.Duration(ms) * time.Millisecond)
}
