package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/sensors/diagnostic"
	"stanch/worker/actions"
	"stanch/worker/playbookstore"
)

func validateCommand(g *globalFlags) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "validate PATH…", Short: "Check playbooks for errors", Args: validateArgs(cobra.MinimumNArgs(1)),
		Long: `Check the syntax, names, types, control flow and safety of playbooks while you write them and in
your CI. All problems are reported at once, with their positions. Warnings for a file are
reported only once it has no errors.

With --config also check that the approvers exist, and which playbooks can match the same
incident: only the first of the playbooks with containment steps runs; a warning says
which one.`,
		Example: `  stanch validate playbooks/
  stanch validate playbooks/cryptominer.yaml -o json
  stanch validate playbooks/ --config stanch.yaml`,
		RunE: func(cmd *cobra.Command, paths []string) error {
			files, err := findYAMLFiles(paths)
			if err != nil {
				return err
			}
			sources := map[string][]byte{}
			for _, file := range files {
				if sources[file], err = os.ReadFile(file); err != nil {
					return fmt.Errorf("read a playbook: %w", err)
				}
			}
			all := validateFiles(files, sources)
			if g.configFile != "" {
				more, err := g.validateWithConfig(files, sources)
				if err != nil {
					return err
				}
				all = append(all, more...)
			}
			if output == "text" {
				for _, p := range all {
					fmt.Fprintln(cmd.OutOrStdout(), escapeLines(p.Render(sources[p.File])))
				}
			}
			if output == "json" {
				if err := printJSON(cmd.OutOrStdout(), all); err != nil {
					return err
				}
			}
			if all.HasErrors() {
				return errReported
			}
			if output == "text" {
				fmt.Fprintln(cmd.OutOrStdout(), formatCount(len(files), "playbook is valid", "playbooks are valid"))
			}
			return nil
		},
	}
	addOutputFlag(c, &output)
	return c
}

// validateFiles returns the problems of files, which may call each other and playbooks of the library. A file may
// replace a playbook of the library by its name; two files with the same name are an error.
func validateFiles(files []string, sources map[string][]byte) diagnostic.Diagnostics {
	var own []playbooks.SourceFile
	names := map[string]string{}
	all := diagnostic.Diagnostics{}
	for _, file := range files {
		own = append(own, playbooks.SourceFile{File: file, Content: sources[file]})
		book, _ := playbooks.ParsePlaybook(file, sources[file])
		if first, twice := names[book.Name]; twice && book.Name != "" {
			all = append(all, diagnostic.Diagnostic{
				File: file, Line: max(book.NamePos.Line, 1), Column: max(book.NamePos.Column, 1), Severity: "error",
				Code:    "duplicate-name",
				Message: fmt.Sprintf("duplicate playbook `%s`: already defined in %s", book.Name, first),
				Hint:    "choose another name",
			})
			continue
		}
		names[book.Name] = file
	}
	_, problems := playbooks.LoadPlaybooks(append(library.PlaybookSources(), own...), actions.Catalog())
	for _, p := range problems {
		if sources[p.File] != nil {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b diagnostic.Diagnostic) int {
		return cmp.Or(cmp.Compare(slices.Index(files, a.File), slices.Index(files, b.File)), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column))
	})
	return all
}

// validateWithConfig returns problems of playbooks with the configuration: unknown approvers, and overlaps with other
// playbooks.
func (g *globalFlags) validateWithConfig(files []string, sources map[string][]byte) (diagnostic.Diagnostics, error) {
	c, err := g.loadConfig()
	if err != nil {
		return nil, err
	}
	beside, problems, err := playbookstore.LoadWithLibrary(c, toSources(files, sources), actions.Catalog())
	if err != nil {
		return nil, fmt.Errorf("load the playbooks of %s: %w", g.configFile, err)
	}
	out := g.findUnknownApprovers(c, files, sources)
	for _, p := range problems {
		if p.File == "" { // a problem of the configuration
			p.File, p.Line, p.Column = g.configFile, 1, 1
			out = append(out, p)
		}
	}
	return append(out, findOverlaps(beside, sources)...), nil
}

// findOverlaps returns a warning for every two playbooks that can match the same incident and both contain, if one of
// them is among the files.
func findOverlaps(programs []*playbooks.Program, sources map[string][]byte) diagnostic.Diagnostics {
	var out diagnostic.Diagnostics
	for _, o := range playbooks.FindOverlaps(programs) {
		mine, other, hint := o.First, o.Second, "set a different `priority` to change the order"
		if sources[mine.File] == nil {
			mine, other = o.Second, o.First
		}
		if sources[mine.File] == nil {
			continue
		}
		if other.Shipped {
			hint = fmt.Sprintf("use `replaces: %s` or `library: {except: [%s]}` to disable the shipped playbook",
				other.Name, other.Name)
		}
		out = append(out, diagnostic.Diagnostic{
			File: mine.File, Line: max(mine.NamePos.Line, 1), Column: max(mine.NamePos.Column, 1), Severity: "warning",
			Code: "overlap", Hint: hint,
			Message: fmt.Sprintf("`%s` and %s `%s` can match the same incident and both include containments: `%s` runs (%s), "+
				"and the other only if that one is refused or fails",
				mine.Name, ownerLabel(other), other.Name, o.First.Name, o.Reason),
		})
	}
	return out
}

// ownerLabel returns "the shipped" or "your".
func ownerLabel(p *playbooks.Program) string {
	if p.Shipped {
		return "the shipped"
	}
	return "your"
}
