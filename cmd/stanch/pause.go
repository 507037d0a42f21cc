package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker/gateway"
)

func pauseCommand(g *globalFlags) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "pause", Short: "Pause: start no new containment; undo nothing", Args: validateArgs(cobra.NoArgs), Example: "  stanch pause --reason \"migration until 18:00\"",
		Long: `Set the kill switch: no new containment starts until ` + "`stanch resume`" + `. Leases in force stay. What is refused meanwhile is
listed when new containments are resumed, with the command that contains it then.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done gateway.PauseResult
			if err := g.newAPIClient().post(cmd.Context(), "/v1/pause", gateway.PauseRequest{Reason: reason}, &done); err != nil {
				return err
			}
			if done.AlreadyPaused {
				fmt.Fprintln(cmd.OutOrStdout(), escapeForTerminal("it was paused already, and stays so: "+formatPause(done.KillSwitchStatus)))
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(), "paused: nothing new is contained until `stanch resume`; leases in force stay (`stanch release --all` ends them)")
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for everybody who looks meanwhile")
	return c
}

func resumeCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Lift the kill switch, and list what was refused meanwhile", Args: validateArgs(cobra.NoArgs), Example: "  stanch resume",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done gateway.ResumeResult
			if err := g.newAPIClient().post(cmd.Context(), "/v1/resume", nil, &done); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintln(out, "resumed: new containments start again")
			if done.UnreadReason != "" {
				fmt.Fprintln(out, escapeForTerminal("what was refused while paused cannot be read: "+done.UnreadReason))
			}
			if n := len(done.RefusedContainments); n > 0 {
				fmt.Fprintf(out, "%s refused while paused; nothing starts them again by itself:\n", formatCount(n, "containment of an open incident was", "containments of open incidents were"))
			}
			for _, r := range done.RefusedContainments {
				fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf("  %s  %s of %s; contain it now: %s", r.IncidentID, r.Action, r.Target, r.RetryCommand)))
			}
			return nil
		},
	}
}

func formatCount(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// formatPause says that new containments are paused, since when, by whom, why, and how to end it; "" if they are not.
func formatPause(p gateway.KillSwitchStatus) string {
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
	return text + ": new containments are refused; `stanch resume` lets them go on"
}

// pauseState asks whether new containments are paused. A Stanch that cannot say is one that the command itself cannot reach.
func (g *globalFlags) pauseState(ctx context.Context) gateway.KillSwitchStatus {
	var p gateway.KillSwitchStatus
	if g.newAPIClient().get(ctx, "/v1/switch", &p) != nil {
		return gateway.KillSwitchStatus{}
	}
	return p
}

// printPauseBanner says above everything else that new containments are paused.
func (g *globalFlags) printPauseBanner(cmd *cobra.Command) {
	if line := formatPause(g.pauseState(cmd.Context())); line != "" {
		out := cmd.OutOrStdout()
		fmt.Fprintln(out, colorize(useColor(out), "critical", escapeForTerminal(line)))
	}
}
