package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/worker/decisions"
)

func releaseCommand(g *globalFlags) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "release LEASE", Short: "End a containment now", Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `End a containment early, once the target is clean or was contained by mistake. The prior
state is restored; ` + "`stanch leases --all`" + ` shows when that is done.`,
		Example: "  stanch release LSE-0A1B2C3D4E5F6A7B8C9D\n  stanch release --all",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) == 1) {
				return usageError{errors.New("use either LEASE or --all")}
			}
			q := decisions.LeaseRequest{All: all}
			if !all {
				q.LeaseID = ids[0]
			}
			var done []playbooks.LeaseReport
			if err := g.newAPIClient().post(cmd.Context(), "/v1/release", q, &done); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "released %s; `stanch leases --all` shows when each is undone\n",
				formatCount(len(done), "lease", "leases"))
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "end every lease")
	return c
}
