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
	"stanch/worker/decisions"
	"stanch/workflows/lease"
)

// escapeForTerminal escapes control characters, so that a terminal does not interpret attacker-controlled strings.
func escapeForTerminal(s string) string { return redact.EscapeControlChars(s) }

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

func extendCommand(g *globalFlags) *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use: "extend LEASE --for 1h", Short: "Extend a containment", Args: validateArgs(cobra.ExactArgs(1)),
		Example: "  stanch extend LSE-0A1B2C3D4E5F6A7B8C9D --for 2h\n  stanch extend LSE-0A1B2C3D4E5F6A7B8C9D --for 1d",
		Long: `Extend a containment when you need more time: it then ends after the duration in --for,
counted from now. A lease that already ends later is not shortened; the command prints when
it ends. If the scope requires several approvers, one approver alone can extend to at most
budget.max_duration from now. ` + "`stanch release`" + ` ends a lease
early.`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if d <= 0 {
				return usageError{errors.New("missing --for; use a duration from now such as --for 1h")}
			}
			var done []playbooks.LeaseReport
			if err := g.newAPIClient().post(cmd.Context(), "/v1/extend", decisions.LeaseRequest{LeaseID: ids[0], Duration: d},
				&done); err != nil {
				return err
			}
			for _, l := range done {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s on %s is in force until %s, %s from now\n", l.ID, l.Action,
					escapeForTerminal(l.Target), l.ExpiresAt.Local().Format(time.DateTime), duration.Format(d))
			}
			return nil
		},
	}
	c.Flags().Var(duration.NewFlag(&d, 0), "for", "how long from now the lease stays in force, at most 7d (required)")
	return c
}

func approvalCommand(g *globalFlags, approve bool) *cobra.Command {
	word, short := "approve", "Approve a pending request in an incident"
	if !approve {
		word, short = "deny", "Deny a pending request in an incident"
	}
	var reason string
	var breakGlass bool
	c := &cobra.Command{
		Use: word + " INCIDENT [STEP]", Short: short, Args: validateArgs(cobra.RangeArgs(1, 2)),
		Long: short + `, when stanch status or the chat shows that it is waiting for you.

STEP is the title of the approval request, the ID or path of its step, or an action that it
covers. It can be omitted if only one request is pending. If STEP matches several requests,
use the unique name that ` + "`stanch incidents INCIDENT`" + ` shows, such as 2/contain#1.

You are identified by the kernel, or with --server by the cluster; the configuration says what
you may approve. The output says whether your answer was counted. Exit code 1 means that it
was not.`,
		Example: fmt.Sprintf(`  stanch %[1]s INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch %[1]s INC-01JABCDEFGHJKMNPQRSTVWXYZ0 'stop the workload' --reason "confirmed with the owner"
  stanch %[1]s INC-01JABCDEFGHJKMNPQRSTVWXYZ0 pod.isolate`, word),
		RunE: func(cmd *cobra.Command, a []string) error {
			v := decisions.VoteRequest{
				IncidentID: a[0], Approve: approve, Reason: reason, BreakGlass: breakGlass,
				WaitForResult: true,
			}
			if breakGlass && strings.TrimSpace(reason) == "" {
				return usageError{errors.New("--break-glass requires --reason, for the audit record")}
			}
			if len(a) == 2 {
				v.RequestID = a[1]
			}
			var answer decisions.VoteResult
			err := g.newAPIClient().post(cmd.Context(), "/v1/vote", v, &answer)
			if r, ok := errors.AsType[*apiError](err); ok && r.statusCode == http.StatusForbidden {
				return fmt.Errorf("%s %s: not allowed: %w", word, a[0], err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a[0], escapeForTerminal(answer.Message))
			if answer.Result == decisions.ResultNotCounted {
				return errReported
			}
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "the reason, for the audit record")
	if approve {
		c.Flags().BoolVar(&breakGlass, "break-glass", false,
			"approve alone in place of the full quorum, if the configuration allows it; this is recorded")
	}
	return c
}

// logProgress prints a line to standard error, so that it is never part of machine-readable output.
func logProgress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
