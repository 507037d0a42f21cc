package main

import (
	"encoding/json"
	"errors"
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
	"stanch/worker/actions"
	"stanch/worker/playbookstore"
	"stanch/workflows/incident"
)

func explainCommand() *cobra.Command {
	var output string
	var source bool
	c := &cobra.Command{
		Use: "explain FILE|NAME", Short: "Describe what a playbook does in each phase",
		Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Describe what a playbook does, step by step, before you enable it or raise a phase. For each
phase it shows whether a step:

  runs       runs without approval
  runs/asks  runs if the incident's confidence is high (0.80, unless the scope sets another
             threshold); otherwise it needs approval from the scope's approvers, and without
             approvers it is denied
  asks       needs approval first
  proposed   is planned and recorded, and does not run`,
		Example: `  stanch explain mine.yaml
  stanch explain cryptominer            # a shipped playbook
  stanch explain cryptominer --source   # its source, as a starting point`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			p, err := loadPlaybook(paths[0])
			if err != nil {
				return err
			}
			if source {
				_, err := cmd.OutOrStdout().Write(p.SourceText)
				return err //nolint:wrapcheck // an error of standard output
			}
			e := playbooks.Explain(p)
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), e)
			}
			return printExplanation(cmd.OutOrStdout(), e)
		},
	}
	c.Flags().BoolVar(&source, "source", false, "print the source of the playbook")
	addOutputFlag(c, &output)
	return c
}

// loadPlaybook loads a playbook by its file or, if no such file exists, by its name in the library. A file may call
// playbooks of its directory and of the library. Problems of an invalid file are printed to standard error.
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
			hint = "use a file or the name of a shipped playbook (`stanch playbooks` lists them)"
		}
		return nil, fmt.Errorf("unknown playbook %q; %s", file, hint)
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
	return nil, fmt.Errorf("load %s: invalid playbook", file)
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
		fmt.Fprintf(out, "Input   %s\n", escapeForTerminal(in))
	}
	for _, o := range e.Outputs {
		fmt.Fprintf(out, "Output  %s\n", escapeForTerminal(o))
	}
	if e.MaxPhase < 3 {
		fmt.Fprintf(out, "Its steps never exceed phase %d.\n", e.MaxPhase)
	}
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "PHASE 1\tPHASE 2\tPHASE 3\tSTEP")
	for _, l := range e.Lines {
		phases := "\t\t"
		if len(l.PhaseBehaviors) > 0 {
			phases = strings.Join(l.PhaseBehaviors, "\t")
		}
		fmt.Fprintf(t, "%s\t%s%s\n", phases, strings.Repeat("  ", l.Depth), escapeForTerminal(l.Text))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the explanation: %w", err)
	}
	return nil
}

func playbooksCommand(g *globalFlags) *cobra.Command {
	var output string
	var folders []string
	c := &cobra.Command{
		Use: "playbooks [INCIDENT|FILE]", Short: "List playbooks, or explain which would start for an incident",
		Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `List the playbooks of the running Stanch instance. If Stanch is not running, or with --config
or --playbooks, list the playbooks that it would load: the library, and the directories of the
configuration.

Given an incident, show for each playbook whether it ran or would start, and why. The incident
is an id, or a file with a recording or with the output of ` + "`stanch incidents ID -o json`" + `. Use
it when the expected playbook did not start.`,
		Example: `  stanch playbooks
  stanch playbooks --data /srv/stanch            # the playbooks of another Stanch instance
  stanch playbooks INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch playbooks recording.json --playbooks ./mine`,
		RunE: func(cmd *cobra.Command, args []string) error {
			running := g.configFile == "" && len(folders) == 0
			file := len(args) == 1 && isFile(args[0])
			if reachable := g.remoteServer.address != "" || fileExists(g.socketPath()); running && !file && reachable {
				return g.printRunningPlaybooks(cmd, args, output)
			} else if running && (file || cmd.Flags().Changed("data")) {
				fmt.Fprintln(cmd.ErrOrStderr(),
					"showing the playbooks of the default configuration, not those of a running Stanch instance; set --config to "+
						"use another")
			}
			config, err := g.loadConfig()
			if err != nil {
				return err
			}
			config.Playbooks = append(config.Playbooks, folders...)
			library, problems, err := playbookstore.Open(config, actions.Catalog())
			if err != nil {
				return fmt.Errorf("load the playbooks: %w", err)
			}
			for _, p := range problems {
				if p.Severity == "error" {
					fmt.Fprintln(os.Stderr, escapeForTerminal(p.String()))
				}
			}
			var in *playbooks.Incident
			if len(args) == 1 {
				if in, err = g.loadIncident(cmd, args[0]); err != nil {
					return err
				}
			}
			rows := playbookstore.List(library.Programs(), in)
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), rows)
			} else {
				err = printPlaybooks(cmd.OutOrStdout(), rows, in)
			}
			if err == nil && problems.HasErrors() {
				return errors.New("load the playbooks: invalid playbooks are not listed; `stanch validate` shows " +
					"their errors")
			}
			return err
		},
	}
	c.Flags().StringSliceVar(&folders, "playbooks", nil,
		"a `DIR` with playbooks, in addition to those of the configuration")
	addOutputFlag(c, &output)
	return c
}

// isFile reports whether an argument is a file, rather than the id of an incident.
func isFile(s string) bool {
	_, err := os.Stat(s)
	return err == nil || strings.ContainsAny(s, "./")
}

// printRunningPlaybooks prints the playbooks of the running Stanch.
func (g *globalFlags) printRunningPlaybooks(cmd *cobra.Command, ids []string, output string) error {
	var rows []playbookstore.ListEntry
	var in *playbooks.Incident
	path := "/v1/playbooks"
	if len(ids) == 1 {
		path += "?incident=" + url.QueryEscape(ids[0])
		in = &playbooks.Incident{ID: ids[0]}
	}
	if err := g.newAPIClient().get(cmd.Context(), path, &rows); err != nil {
		return err
	}
	if output == "json" {
		return printJSON(cmd.OutOrStdout(), rows)
	}
	return printPlaybooks(cmd.OutOrStdout(), rows, in)
}

// loadIncident reads an incident from a file or, by its id, from the running Stanch.
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
		return nil, fmt.Errorf("read %s: invalid incident; use the output of `stanch record ID` or `stanch "+
			"incidents ID -o json`", what)
	}
	return &in, nil
}

// incidentOfRecording returns the incident of a recording, reconstructed from its detections. It has no enrichment.
func incidentOfRecording(rec recording.Recording) playbooks.Incident {
	in := playbooks.Incident{
		ID: rec.Incident.ID, GroupingKey: rec.Incident.GroupingKey, Cluster: rec.Incident.Cluster, Scope: rec.Incident.Scope,
		Phase: rec.Incident.Phase, Drill: rec.Incident.Drill, Opened: rec.Incident.Opened,
	}
	var signals []playbooks.CorrelationInput
	for i, d := range rec.Detections {
		if i == 0 {
			in.Trigger, in.Workload = d.Detection, incident.WorkloadOfDetection(d.Detection)
		}
		in.TotalDetections++
		signals = append(signals, playbooks.CorrelationInput{
			Rule: d.Detection.Rule, Objective: d.Detection.Objective,
			Confidence: d.Detection.Confidence, Severity: d.Detection.Severity,
		})
		if target := incident.TargetOfDetection(d.Detection); !slices.Contains(in.Targets, target) {
			in.Targets = append(in.Targets, target)
		}
	}
	for _, p := range rec.Playbooks {
		in.Playbooks = append(in.Playbooks, playbooks.PlaybookRun{Playbook: p.Name, WorkflowID: p.WorkflowID})
	}
	verdict := playbooks.Correlate(signals)
	in.Objective, in.Severity, in.Confidence, in.Reasons = verdict.Objective, verdict.Severity, verdict.Confidence,
		verdict.Reasons
	return in
}

func printPlaybooks(out io.Writer, rows []playbookstore.ListEntry, in *playbooks.Incident) error {
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
				handles = append(handles[:109], '…') // stanch explain NAME prints the complete text
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", escapeForTerminal(r.Playbook), r.Priority, escapeForTerminal(r.File),
				string(handles))
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
		return fmt.Errorf("write the explanation: %w", err)
	}
	return nil
}
