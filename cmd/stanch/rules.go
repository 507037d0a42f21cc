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
	c.Use, c.Short = "rules", "List the detection rules, check and test one's own"
	c.Args = validateArgs(cobra.NoArgs)
	c.Long = `List the rules in force: the shipped ones and those of the configuration's folders, with what overrides them.

A pack beside the shipped ones adds rules, and weighs shipped ones otherwise without copying them:

  overrides:
    - rule: terminal-shell            # or Falco's name of it, "Terminal shell in container"
      exceptions:
        - namespace: [ci]
          workload: { kind: Deployment, name: "runner-*" }
          reason: engineers debug builds there

` + "`stanch schema rules`" + ` has every key. A running Stanch takes up a changed pack by itself.`
	c.Example = "  stanch rules\n  stanch rules lint my-rules/\n  stanch rules test my-rules/ --events recorded_events.jsonl"
	c.AddCommand(rulesListCommand(g), rulesLintCommand(g), rulesTestCommand(g))
	return c
}

// ruleSources are the packs of paths, and before them those that are there anyway.
type ruleSources struct {
	paths     []string // the paths
	noShipped bool
}

// resolve are the shipped packs, those of the configuration, and those of the paths. Of the former only what is wrong in
// the latter is told, if there are paths.
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
			return nil, fmt.Errorf("no such file or folder: %s", path)
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

// pathsOverlap tells whether a folder holds one of the paths or is one.
func pathsOverlap(dir string, paths []string) bool {
	for _, path := range paths {
		if rel, err := filepath.Rel(absolutePath(dir), absolutePath(path)); err == nil && !strings.HasPrefix(rel, "..") {
			return true
		}
	}
	return false
}

func absolutePath(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// printRuleProblems prints problems with the lines that they are about.
func printRuleProblems(out io.Writer, problems diagnostic.Diagnostics) {
	sources := map[string][]byte{} // a file that cannot be read again is told without its lines
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
		Use: "list [PATH…]", Short: "List the rules in force, and what overrides them",
		Long:    "List the rules in force: the shipped ones, those of the configuration's folders and those of the paths.\nA rule that is overridden has a `*`, and one that is disabled is `off`.",
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
	fmt.Fprintln(t, "RULE\tON\tSEVERITY\tCONFIDENCE\tOBJECTIVE\tATT&CK\tTITLE\tWHERE")
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
		fmt.Fprintf(t, "%s\t%s\t%s\t%.2f\t%s\t%s\t%s\t%s\n", escapeForTerminal(r.Name), r.Kind, severity, r.Confidence, r.Objective, escapeForTerminal(r.Technique), escapeForTerminal(r.Title), escapeForTerminal(r.Position))
	}
	if overridden {
		fmt.Fprintln(t, "\nOVERRIDDEN\tAT\tWHAT")
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
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func rulesLintCommand(g *globalFlags) *cobra.Command {
	var output string
	var s ruleSources
	c := &cobra.Command{
		Use: "lint PATH…", Short: "Check packs: every mistake at once, and advice", Args: validateArgs(cobra.MinimumNArgs(1)),
		Long: `Check packs: every mistake at once, each with its place and how to mend it, and advice: fields that the kind of event never
has, exceptions that an attacker can make hold, rules that another covers, lists and macros that nothing uses.
Exit 1 on a mistake; advice alone is no mistake, unless --strict.`,
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
			fmt.Fprintf(cmd.OutOrStdout(), "%s, %s\n", pluralize(wrong, "mistake", "mistakes"), pluralize(len(problems)-wrong, "piece of advice", "pieces of advice"))
		}
		if problems.HasErrors() || strict && len(problems) > 0 {
			return errReported
		}
		return nil
	}
	c.Flags().BoolVar(&strict, "strict", false, "exit 1 on advice too")
	c.Flags().BoolVar(&s.noShipped, "no-shipped", false, "leave out the shipped rules, to check a copy of them")
	addOutputFlag(c, &output)
	return c
}
