package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker/api"
)

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
