package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/sensors"
	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
)

// rulesTestReport is the output of `stanch rules test -o json`.
type rulesTestReport struct {
	Version  int                    `json:"version"`
	Passed   int                    `json:"passed"`
	Failed   int                    `json:"failed"`
	Problems diagnostic.Diagnostics `json:"problems"`
	Tests    []rules.TestResult     `json:"tests"`
	Events   *eventsReport          `json:"events,omitempty"`
}

// eventsReport lists the rules that fire on recorded events.
type eventsReport struct {
	EventCount int          `json:"events"`
	Firings    []ruleFiring `json:"firings"`
	Errors     []string     `json:"errors,omitempty"` // the first errors of rules that could not be evaluated
}

// ruleFiring counts the events on which one rule fires.
type ruleFiring struct {
	Rule      string           `json:"rule"`
	Severity  sensors.Severity `json:"severity"`
	Fired     int              `json:"fired"`
	Excepted  int              `json:"excepted"`
	Positions []string         `json:"at"` // "file:line" of the first events
}

// maxFiringPositions limits the reported positions of each rule, and the reported errors.
const maxFiringPositions = 20

func rulesTestCommand(g *globalFlags) *cobra.Command {
	var output string
	var verbose bool
	var events []string
	var s ruleSources
	c := &cobra.Command{
		Use: "test [PATH…]", Short: "Run the tests of rules, and optionally replay recorded events",
		Long: `Run the tests of rule packs, or of the shipped rules without a PATH. A rule or override test
lists events that must make it fire and events that must not:

  tests:
    fires: { container: { id: c1 }, process: { exe: /bin/bash, tty: pts0 } }
    silent:
      - { name: a script, container: { id: c1 }, process: { exe: /bin/bash } }
      - { name: on the host, process: { exe: /bin/bash, tty: pts0 } }

With --events it also shows which rules would fire on events of your nodes, to find false
positives before you deploy a pack. Record them with
` + "`stanch-sensor watch --events -o json > recorded_events.jsonl`" + `.`,
		Example: "  stanch rules test my-rules/\n  stanch rules test my-rules/ -v --events recorded_events.jsonl",
	}
	c.RunE = func(cmd *cobra.Command, paths []string) error {
		s.paths = paths
		sources, err := s.resolve(g)
		if err != nil {
			return err
		}
		set, problems := rules.LoadSources(sources...)
		report := rulesTestReport{
			Version: 1, Problems: append(diagnostic.Diagnostics{}, problems...),
			Tests: []rules.TestResult{},
		}
		for _, t := range set.TestResults() {
			if t.Suppressed {
				continue
			}
			report.Tests = append(report.Tests, t)
			if t.Passed {
				report.Passed++
			} else {
				report.Failed++
			}
		}
		if len(events) > 0 {
			if report.Events, err = replayEvents(cmd.InOrStdin(), set, events); err != nil {
				return err
			}
		}
		if output == "json" {
			err = printJSON(cmd.OutOrStdout(), report)
		} else {
			err = printRulesTests(cmd.OutOrStdout(), report, verbose)
		}
		if err == nil && (report.Failed > 0 || problems.HasErrors()) {
			return errReported
		}
		return err
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "list every test, and the events on which each rule fires")
	c.Flags().StringArrayVar(&events, "events", nil,
		"a `FILE` with recorded events, one JSON object per line; - for standard input")
	c.Flags().BoolVar(&s.noShipped, "no-shipped", false, "leave out the shipped rules, to test a copy of them")
	addOutputFlag(c, &output)
	return c
}

func printRulesTests(out io.Writer, r rulesTestReport, verbose bool) error {
	printRuleProblems(out, r.Problems)
	for _, t := range r.Tests {
		if !verbose {
			break
		}
		word, should := "pass", "fires"
		if !t.Passed {
			word = "FAIL"
		}
		if !t.ShouldFire {
			should = "silent"
		}
		fmt.Fprintln(out, escapeForTerminal(strings.TrimRight(fmt.Sprintf("%s  %s:%d %s %s %s", word, t.File, t.Line, t.Rule,
			should, t.Name), " ")))
	}
	fmt.Fprintf(out, "%s, %d passed", formatCount(len(r.Tests), "test", "tests"), r.Passed)
	if r.Failed > 0 {
		fmt.Fprintf(out, ", %d failed", r.Failed)
	}
	fmt.Fprintln(out)
	if r.Events == nil {
		return nil
	}
	fmt.Fprintf(out, "\n%s, %s would fire\n", formatCount(r.Events.EventCount, "event", "events"),
		formatCount(len(slices.DeleteFunc(slices.Clone(r.Events.Firings),
			func(f ruleFiring) bool { return f.Fired == 0 })), "rule", "rules"))
	for _, e := range r.Events.Errors {
		fmt.Fprintln(out, escapeForTerminal(e))
	}
	if len(r.Events.Firings) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "RULE\tSEVERITY\tFIRED\tSUPPRESSED\tFIRST AT")
	for _, f := range r.Events.Firings {
		at := "-"
		if len(f.Positions) > 0 {
			at = f.Positions[0]
		}
		if verbose {
			at = strings.Join(f.Positions, " ")
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\n", escapeForTerminal(f.Rule), f.Severity, f.Fired, f.Excepted,
			escapeForTerminal(at))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the output: %w", err)
	}
	return nil
}

// replayEvents evaluates the rules on recorded events. stdin is read for the file name "-".
func replayEvents(stdin io.Reader, set *rules.Set, files []string) (*eventsReport, error) {
	report := &eventsReport{Firings: []ruleFiring{}}
	firings := map[string]*ruleFiring{}
	of := func(r *rules.Rule) *ruleFiring {
		if firings[r.Name] == nil {
			firings[r.Name] = &ruleFiring{Rule: r.Name, Severity: r.Severity, Positions: []string{}}
		}
		return firings[r.Name]
	}
	for _, file := range files {
		err := readEvents(stdin, file, func(at string, e sensors.Event) {
			report.EventCount++
			fired, excepted, errs := set.Replay(e)
			for _, r := range fired {
				f := of(r)
				if f.Fired++; len(f.Positions) < maxFiringPositions {
					f.Positions = append(f.Positions, at)
				}
			}
			for _, r := range excepted {
				of(r).Excepted++
			}
			for _, err := range errs {
				if len(report.Errors) < maxFiringPositions {
					report.Errors = append(report.Errors, at+": "+err.Error())
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	for _, r := range set.Rules() {
		if f := firings[r.Name]; f != nil {
			report.Firings = append(report.Firings, *f)
		}
	}
	return report, nil
}

// readEvents calls each for every event of a file with one JSON object per line: an event, or a detection with its
// event.
func readEvents(stdin io.Reader, file string, each func(at string, e sensors.Event)) error {
	from := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		defer func() { _ = f.Close() }()
		from = f
	}
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 1<<20)
	n := 0
	for lines.Scan() {
		n++
		if len(strings.TrimSpace(lines.Text())) == 0 {
			continue
		}
		at := fmt.Sprintf("%s:%d", file, n)
		var line struct {
			sensors.Event
			Detected *sensors.Event `json:"event"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("read %s: invalid event: %w; record events with `stanch-sensor watch --events -o json`",
				at, err)
		}
		if line.Detected != nil {
			line.Event = *line.Detected
		}
		if line.Kind == "" {
			return fmt.Errorf("read %s: invalid event: missing `kind`; record events with `stanch-sensor watch "+
				"--events -o json`", at)
		}
		each(at, line.Event)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read %s:%d: %w", file, n+1, err)
	}
	return nil
}
