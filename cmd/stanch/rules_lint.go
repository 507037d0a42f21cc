package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"stanch/sensors/diagnostic"
	"stanch/sensors/rules"
)

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
