package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
	"stanch/worker/api"
	"stanch/worker/export"
	"stanch/workflows/playbook"
)

func (l *incidentQuery) printOne(ctx context.Context, g *globalFlags, out io.Writer, id string, color bool) error {
	var in api.IncidentView
	if err := g.newAPIClient().get(ctx, "/v1/incidents/"+id, &in); err != nil {
		return err
	}
	switch l.output {
	case "json":
		return printJSON(out, in)
	case "ocsf":
		for _, event := range export.OCSFIncident(in.Incident, version) {
			if err := json.NewEncoder(out).Encode(event); err != nil {
				return fmt.Errorf("print the incident: %w", err)
			}
		}
		return nil
	}
	var pending []playbook.ApprovalRequest
	if err := g.newAPIClient().get(ctx, "/v1/pending", &pending); err != nil {
		return err
	}
	printIncident(out, in, pending, color)
	return nil
}

func printIncident(out io.Writer, in api.IncidentView, pending []playbook.ApprovalRequest, color bool) {
	p := func(format string, a ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, a...))) }
	fmt.Fprintln(out, colorize(color, string(in.Severity),
		escapeForTerminal(fmt.Sprintf("%s  %s  %s, confidence %.2f  [%s]", in.ID, in.Severity, in.Objective, in.Confidence,
			in.StatusText))))
	p("%s", in.Summary)
	if in.OutcomeText != "" {
		p("outcome     %s", in.OutcomeText)
	}
	for _, w := range in.OpenApprovals {
		you := ""
		if w.ViewerCanApprove {
			you = "; waiting for you"
		}
		p("waiting     %s: %s%s", w.Title, display.DescribeApprovalProgress(w.ApprovedBy, w.Quorum, w.Approvers), you)
		for _, warning := range w.Warnings {
			p("            warning: %s", warning)
		}
	}
	for _, r := range in.RefusedWhilePaused {
		p("refused     %s on %s while new containments were paused; to contain now: %s", r.Action, r.Target,
			r.RetryCommand)
	}
	p("")
	printContext(p, in.Incident)
	for _, l := range in.Leases {
		p("lease       %s %s on %s: %s, until %s %s", l.ID, l.Action, display.TargetName(in.Incident, l.Target),
			display.DescribeLease(l), l.ExpiresAt.Local().Format(time.DateTime), l.Reason)
		for _, warning := range l.Warnings {
			p("            warning: %s", warning)
		}
	}
	for _, e := range in.Evidence {
		p("evidence    %s %s (%d bytes, sha256 %s)", e.Action, e.Name, e.SizeBytes, e.SHA256)
	}
	for _, run := range in.Playbooks {
		p("playbook    %s: %s", run.Playbook, display.SummarizeRun(in.Incident, run))
		if run.ResponderGuide != "" {
			p("guide       %s: %s", run.Playbook, strings.Join(strings.Fields(run.ResponderGuide), " "))
		}
	}
	for _, n := range in.NotSelected {
		p("not run     %s: %s", n.Playbook, n.Reason)
	}
	p("")
	for _, e := range display.SortedTimeline(in.Incident) {
		p("%s  %s", e.At.Local().Format("15:04:05.000"), e.Text)
	}
	for _, q := range pending {
		if q.IncidentID == in.ID {
			printApprovalRequest(p, q)
		}
	}
}

func printContext(p func(string, ...any), in playbooks.Incident) {
	p("workload    %s", in.Workload)
	p("image       %s %s", in.Workload.Image, in.Workload.ImageDigest)
	p("account     %s", in.Workload.ServiceAccount)
	p("node        %s   scope %s, phase %d", in.Workload.Node, in.Scope, in.Phase)
	for _, t := range in.Targets {
		p("target      %s%s", display.TargetArgument(in, t.ID()), containerIDOf(t))
	}
	p("blast       %d other pods with this image, %d pods on its node", in.BlastRadius.SameDigestPodCount,
		in.BlastRadius.SameNodePodCount)
	for _, m := range in.BlastRadius.DangerousPermissions {
		p("            its service account can: %s", m)
	}
	for _, r := range in.Reasons {
		p("reason      %s", r)
	}
	for _, m := range in.Context.Missing {
		p("missing     %s", m)
	}
	for _, d := range in.Detections {
		p("detection   %s ×%d: %s", d.Rule, d.Count, d.Description)
	}
}

// containerIDOf returns the complete id of the container of a pod in which something was detected; "" for other
// targets.
func containerIDOf(t playbooks.Target) string {
	if t.Kind != playbooks.TargetPod || t.ContainerID == "" {
		return ""
	}
	return "  container/" + t.ContainerID
}

func printApprovalRequest(p func(string, ...any), q playbook.ApprovalRequest) {
	p("")
	p("APPROVAL: %s%s", q.Title, q.DurationText())
	if q.Question != "" {
		p("  %s", q.Question)
	}
	for _, change := range q.ChangesSinceReplaced {
		p("  changed since approval was requested: %s", change)
	}
	for _, plan := range q.Plans {
		for _, change := range plan.Plan.Changes {
			p("  would %s", change)
		}
		if plan.Plan.Duration > 0 {
			p("  would undo it after %s%s", duration.Format(plan.Plan.Duration),
				parenthesize(plan.Plan.EndMechanism.String()))
		}
		for _, warning := range plan.Plan.Warnings {
			p("  warning: %s", warning)
		}
	}
	p("  %s, until %s", display.DescribeApprovalProgress(q.ApprovedBy, q.Approvers.Quorum, q.Approvers.Describe()),
		q.Deadline.Local().Format(time.TimeOnly))
	p("  stanch approve %s '%s'   or   stanch deny %s '%s' --reason …", q.IncidentID, q.QualifiedID(), q.IncidentID,
		q.QualifiedID())
}

// parenthesize returns s in parentheses after a space, or "" for "".
func parenthesize(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}
