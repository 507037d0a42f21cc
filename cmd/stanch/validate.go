package main

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/library"
	"stanch/sensors/diagnostic"
	"stanch/worker"
	"stanch/worker/config"
)

func validateCommand(g *globalFlags) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "validate PATH…", Short: "Check playbooks: names, types, safety; every problem at once", Args: validateArgs(cobra.MinimumNArgs(1)),
		Long: `Check playbooks: syntax, names, types, flow and safety; every problem at once, with its place. Warnings (what is
legal and unwise) of a file come once it has no errors. With --config also whether the people and groups that are asked exist,
and which playbooks may match the same incident: of those that contain only the first runs, and the warning says which.`,
		Example: "  stanch validate playbooks/\n  stanch validate cryptominer.yaml -o json\n  stanch validate playbooks/ --config stanch.yaml",
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
				text := "1 playbook is valid"
				if len(files) > 1 {
					text = fmt.Sprintf("%d playbooks are valid", len(files))
				}
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return nil
		},
	}
	addOutputFlag(c, &output)
	return c
}

// validateFiles checks files that may call each other and the library's playbooks. A playbook of theirs takes the place of one
// of the library of its name; two of theirs with one name are a mistake.
func validateFiles(files []string, sources map[string][]byte) diagnostic.Diagnostics {
	var given []playbooks.SourceFile
	names := map[string]string{}
	all := diagnostic.Diagnostics{}
	for _, file := range files {
		given = append(given, playbooks.SourceFile{File: file, Content: sources[file]})
		book, _ := playbooks.ParsePlaybook(file, sources[file])
		if first, twice := names[book.Name]; twice && book.Name != "" {
			all = append(all, diagnostic.Diagnostic{
				File: file, Line: max(book.NamePos.Line, 1), Column: max(book.NamePos.Column, 1), Severity: "error", Code: "duplicate-name",
				Message: fmt.Sprintf("the playbook `%s` stands in %s already", book.Name, first), Hint: "choose another name",
			})
			continue
		}
		names[book.Name] = file
	}
	_, problems := playbooks.LoadPlaybooks(append(library.PlaybookSources(), given...), worker.ActionCatalog())
	for _, p := range problems {
		if sources[p.File] != nil {
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b diagnostic.Diagnostic) int {
		return cmp.Or(cmp.Compare(slices.Index(files, a.File), slices.Index(files, b.File)), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return all
}

// validateWithConfig checks playbooks as the configuration would use them: whom they ask, and which of them run together.
func (g *globalFlags) validateWithConfig(files []string, sources map[string][]byte) (diagnostic.Diagnostics, error) {
	c, err := g.loadConfig()
	if err != nil {
		return nil, err
	}
	beside, problems, err := worker.LoadWithLibrary(c, toSources(files, sources), worker.ActionCatalog())
	if err != nil {
		return nil, fmt.Errorf("load the playbooks of %s: %w", g.configFile, err)
	}
	out := g.findUnknownApprovers(c, files, sources)
	for _, p := range problems {
		if p.File == "" { // the configuration's own
			p.File, p.Line, p.Column = g.configFile, 1, 1
			out = append(out, p)
		}
	}
	return append(out, findOverlaps(beside, sources)...), nil
}

func toSources(files []string, sources map[string][]byte) []playbooks.SourceFile {
	var out []playbooks.SourceFile
	for _, file := range files {
		out = append(out, playbooks.SourceFile{File: file, Content: sources[file]})
	}
	return out
}

// findOverlaps warns of playbooks that may match the same incident and both contain, one of them among the files.
func findOverlaps(programs []*playbooks.Program, sources map[string][]byte) diagnostic.Diagnostics {
	var out diagnostic.Diagnostics
	for _, o := range playbooks.FindOverlaps(programs) {
		mine, other, hint := o.First, o.Second, "give one of them another `priority` if the order is not what you want"
		if sources[mine.File] == nil {
			mine, other = o.Second, o.First
		}
		if sources[mine.File] == nil {
			continue
		}
		if other.Shipped {
			hint = fmt.Sprintf("`replaces: %s` or `library: {except: [%s]}` keeps the shipped one from ever starting", other.Name, other.Name)
		}
		out = append(out, diagnostic.Diagnostic{
			File: mine.File, Line: max(mine.NamePos.Line, 1), Column: max(mine.NamePos.Column, 1), Severity: "warning", Code: "overlap", Hint: hint,
			Message: fmt.Sprintf("`%s` and %s `%s` may match the same incident and both contain: `%s` runs (%s), and the other only if it is refused or fails",
				mine.Name, ownerLabel(other), other.Name, o.First.Name, o.Reason),
		})
	}
	return out
}

func ownerLabel(p *playbooks.Program) string {
	if p.Shipped {
		return "the shipped"
	}
	return "your"
}

// findUnknownApprovers names the groups and people that playbooks ask and the configuration does not have.
func (g *globalFlags) findUnknownApprovers(c *config.Config, files []string, sources map[string][]byte) diagnostic.Diagnostics {
	groups := c.GroupNames()
	var people []string
	for _, p := range c.People {
		people = append(people, p.Name)
	}
	var out diagnostic.Diagnostics
	programs, _ := loadValidated(files, sources)
	for _, p := range programs {
		if sources[p.File] == nil {
			continue
		}
		p.WalkSteps(func(s *playbooks.Step) {
			if s.Approval == nil {
				return
			}
			unknown := func(what, name string, known []string) {
				if !slices.Contains(known, name) {
					out = append(out, diagnostic.Diagnostic{
						File: p.File, Line: s.Pos.Line, Column: s.Pos.Column, Severity: "error", Code: "unknown-" + what, Hint: diagnostic.DidYouMean(name, known),
						Message: fmt.Sprintf("the approval asks the %s `%s`, which %s does not have", what, name, g.configFile),
					})
				}
			}
			asked := append(append([]string{}, s.Approval.Groups...), escalationNames(s.Approval, func(e *playbooks.Escalation) []string { return e.Groups })...)
			for _, name := range asked {
				unknown("group", name, groups)
			}
			for _, name := range append(append([]string{}, s.Approval.Users...), escalationNames(s.Approval, func(e *playbooks.Escalation) []string { return e.Users })...) {
				unknown("person", name, people)
			}
		})
	}
	return out
}

func escalationNames(a *playbooks.Approval, of func(*playbooks.Escalation) []string) []string {
	if a.Escalate == nil {
		return nil
	}
	return of(a.Escalate)
}

// loadValidated loads files that may call each other and the library's playbooks.
func loadValidated(files []string, sources map[string][]byte) ([]*playbooks.Program, diagnostic.Diagnostics) {
	given := library.PlaybookSources()
	for _, file := range files {
		given = append(given, playbooks.SourceFile{File: file, Content: sources[file]})
	}
	return playbooks.LoadPlaybooks(given, worker.ActionCatalog())
}

func escapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = escapeForTerminal(lines[i])
	}
	return strings.Join(lines, "\n")
}

// findYAMLFiles gives the files named, and those of the folders named but for tests.
func findYAMLFiles(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("no such file or folder: %s", path)
		}
		if !info.IsDir() && strings.HasSuffix(path, "_test.yaml") {
			return nil, fmt.Errorf("%s is a file of tests: `stanch test %s` runs them", path, path)
		}
		if !info.IsDir() {
			files = append(files, path)
			continue
		}
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (strings.HasSuffix(p, ".yaml") || strings.HasSuffix(p, ".yml")) && !strings.HasSuffix(p, "_test.yaml") {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no playbook (*.yaml) in %s", strings.Join(paths, ", "))
	}
	return files, nil
}
