package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/duration"
	"stanch/worker/api"
)

// incidentQuery holds the flags of `stanch incidents`.
type incidentQuery struct {
	since, until, status, severity, sort string
	objectives                           []string
	onlyWaiting                          bool
	limit                                int
	output                               string
	watch                                bool
}

// sortOrders returns the comparison function for each value of --sort.
func sortOrders() map[string]func(a, b api.IncidentView) int {
	return map[string]func(a, b api.IncidentView) int{
		"opened":     func(a, b api.IncidentView) int { return b.Opened.Compare(a.Opened) },
		"updated":    func(a, b api.IncidentView) int { return b.Updated.Compare(a.Updated) },
		"severity":   func(a, b api.IncidentView) int { return cmp.Compare(b.Severity.Rank(), a.Severity.Rank()) },
		"confidence": func(a, b api.IncidentView) int { return cmp.Compare(b.Confidence, a.Confidence) },
	}
}

// statusNames returns the values of --status.
func statusNames() []string { return []string{"open", "closed", "resolved", "unreadable"} }

func incidentsCommand(g *globalFlags) *cobra.Command {
	var l incidentQuery
	c := &cobra.Command{
		Use: "incidents [ID]", Short: "List incidents, or show one", Args: validateArgs(cobra.MaximumNArgs(1)),
		Long: `List incidents, newest first, to find what needs your attention. Given an ID, show that
incident with its current state: steps and evidence of running playbooks, pending approval
requests, leases, and containments that were refused while automation was paused.

--since and --until accept a duration before now (1d, 2h), a date, or a time such as
2006-01-02T15:04:05Z.`,
		Example: `  stanch incidents
  stanch incidents --waiting
  stanch incidents --since 1d --severity high --status open
  stanch incidents --watch
  stanch incidents INC-01JABCDEFGHJKMNPQRSTVWXYZ0
  stanch incidents INC-01JABCDEFGHJKMNPQRSTVWXYZ0 -o ocsf`,
		RunE: func(cmd *cobra.Command, ids []string) error {
			if err := l.validate(len(ids) == 1); err != nil {
				return usageError{err}
			}
			show := func(ctx context.Context, out io.Writer) error {
				return l.printList(ctx, g, out, useColor(cmd.OutOrStdout()))
			}
			if len(ids) == 1 {
				show = func(ctx context.Context, out io.Writer) error {
					return l.printOne(ctx, g, out, ids[0], useColor(cmd.OutOrStdout()))
				}
			}
			if l.watch {
				return watchOutput(cmd, show)
			}
			if l.output == "text" || l.output == "wide" {
				g.printPauseBanner(cmd)
			}
			return show(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&l.since, "since", "", "only incidents opened after this `TIME`, such as 1d or 2026-11-23")
	f.StringVar(&l.until, "until", "", "only incidents opened before this `TIME`")
	f.StringVar(&l.status, "status", "", "only incidents with this `STATUS`: open, closed, resolved or unreadable")
	f.StringVar(&l.severity, "severity", "",
		"only incidents of at least this `SEVERITY`: info, low, medium, high or critical")
	f.StringSliceVar(&l.objectives, "objective", nil, "only incidents with one of these `OBJECTIVES`")
	f.BoolVar(&l.onlyWaiting, "waiting", false, "only incidents with a pending approval request")
	f.StringVar(&l.sort, "sort", "opened", "the sort `ORDER`: opened, updated, severity or confidence")
	f.IntVar(&l.limit, "limit", 50, "list at most this `NUMBER`; 0 lists all")
	f.BoolVar(&l.watch, "watch", false, "reprint the list whenever something changes, until interrupted")
	f.StringVarP(&l.output, "output", "o", "text",
		"the output `FORMAT`: text, wide or json; for one incident also ocsf (Detection Finding and Remediation "+
			"Activity, one JSON object per line)")
	return c
}

func (l *incidentQuery) validate(one bool) error {
	switch _, known := sortOrders()[l.sort]; {
	case l.output == "ocsf" && one:
	case !slices.Contains([]string{"text", "wide", "json"}, l.output):
		return fmt.Errorf("invalid --output %q; use text, wide or json, or ocsf with an ID", l.output)
	case !known:
		return fmt.Errorf("invalid --sort %q; use %s", l.sort, joinOr(slices.Sorted(maps.Keys(sortOrders()))))
	case l.status != "" && !slices.Contains(statusNames(), l.status):
		return fmt.Errorf("invalid --status %q; use %s", l.status, joinOr(statusNames()))
	case l.severity != "" && sensors.Severity(l.severity).Rank() < 0:
		return fmt.Errorf("invalid --severity %q; use info, low, medium, high or critical", l.severity)
	case l.limit < 0:
		return fmt.Errorf("invalid --limit %d; use 0 or more", l.limit)
	}
	for _, o := range l.objectives {
		if !slices.Contains(sensors.Objectives, sensors.Objective(o)) {
			var known []string
			for _, k := range sensors.Objectives {
				known = append(known, string(k))
			}
			return fmt.Errorf("invalid --objective %q; use %s", o, joinOr(known))
		}
	}
	for name, text := range map[string]string{"since": l.since, "until": l.until} {
		if _, err := parseTimeFlag(text, time.Now()); err != nil {
			return fmt.Errorf("invalid --%s: %w", name, err)
		}
	}
	return nil
}

// parseTimeFlag parses a duration before now, a date, or a time; dates and times without a zone are local. "" returns
// the zero time.
func parseTimeFlag(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := duration.Parse(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf(
		"invalid time %q; use a duration before now such as 1d, a date such as 2026-11-23, or a time such as 2026-11-23T15:04:05Z",
		text,
	)
}

// filter returns the incidents that match the flags, sorted and limited, and how many the limit left out.
func (l *incidentQuery) filter(all []api.IncidentView, now time.Time) (shown []api.IncidentView, more int) {
	since, _ := parseTimeFlag(l.since, now)
	until, _ := parseTimeFlag(l.until, now)
	shown = slices.DeleteFunc(slices.Clone(all), func(in api.IncidentView) bool {
		resolved := in.Disposition != ""
		switch {
		case !since.IsZero() && in.Opened.Before(since), !until.IsZero() && !in.Opened.Before(until):
			return true
		case l.status == "resolved" && !resolved, l.status == "open" && (resolved || in.Status != "open"), l.status != "" &&
			l.status != "resolved" && in.Status != l.status:
			return true
		case l.severity != "" && in.Severity.Rank() < sensors.Severity(l.severity).Rank(), l.onlyWaiting &&
			len(in.OpenApprovals) == 0:
			return true
		}
		return len(l.objectives) > 0 && !slices.Contains(l.objectives, string(in.Objective))
	})
	order := sortOrders()[l.sort]
	slices.SortStableFunc(shown, func(a, b api.IncidentView) int {
		return cmp.Or(order(a, b), b.Opened.Compare(a.Opened), cmp.Compare(a.ID, b.ID))
	})
	if l.limit > 0 && len(shown) > l.limit {
		return shown[:l.limit], len(shown) - l.limit
	}
	return shown, 0
}

func (l *incidentQuery) printList(ctx context.Context, g *globalFlags, out io.Writer, color bool) error {
	var all []api.IncidentView
	if err := g.newAPIClient().get(ctx, "/v1/incidents", &all); err != nil {
		return err
	}
	shown, more := l.filter(all, time.Now())
	if l.output == "json" {
		return printJSON(out, append([]api.IncidentView{}, shown...))
	}
	printIncidentTable(out, shown, l.output == "wide", color)
	switch {
	case len(all) == 0:
		fmt.Fprintln(out, "no incidents")
	case len(shown) == 0:
		fmt.Fprintf(out, "no incidents match; %d without the filters\n", len(all))
	case more > 0:
		fmt.Fprintf(out, "%d more; --limit 0 lists all\n", more)
	}
	return nil
}

func printIncidentTable(out io.Writer, list []api.IncidentView, wide, color bool) {
	if len(list) == 0 {
		return
	}
	t := table{color: color}
	header := []string{
		"INCIDENT", "STATUS", "OPENED", "SEVERITY", "OBJECTIVE", "CONFIDENCE", "WORKLOAD", "LEASES",
		"WAITING",
	}
	if wide {
		header = append(header, "SCOPE", "HEADLINE", "OUTCOME")
	}
	t.addRow(header...)
	for _, in := range list {
		cells := []string{
			in.ID, in.StatusText, in.Opened.Local().Format(time.DateTime), string(in.Severity),
			string(in.Objective), fmt.Sprintf("%.2f", in.Confidence), in.Workload.String(),
			fmt.Sprint(countActiveLeases(in.Incident)), formatWaiting(in),
		}
		if wide {
			cells = append(cells, in.Scope, in.Headline, in.OutcomeText)
		}
		t.addRow(cells...)
	}
	t.print(out)
}

// countActiveLeases returns the number of leases that have not ended.
func countActiveLeases(in playbooks.Incident) (n int) {
	for _, l := range in.Leases {
		if l.State != "ended" {
			n++
		}
	}
	return n
}

// formatWaiting returns the WAITING cell of an incident: its first pending approval request, preferring one that the
// viewer can approve.
func formatWaiting(in api.IncidentView) string {
	if len(in.OpenApprovals) == 0 {
		if len(in.RefusedWhilePaused) > 0 {
			return fmt.Sprintf("%d refused while paused", len(in.RefusedWhilePaused))
		}
		return ""
	}
	w := in.OpenApprovals[0]
	if i := slices.IndexFunc(in.OpenApprovals, func(w api.OpenApproval) bool { return w.ViewerCanApprove }); i >= 0 {
		w = in.OpenApprovals[i]
	}
	text := fmt.Sprintf("%d of %d approved: %s", len(w.ApprovedBy), w.Quorum, w.Title)
	if w.ViewerCanApprove {
		text = "for you: " + w.Title
	}
	if more := len(in.OpenApprovals) - 1; more > 0 {
		text += fmt.Sprintf(" (+%d)", more)
	}
	return text
}
