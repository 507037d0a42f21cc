package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/worker/decisions"
)

func extendCommand(g *globalFlags) *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use: "extend LEASE --for 1h", Short: "Extend a containment", Args: validateArgs(cobra.ExactArgs(1)),
		Example: "  stanch extend LSE-0A1B2C3D4E5F6A7B8C9D --for 2h\n  stanch extend LSE-0A1B2C3D4E5F6A7B8C9D --for 1d",
		Long: `Extend a containment when you need more time: it then ends after the duration in --for,
counted from now. A lease that already ends later is not shortened; the command prints when
it ends. If the scope requires several approvers, one approver alone can extend to at most
budget.max_duration from now. ` + "`stanch release`" + ` ends a lease
early.`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if d <= 0 {
				return usageError{errors.New("missing --for; use a duration from now such as --for 1h")}
			}
			var done []playbooks.LeaseReport
			if err := g.newAPIClient().post(cmd.Context(), "/v1/extend", decisions.LeaseRequest{LeaseID: ids[0], Duration: d},
				&done); err != nil {
				return err
			}
			for _, l := range done {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s on %s is in force until %s, %s from now\n", l.ID, l.Action,
					escapeForTerminal(l.Target), l.ExpiresAt.Local().Format(time.DateTime), duration.Format(d))
			}
			return nil
		},
	}
	c.Flags().Var(duration.NewFlag(&d, 0), "for", "how long from now the lease stays in force, at most 7d (required)")
	return c
}
