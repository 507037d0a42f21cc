package main

import (
	"context"
	"fmt"
	"strings"

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

// formatCount returns n with the singular or plural noun: "1 lease", "2 leases".
func formatCount(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// formatPause returns a sentence with the time, person and reason of a pause, and how to end it; "" if not paused.
func formatPause(p api.KillSwitchStatus) string {
	if !p.Paused {
		return ""
	}
	text := "PAUSED"
	if !p.Since.IsZero() {
		text += " since " + p.Since.Local().Format("2006-01-02 15:04:05")
	}
	if p.ChangedBy != "" {
		text += " by " + strings.TrimPrefix(p.ChangedBy, "by ")
	}
	if why := p.Reason + p.Error; why != "" {
		text += " (" + why + ")"
	}
	return text + ": new containments are refused; `stanch resume` ends the pause"
}

// pauseState returns the state of the kill switch. If it cannot be read it returns the zero value: the command then
// fails with the same error itself.
func (g *globalFlags) pauseState(ctx context.Context) api.KillSwitchStatus {
	var p api.KillSwitchStatus
	if g.newAPIClient().get(ctx, "/v1/kill-switch", &p) != nil {
		return api.KillSwitchStatus{}
	}
	return p
}

// printPauseBanner prints a line if new containments are paused.
func (g *globalFlags) printPauseBanner(cmd *cobra.Command) {
	if line := formatPause(g.pauseState(cmd.Context())); line != "" {
		out := cmd.OutOrStdout()
		fmt.Fprintln(out, colorize(useColor(out), "critical", escapeForTerminal(line)))
	}
}
