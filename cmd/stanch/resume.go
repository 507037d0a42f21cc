package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"stanch/worker/api"
)

func resumeCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Resume new containments", Args: validateArgs(cobra.NoArgs), Example: "  stanch resume",
		Long: `Clear the kill switch after ` + "`stanch pause`" + `. It lists the containments of open incidents that were
refused while paused, each with the command to contain the target now; nothing is retried
automatically.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done api.ResumeResult
			if err := g.newAPIClient().post(cmd.Context(), "/v1/resume", nil, &done); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintln(out, "resumed: new containments can start")
			if done.UnreadReason != "" {
				fmt.Fprintln(out, escapeForTerminal("containments refused while paused cannot be listed: "+done.UnreadReason))
			}
			if n := len(done.RefusedContainments); n > 0 {
				fmt.Fprintf(out, "%s refused while paused and will not be retried automatically:\n",
					formatCount(n, "containment of an open incident was", "containments of open incidents were"))
			}
			for _, r := range done.RefusedContainments {
				fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf("  %s  %s on %s; to contain now: %s", r.IncidentID,
					r.Action, r.Target, r.RetryCommand)))
			}
			return nil
		},
	}
}
