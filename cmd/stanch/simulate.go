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
	"stanch/worker/actions"
	"stanch/worker/playbookstore"
	"stanch/worker/simulate"
)

// simulateOptions holds the flags of `stanch simulate`.
type simulateOptions struct {
	playbooksPath  string
	incidentPath   string
	baselinePath   string
	approvalPolicy string
	phase          int
	fullTimelines  bool
	output         string
	library        bool
	isSubprocess   bool // set by a parent process of the same simulation
}

func simulateCommand(g *globalFlags) *cobra.Command {
	o := simulateOptions{}
	c := &cobra.Command{
		Use:   "simulate --playbooks PATH --incident FILE|DIR",
		Short: "Show what playbooks would do for recorded incidents", Args: validateArgs(cobra.NoArgs),
		Long: `Run recorded incidents through the production workflow code with time skipped, before you
deploy a playbook or raise a phase. It shows what would run, need approval, be proposed, or
be refused, and when. Nothing is changed: the recording provides the results of actions. A
result that is not in the recording is assumed from the action's specification and marked as
assumed. Actions take no time in a simulation; waits do.

--incident is a recording, a directory searched recursively, or a .jsonl file with one recording per
line. A recording that cannot be read is reported and skipped; the exit code is then 1.

People answer as recorded. With --approve they approve everything, do not answer, or answer as a file
specifies:
  answers:
    - { person: alice, answer: yes, after: 2m, to: "stop the workload" }

With --baseline compare two versions of the playbooks. Only the given playbooks are selected;
--library adds those of the configuration, to see which of them would run.`,
		Example: `  stanch simulate --playbooks playbooks/ --incident recordings/ --phase 2
  stanch simulate --playbooks new/ --baseline old/ --incident recordings/ -o html > diff.html
  stanch simulate --playbooks playbooks/ --incident recordings/miner.json --approve all`,
		RunE: func(cmd *cobra.Command, _ []string) error { return g.runSimulation(cmd, o) },
	}
	f := c.Flags()
	f.StringVar(&o.playbooksPath, "playbooks", "", "the `PATH` of the playbooks, a file or a directory (required)")
	f.StringVar(&o.incidentPath, "incident", "",
		"the `PATH` of a recording of stanch record, a directory of recordings, or a .jsonl file with one per line "+
			"(required)")
	f.StringVar(&o.baselinePath, "baseline", "", "the `PATH` of other playbooks to compare with")
	f.BoolVar(&o.library, "library", false,
		"also select the playbooks of the configuration, as a running Stanch instance does: the shipped playbooks and those in its directories")
	f.StringVar(&o.approvalPolicy, "approve", "",
		"how people answer, `ANSWERS`: all, none, or a file (default: as recorded)")
	f.IntVar(&o.phase, "phase", 0, "the phase of every incident: 1, 2 or 3 (default: as configured, else as recorded)")
	f.BoolVar(&o.fullTimelines, "full", false,
		"in text output, print the timeline of every incident instead of one line each")
	f.BoolVar(&o.isSubprocess, "subprocess", false,
		"simulate the recordings that a parent process writes to standard input")
	_ = f.MarkHidden("subprocess")
	addFormatFlag(c, &o.output, "text", "json", "html")
	return c
}

// runSimulation simulates every recording and writes the report. It returns errReported if a recording failed.
func (g *globalFlags) runSimulation(cmd *cobra.Command, o simulateOptions) error {
	now, base, err := g.newSimulators(o)
	if err != nil {
		return err
	}
	// Finished simulations are garbage. Collecting it rarely is faster, within a memory limit.
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
	err = simulate.Each(cmd.Context(), all.entries, runner, func(one simulate.RecordingOutcome) error {
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
		return *all.readError // the report has the recordings before the error
	}
	if tally.FailedIncidents > 0 {
		return errReported
	}
	return nil
}

// recordingsPerProcess is the number of recordings that one subprocess simulates before it is replaced.
const recordingsPerProcess = 500

// newSimulationSubprocess returns a command that runs this program with the same flags, for a part of the recordings.
func newSimulationSubprocess(ctx context.Context) *exec.Cmd {
	program, err := os.Executable()
	if err != nil {
		program = os.Args[0]
	}
	c := exec.CommandContext(ctx, program, append(slices.Clone(os.Args[1:]), "--subprocess")...)
	// One processor each: simulating one incident at a time gains nothing from more.
	c.Env, c.Stderr = append(os.Environ(), "GOMAXPROCS=1"), os.Stderr
	return c
}

// newSimulators returns the simulator of --playbooks and the one of --baseline, which is nil without that flag.
func (g *globalFlags) newSimulators(o simulateOptions) (now, base *simulate.Simulator, err error) {
	if o.playbooksPath == "" || o.incidentPath == "" {
		return nil, nil, usageError{errors.New("--playbooks and --incident are required")}
	}
	if o.phase < 0 || o.phase > 3 {
		return nil, nil, usageError{fmt.Errorf("invalid --phase %d; use 1, 2 or 3", o.phase)}
	}
	options := simulate.Options{Catalog: actions.Catalog(), Phase: o.phase}
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
			return playbookstore.NewFixed(a, programs...).MatchPlaybooks
		}
		with.NewRequestMatcher = func(a activities.Authority) simulate.ManualRequestMatcher {
			return playbookstore.NewFixed(a, programs...)
		}
		return simulate.NewSimulator(with)
	}
	if now, err = of(o.playbooksPath); err != nil || o.baselinePath == "" {
		return now, nil, err
	}
	base, err = of(o.baselinePath)
	return now, base, err
}

// parseAnswers parses the value of --approve.
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
		return simulate.ApprovalAnswers{}, usageError{fmt.Errorf("invalid --approve: %w; use all, none or a file", err)}
	}
	return simulate.ParseAnswers(approve, raw)
}

// loadWithConfig loads the playbooks of a path together with those of the configuration, as a worker does.
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
	programs, _, err := playbookstore.LoadWithLibrary(c, toSources(files, sources), actions.Catalog())
	return programs, err //nolint:wrapcheck // it names the directory
}

// loadWithLibrary loads the playbooks of a path, which may call each other and those of the library. If one is
// invalid it prints the errors and returns an error.
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
		return nil, fmt.Errorf("load %s: invalid playbook", path)
	}
	programs, _ := loadValidated(files, sources)
	return slices.DeleteFunc(programs, func(p *playbooks.Program) bool { return sources[p.File] == nil }), nil
}
