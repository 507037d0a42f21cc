package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"stanch/sensors/rules"
)

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
