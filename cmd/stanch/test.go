package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/worker/actions"
	"stanch/worker/playbooktest"
)

// testOptions holds the flags of `stanch test`.
type testOptions struct {
	output      string
	junit       string
	update      bool
	coverage    bool
	minCoverage int
	verbose     bool
}

func testCommand() *cobra.Command {
	o := testOptions{}
	c := &cobra.Command{
		Use: "test PATH…", Short: "Run playbook tests", Args: validateArgs(cobra.MinimumNArgs(1)),
		Long: `Run playbook tests (*_test.yaml files) through the production workflow code, with time
skipping and without changing anything. A test defines detections, the results of actions
and people's
answers, and expects outcomes. For example cryptominer_test.yaml, next to
cryptominer.yaml:

  playbook: cryptominer.yaml
  tests:
    - name: a pod in the host's network is frozen
      detections: [{ rule: miner-process }]
      actions:
        pod.isolate: { outcome: refused, reason: host network }
      expect:
        - { step: isolate, outcome: refused, reason: host network }
        - { action: pod.freeze, outcome: changed, within: 30s }
      never: [workload.scale]

Actions that are not listed succeed. ` + "`stanch schema test`" + ` documents every key.

For steps that ran, --update replaces the expected values of the keys that a test already uses
with the actual values. A file is left unchanged, with an error, if one of its tests would
still fail: an expected step did not run, or another expectation is not met.`,
		Example: `  stanch test playbooks/
  stanch test playbooks/ --min-coverage 50 --junit report.xml
  stanch test playbooks/cryptominer_test.yaml --update`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			return runTests(cmd.Context(), cmd.OutOrStdout(), paths, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.junit, "junit", "", "also write the results to this `FILE` as JUnit XML")
	f.BoolVar(&o.update, "update", false,
		"update the expectations of failing tests to match what happened, if the tests then pass")
	f.BoolVar(&o.coverage, "coverage", false, "show the branches of playbooks that no test covers")
	f.IntVar(&o.minCoverage, "min-coverage", 0, "fail if less than this `PERCENT` of a playbook is covered")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print the timeline of every test")
	addOutputFlag(c, &o.output)
	return c
}

// runTests runs the tests of paths and prints the report. It returns errReported if a test failed.
func runTests(ctx context.Context, out io.Writer, paths []string, o testOptions) error {
	if o.minCoverage < 0 || o.minCoverage > 100 {
		return usageError{fmt.Errorf("invalid --min-coverage %d; use a percentage from 0 to 100", o.minCoverage)}
	}
	files, err := playbooktest.FindTestFiles(paths)
	if err != nil {
		return err
	}
	catalog := actions.Catalog()
	run := func() (playbooktest.Report, error) {
		suites := make([]*playbooktest.Suite, len(files))
		for i, file := range files {
			if suites[i], err = playbooktest.LoadSuite(file, catalog); err != nil {
				return playbooktest.Report{}, err
			}
		}
		return playbooktest.RunSuites(ctx, suites, catalog)
	}
	report, err := run()
	if err != nil {
		return err
	}
	var updated []playbooktest.UpdatedFile
	var updateErr error
	if o.update {
		updated, updateErr = playbooktest.UpdateExpectations(report)
		if len(updated) > 0 {
			if report, err = run(); err != nil {
				return err
			}
			updated, err = playbooktest.KeepPassing(updated, report)
			updateErr = errors.Join(updateErr, err)
		}
	}
	if o.junit != "" {
		if err := writeJUnit(o.junit, report); err != nil {
			return err
		}
	}
	if o.output == "json" {
		if err := printJSON(out, report); err != nil {
			return err
		}
	} else {
		printTestReport(out, report, updated, o)
	}
	if updateErr != nil {
		return updateErr
	}
	if !report.AllPassed() {
		return errReported
	}
	return checkMinCoverage(out, report, o)
}

func writeJUnit(file string, report playbooktest.Report) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write the JUnit file: %w", err)
	}
	return errors.Join(playbooktest.WriteJUnit(f, report), f.Close())
}

// checkMinCoverage returns errReported if the coverage of a playbook is below --min-coverage.
func checkMinCoverage(out io.Writer, r playbooktest.Report, o testOptions) error {
	short := false
	for _, c := range r.Coverage {
		if c.Percent() < float64(o.minCoverage) {
			short = true
			if o.output == "text" {
				fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf("%s: %d of %d branches are covered, less than "+
					"%d%%; --coverage lists the others", c.File, c.CoveredPoints, c.TotalPoints, o.minCoverage)))
			}
		}
	}
	if short {
		return errReported
	}
	return nil
}

func printTestReport(out io.Writer, r playbooktest.Report, updated []playbooktest.UpdatedFile, o testOptions) {
	p := func(format string, a ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, a...))) }
	for _, u := range updated {
		p("updated %s", u.File)
	}
	for _, f := range r.Files {
		if len(f.Problems) > 0 {
			for _, problem := range f.Problems {
				fmt.Fprintln(out, escapeLines(problem.Render(f.Suite.SourceOf(problem.File))))
			}
			if f.Problems.HasErrors() {
				p("FAIL  %s: not run", f.File)
				continue
			}
		}
		failed := 0
		for _, t := range f.Tests {
			if !t.Passed {
				failed++
			}
			if o.verbose || !t.Passed {
				printTest(p, f.File, t, o.verbose)
			}
		}
		if failed > 0 {
			p("FAIL  %s: %d of %s failed", f.File, failed, formatCount(len(f.Tests), "test", "tests"))
		} else {
			p("ok    %s: %s", f.File, formatCount(len(f.Tests), "test", "tests"))
		}
	}
	if o.coverage {
		printCoverage(out, r)
	}
	text := formatCount(r.Passed+r.Failed, "test", "tests") + fmt.Sprintf(", %d passed", r.Passed)
	if r.Failed > 0 {
		text += fmt.Sprintf(", %d failed; --verbose shows what happened", r.Failed)
	}
	if r.Invalid > 0 {
		text += fmt.Sprintf("; %s not run", formatCount(r.Invalid, "file was", "files were"))
	}
	p("%s", text)
}

func printTest(p func(string, ...any), file string, t playbooktest.TestResult, verbose bool) {
	word := "pass"
	if !t.Passed {
		word = "FAIL"
	}
	p("%s  %s:%d %s", word, file, t.Line, t.Name)
	for _, f := range t.Failures {
		p("  %s:%d:%d: %s", filepath.Base(file), f.Line, f.Column, f.Message)
	}
	if !verbose {
		return
	}
	for _, e := range t.Events {
		p("  %10s  %-16s %s", "+"+formatOffset(e.AtMS), e.Kind, e.Text)
	}
	for _, s := range t.Steps {
		reason := ""
		if s.Reason != "" {
			reason = ": " + s.Reason
		}
		p("  %10s  step %s (%s) %s%s", "+"+formatOffset(s.EndedAtMS), s.Step, s.Action, s.Outcome, reason)
	}
}

func printCoverage(out io.Writer, r playbooktest.Report) {
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "COVERED\tOF\tPERCENT\tPLAYBOOK")
	for _, c := range r.Coverage {
		fmt.Fprintln(t, escapeForTerminal(fmt.Sprintf("%d\t%d\t%.0f\t%s", c.CoveredPoints, c.TotalPoints, c.Percent(),
			c.File)))
	}
	_ = t.Flush()
	for _, c := range r.Coverage {
		for _, m := range c.Uncovered {
			fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf("%s:%d:%d: %s: %s", c.File, m.Line, m.Column, m.Step,
				m.Description)))
		}
	}
}
