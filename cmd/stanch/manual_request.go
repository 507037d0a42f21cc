package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/sensors/duration"
	"stanch/worker/api"
	"stanch/worker/decisions"
	"stanch/workflows/playbook"
)

// requestOptions holds the flags that contain and run share.
type requestOptions struct {
	decisions.ContainRequest
	noWait      bool
	waitTimeout time.Duration
	output      string
}

func (o *requestOptions) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Reason, "reason", "", "the reason, shown in the incident, the audit log and the chat (required)")
	f.BoolVar(&o.DryRun, "dry-run", false, "print what would change and what the guards decide, and change nothing")
	f.BoolVar(&o.noWait, "no-wait", false, "do not wait for the result")
	f.Var(duration.NewFlag(&o.waitTimeout, 2*time.Minute), "wait", "how long to wait for the result")
	f.StringVar(&o.UID, "uid", "", "the UID of the pod: a pod of that name with another UID is refused")
	f.StringVar(&o.Node, "node", "", "the node of a container outside a cluster, if the container ID exists on several nodes")
	addOutputFlag(c, &o.output)
}

const targetHelp = `TARGET is one of:

  pod/NAMESPACE/NAME   a pod, or just NAMESPACE/NAME; the API server resolves the name to the UID that is then contained
  container/ID         a container, or just ID; the first 12 characters are enough if an incident names the container
  INC-…                all pods and containers of an incident`

// submitRequest sends a request, waits for its results and prints them. It returns errReported unless every target was
// contained or its playbook completed.
func submitRequest(cmd *cobra.Command, g *globalFlags, o *requestOptions, target string) error {
	if strings.TrimSpace(o.Reason) == "" {
		return usageError{errors.New("missing --reason; use --reason TEXT")}
	}
	q := o.ContainRequest
	q.Target, q.ID = target, uuid.NewString()
	var answer decisions.ContainResponse
	if err := g.newAPIClient().post(cmd.Context(), "/v1/contain", q, &answer); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if o.DryRun {
		if o.output == "json" {
			return printJSON(out, answer)
		}
		return printPlans(out, answer)
	}
	if o.output == "text" {
		fmt.Fprintf(out, "%s: requested %s on %s\n", answer.IncidentID, escapeForTerminal(answer.Playbook),
			escapeForTerminal(formatTargets(answer)))
	}
	if o.noWait {
		if o.output == "json" {
			return printJSON(out, answer)
		}
		return nil
	}
	results, err := g.waitForResults(cmd.Context(), answer, o.waitTimeout)
	if err != nil {
		return err
	}
	if o.output == "json" {
		err = printJSON(out, results)
	} else {
		printResults(out, results)
	}
	if err == nil && slices.ContainsFunc(results, func(r requestResult) bool { return !r.Contained && !r.Done }) {
		return errReported
	}
	return err
}

func formatTargets(a decisions.ContainResponse) string {
	var out []string
	for _, t := range a.Targets {
		out = append(out, t.Target.String())
	}
	return strings.Join(out, ", ")
}

// requestResult is the result of a request for one target.
type requestResult struct {
	Incident  string `json:"incident"`
	Target    string `json:"target"`
	Contained bool   `json:"contained"`
	// Done is true if the playbook has no containments and completed.
	Done bool `json:"done,omitempty"`
	// "contained", "evidence captured", "done", "waiting", "running", or the outcome
	State            string                     `json:"state"`
	Steps            []playbooks.StepReport     `json:"steps"`
	Leases           []string                   `json:"leases"`
	PendingApprovals []playbook.ApprovalRequest `json:"pending_approvals,omitempty"`
	// Warnings say what else a containment affects, and why an approval may have no effect.
	Warnings []string `json:"warnings,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// waitForResults waits until every playbook run of a request has ended or waits for approval, at most for limit.
func (g *globalFlags) waitForResults(ctx context.Context, answer decisions.ContainResponse,
	limit time.Duration,
) ([]requestResult, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var in api.IncidentView
		var pending []playbook.ApprovalRequest
		err := g.newAPIClient().get(ctx, "/v1/incidents/"+answer.IncidentID, &in)
		if err == nil {
			err = g.newAPIClient().get(ctx, "/v1/pending", &pending)
		}
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		results, settled := collectResults(answer, in, pending)
		if settled {
			return results, nil
		}
		select {
		case <-ctx.Done():
			return results, nil
		case <-tick.C:
		}
	}
}

// collectResults returns the result for each target. settled is true if every run has ended or waits for approval.
func collectResults(answer decisions.ContainResponse, in api.IncidentView,
	pending []playbook.ApprovalRequest,
) (results []requestResult, settled bool) {
	settled = true
	for _, t := range answer.Targets {
		r := requestResult{
			Incident: answer.IncidentID, Target: t.Target.String(), State: "running",
			Steps: []playbooks.StepReport{}, Leases: []string{},
		}
		i := slices.IndexFunc(in.Playbooks, func(p playbooks.PlaybookRun) bool { return p.RequestID == t.RequestID })
		if i < 0 {
			results, settled = append(results, r), false
			continue
		}
		run := in.Playbooks[i]
		for _, p := range pending {
			if p.WorkflowID == run.WorkflowID {
				r.PendingApprovals, r.State = append(r.PendingApprovals, p), "waiting"
				for _, w := range in.OpenApprovals {
					if w.Name == p.QualifiedID() {
						r.Warnings = append(r.Warnings, w.Warnings...)
					}
				}
			}
		}
		r.Error = run.Error
		for _, l := range in.Leases {
			if slices.ContainsFunc(run.Steps, func(s playbooks.StepReport) bool { return s.LeaseID == l.ID }) {
				r.Warnings = append(r.Warnings, l.Warnings...)
			}
		}
		for _, s := range run.Steps {
			r.Steps = append(r.Steps, s)
			if s.LeaseID != "" {
				r.Leases = append(r.Leases, s.LeaseID)
				r.Contained = r.Contained || display.IsContainmentInForce(s)
			}
		}
		if !run.Ended.IsZero() {
			if r.State = string(run.Outcome); r.Contained {
				r.State = "contained"
			} else if len(answer.Containments) == 0 && r.Error == "" {
				r.evaluateCompletion()
			}
		}
		settled = settled && (!run.Ended.IsZero() || len(r.PendingApprovals) > 0)
		results = append(results, r)
	}
	return results, settled
}

// evaluateCompletion sets the result of a run without containments: by its evidence if it captures any, else by its
// outcome. One captured piece of evidence suffices.
func (r *requestResult) evaluateCompletion() {
	captures, captured := false, false
	for _, s := range r.Steps {
		if s.Verb == playbooks.VerbEvidence {
			captures, captured = true, captured || s.Outcome.HasOutputs()
		}
	}
	switch o := playbooks.Outcome(r.State); {
	case captured:
		r.Done, r.State = true, "evidence captured"
	case captures:
		r.State = "no evidence captured"
	case !o.RunsOnFailure() && !o.RunsOnDenied():
		r.Done, r.State = true, "done"
	}
}

func printResults(out io.Writer, results []requestResult) {
	p := func(format string, a ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, a...))) }
	for _, r := range results {
		for _, s := range r.Steps {
			p("  %s %s", s.Action, display.DescribeStepOutcome(s))
		}
		switch {
		case r.Contained:
			p("%s: contained, lease %s", r.Target, strings.Join(r.Leases, ", "))
			for _, warning := range r.Warnings {
				p("  warning: %s", warning)
			}
			for _, lease := range r.Leases {
				p("  end it with `stanch release %s`, extend it with `stanch extend %s --for 1h`", lease, lease)
			}
		case r.Done:
			p("%s: %s; the playbook has no containments", r.Target, r.State)
		case r.State == "no evidence captured":
			p("%s: %s", r.Target, r.State)
		case len(r.PendingApprovals) > 0:
			for _, q := range r.PendingApprovals {
				p("%s: not contained yet: waiting for approval by %s until %s: %s", r.Target,
					formatQuorum(q.Approvers), q.Deadline.Local().Format(time.TimeOnly), q.Title+q.DurationText())
				p("  approve it with `stanch approve %s '%s'` (someone other than you), or withdraw it with "+
					"`stanch deny`", r.Incident, q.QualifiedID())
			}
			for _, warning := range r.Warnings {
				p("  warning: %s", warning)
			}
		case r.State == "running":
			p("%s: not contained yet; `stanch incidents %s` shows the progress", r.Target, r.Incident)
		case r.Error != "":
			p("%s: not contained: %s", r.Target, r.Error)
		default:
			p("%s: not contained: %s", r.Target, display.DescribeOutcome(playbooks.Outcome(r.State), true))
		}
	}
}

// formatQuorum names the approvers, with the quorum if it is more than one: "2 of responders".
func formatQuorum(a playbooks.Approvers) string {
	if a.Quorum > 1 {
		return fmt.Sprintf("%d of %s", a.Quorum, a.Describe())
	}
	return a.Describe()
}

// printPlans prints the result of a dry run. It returns errReported if nothing would run.
func printPlans(out io.Writer, a decisions.ContainResponse) error {
	p := func(format string, args ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, args...))) }
	runs := false
	p("Dry run: nothing is changed, and no incident is opened.")
	for _, t := range a.Targets {
		p("%s (%s, scope %s, phase %d)", t.Target, t.Target.ID(), t.Scope, t.Phase)
		p("  playbook %s", a.Playbook)
		if len(a.Containments) == 0 {
			p("  would run; the playbook has no containments")
			runs = true
		}
		for _, plan := range t.Plans {
			if plan.UnplannableReason != "" {
				p("  %s: not planned: %s", plan.Action, plan.UnplannableReason)
				continue
			}
			p("  %s: %s", plan.Action, formatDecision(plan.Decision))
			if by := plan.Plan; by.AlreadyHeld && !by.HeldUntil.IsZero() {
				p("    already contained by lease %s, until %s", by.HeldByLease,
					by.HeldUntil.Local().Format(time.DateTime))
			}
			for _, change := range plan.Plan.Changes {
				p("    would %s", change)
			}
			if plan.Plan.Duration > 0 {
				p("    would undo it after %s", duration.Format(plan.Plan.Duration))
			}
			for _, warning := range plan.Plan.Warnings {
				p("    warning: %s", warning)
			}
			runs = runs || plan.Decision.Verdict == activities.VerdictRun
		}
	}
	if !runs {
		return errReported
	}
	return nil
}

// formatDecision describes a decision of the guards: "would run: phase 2 contains".
func formatDecision(d activities.GuardDecision) string {
	switch d.Verdict {
	case activities.VerdictRun:
		return "would run: " + d.Reason
	case activities.VerdictPropose:
		return "would only be proposed: " + d.Reason
	case activities.VerdictAskApproval:
		who := formatQuorum(d.Approvers)
		if d.Approvers.IsEmpty() {
			who = "nobody (the scope has no approvers)"
		}
		return fmt.Sprintf("would ask %s for approval: %s", who, d.Reason)
	case activities.VerdictRefuse:
		return "would be refused: " + d.Reason
	}
	return d.Reason
}
