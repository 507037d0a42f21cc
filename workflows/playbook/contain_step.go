package playbook

import (
	"fmt"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/workflows"

	"go.temporal.io/sdk/workflow"
)

// runContain plans a containment, asks the guards, and acquires a lease.
func (r *playbookRun) runContain(ctx workflow.Context, f executionFrame, s *playbooks.Step,
	request activities.Request,
) stepOutcome {
	c := &containment{playbookRun: r, frame: f, step: s, request: request}
	if r.suspendedReason != "" {
		return c.end(ctx, playbooks.OutcomeDenied, r.suspendedReason, "")
	}
	c.request.Duration, c.request.ExpiresAt = s.LeaseDuration, workflow.Now(ctx).Add(s.LeaseDuration)
	c.basis = r.authorizationFor(request.Target, f.approvedBy != nil)
	var err error
	if c.planned, err = r.planContainment(ctx, s, c.request, c.basis); err != nil {
		return c.end(ctx, playbooks.OutcomeFailed, activityErrorText(err), "")
	}
	if out := c.obtainPermission(ctx); out != nil {
		return *out
	}
	if r.suspendedReason != "" {
		return c.end(ctx, playbooks.OutcomeDenied, r.suspendedReason, "")
	}
	if c.planned.Decision.Verdict != activities.VerdictRun && c.basis.Grant == nil {
		return c.end(ctx, playbooks.OutcomeRefused, "the plan kept changing while it was being approved", "")
	}
	if !r.Catalog[s.Action].Reversible {
		o, reason, by := c.runIrreversible(ctx)
		c.guard = by
		return c.end(ctx, o, reason, "")
	}
	report, err := c.acquireLease(ctx)
	if err != nil {
		return c.end(ctx, playbooks.OutcomeFailed, err.Error(), "")
	}
	c.guard = report.Guard
	return c.end(ctx, report.Outcome, report.Reason, report.ID)
}

// containment is one containment step on one target.
type containment struct {
	*playbookRun
	frame   executionFrame
	step    *playbooks.Step
	request activities.Request
	basis   activities.Authorization
	planned activities.PlanResult
	guard   string // that refused
	// permitted names the people who approved, if the guards asked.
	permitted string
}

// authorizationFor returns what permits a containment of a target: its attestations, and the receipts of its evidence.
func (r *playbookRun) authorizationFor(target playbooks.Target, requiresGrant bool) activities.Authorization {
	basis := activities.Authorization{
		Attestations: r.attestationsFor(target), Receipts: lastN(r.receipts[target.ID()], 2), RequiresGrant: requiresGrant,
	}
	if len(basis.Receipts) == 0 {
		// The evidence of a workload is that of its pods.
		for _, t := range r.input.Incident.Targets {
			basis.Receipts = append(basis.Receipts, lastN(r.receipts[t.ID()], 1)...)
		}
	}
	return basis
}

// end reports how the step ended on this target.
func (c *containment) end(ctx workflow.Context, o playbooks.Outcome, reason, leaseID string) stepOutcome {
	if c.permitted != "" {
		reason = strings.TrimPrefix(reason+"; "+c.permitted, "; ")
	}
	c.recordStepReport(ctx, c.frame, c.step, playbooks.StepReport{
		Target: c.request.Target.ID(), Outcome: o, Reason: reason, LeaseID: leaseID, Guard: c.guard,
	})
	return stepOutcome{Outcome: o, reason: reason}
}

// obtainPermission waits until the containment may run. It returns how the step ended if it may not. A plan that
// changes while it is being approved is asked for again, at most three times.
func (c *containment) obtainPermission(ctx workflow.Context) *stepOutcome {
	end := func(o playbooks.Outcome, reason string) *stepOutcome {
		out := c.end(ctx, o, reason, "")
		return &out
	}
	under := c.frame.approvedBy
	var before *activities.PlanResult // the approved plan, if it has changed since
	for range 3 {
		decision := c.planned.Decision
		if c.guard = ""; decision.Verdict == activities.VerdictRefuse || decision.Verdict == activities.VerdictPropose {
			c.guard = decision.Guard
		}
		switch {
		case decision.Verdict == activities.VerdictRefuse:
			return end(playbooks.OutcomeRefused, decision.Reason)
		case under != nil && under.proposeOnly || decision.Verdict == activities.VerdictPropose:
			return end(playbooks.OutcomeProposed, "would "+strings.Join(c.planned.Plan.Changes, "; ")+" ("+decision.Reason+")")
		case under == nil && decision.Verdict == activities.VerdictRun:
			return nil
		}
		if under != nil {
			if grant, ok := under.grants[c.planned.PlanHash]; ok {
				c.basis.Grant = &grant
				return nil
			}
		}
		q := c.approvalRequest(before)
		asked := c.planned
		before = &asked
		answer := c.waitForApproval(ctx, q)
		if !answer.granted {
			return end(playbooks.OutcomeDenied, answer.reason)
		}
		again, err := c.planContainment(ctx, c.step, c.request, c.basis)
		if err != nil {
			return end(playbooks.OutcomeFailed, activityErrorText(err))
		}
		c.planned = again
		if grant, ok := answer.grants[again.PlanHash]; ok {
			c.basis.Grant, c.permitted = &grant, answer.reason
			return nil
		}
	}
	return nil
}

// approvalRequest returns the request for the current plan: the scope requires an approval, or the approved plan has
// changed since. before is the plan that was asked for last, or nil.
func (c *containment) approvalRequest(before *activities.PlanResult) ApprovalRequest {
	under, planned := c.frame.approvedBy, c.planned
	q := ApprovalRequest{
		Step: c.frame.stepName(c.step), Title: c.step.Action + " on " + c.request.Target.String(),
		Plans: []activities.PlanResult{planned}, Targets: []playbooks.Target{c.request.Target},
		Approvers: planned.Decision.Approvers,
	}
	if under != nil {
		q.Approvers = under.approval.Approvers
		q.Title = under.title + " (the plan changed since it was approved)"
		if was, ok := under.approvedPlans.findPlan(c.request.Target.ID(), c.step.Action); ok {
			q.ReplacesHash, q.ChangesSinceReplaced = activities.ApprovalRequestHash(under.approvedPlans.plans, q.Approvers),
				planned.Plan.Diff(was.Plan)
		}
	} else if before != nil {
		q.Title += " (the plan changed since it was approved)"
		q.ReplacesHash, q.ChangesSinceReplaced = activities.ApprovalRequestHash([]activities.PlanResult{*before},
			q.Approvers), planned.Plan.Diff(before.Plan)
	}
	return q
}

func (r *playbookRun) planContainment(ctx workflow.Context, s *playbooks.Step, request activities.Request,
	basis activities.Authorization,
) (activities.PlanResult, error) {
	var planned activities.PlanResult
	err := r.input.LeaseTiming.Route.RunShortActivity(ctx, request.Target, workflows.ActivityCall{
		Options: r.activityOptions(s), Activity: "Plan", Out: &planned,
		In: activities.PlanInput{Request: request, Authorization: basis},
	})
	return planned, err
}

// runIrreversible runs an irreversible action. It returns the outcome with its reason, and the guard that refused it.
func (c *containment) runIrreversible(ctx workflow.Context) (o playbooks.Outcome,
	reason, guard string,
) {
	var set *activities.Activities
	var result activities.ApplyResult
	request := c.request
	request.LeaseID, request.ExpiresAt = fmt.Sprintf("ACT-%s-%s-%s", c.incidentRef.ID, c.frame.stepName(c.step),
		request.Target.UID),
		workflow.Now(ctx).Add(5*time.Minute)
	err := c.input.LeaseTiming.Route.RunActivity(ctx, request.Target, workflows.ActivityCall{
		Options: c.activityOptions(c.step), Activity: set.Apply, Out: &result,
		In: activities.ApplyInput{Request: request, Authorization: c.basis, PriorState: c.planned.Plan.PriorState},
	})
	switch {
	case err != nil:
		return playbooks.OutcomeFailed, activityErrorText(err), ""
	case result.Decision.Verdict == activities.VerdictRefuse:
		return playbooks.OutcomeRefused, result.Decision.Reason, result.Decision.Guard
	case result.Decision.Verdict != activities.VerdictRun:
		return playbooks.OutcomeProposed, result.Decision.Reason, result.Decision.Guard
	}
	return result.Effect.Outcome, result.Effect.Reason, ""
}
