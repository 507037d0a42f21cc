package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks"
)

// drillCheck is one expectation of a drill, and whether it was met.
type drillCheck struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// drillLatency has the times from the attack's event, in milliseconds; 0 where it was not measured.
type drillLatency struct {
	EventToDetection float64 `json:"event_to_detection"`
	EventToIncident  float64 `json:"event_to_incident"`
	EventToContained float64 `json:"event_to_contained"`
}

// drillLease is one lease of the drill, after its release.
type drillLease struct {
	Action   string            `json:"action"`
	Target   string            `json:"target"`
	Facet    string            `json:"facet"`
	Outcome  playbooks.Outcome `json:"outcome"`
	Verified bool              `json:"verified"`
	Undone   bool              `json:"undone"`
}

// drillResult is the output of `stanch drill -o json`.
type drillResult struct {
	Drill    string       `json:"drill"`
	OK       bool         `json:"ok"`
	Incident string       `json:"incident"`
	Checks   []drillCheck `json:"checks"`
	Latency  drillLatency `json:"latency_ms"`
	Evidence int          `json:"evidence"`
	Leases   []drillLease `json:"leases"`
}

func (d *drillRun) recordCheck(name string, ok bool, format string, a ...any) bool {
	detail := fmt.Sprintf(format, a...)
	d.result.Checks = append(d.result.Checks, drillCheck{Name: name, OK: ok, Detail: detail})
	mark := "ok  "
	if !ok {
		mark = "FAIL"
	}
	d.logf("  %s %-20s %s", mark, name, escapeForTerminal(detail))
	return ok
}

func formatLeases(in playbooks.Incident) string {
	var out []string
	for _, l := range in.Leases {
		out = append(out, fmt.Sprintf("%s %s %s", l.Action, l.Outcome, l.Reason))
	}
	if len(out) == 0 {
		return "no lease"
	}
	return strings.Join(out, "; ")
}

func (d *drillRun) explainFailure(in playbooks.Incident) {
	for _, e := range in.Timeline {
		d.logf("       %s", escapeForTerminal(e.Text))
	}
}

func (d *drillRun) recordLatency(in playbooks.Incident) {
	ms := func(a, b time.Time) float64 { return float64(b.Sub(a).Microseconds()) / 1000 }
	first := in.Trigger
	d.result.Latency = drillLatency{EventToDetection: ms(first.Time, first.Detected), EventToIncident: ms(first.Time,
		in.Opened)}
	for _, l := range in.Leases {
		if l.Facet == string(playbooks.FacetNetwork) && !l.AppliedAt.IsZero() {
			d.result.Latency.EventToContained = ms(first.Time, l.AppliedAt)
		}
	}
	contained := ""
	if d.result.Latency.EventToContained > 0 {
		contained = fmt.Sprintf(", to contained %.1f ms", d.result.Latency.EventToContained)
	}
	d.logf("       event to detection %.1f ms, to incident %.1f ms%s", d.result.Latency.EventToDetection,
		d.result.Latency.EventToIncident, contained)
}

func (d *drillRun) printReport(cmd *cobra.Command) error {
	if d.options.output == "json" {
		if err := printJSON(cmd.OutOrStdout(), d.result); err != nil {
			return err
		}
	} else if d.result.OK {
		fmt.Fprintf(cmd.OutOrStdout(), "drill %s passed: %s\n", d.name, d.result.Incident)
	} else {
		fmt.Fprintf(os.Stderr, "drill %s FAILED; `stanch incidents %s` shows what happened\n", d.name,
			d.result.Incident)
	}
	if !d.result.OK {
		return errReported
	}
	return nil
}
