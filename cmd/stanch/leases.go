package main

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
	"stanch/workflows/lease"
)

func leasesCommand(g *globalFlags) *cobra.Command {
	var output string
	var all bool
	c := &cobra.Command{
		Use: "leases", Short: "List active containments", Args: validateArgs(cobra.NoArgs),
		Long: `List active containments, soonest to end first, to see what Stanch
currently blocks and until when.`,
		Example: "  stanch leases\n  stanch leases --all -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/v1/leases"
			if all {
				path += "?all=1"
			}
			var list []*lease.Machine
			if err := g.newAPIClient().get(cmd.Context(), path, &list); err != nil {
				return err
			}
			reports := []playbooks.LeaseReport{}
			for _, m := range list {
				reports = append(reports, m.CurrentReport(time.Now()))
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), reports)
			}
			g.printPauseBanner(cmd)
			if len(reports) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no lease is in force")
				return nil
			}
			printLeases(cmd.OutOrStdout(), list, time.Now())
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also list leases that have ended")
	addOutputFlag(c, &output)
	return c
}

// printLeases prints leases, the next to end first.
func printLeases(out io.Writer, list []*lease.Machine, now time.Time) {
	slices.SortStableFunc(list, func(a, b *lease.Machine) int { return a.LastExpiry().Compare(b.LastExpiry()) })
	var t table
	t.addRow("LEASE", "STATE", "ACTION", "TARGET", "UNTIL", "REASON")
	for _, m := range list {
		r := m.CurrentReport(now)
		target, until := m.Target.String(), ""
		if m.Target.Kind == "" { // an unreadable lease
			target = ""
		}
		if !r.ExpiresAt.IsZero() {
			until = r.ExpiresAt.Local().Format(time.DateTime)
		}
		if left := r.ExpiresAt.Sub(now); left > 0 && m.State != lease.StateEnded {
			until += " (in " + duration.Format(left.Round(time.Second)) + ")"
		}
		t.addRow(r.ID, display.DescribeLease(r), r.Action, target, until, r.Reason)
	}
	t.print(out)
}
