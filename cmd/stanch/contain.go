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
	"stanch/worker/gateway"
	"stanch/workflows/playbook"
)

// requestOptions are the flags that contain and run share.
type requestOptions struct {
	gateway.ContainRequest
	noWait      bool
	waitTimeout time.Duration
	output      string
}

func (o *requestOptions) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.Reason, "reason", "", "why, for the incident, the audit and the chat; required")
	f.BoolVar(&o.DryRun, "dry-run", false, "print what would change and what the guards say, and change nothing")
	f.BoolVar(&o.noWait, "no-wait", false, "do not wait for what comes of it")
	f.Var(duration.NewFlag(&o.waitTimeout, 2*time.Minute), "wait", "how long to wait for what comes of it")
	f.StringVar(&o.UID, "uid", "", "the pod's UID: a pod that has the name and another UID is refused")
	f.StringVar(&o.Node, "node", "", "the node of a container outside of a cluster, where several run it")
	addOutputFlag(c, &o.output)
}

const targetHelp = `TARGET is a pod (pod/NAMESPACE/NAME or NAMESPACE/NAME), the id of a container (container/ID or ID), or the id of
an incident, which means its pods and containers. Of a container that an incident names, the first 12 digits suffice. The API server says which pod has the name now, and from
then on its UID counts; the nodes say which of them runs a container.`

func containCommand(g *globalFlags) *cobra.Command {
	o := requestOptions{}
	c := &cobra.Command{
		Use: "contain TARGET --for 1h --reason TEXT", Short: "Contain a pod or container by hand", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Contain what no rule saw, through the same evidence, guards, approvals, lease and audit as
what was detected: evidence first, then the containment, which ends by itself.

` + targetHelp + `

Approvers of the target's scope may, and who runs Stanch on this machine. In a scope of
phase 1 it is only proposed. Whoever asks for it does not approve it.

Exit code 0: contained. 1: refused, proposed, denied, or waiting for an answer.`,
		Example: "  stanch contain pod/shop/web-7d9f --for 1h --reason \"beacons to 203.0.113.9\"\n  stanch contain shop/web-7d9f --for 1h --reason \"beacons\" --dry-run\n" +
			"  stanch contain INC-01JABC… --for 90s --action pod.freeze --reason \"memory first\"",
		RunE: func(cmd *cobra.Command, given []string) error {
			if o.Duration <= 0 {
				return usageError{errors.New("say for how long: --for 1h")}
			}
			return submitRequest(cmd, g, &o, given[0])
		},
	}
	c.Flags().StringVar(&o.Action, "action", "pod.isolate", "another reversible containment, such as pod.freeze")
	c.Flags().Var(duration.NewFlag(&o.Duration, 0), "for", "how long it holds; required")
	o.addFlags(c)
	return c
}

func runCommand(g *globalFlags) *cobra.Command {
	o := requestOptions{}
	c := &cobra.Command{
		Use: "run PLAYBOOK --on TARGET --reason TEXT", Short: "Run a playbook on a pod, container or incident", Args: validateArgs(cobra.ExactArgs(1)),
		Long: `Run one of the playbooks of the running Stanch by hand, whether or not it matches, through
the same guards, approvals, leases and audit as one that matched.

` + targetHelp + `

--dry-run plans its containments; what depends on what the playbook finds out is named and
not planned. ` + "`stanch explain PLAYBOOK`" + ` shows every step.

Exit code 0: contained, or evidence captured where the playbook contains nothing. 1: otherwise.`,
		Example: "  stanch run cryptominer --on pod/shop/web-7d9f --reason \"load without a deployment\"\n  stanch run cryptominer --on INC-01JABC… --reason \"spread\" --dry-run",
		RunE: func(cmd *cobra.Command, given []string) error {
			if o.Target == "" {
				return usageError{errors.New("say on what: --on pod/NAMESPACE/NAME")}
			}
			o.Playbook = given[0]
			return submitRequest(cmd, g, &o, o.Target)
		},
	}
	c.Flags().StringVar(&o.Target, "on", "", "the `TARGET`: a pod, a container's id or an incident's id; required")
	o.addFlags(c)
	return c
}

// submitRequest sends what a person asks for and follows what comes of it.
func submitRequest(cmd *cobra.Command, g *globalFlags, o *requestOptions, target string) error {
	if strings.TrimSpace(o.Reason) == "" {
		return usageError{errors.New("say why: --reason TEXT")}
	}
	q := o.ContainRequest
	q.Target, q.ID = target, uuid.NewString()
	var answer gateway.ContainResponse
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
		fmt.Fprintf(out, "%s: requested %s on %s\n", answer.IncidentID, escapeForTerminal(answer.Playbook), escapeForTerminal(formatTargets(answer)))
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

func formatTargets(a gateway.ContainResponse) string {
	var out []string
	for _, t := range a.Targets {
		out = append(out, t.Target.String())
	}
	return strings.Join(out, ", ")
}

// requestResult is what came of a request on one target.
type requestResult struct {
	Incident  string `json:"incident"`
	Target    string `json:"target"`
	Contained bool   `json:"contained"`
	// Done: the playbook has nothing to contain, and did what it is for.
	Done             bool                       `json:"done,omitempty"`
	State            string                     `json:"state"` // "contained", "evidence captured", "done", "waiting", "running", or the outcome
	Steps            []playbooks.StepReport     `json:"steps"`
	Leases           []string                   `json:"leases"`
	PendingApprovals []playbook.ApprovalRequest `json:"pending_approvals,omitempty"`
	// Warnings say what a containment affects beside its target, and why a yes to what waits may bring nothing about.
	Warnings []string `json:"warnings,omitempty"`
	Error    string   `json:"error,omitempty"`
}

// waitForResults waits until each playbook of a request has ended or waits for people.
func (g *globalFlags) waitForResults(ctx context.Context, answer gateway.ContainResponse, limit time.Duration) ([]requestResult, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var in gateway.IncidentView
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

// collectResults is what is known of each target, and whether nothing more comes by itself.
func collectResults(answer gateway.ContainResponse, in gateway.IncidentView, pending []playbook.ApprovalRequest) (results []requestResult, settled bool) {
	settled = true
	for _, t := range answer.Targets {
		r := requestResult{Incident: answer.IncidentID, Target: t.Target.String(), State: "running", Steps: []playbooks.StepReport{}, Leases: []string{}}
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

// evaluateCompletion judges a run that has nothing to contain: by its evidence where it captures any, else by its outcome. One source
// of several that is not there says nothing against the others.
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
				p("  but: %s", warning)
			}
			for _, lease := range r.Leases {
				p("  release it with `stanch release %s`, let it hold longer with `stanch extend %s --for 1h`", lease, lease)
			}
		case r.Done:
			p("%s: %s; the playbook contains nothing", r.Target, r.State)
		case r.State == "no evidence captured":
			p("%s: %s", r.Target, r.State)
		case len(r.PendingApprovals) > 0:
			for _, q := range r.PendingApprovals {
				p("%s: not contained yet: %s must agree until %s: %s", r.Target, formatQuorum(q.Approvers), q.Deadline.Local().Format(time.TimeOnly), q.Title+q.DurationText())
				p("  `stanch approve %s '%s'`; whoever asked for it does not approve it, and withdraws it with `stanch deny`", r.Incident, q.QualifiedID())
			}
			for _, warning := range r.Warnings {
				p("  but: %s", warning)
			}
		case r.State == "running":
			p("%s: not contained yet; `stanch incidents %s` shows what comes of it", r.Target, r.Incident)
		case r.Error != "":
			p("%s: not contained: %s", r.Target, r.Error)
		default:
			p("%s: not contained: %s", r.Target, display.DescribeOutcome(playbooks.Outcome(r.State), true))
		}
	}
}

// formatQuorum says who must agree: the group, and how many of it where one does not suffice.
func formatQuorum(a activities.Approvers) string {
	if a.Quorum > 1 {
		return fmt.Sprintf("%d of %s", a.Quorum, a.Describe())
	}
	return a.Describe()
}

// printPlans prints what a dry run found, and says no where nothing would be contained.
func printPlans(out io.Writer, a gateway.ContainResponse) error {
	p := func(format string, args ...any) { fmt.Fprintln(out, escapeForTerminal(fmt.Sprintf(format, args...))) }
	runs := false
	p("Dry run: nothing was changed, and no incident was opened.")
	for _, t := range a.Targets {
		p("%s (%s, scope %s, phase %d)", t.Target, t.Target.ID(), t.Scope, t.Phase)
		p("  playbook %s", a.Playbook)
		if len(a.Containments) == 0 {
			p("  it contains nothing, and would run")
			runs = true
		}
		for _, plan := range t.Plans {
			if plan.UnplannableReason != "" {
				p("  %s: not planned: %s", plan.Action, plan.UnplannableReason)
				continue
			}
			p("  %s: %s", plan.Action, formatDecision(plan.Decision))
			if by := plan.Plan; by.AlreadyHeld && !by.HeldUntil.IsZero() {
				p("    held already by lease %s, until %s", by.HeldByLease, by.HeldUntil.Local().Format(time.DateTime))
			}
			for _, change := range plan.Plan.Changes {
				p("    would %s", change)
			}
			if plan.Plan.Duration > 0 {
				p("    and undo it after %s", duration.Format(plan.Plan.Duration))
			}
			for _, warning := range plan.Plan.Warnings {
				p("    but: %s", warning)
			}
			runs = runs || plan.Decision.Verdict == activities.VerdictRun
		}
	}
	if !runs {
		return errReported
	}
	return nil
}

// formatDecision is what the guards say, in words.
func formatDecision(d activities.GuardDecision) string {
	switch d.Verdict {
	case activities.VerdictRun:
		return "would run: " + d.Reason
	case activities.VerdictPropose:
		return "would only be proposed: " + d.Reason
	case activities.VerdictAskApproval:
		who := formatQuorum(d.Approvers)
		if d.Approvers.IsEmpty() {
			who = "nobody, since the scope names no approvers"
		}
		return fmt.Sprintf("would ask %s: %s", who, d.Reason)
	case activities.VerdictRefuse:
		return "would be refused: " + d.Reason
	}
	return d.Reason
}
