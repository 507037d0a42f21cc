package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors/diagnostic"
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
