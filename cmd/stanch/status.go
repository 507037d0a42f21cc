package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/sensors/duration"
	"stanch/worker/api"
)

func statusCommand(g *globalFlags) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "status", Short: "Show Stanch's status and what needs your attention", Args: validateArgs(cobra.NoArgs),
		Example: "  stanch status\n  stanch status -o json",
		Long: `Show in about ten lines whether the sensors are healthy, whether new containments are
paused, which approvals are pending, what is contained, which playbooks are in use, and
which problems need attention. Exit code 1 means that there are problems.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s api.Status
			if err := g.newAPIClient().get(cmd.Context(), "/v1/status", &s); err != nil {
				return err
			}
			problems := slices.Concat(s.Problems, nodeProblems(s.Nodes))
			if output == "json" {
				s.Problems = append([]string{}, problems...)
				if err := printJSON(cmd.OutOrStdout(), s); err != nil {
					return err
				}
			} else {
				printStatus(cmd.OutOrStdout(), s, problems, time.Now())
			}
			if len(problems) > 0 {
				return errReported
			}
			return nil
		},
	}
	addOutputFlag(c, &output)
	return c
}

// nodeProblems returns the problems that `stanch doctor` reports of connected nodes.
func nodeProblems(nodes map[string]json.RawMessage) []string {
	known := map[string]nodeHealth{}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		var n nodeHealth
		if err := json.Unmarshal(nodes[name], &n); err != nil {
			out = append(out, fmt.Sprintf("node %s: unreadable report", name))
			continue
		}
		known[name] = n
	}
	for _, f := range checkNodes(known) {
		if !f.OK {
			out = append(out, f.Name+": "+f.Remedy)
		}
	}
	return out
}

// printStatus prints the status of an installation, with at most two of its problems.
func printStatus(out io.Writer, s api.Status, problems []string, now time.Time) {
	line := func(name, format string, a ...any) {
		fmt.Fprintf(out, "%-11s %s\n", name, escapeForTerminal(fmt.Sprintf(format, a...)))
	}
	up := ""
	if !s.StartedAt.IsZero() {
		up = ", up for " + duration.Format(max(now.Sub(s.StartedAt), 0).Round(time.Second))
	}
	line("stanch", "%s, cluster %s, phase %d%s", s.Version, s.Cluster, s.Phase, up)
	if paused := formatPause(s.KillSwitch); paused != "" {
		fmt.Fprintf(out, "%-11s %s\n", "switch", colorize(useColor(out), "critical", escapeForTerminal(paused)))
	} else {
		line("switch", "new containments can start")
	}
	bad := nodeProblems(s.Nodes)
	health := "healthy"
	if len(bad) > 0 {
		health = fmt.Sprintf("%d with problems", len(bad))
	}
	if len(s.Nodes) == 0 {
		line("sensors", "no node connected")
	} else {
		line("sensors", "%s connected, %s: %s", formatCount(len(s.Nodes), "node", "nodes"), health,
			formatNames(slices.Sorted(maps.Keys(s.Nodes))))
	}
	printOpenApprovals(line, s)
	switch {
	case s.LeaseCount == 0:
		line("leases", "none in force")
	case s.NextLeaseExpiry.IsZero():
		line("leases", "%d", s.LeaseCount)
	default:
		line("leases", "%d in force; the next ends at %s, in %s", s.LeaseCount,
			s.NextLeaseExpiry.Local().Format(time.DateTime),
			duration.Format(max(s.NextLeaseExpiry.Sub(now), 0).Round(time.Second)))
	}
	line("playbooks", "%d in use: %s", len(s.Playbooks), formatNames(s.Playbooks))
	if len(problems) == 0 {
		line("problems", "none")
	}
	const most = 2
	for i, p := range problems {
		if i == most-1 && len(problems) > most {
			line("problems", "%s (and %d more: `stanch status -o json`, `stanch doctor`)", p, len(problems)-most)
			break
		}
		line("problems", "%s", p)
	}
}

// printOpenApprovals prints the open incidents, and the first approvals that wait.
func printOpenApprovals(line func(name, format string, a ...any), s api.Status) {
	mine := 0
	for _, w := range s.OpenApprovals {
		if w.ViewerCanApprove {
			mine++
		}
	}
	if len(s.OpenApprovals) == 0 {
		line("incidents", "%d open; no approval is waiting", s.OpenIncidents)
	} else {
		line("incidents", "%d open; %s waiting, %d for you", s.OpenIncidents,
			formatCount(len(s.OpenApprovals), "approval", "approvals"), mine)
	}
	for _, w := range s.OpenApprovals[:min(len(s.OpenApprovals), 2)] {
		you := ""
		if w.ViewerCanApprove {
			you = " (for you)"
		}
		line("  waiting", "%s %q by %s, until %s%s", w.IncidentID, w.Title, w.Approvers,
			w.Deadline.Local().Format(time.TimeOnly), you)
	}
}

// formatNames lists at most six names, and counts the others.
func formatNames(names []string) string {
	const most = 6
	if n := len(names) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), n)
	}
	return strings.Join(names, ", ")
}
