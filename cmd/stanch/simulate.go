package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/worker"
	"stanch/worker/simulate"
)

type simulateOptions struct {
	playbooks string
	incident  string
	baseline  string
	approve   string
	phase     int
	output    string
}

func simulateCommand(g *globals) *cobra.Command {
	o := simulateOptions{}
	c := &cobra.Command{
		Use: "simulate --playbooks PATH --incident FILE|DIR", Short: "Show what playbooks would have done in recorded incidents", Args: args(cobra.NoArgs),
		Long: `Run recorded incidents through the production workflow code with time skipped, and
show what would have run, been asked, proposed and refused, and when. Nothing is
touched: every action answers from the recording, and what the recording has no
answer for is refused and said. An action takes no time in a simulation; waiting does.

People answer as they did when it was recorded, or all yes, or not at all, or as a
file says:
  answers:
    - { person: alice, answer: yes, after: 2m, to: "stop the workload" }

With --baseline two versions of the playbooks are compared.`,
		Example: "  stanch simulate --playbooks playbooks/ --incident recordings/ --phase 2\n  stanch simulate --playbooks new/ --baseline old/ --incident recordings/ -o html > diff.html",
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := g.simulate(cmd.Context(), o)
			if err != nil {
				return err
			}
			switch o.output {
			case "json":
				err = printJSON(cmd.OutOrStdout(), report)
			case "html":
				err = simulate.HTML(cmd.OutOrStdout(), report)
			default:
				showReport(cmd.OutOrStdout(), report)
			}
			if err == nil && slices.ContainsFunc(report.Results, func(r simulate.Result) bool { return r.Error != "" }) {
				return errAnswered
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.playbooks, "playbooks", "", "the playbooks: a file or a folder")
	f.StringVar(&o.incident, "incident", "", "a recording of `stanch record`, or a folder of them")
	f.StringVar(&o.baseline, "baseline", "", "other playbooks to compare with")
	f.StringVar(&o.approve, "approve", "", "what people answer: all, none, or a file (default: as they did)")
	f.IntVar(&o.phase, "phase", 0, "the phase everywhere: 1, 2 or 3 (default: as configured, or as it was)")
	formatFlag(c, &o.output, "text", "json", "html")
	return c
}

func (g *globals) simulate(ctx context.Context, o simulateOptions) (simulate.Report, error) {
	var none simulate.Report
	if o.playbooks == "" || o.incident == "" {
		return none, usageError{errors.New("name the playbooks and the recordings: --playbooks PATH --incident FILE|DIR")}
	}
	if o.phase < 0 || o.phase > 3 {
		return none, usageError{fmt.Errorf("the phase %d is none: 1 observes, 2 contains, 3 disrupts behind approval", o.phase)}
	}
	options := simulate.Options{Catalogue: worker.Catalogue(), Phase: o.phase}
	var err error
	if g.config != "" {
		if options.Config, err = g.load(); err != nil {
			return none, err
		}
	}
	if options.Answers, err = answersOf(o.approve); err != nil {
		return none, err
	}
	recordings, err := loadRecordings(o.incident)
	if err != nil {
		return none, err
	}
	run := func(path string) ([]simulate.Result, error) {
		programs, err := loadPrograms(path, options.Catalogue)
		if err != nil {
			return nil, err
		}
		with := options
		with.Playbooks = func(a activities.Authority) simulate.Match { return worker.LibraryOf(a, programs...).Match }
		return simulate.All(ctx, recordings, with), nil
	}
	results, err := run(o.playbooks)
	if err != nil {
		return none, err
	}
	var base []simulate.Result
	if o.baseline != "" {
		if base, err = run(o.baseline); err != nil {
			return none, err
		}
	}
	return simulate.NewReport(results, base), nil
}

func answersOf(approve string) (simulate.Answers, error) {
	switch approve {
	case "":
		return simulate.Answers{}, nil
	case "all":
		return simulate.Answers{All: true}, nil
	case "none":
		return simulate.Answers{None: true}, nil
	}
	raw, err := os.ReadFile(approve)
	if err != nil {
		return simulate.Answers{}, usageError{fmt.Errorf("--approve is all, none, or a file: %w", err)}
	}
	return simulate.ParseAnswers(approve, raw)
}

// loadPrograms checks playbooks; one that is not valid ends it, with what is wrong.
func loadPrograms(path string, catalogue playbooks.Catalogue) ([]*playbooks.Program, error) {
	files, err := yamlFiles([]string{path})
	if err != nil {
		return nil, err
	}
	var out []*playbooks.Program
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read a playbook: %w", err)
		}
		program, problems := playbooks.Load(file, source, catalogue)
		if program == nil {
			printProblems(problems, source)
			return nil, fmt.Errorf("%s is not valid; `stanch validate %s` says why", file, file)
		}
		if slices.ContainsFunc(out, func(p *playbooks.Program) bool { return p.Name == program.Name }) {
			return nil, fmt.Errorf("%s: a playbook of the name `%s` was read already", file, program.Name)
		}
		out = append(out, program)
	}
	return out, nil
}

// loadRecordings reads a recording, or those of a folder.
func loadRecordings(path string) ([]simulate.Loaded, error) {
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("no such file or folder: %s", path)
	} else if info.IsDir() {
		files = nil
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(p, ".json") {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("no recording (*.json) in %s; `stanch record ID > FILE` makes one", path)
		}
	}
	var out []simulate.Loaded
	for _, file := range files {
		raw, err := readBounded(file, recording.MaxBytes)
		if err != nil {
			return nil, err
		}
		r, err := recording.Decode(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		out = append(out, simulate.Loaded{File: file, Recording: r})
	}
	return out, nil
}

func readBounded(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read a recording: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return raw, nil
}

func showReport(out io.Writer, r simulate.Report) {
	p := func(format string, a ...any) { fmt.Fprintln(out, plain(fmt.Sprintf(format, a...))) }
	if r.Changes != nil {
		for _, c := range r.Changes {
			p("%s  %s", c.Incident, c.Recording)
			for _, w := range c.What {
				p("  %s", w)
			}
		}
		p("%s", r.Summary)
		return
	}
	for _, one := range r.Results {
		drill := ""
		if one.Drill {
			drill = ", a drill"
		}
		p("%s  %s  scope %s, phase %d%s  (%s)", one.Incident, one.Workload, one.Scope, one.Phase, drill, one.Recording)
		for _, e := range one.Events {
			p("  %10s  %-12s %s", "+"+offset(e.AtMS), e.Kind, e.What)
		}
		for _, s := range one.Steps {
			target := s.Target
			if target != "" {
				target = " on " + target[:min(len(target), 24)]
			}
			reason := ""
			if s.Reason != "" {
				reason = ": " + s.Reason
			}
			p("  step        %-10s %s %s%s%s", s.Outcome, s.Playbook, s.Action, target, reason)
		}
		for _, m := range one.Missing {
			p("  missing     %s: not in the recording", m)
		}
		if one.Error != "" {
			p("  ERROR       %s", one.Error)
		}
		p("")
	}
	p("%s", r.Summary)
}

// offset is a time since the incident was opened.
func offset(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
