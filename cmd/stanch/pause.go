package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker/gateway"
)

func stopCommand(g *globals) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "stop", Short: "Pause: start no new containment; undo nothing", Args: args(cobra.NoArgs), Example: "  stanch stop --reason \"migration until 18:00\"",
		Long: `Set the kill switch: no new containment starts until ` + "`stanch resume`" + `. Leases in force stay. What is refused meanwhile is
listed when new containments are resumed, with the command that contains it then.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done gateway.PauseResult
			if err := g.local().post(cmd.Context(), "/v1/stop", gateway.PauseRequest{Reason: reason}, &done); err != nil {
				return err
			}
			if done.AlreadyPaused {
				fmt.Fprintln(cmd.OutOrStdout(), plain("it was paused already, and stays so: "+pausedLine(done.KillSwitchStatus)))
				return nil
			}
			fmt.Fprintln(cmd.OutOrStdout(), "paused: nothing new is contained until `stanch resume`; leases in force stay (`stanch release --all` ends them)")
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for everybody who looks meanwhile")
	return c
}

func resumeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Lift the kill switch, and list what was refused meanwhile", Args: args(cobra.NoArgs), Example: "  stanch resume",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done gateway.ResumeResult
			if err := g.local().post(cmd.Context(), "/v1/resume", nil, &done); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintln(out, "resumed: new containments start again")
			if done.UnreadReason != "" {
				fmt.Fprintln(out, plain("what was refused while paused cannot be read: "+done.UnreadReason))
			}
			if n := len(done.RefusedContainments); n > 0 {
				fmt.Fprintf(out, "%s refused while paused; nothing starts them again by itself:\n", counted(n, "containment of an open incident was", "containments of open incidents were"))
			}
			for _, r := range done.RefusedContainments {
				fmt.Fprintln(out, plain(fmt.Sprintf("  %s  %s of %s; contain it now: %s", r.IncidentID, r.Action, r.Target, r.RetryCommand)))
			}
			return nil
		},
	}
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// pausedLine says that new containments are paused, since when, by whom, why, and how to end it; "" if they are not.
func pausedLine(p gateway.KillSwitchStatus) string {
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

// paused asks whether new containments are paused. A Stanch that cannot say is one that the command itself cannot reach.
func (g *globals) paused(ctx context.Context) gateway.KillSwitchStatus {
	var p gateway.KillSwitchStatus
	if g.local().get(ctx, "/v1/switch", &p) != nil {
		return gateway.KillSwitchStatus{}
	}
	return p
}

// banner says above everything else that new containments are paused.
func (g *globals) banner(cmd *cobra.Command) {
	if line := pausedLine(g.paused(cmd.Context())); line != "" {
		out := cmd.OutOrStdout()
		fmt.Fprintln(out, paint(colored(out), "critical", plain(line)))
	}
}
