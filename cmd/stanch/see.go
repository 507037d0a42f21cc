package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/sensors/redact"
	"stanch/worker/export"
	"stanch/worker/gateway"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// plain makes an attacker's string safe for a terminal: control characters are shown and not obeyed.
func plain(s string) string { return redact.Plain(s) }

func incidentsCommand(g *globals) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "incidents [ID]", Short: "List incidents, or show one whole", Args: args(cobra.MaximumNArgs(1)),
		Example: "  stanch incidents\n  stanch incidents INC-01JABC… -o json\n  stanch incidents INC-01JABC… -o ocsf",
		RunE: func(cmd *cobra.Command, ids []string) error {
			out := cmd.OutOrStdout()
			if len(ids) == 1 {
				var in playbooks.Incident
				if err := g.local().get(cmd.Context(), "/v1/incidents/"+ids[0], &in); err != nil {
					return err
				}
				switch output {
				case "json":
					return printJSON(out, in)
				case "ocsf":
					for _, event := range export.Incident(in, version) {
						if err := json.NewEncoder(out).Encode(event); err != nil {
							return fmt.Errorf("write the incident: %w", err)
						}
					}
					return nil
				}
				var pending []playbook.Pending
				if err := g.local().get(cmd.Context(), "/v1/pending", &pending); err != nil {
					return err
				}
				showIncident(out, in, pending)
				return nil
			}
			var list []playbooks.Incident
			if err := g.local().get(cmd.Context(), "/v1/incidents", &list); err != nil {
				return err
			}
			if output == "json" {
				return printJSON(out, list)
			}
			if len(list) == 0 {
				fmt.Fprintln(out, "no incidents")
				return nil
			}
			t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
			fmt.Fprintln(t, "INCIDENT\tSTATUS\tOPENED\tSEVERITY\tOBJECTIVE\tCONFIDENCE\tWORKLOAD\tLEASES")
			for _, in := range list {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%.2f\t%s\t%d\n", in.ID, in.Status, in.Opened.Local().Format(time.DateTime), in.Severity, in.Objective, in.Confidence, plain(in.Workload.String()), len(in.Leases))
			}
			return t.Flush()
		},
	}
	run := c.RunE
	outputFlag(c, &output)
	checked := c.RunE
	c.Flags().Lookup("output").Usage = "text or json; of one incident also ocsf: Detection Finding and Remediation Activity, an object a line"
	c.RunE = func(cmd *cobra.Command, ids []string) error {
		if output == "ocsf" && len(ids) == 1 {
			return run(cmd, ids)
		}
		return checked(cmd, ids)
	}
	return c
}

func showIncident(out io.Writer, in playbooks.Incident, pending []playbook.Pending) {
	p := func(format string, a ...any) { fmt.Fprintln(out, plain(fmt.Sprintf(format, a...))) }
	p("%s  %s  %s, confidence %.2f  [%s]", in.ID, in.Severity, in.Objective, in.Confidence, in.Status)
	p("%s", in.Summary)
	p("")
	p("workload    %s", in.Workload)
	p("image       %s %s", in.Workload.Image, in.Workload.ImageDigest)
	p("account     %s", in.Workload.ServiceAccount)
	p("node        %s   scope %s, phase %d", in.Workload.Node, in.Scope, in.Phase)
	p("blast       %d other pods with this image, %d pods on the node", in.Blast.SameDigestPods, in.Blast.SameNodePods)
	for _, m := range in.Blast.MayDo {
		p("            its account may: %s", m)
	}
	for _, r := range in.Reasons {
		p("why         %s", r)
	}
	for _, m := range in.Context.Missing {
		p("missing     %s", m)
	}
	for _, d := range in.Detections {
		p("detection   %s ×%d: %s", d.Rule, d.Count, d.What)
	}
	for _, l := range in.Leases {
		p("lease       %s %s on %s: %s, verified %v, undone %v, until %s %s", l.ID, l.Action, l.Target, l.Standing(), l.Verified, l.Undone, l.Until.Local().Format(time.DateTime), l.Reason)
	}
	for _, e := range in.Evidence {
		p("evidence    %s %s (%d bytes, sha256 %s)", e.Action, e.Name, e.Bytes, e.SHA256)
	}
	p("")
	for _, run := range in.Playbooks {
		if run.Guide != "" {
			p("guide       %s: %s", run.Playbook, strings.Join(strings.Fields(run.Guide), " "))
		}
	}
	p("")
	for _, e := range in.Timeline {
		p("%s  %s", e.At.Local().Format("15:04:05.000"), e.What)
	}
	for _, q := range pending {
		if q.Incident != in.ID {
			continue
		}
		p("")
		p("ASKED: %s", q.Title)
		if q.Ask != "" {
			p("  %s", q.Ask)
		}
		for _, change := range q.Changed {
			p("  changed since you were asked: %s", change)
		}
		for _, plan := range q.Plans {
			for _, change := range plan.Plan.Changes {
				p("  would %s", change)
			}
			if plan.Plan.For > 0 {
				p("  and undo it after %s%s", duration.Format(plan.Plan.For), inBrackets(plan.Plan.Ends.String()))
			}
			for _, warning := range plan.Plan.Warnings {
				p("  but: %s", warning)
			}
		}
		p("  of %s, quorum %d, until %s", q.Approvers.Who(), q.Approvers.Quorum, q.Deadline.Local().Format(time.TimeOnly))
		if len(q.Yes) > 0 {
			p("  agreed so far: %s", strings.Join(q.Yes, ", "))
		}
		p("  stanch approve %s '%s'   or   stanch deny %s '%s' --reason …", in.ID, q.ID, in.ID, q.ID)
	}
}

// inBrackets is a remark behind what it is about, or "".
func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func leasesCommand(g *globals) *cobra.Command {
	var output string
	var all bool
	c := &cobra.Command{
		Use: "leases", Short: "List the containments in force", Args: args(cobra.NoArgs), Example: "  stanch leases\n  stanch leases --all -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/v1/leases"
			if all {
				path += "?all=1"
			}
			var list []*lease.Machine
			if err := g.local().get(cmd.Context(), path, &list); err != nil {
				return err
			}
			reports := []playbooks.LeaseReport{}
			for _, m := range list {
				reports = append(reports, m.Report(time.Now()))
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), reports)
			}
			if len(reports) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing is held")
				return nil
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(t, "LEASE\tSTATE\tACTION\tTARGET\tVERIFIED\tUNTIL\tWHY")
			for _, r := range reports {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%v\t%s\t%s\n", r.ID, r.Standing(), r.Action, plain(r.Target), r.Verified, r.Until.Local().Format(time.DateTime), plain(r.Reason))
			}
			return t.Flush()
		},
	}
	c.Flags().BoolVar(&all, "all", false, "those that have ended too")
	outputFlag(c, &output)
	return c
}

func releaseCommand(g *globals) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "release LEASE", Short: "End a containment now", Args: args(cobra.MaximumNArgs(1)), Example: "  stanch release LSE-0A1B…\n  stanch release --all",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if all == (len(ids) == 1) {
				return usageError{fmt.Errorf("name one lease, or --all")}
			}
			q := gateway.LeaseRequest{All: all}
			if !all {
				q.Lease = ids[0]
			}
			var done []playbooks.LeaseReport
			if err := g.local().post(cmd.Context(), "/v1/release", q, &done); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "released %d; `stanch leases --all` shows when each is undone\n", len(done))
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "end every lease")
	return c
}

func extendCommand(g *globals) *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use: "extend LEASE --for 1h", Short: "Let a containment hold longer", Args: args(cobra.ExactArgs(1)), Example: "  stanch extend LSE-0A1B… --for 2h\n  stanch extend LSE-0A1B… --for 1d",
		Long: `Let a containment hold until --for from now. It never shortens one: a lease that already holds until then or
later is left as it is, and the command says when it ends. ` + "`stanch release`" + ` ends one now.`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if d <= 0 {
				return usageError{fmt.Errorf("say until how long from now it shall hold: --for 1h")}
			}
			var done []playbooks.LeaseReport
			if err := g.local().post(cmd.Context(), "/v1/extend", gateway.LeaseRequest{Lease: ids[0], For: d}, &done); err != nil {
				return err
			}
			for _, l := range done {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s of %s holds until %s, %s from now\n", l.ID, l.Action, plain(l.Target), l.Until.Local().Format(time.DateTime), duration.Format(d))
			}
			return nil
		},
	}
	c.Flags().Var(duration.NewFlag(&d, 0), "for", "until how long from now it holds, at most 7d")
	return c
}

func voteCommand(g *globals, approve bool) *cobra.Command {
	word, short := "approve", "Say yes to a question of an incident"
	if !approve {
		word, short = "deny", "Say no to a question of an incident"
	}
	var reason string
	var breakGlass bool
	c := &cobra.Command{
		Use: word + " INCIDENT [STEP]", Short: short, Args: args(cobra.RangeArgs(1, 2)),
		Long: short + `. STEP names the question by its approval's name, its step's id or path, or an action that it
asks about; without it the only open question is meant. The kernel tells Stanch who you are, or with --server the cluster
does; the configuration says whether you may answer. The output says how the answer counts.`,
		Example: fmt.Sprintf("  stanch %[1]s INC-01JABC…\n  stanch %[1]s INC-01JABC… 'stop the workload' --reason \"known build job\"\n  stanch %[1]s INC-01JABC… pod.isolate", word),
		RunE: func(cmd *cobra.Command, a []string) error {
			v := gateway.VoteRequest{Incident: a[0], Approve: approve, Reason: reason, BreakGlass: breakGlass, Wait: true}
			if breakGlass && strings.TrimSpace(reason) == "" {
				return usageError{fmt.Errorf("breaking the glass needs a --reason, for the record")}
			}
			if len(a) == 2 {
				v.Step = a[1]
			}
			var answer gateway.Answer
			err := g.local().post(cmd.Context(), "/v1/vote", v, &answer)
			if r, ok := errors.AsType[*refusal](err); ok && r.code == http.StatusForbidden {
				return fmt.Errorf("refused: %w", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a[0], plain(answer.Says))
			if answer.Result == gateway.ResultIgnored {
				return errAnswered
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

func stopCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "The kill switch: start no new containment; undo nothing", Args: args(cobra.NoArgs), Example: "  stanch stop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.local().post(cmd.Context(), "/v1/stop", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "stopped: nothing new is contained; leases in force stay (`stanch release --all` ends them)")
			return nil
		},
	}
}

func resumeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Lift the kill switch", Args: args(cobra.NoArgs), Example: "  stanch resume",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.local().post(cmd.Context(), "/v1/resume", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "resumed")
			return nil
		},
	}
}

func markCommand(g *globals) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "mark INCIDENT taken-over|false-positive", Short: "Take an incident over, or call it a false positive", Args: args(cobra.ExactArgs(2)),
		Long: `Say something about an incident. In both cases no further playbook starts in it.

  taken-over       it is yours from now on; what holds goes on to its end
  false-positive   what it holds is released, what it asks is denied`,
		ValidArgs: []string{"taken-over", "false-positive"},
		Example:   "  stanch mark INC-01JABC… false-positive --reason \"the nightly build\"",
		RunE: func(cmd *cobra.Command, a []string) error {
			q := gateway.MarkRequest{Incident: a[0], Kind: incident.MarkKind(a[1]), Reason: reason}
			if q.Kind != incident.MarkTakenOver && q.Kind != incident.MarkFalsePositive {
				return usageError{fmt.Errorf("%q is no mark: taken-over or false-positive", a[1])}
			}
			if err := g.local().post(cmd.Context(), "/v1/mark", q, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", a[0], a[1])
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}

// progress writes a line for people, never into a machine's output.
func progress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
