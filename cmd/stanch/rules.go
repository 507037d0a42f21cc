package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
)

func rulesCommand(g *globalFlags) *cobra.Command {
	c := rulesListCommand(g)
	c.Use, c.Short = "rules", "List, lint and test detection rules"
	c.Args = validateArgs(cobra.NoArgs)
	c.Long = `List the active detection rules: the shipped rules and those of the configuration's directories,
with their overrides. Use lint and test while you write a rule pack.

A rule pack adds rules, and overrides shipped rules without copying them:

  overrides:
    - rule: terminal-shell            # or the name in Falco, "Terminal shell in container"
      exceptions:
        - namespace: [ci]
          workload: { kind: Deployment, name: "runner-*" }
          reason: engineers debug builds there

` + "`stanch schema rules`" + ` documents every key. A running Stanch instance reloads packs when they change.`
	c.Example = `  stanch rules
  stanch rules lint my-rules/
  stanch rules test my-rules/ --events recorded_events.jsonl`
	c.AddCommand(rulesListCommand(g), rulesLintCommand(g), rulesTestCommand(g))
	return c
}

// ruleSources selects rule packs: those of paths, after the shipped ones and those of the configuration.
type ruleSources struct {
	paths     []string // files and directories of packs
	noShipped bool
}

// resolve returns the sources in the order in which they are loaded. If there are paths, problems of the other
// sources are suppressed.
func (s ruleSources) resolve(g *globalFlags) ([]rules.PackSource, error) {
	var out []rules.PackSource
	if !s.noShipped {
		out = append(out, rules.ShippedSource())
	}
	cfg, err := g.loadConfig()
	if err != nil {
		return nil, err
	}
	for _, dir := range cfg.Rules {
		if !pathsOverlap(dir, s.paths) {
			out = append(out, rules.PackSource{FS: os.DirFS(dir), Name: dir})
		}
	}
	for i := range out {
		out[i].SuppressProblems = len(s.paths) > 0
	}
	for _, path := range s.paths {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return nil, fmt.Errorf("read rules: no such file or directory: %s", path)
		case info.IsDir():
			out = append(out, rules.PackSource{FS: os.DirFS(path), Name: path})
		default:
			dir, file := filepath.Split(path)
			dir = filepath.Clean(dir)
			out = append(out, rules.PackSource{FS: os.DirFS(dir), Name: strings.TrimSuffix(dir, "."), Files: []string{file}})
		}
	}
	return out, nil
}

// pathsOverlap reports whether dir is or contains one of the paths.
func pathsOverlap(dir string, paths []string) bool {
	for _, path := range paths {
		if rel, err := filepath.Rel(absolutePath(dir), absolutePath(path)); err == nil && !strings.HasPrefix(rel, "..") {
			return true
		}
	}
	return false
}

// absolutePath returns path as an absolute path, or unchanged if the working directory is unknown.
func absolutePath(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// printRuleProblems prints problems with the source lines that they are about.
func printRuleProblems(out io.Writer, problems diagnostic.Diagnostics) {
	sources := map[string][]byte{} // without its lines for a file that cannot be read again
	for _, p := range problems {
		if _, read := sources[p.File]; !read {
			if inside, shipped := strings.CutPrefix(p.File, "shipped/"); shipped {
				sources[p.File], _ = rules.ShippedPacks.ReadFile(inside)
			} else {
				sources[p.File], _ = os.ReadFile(p.File)
			}
		}
		fmt.Fprintln(out, escapeLines(p.Render(sources[p.File])))
	}
}

func rulesListCommand(g *globalFlags) *cobra.Command {
	var output string
	var s ruleSources
	c := &cobra.Command{
		Use: "list [PATH…]", Short: "List the rules in force and their overrides",
		Long: `List the rules in force: the shipped rules, those of the configuration's directories, and
those of PATH. An overridden rule is marked with *, and a disabled rule is shown as off*.
Use it to see the effect of a pack before you deploy it.`,
		Example: "  stanch rules list\n  stanch rules list my-rules/ -o json",
		RunE: func(cmd *cobra.Command, paths []string) error {
			s.paths = paths
			sources, err := s.resolve(g)
			if err != nil {
				return err
			}
			set, problems := rules.LoadSources(sources...)
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), set.Rules())
			} else {
				err = printRules(cmd.OutOrStdout(), set)
			}
			if err != nil {
				return err
			}
			printRuleProblems(cmd.ErrOrStderr(), problems)
			if problems.HasErrors() {
				return errReported
			}
			return nil
		},
	}
	c.Flags().BoolVar(&s.noShipped, "no-shipped", false, "leave out the shipped rules")
	addOutputFlag(c, &output)
	return c
}

func printRules(out io.Writer, set *rules.Set) error {
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "RULE\tON\tSEVERITY\tCONFIDENCE\tOBJECTIVE\tATT&CK\tTITLE\tSOURCE")
	overridden := false
	for _, r := range set.Rules() {
		severity := string(r.Severity)
		if len(r.Namespaces) > 0 {
			severity += "…"
		}
		if len(r.Overrides) > 0 {
			overridden = true
			severity += "*"
		}
		if r.Disabled {
			severity = "off*"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%s\t%s\t%s\t%s\n", escapeForTerminal(r.Name), r.Kind, severity, r.Confidence,
			r.Objective, escapeForTerminal(r.Technique), escapeForTerminal(r.Title), escapeForTerminal(r.Position))
	}
	if overridden {
		fmt.Fprintln(t, "\nOVERRIDDEN\tSOURCE\tCHANGE")
		for _, r := range set.Rules() {
			for _, o := range r.Overrides {
				what := strings.Join(o.DescribeChanges(), "; ")
				if o.Reason != "" {
					what += ", reason: " + o.Reason
				}
				fmt.Fprintf(t, "%s\t%s\t%s\n", escapeForTerminal(r.Name), escapeForTerminal(o.Position), escapeForTerminal(what))
			}
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the output: %w", err)
	}
	return nil
}

func rulesLintCommand(g *globalFlags) *cobra.Command {
	var output string
	var s ruleSources
	c := &cobra.Command{
		Use: "lint PATH…", Short: "Check rule packs for errors and bad practices",
		Args: validateArgs(cobra.MinimumNArgs(1)),
		Long: `Check rule packs before you deploy them. All errors are reported at once, each with its
position and a fix. Warnings report fields that the event kind never sets, exceptions that
an attacker can satisfy, rules that another rule covers, and unused lists and macros. Exit
code 1 means that there is an error or, with --strict, a warning.`,
		Example: "  stanch rules lint my-rules/\n  stanch rules lint my-rules/ -o json --strict",
	}
	var strict bool
	c.RunE = func(cmd *cobra.Command, paths []string) error {
		s.paths = paths
		sources, err := s.resolve(g)
		if err != nil {
			return err
		}
		_, problems := rules.Lint(sources...)
		if output == "json" {
			if err := printJSON(cmd.OutOrStdout(), append(diagnostic.Diagnostics{}, problems...)); err != nil {
				return err
			}
		} else {
			printRuleProblems(cmd.OutOrStdout(), problems)
			wrong := len(problems.WithoutWarnings())
			fmt.Fprintf(cmd.OutOrStdout(), "%s, %s\n", formatCount(wrong, "error", "errors"),
				formatCount(len(problems)-wrong, "warning", "warnings"))
		}
		if problems.HasErrors() || strict && len(problems) > 0 {
			return errReported
		}
		return nil
	}
	c.Flags().BoolVar(&strict, "strict", false, "exit with code 1 on warnings too")
	c.Flags().BoolVar(&s.noShipped, "no-shipped", false, "leave out the shipped rules, to check a copy of them")
	addOutputFlag(c, &output)
	return c
}
