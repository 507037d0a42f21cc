package playbook

import (
	"fmt"
	"strings"
	"time"

	"stanch/activities"
	"stanch/playbooks"

	"go.temporal.io/sdk/workflow"
)

// runContain plans a containment, asks the guards, and acquires a lease.
func (r *playbookRun) runContain(ctx workflow.Context, f executionFrame, s *playbooks.Step,
	request activities.Request,
) stepOutcome {
	target, under := request.Target.ID(), f.approvedBy
	guard, permitted := "", "" // the guard that refused, and the people who approved if the guards asked
	done := func(o playbooks.Outcome, reason, leaseID string) stepOutcome {
		if permitted != "" {
			reason = strings.TrimPrefix(reason+"; "+permitted, "; ")
		}
		r.recordStepReport(ctx, f, s, playbooks.StepReport{
			Target: target, Outcome: o, Reason: reason, LeaseID: leaseID,
			Guard: guard,
		})
		return stepOutcome{Outcome: o, reason: reason}
	}
	basis := activities.Authorization{Attestations: r.attestationsFor(request.Target), Receipts: lastN(r.receipts[target],
		2), RequiresGrant: under != nil}
	if len(basis.Receipts) == 0 {
		// The evidence of a workload is that of its pods.
		for _, t := range r.input.Incident.Targets {
			basis.Receipts = append(basis.Receipts, lastN(r.receipts[t.ID()], 1)...)
		}
	}
	if r.suspendedReason != "" {
		return done(playbooks.OutcomeDenied, r.suspendedReason, "")
	}
	request.Duration, request.ExpiresAt = s.LeaseDuration, workflow.Now(ctx).Add(s.LeaseDuration)
	planned, err := r.planContainment(ctx, s, request, basis)
	if err != nil {
		return done(playbooks.OutcomeFailed, activityErrorText(err), "")
	}
	var before *activities.PlanResult // the approved plan, if it has changed since
	for range 3 {
		if guard = ""; planned.Decision.Verdict == activities.VerdictRefuse ||
			planned.Decision.Verdict == activities.VerdictPropose {
			guard = planned.Decision.Guard
		}
		if planned.Decision.Verdict == activities.VerdictRefuse {
			return done(playbooks.OutcomeRefused, planned.Decision.Reason, "")
		}
		if under != nil && under.proposeOnly || planned.Decision.Verdict == activities.VerdictPropose {
			return done(playbooks.OutcomeProposed, "would "+strings.Join(planned.Plan.Changes, "; ")+" ("+
				planned.Decision.Reason+")", "")
		}
		if under == nil && planned.Decision.Verdict == activities.VerdictRun {
			break
		}
		if under != nil {
			if grant, ok := under.grants[planned.PlanHash]; ok {
				basis.Grant = &grant
				break
			}
		}
		// The scope requires an approval, or the approved plan has changed since: request approval of the current plan.
		q := ApprovalRequest{
			Step: f.stepName(s), Title: s.Action + " on " + request.Target.String(),
			Plans: []activities.PlanResult{planned}, Targets: []playbooks.Target{request.Target},
			Approvers: planned.Decision.Approvers,
		}
		if under != nil {
			q.Approvers = under.approval.Approvers
			q.Title = under.title + " (the plan changed since it was approved)"
			if was, ok := under.approvedPlans.findPlan(target, s.Action); ok {
				q.ReplacesHash, q.ChangesSinceReplaced = activities.ApprovalRequestHash(under.approvedPlans.plans, q.Approvers),
					planned.Plan.Diff(was.Plan)
			}
		} else if before != nil {
			q.Title += " (the plan changed since it was approved)"
			q.ReplacesHash, q.ChangesSinceReplaced = activities.ApprovalRequestHash([]activities.PlanResult{*before},
				q.Approvers), planned.Plan.Diff(before.Plan)
		}
		before = &planned
		answer := r.waitForApproval(ctx, q)
		if !answer.granted {
			return done(playbooks.OutcomeDenied, answer.reason, "")
		}
		again, err := r.planContainment(ctx, s, request, basis)
		if err != nil {
			return done(playbooks.OutcomeFailed, activityErrorText(err), "")
		}
		if grant, ok := answer.grants[again.PlanHash]; ok {
			planned, basis.Grant, permitted = again, &grant, answer.reason
			break
		}
		planned = again
	}
	if r.suspendedReason != "" {
		return done(playbooks.OutcomeDenied, r.suspendedReason, "")
	}
	if planned.Decision.Verdict != activities.VerdictRun && basis.Grant == nil {
		return done(playbooks.OutcomeRefused, "the plan kept changing while it was being approved", "")
	}
	if !r.Catalog[s.Action].Reversible {
		o, reason, by := r.runIrreversible(ctx, f, s, request, planned, basis)
		guard = by
		return done(o, reason, "")
	}
	report, err := r.acquireLease(ctx, f, s, request, planned, basis)
	if err != nil {
		return done(playbooks.OutcomeFailed, err.Error(), "")
	}
	guard = report.Guard
	return done(report.Outcome, report.Reason, report.ID)
}

func (r *playbookRun) planContainment(ctx workflow.Context, s *playbooks.Step, request activities.Request,
	basis activities.Authorization,
) (activities.PlanResult, error) {
	var planned activities.PlanResult
	err := r.input.LeaseTiming.Route.RunShortActivity(ctx, request.Target, r.activityOptions(s), "Plan",
		activities.PlanInput{Request: request, Authorization: basis}, &planned)
	return planned, err
}

// runIrreversible runs an irreversible action. It returns the outcome with its reason, and the guard that refused it.
func (r *playbookRun) runIrreversible(ctx workflow.Context, f executionFrame, s *playbooks.Step,
	request activities.Request, planned activities.PlanResult, basis activities.Authorization) (o playbooks.Outcome,
	reason, guard string,
) {
	var set *activities.Activities
	var result activities.ApplyResult
	request.LeaseID, request.ExpiresAt = fmt.Sprintf("ACT-%s-%s-%s", r.incidentRef.ID, f.stepName(s), request.Target.UID),
		workflow.Now(ctx).Add(5*time.Minute)
	err := r.input.LeaseTiming.Route.RunActivity(ctx, request.Target, r.activityOptions(s), set.Apply,
		activities.ApplyInput{Request: request, Authorization: basis, PriorState: planned.Plan.PriorState}, &result)
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
