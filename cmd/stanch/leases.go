package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
	"stanch/sensors/redact"
	"stanch/worker/gateway"
	"stanch/workflows/lease"
)

// escapeForTerminal makes an attacker's string safe for a terminal: control characters are shown and not obeyed.
func escapeForTerminal(s string) string { return redact.EscapeControlChars(s) }

func leasesCommand(g *globalFlags) *cobra.Command {
	var output string
	var all bool
	c := &cobra.Command{
		Use: "leases", Short: "List the containments in force", Args: validateArgs(cobra.NoArgs), Example: "  stanch leases\n  stanch leases --all -o json",
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
				fmt.Fprintln(cmd.OutOrStdout(), "nothing is held")
				return nil
			}
			printLeases(cmd.OutOrStdout(), list, time.Now())
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "those that have ended too")
	addOutputFlag(c, &output)
	return c
}

// printLeases lists leases, the one that ends next first.
func printLeases(out io.Writer, list []*lease.Machine, now time.Time) {
	slices.SortStableFunc(list, func(a, b *lease.Machine) int { return a.LastExpiry().Compare(b.LastExpiry()) })
	var t table
	t.addRow("LEASE", "STATE", "ACTION", "TARGET", "UNTIL", "WHY")
	for _, m := range list {
		r := m.CurrentReport(now)
		target, until := m.Target.String(), ""
		if m.Target.Kind == "" { // it could not be read
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

func releaseCommand(g *globalFlags) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "release LEASE", Short: "End a containment now", Args: validateArgs(cobra.MaximumNArgs(1)), Example: "  stanch release LSE-0A1B…\n  stanch release --all",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) == 1) {
				return usageError{fmt.Errorf("name one lease, or --all")}
			}
			q := gateway.LeaseRequest{All: all}
			if !all {
				q.LeaseID = ids[0]
			}
			var done []playbooks.LeaseReport
			if err := g.newAPIClient().post(cmd.Context(), "/v1/release", q, &done); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "released %d; `stanch leases --all` shows when each is undone\n", len(done))
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "end every lease")
	return c
}

func extendCommand(g *globalFlags) *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use: "extend LEASE --for 1h", Short: "Let a containment hold longer", Args: validateArgs(cobra.ExactArgs(1)), Example: "  stanch extend LSE-0A1B… --for 2h\n  stanch extend LSE-0A1B… --for 1d",
		Long: `Let a containment hold until --for from now. It never shortens one: a lease that already holds until then or
later is left as it is, and the command says when it ends. Where the scope asks for several approvers, one of them
extends to at most budget.longest from now. ` + "`stanch release`" + ` ends one now.`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if d <= 0 {
				return usageError{fmt.Errorf("say until how long from now it shall hold: --for 1h")}
			}
			var done []playbooks.LeaseReport
			if err := g.newAPIClient().post(cmd.Context(), "/v1/extend", gateway.LeaseRequest{LeaseID: ids[0], Duration: d}, &done); err != nil {
				return err
			}
			for _, l := range done {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of %s holds until %s, %s from now\n", l.ID, l.Action, escapeForTerminal(l.Target), l.ExpiresAt.Local().Format(time.DateTime), duration.Format(d))
			}
			return nil
		},
	}
	c.Flags().Var(duration.NewFlag(&d, 0), "for", "until how long from now it holds, at most 7d")
	return c
}

func approvalCommand(g *globalFlags, approve bool) *cobra.Command {
	word, short := "approve", "Say yes to a question of an incident"
	if !approve {
		word, short = "deny", "Say no to a question of an incident"
	}
	var reason string
	var breakGlass bool
	c := &cobra.Command{
		Use: word + " INCIDENT [STEP]", Short: short, Args: validateArgs(cobra.RangeArgs(1, 2)),
		Long: short + `. STEP names the question by its approval's name, its step's id or path, or an action that it
asks about; without it the only open question is meant. Where that names several, each has a name of its own, such as
2/contain#1: ` + "`stanch incidents INCIDENT`" + ` shows it. The kernel tells Stanch who you are, or with --server the cluster
does; the configuration says whether you may answer. The output says how the answer counts.`,
		Example: fmt.Sprintf("  stanch %[1]s INC-01JABC…\n  stanch %[1]s INC-01JABC… 'stop the workload' --reason \"known build job\"\n  stanch %[1]s INC-01JABC… pod.isolate", word),
		RunE: func(cmd *cobra.Command, a []string) error {
			v := gateway.VoteRequest{IncidentID: a[0], Approve: approve, Reason: reason, BreakGlass: breakGlass, WaitForResult: true}
			if breakGlass && strings.TrimSpace(reason) == "" {
				return usageError{fmt.Errorf("breaking the glass needs a --reason, for the record")}
			}
			if len(a) == 2 {
				v.RequestID = a[1]
			}
			var answer gateway.VoteResult
			err := g.newAPIClient().post(cmd.Context(), "/v1/vote", v, &answer)
			if r, ok := errors.AsType[*apiError](err); ok && r.statusCode == http.StatusForbidden {
				return fmt.Errorf("refused: %w", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a[0], escapeForTerminal(answer.Message))
			if answer.Result == gateway.ResultNotCounted {
				return errReported
			}
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	if approve {
		c.Flags().BoolVar(&breakGlass, "break-glass", false, "answer alone for the whole quorum, where your configuration lets you; it is recorded")
	}
	return c
}

// logProgress writes a line for people, never into a machine's output.
func logProgress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
