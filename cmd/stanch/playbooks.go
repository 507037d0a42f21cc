package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/worker/actions"
	"stanch/worker/playbookstore"
	"stanch/workflows/incident"
)

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
			if reachable := g.hasRunningStanch(); running && !file && reachable {
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
