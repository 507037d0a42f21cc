package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"stanch/worker/api"
	"stanch/worker/decisions"
)

func pauseCommand(g *globalFlags) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "pause", Short: "Pause new containments with the kill switch", Args: validateArgs(cobra.NoArgs),
		Example: "  stanch pause --reason \"migration until 18:00\"",
		Long: `Engage the kill switch when automation must not act, such as during maintenance or when Stanch
is containing too much. No new containment starts until ` + "`stanch resume`" + `, which lists the
containments that were refused in the meantime. Leases in force stay; ` + "`stanch release --all`" + `
ends them.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done api.PauseResult
			if err := g.newAPIClient().post(cmd.Context(), "/v1/pause", decisions.PauseRequest{Reason: reason},
				&done); err != nil {
				return err
			}
			if done.AlreadyPaused {
				fmt.Fprintln(cmd.OutOrStdout(),
					escapeForTerminal("already paused; nothing changed: "+formatPause(done.KillSwitchStatus)))
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(),
				"paused: no new containment starts until `stanch resume`; leases in force stay (`stanch release "+
					"--all` ends them)")
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "the reason, shown to everyone while new containments are paused")
	return c
}
