package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/diagnostic"
	"stanch/worker"
	"stanch/workflows/incident"
)

func explainCommand() *cobra.Command {
	var output string
	var source bool
	c := &cobra.Command{
		Use: "explain FILE|NAME", Short: "Say in plain words what a playbook does, phase by phase", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Say in plain words what a playbook does, step by step, and what becomes of each step in each phase:

  runs       it is done
  runs/asks  it is done where the incident's confidence is high (0.80, unless the scope says otherwise), else the
             scope's approvers are asked; a scope without approvers says no
  asks       people are asked first
  proposed   it is planned and recorded, and not done`,
		Example: "  stanch explain mine.yaml\n  stanch explain cryptominer            # one of the library\n  stanch explain cryptominer --source   # the file itself, to begin with",
		RunE: func(cmd *cobra.Command, paths []string) error {
			p, err := loadPlaybook(paths[0])
			if err != nil {
				return err
			}
			if source {
				_, err := cmd.OutOrStdout().Write(p.SourceText)
				return err //nolint:wrapcheck // nothing to add
			}
			e := playbooks.Explain(p)
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), e)
			}
			return printExplanation(cmd.OutOrStdout(), e)
		},
	}
	c.Flags().BoolVar(&source, "source", false, "print the playbook itself")
	addOutputFlag(c, &output)
	return c
}

// loadPlaybook checks one playbook; it may call those beside it and the library's. A name that is no file is one of the
// library's.
func loadPlaybook(file string) (*playbooks.Program, error) {
	source, err := os.ReadFile(file)
	if err != nil {
		var known []string
		shipped, _ := loadValidated(nil, nil)
		for _, p := range shipped {
			if known = append(known, p.Name); p.Name == file || p.File == file {
				return p, nil
			}
		}
		hint := diagnostic.DidYouMean(file, known)
		if hint == "" {
			hint = "name a file of yours, or a shipped playbook (`stanch playbooks` lists them)"
		}
		return nil, fmt.Errorf("no such playbook: %s; %s", file, hint)
	}
	beside, err := findYAMLFiles([]string{filepath.Dir(file)})
	if err != nil {
		return nil, err
	}
	files := []string{}
	sources := map[string][]byte{file: source}
	for _, f := range beside {
		if filepath.Clean(f) == filepath.Clean(file) {
			continue
		}
		if raw, err := os.ReadFile(f); err == nil {
			files, sources[f] = append(files, f), raw
		}
	}
	programs, problems := loadValidated(append(files, file), sources)
	for _, p := range problems {
		if p.File == file && p.Severity == "error" {
			fmt.Fprintln(os.Stderr, escapeLines(p.Render(source)))
		}
	}
	for _, p := range programs {
		if p.File == file {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%s is not valid", file)
}

func printExplanation(out io.Writer, e playbooks.Explanation) error {
	fmt.Fprintf(out, "%s (%s)\n", e.Playbook, e.File)
	if e.Description != "" {
		fmt.Fprintf(out, "%s\n", escapeForTerminal(e.Description))
	}
	if e.Guide != "" {
		fmt.Fprintf(out, "\n%s\n", escapeLines(e.Guide))
	}
	fmt.Fprintf(out, "\nHandles %s.\n", escapeForTerminal(e.MatchSummary))
	for _, in := range e.Inputs {
		fmt.Fprintf(out, "Takes   %s\n", escapeForTerminal(in))
	}
	for _, o := range e.Outputs {
		fmt.Fprintf(out, "Gives   %s\n", escapeForTerminal(o))
	}
	if e.MaxPhase < 3 {
		fmt.Fprintf(out, "It never goes beyond phase %d.\n", e.MaxPhase)
	}
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "PHASE 1\tPHASE 2\tPHASE 3\tWHAT")
	for _, l := range e.Lines {
		phases := "\t\t"
		if len(l.PhaseBehaviors) > 0 {
			phases = strings.Join(l.PhaseBehaviors, "\t")
		}
		fmt.Fprintf(t, "%s\t%s%s\n", phases, strings.Repeat("  ", l.Depth), escapeForTerminal(l.Text))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func playbooksCommand(g *globalFlags) *cobra.Command {
	var output string
	var folders []string
	c := &cobra.Command{
		Use: "playbooks [INCIDENT|FILE]", Short: "List the playbooks; of an incident, which would start, and why or why not", Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `List the playbooks that the running Stanch uses; where none runs, or with --config or --playbooks, those that it
would use: the library's, and those of the configuration's folders.

Given the id of an incident, or a file with one (a recording, or an incident as ` + "`stanch incidents ID -o json`" + ` prints it),
say of each whether it ran or would start, and why or why not.`,
		Example: "  stanch playbooks\n  stanch playbooks --data /srv/stanch            # those of the Stanch that runs there\n  stanch playbooks INC-01JABC…\n  stanch playbooks recording.json --playbooks ./mine",
		RunE: func(cmd *cobra.Command, given []string) error {
			running := g.configFile == "" && len(folders) == 0
			if file := len(given) == 1 && isFile(given[0]); running && !file && (g.remoteServer.address != "" || fileExists(g.socketPath())) {
				return g.printRunningPlaybooks(cmd, given, output)
			} else if running && (file || cmd.Flags().Changed("data")) {
				fmt.Fprintln(cmd.ErrOrStderr(), "these are the playbooks of the defaults, and not those of a Stanch that runs; name its configuration with --config")
			}
			config, err := g.loadConfig()
			if err != nil {
				return err
			}
			config.Playbooks = append(config.Playbooks, folders...)
			library, problems, err := worker.LoadLibrary(config, worker.ActionCatalog())
			if err != nil {
				return fmt.Errorf("load the playbooks: %w", err)
			}
			for _, p := range problems {
				if p.Severity == "error" {
					fmt.Fprintln(os.Stderr, escapeForTerminal(p.String()))
				}
			}
			var in *playbooks.Incident
			if len(given) == 1 {
				if in, err = g.loadIncident(cmd, given[0]); err != nil {
					return err
				}
			}
			rows := worker.ListPlaybooks(library.Programs(), in)
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), rows)
			} else {
				err = printPlaybooks(cmd.OutOrStdout(), rows, in)
			}
			if err == nil && problems.HasErrors() {
				return fmt.Errorf("some playbooks are not valid and are not listed: `stanch validate` says why")
			}
			return err
		},
	}
	c.Flags().StringSliceVar(&folders, "playbooks", nil, "a folder of playbooks besides those of the configuration")
	addOutputFlag(c, &output)
	return c
}

// isFile reports whether an argument is a file and not the id of an incident.
func isFile(s string) bool {
	_, err := os.Stat(s)
	return err == nil || strings.ContainsAny(s, "./")
}

// printRunningPlaybooks shows the playbooks of the Stanch that runs.
func (g *globalFlags) printRunningPlaybooks(cmd *cobra.Command, given []string, output string) error {
	var rows []worker.PlaybookListEntry
	var in *playbooks.Incident
	path := "/v1/playbooks"
	if len(given) == 1 {
		path += "?incident=" + url.QueryEscape(given[0])
		in = &playbooks.Incident{ID: given[0]}
	}
	if err := g.newAPIClient().get(cmd.Context(), path, &rows); err != nil {
		return err
	}
	if output == "json" {
		return printJSON(cmd.OutOrStdout(), rows)
	}
	return printPlaybooks(cmd.OutOrStdout(), rows, in)
}

// loadIncident reads an incident: from a file, or from the Stanch that runs.
func (g *globalFlags) loadIncident(cmd *cobra.Command, what string) (*playbooks.Incident, error) {
	var in playbooks.Incident
	raw, err := readBounded(what, 64<<20)
	if err != nil {
		if strings.ContainsAny(what, "./") {
			return nil, fmt.Errorf("read the incident: %w", err)
		}
		err = g.newAPIClient().get(cmd.Context(), "/v1/incidents/"+what, &in)
		return &in, err
	}
	if rec, err := recording.Decode(raw); err == nil {
		recorded := incidentOfRecording(rec)
		return &recorded, nil
	}
	if err := json.Unmarshal(raw, &in); err != nil || in.ID == "" {
		return nil, fmt.Errorf("%s is neither a recording (`stanch record ID`) nor an incident (`stanch incidents ID -o json`)", what)
	}
	return &in, nil
}

// incidentOfRecording is the incident of a recording, as far as its detections tell: what enrichment found is not in it.
func incidentOfRecording(rec recording.Recording) playbooks.Incident {
	in := playbooks.Incident{
		ID: rec.Incident.ID, GroupingKey: rec.Incident.GroupingKey, Cluster: rec.Incident.Cluster, Scope: rec.Incident.Scope, Phase: rec.Incident.Phase, Drill: rec.Incident.Drill, Opened: rec.Incident.Opened,
	}
	var signals []playbooks.CorrelationInput
	for i, d := range rec.Detections {
		if i == 0 {
			in.Trigger, in.Workload = d.Detection, incident.WorkloadOfDetection(d.Detection)
		}
		in.TotalDetections++
		signals = append(signals, playbooks.CorrelationInput{Rule: d.Detection.Rule, Objective: d.Detection.Objective, Confidence: d.Detection.Confidence, Severity: d.Detection.Severity})
		if target := incident.TargetOfDetection(d.Detection); !slices.Contains(in.Targets, target) {
			in.Targets = append(in.Targets, target)
		}
	}
	for _, p := range rec.Playbooks {
		in.Playbooks = append(in.Playbooks, playbooks.PlaybookRun{Playbook: p.Name, WorkflowID: p.WorkflowID})
	}
	verdict := playbooks.Correlate(signals)
	in.Objective, in.Severity, in.Confidence, in.Reasons = verdict.Objective, verdict.Severity, verdict.Confidence, verdict.Reasons
	return in
}

func printPlaybooks(out io.Writer, rows []worker.PlaybookListEntry, in *playbooks.Incident) error {
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	if in == nil {
		fmt.Fprintln(t, "PLAYBOOK\tPRIORITY\tFILE\tHANDLES")
	} else {
		fmt.Fprintln(t, "PLAYBOOK\tSTARTS\tWHY")
	}
	for _, r := range rows {
		if in == nil {
			handles := []rune(escapeForTerminal(r.MatchSummary))
			if len(handles) > 110 {
				handles = append(handles[:109], '…') // whole: stanch explain NAME
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", escapeForTerminal(r.Playbook), r.Priority, escapeForTerminal(r.File), string(handles))
			continue
		}
		starts := "no"
		switch {
		case r.HasRun:
			starts = "ran"
		case *r.WouldStart:
			starts = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", r.Playbook, starts, escapeForTerminal(r.Reason))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
