package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"

	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/worker"
	"stanch/worker/simulate"
)

type simulateOptions struct {
	playbooksPath  string
	incidentPath   string
	baselinePath   string
	approvalPolicy string
	phase          int
	fullTimelines  bool
	output         string
	library        bool
	isSubprocess   bool // this process is one of several
}

func simulateCommand(g *globalFlags) *cobra.Command {
	o := simulateOptions{}
	c := &cobra.Command{
		Use: "simulate --playbooks PATH --incident FILE|DIR", Short: "Show what playbooks would have done in recorded incidents", Args: validateArgs(cobra.NoArgs),
		Long: `Run recorded incidents through the production workflow code with time skipped, and
show what would have run, been asked, proposed and refused, and when. Nothing is
touched: every action answers from the recording, and what the recorded run never
asked is assumed from the action's spec and marked so. An action takes no time in a
simulation; waiting does.

--incident is one recording, a folder of them (with its folders), or a file that ends
in .jsonl with a recording a line. A recording that cannot be read is named and does
not end the run; the exit code is then 1.

People answer as they did when it was recorded, or all yes, or not at all, or as a
file says:
  answers:
    - { person: alice, answer: yes, after: 2m, to: "stop the workload" }

With --baseline two versions of the playbooks are compared. Only the playbooks given are selected; with --library those
that the configuration uses too, so that it shows which of them runs.`,
		Example: "  stanch simulate --playbooks playbooks/ --incident recordings/ --phase 2\n  stanch simulate --playbooks new/ --baseline old/ --incident recordings/ -o html > diff.html",
		RunE:    func(cmd *cobra.Command, _ []string) error { return g.runSimulation(cmd, o) },
	}
	f := c.Flags()
	f.StringVar(&o.playbooksPath, "playbooks", "", "the playbooks: a file or a folder")
	f.StringVar(&o.incidentPath, "incident", "", "a recording made by 'stanch record', a folder of them, or a .jsonl file with one a line")
	f.StringVar(&o.baselinePath, "baseline", "", "other playbooks to compare with")
	f.BoolVar(&o.library, "library", false, "select beside them what the configuration uses, as a running Stanch does: shipped playbooks and its folders")
	f.StringVar(&o.approvalPolicy, "approve", "", "what people answer: all, none, or a file (default: as they did)")
	f.IntVar(&o.phase, "phase", 0, "the phase everywhere: 1, 2 or 3 (default: as configured, or as it was)")
	f.BoolVar(&o.fullTimelines, "full", false, "in text, every incident of a corpus with its timeline, and not a line each")
	f.BoolVar(&o.isSubprocess, "subprocess", false, "simulate what comes on standard input, for another of these")
	_ = f.MarkHidden("subprocess")
	addFormatFlag(c, &o.output, "text", "json", "html")
	return c
}

func (g *globalFlags) runSimulation(cmd *cobra.Command, o simulateOptions) error {
	now, base, err := g.newSimulators(o)
	if err != nil {
		return err
	}
	// What was simulated is garbage: collecting it seldom is faster, within a bound.
	debug.SetGCPercent(800)
	debug.SetMemoryLimit(384 << 20)
	pair := simulate.BaselinePair{Current: now, Baseline: base}
	if o.isSubprocess {
		return simulate.ServeProcess(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), pair)
	}
	all, err := openCorpus(o.incidentPath)
	if err != nil {
		return err
	}
	out, err := newReportWriter(cmd.OutOrStdout(), o, all.single)
	if err != nil {
		return err
	}
	tally, shown := simulate.NewTotals(base != nil), newProgressBar(cmd.ErrOrStderr(), all.total)
	runner := func() simulate.Runner { return pair }
	if all.total == 0 || all.total > 2*recordingsPerProcess {
		runner = func() simulate.Runner {
			return &simulate.ProcessRunner{RecordingsPerProcess: recordingsPerProcess, Command: newSimulationSubprocess}
		}
	}
	err = simulate.SimulateEach(cmd.Context(), all.entries, runner, func(one simulate.RecordingOutcome) error {
		tally.AddOutcome(one)
		shown.update(one.Result, o.output)
		return out.Add(one)
	})
	shown.finish()
	if err != nil {
		return err
	}
	if err := out.Close(tally); err != nil {
		return err
	}
	if all.readError != nil && *all.readError != nil {
		return *all.readError // what was read until then is in the report
	}
	if tally.FailedIncidents > 0 {
		return errReported
	}
	return nil
}

// recordingsPerProcess is how many recordings of a corpus one process simulates.
const recordingsPerProcess = 500

// newSimulationSubprocess is this program again, with the same playbooks and answers, for a share of a corpus.
func newSimulationSubprocess(ctx context.Context) *exec.Cmd {
	program, err := os.Executable()
	if err != nil {
		program = os.Args[0]
	}
	c := exec.CommandContext(ctx, program, append(slices.Clone(os.Args[1:]), "--subprocess")...)
	// One processor each: one incident at a time has nothing to gain from more, and pays for waking them.
	c.Env, c.Stderr = append(os.Environ(), "GOMAXPROCS=1"), os.Stderr
	return c
}

// newSimulators are that of the playbooks and, with --baseline, that of the others.
func (g *globalFlags) newSimulators(o simulateOptions) (now, base *simulate.Simulator, err error) {
	if o.playbooksPath == "" || o.incidentPath == "" {
		return nil, nil, usageError{errors.New("name the playbooks and the recordings: --playbooks PATH --incident FILE|DIR")}
	}
	if o.phase < 0 || o.phase > 3 {
		return nil, nil, usageError{fmt.Errorf("the phase %d is none: 1 observes, 2 contains, 3 disrupts behind approval", o.phase)}
	}
	options := simulate.Options{Catalog: worker.ActionCatalog(), Phase: o.phase}
	if g.configFile != "" {
		if options.Config, err = g.loadConfig(); err != nil {
			return nil, nil, err
		}
	}
	if options.ApprovalAnswers, err = parseAnswers(o.approvalPolicy); err != nil {
		return nil, nil, err
	}
	of := func(path string) (*simulate.Simulator, error) {
		programs, err := loadWithLibrary(path)
		if err == nil && o.library {
			programs, err = g.loadWithConfig(path)
		}
		if err != nil {
			return nil, err
		}
		with := options
		with.NewMatchFunc = func(a activities.Authority) simulate.MatchFunc {
			return worker.NewFixedLibrary(a, programs...).MatchPlaybooks
		}
		with.NewRequestMatcher = func(a activities.Authority) simulate.ManualRequestMatcher {
			return worker.NewFixedLibrary(a, programs...)
		}
		return simulate.NewSimulator(with)
	}
	if now, err = of(o.playbooksPath); err != nil || o.baselinePath == "" {
		return now, nil, err
	}
	base, err = of(o.baselinePath)
	return now, base, err
}

func parseAnswers(approve string) (simulate.ApprovalAnswers, error) {
	switch approve {
	case "":
		return simulate.ApprovalAnswers{}, nil
	case "all":
		return simulate.ApprovalAnswers{ApproveAll: true}, nil
	case "none":
		return simulate.ApprovalAnswers{NoAnswers: true}, nil
	}
	raw, err := os.ReadFile(approve)
	if err != nil {
		return simulate.ApprovalAnswers{}, usageError{fmt.Errorf("--approve is all, none, or a file: %w", err)}
	}
	return simulate.ParseAnswers(approve, raw)
}

// loadWithConfig loads the playbooks of a path with all that the configuration uses beside them, as a worker does.
func (g *globalFlags) loadWithConfig(path string) ([]*playbooks.Program, error) {
	c, err := g.loadConfig()
	if err != nil {
		return nil, err
	}
	files, err := findYAMLFiles([]string{path})
	if err != nil {
		return nil, err
	}
	sources := map[string][]byte{}
	for _, file := range files {
		if sources[file], err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("read a playbook: %w", err)
		}
	}
	programs, _, err := worker.LoadWithLibrary(c, toSources(files, sources), worker.ActionCatalog())
	return programs, err //nolint:wrapcheck // it names the folder
}

// loadWithLibrary checks playbooks, which may call each other and the library's; one that is not valid ends it, with what is
// wrong.
func loadWithLibrary(path string) ([]*playbooks.Program, error) {
	files, err := findYAMLFiles([]string{path})
	if err != nil {
		return nil, err
	}
	sources := map[string][]byte{}
	for _, file := range files {
		if sources[file], err = os.ReadFile(file); err != nil {
			return nil, fmt.Errorf("read a playbook: %w", err)
		}
	}
	if problems := validateFiles(files, sources); problems.HasErrors() {
		for _, p := range problems {
			if p.Severity == "error" {
				fmt.Fprintln(os.Stderr, escapeLines(p.Render(sources[p.File])))
			}
		}
		return nil, fmt.Errorf("%s is not valid", path)
	}
	programs, _ := loadValidated(files, sources)
	return slices.DeleteFunc(programs, func(p *playbooks.Program) bool { return sources[p.File] == nil }), nil
}
