package playbook

import (
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// leaseReportTimeout limits the wait for a lease's first report.
const leaseReportTimeout = 3 * time.Minute

// acquireLease starts the lease of the target's facet, or joins the active one, and waits for its first report. The
// lease outlives this run.
func (c *containment) acquireLease(ctx workflow.Context) (playbooks.LeaseReport, error) {
	r, s, request := c.playbookRun, c.step, c.request
	r.holderCount++
	holder := lease.Holder{
		ID:               fmt.Sprintf("%s/%s%s/%d", r.workflowID, c.frame.stepPrefix, s.Path, r.holderCount),
		ReportToWorkflow: r.workflowID,
		IncidentRef:      r.incidentRef,
		Action:           s.Action, Params: request.Params, Duration: s.LeaseDuration, Plan: c.planned.Plan,
		Authorization: c.basis,
	}
	facet := r.Catalog[s.Action].Facet
	id := workflows.LeaseWorkflowID(r.incidentRef.Cluster, request.Target, facet)
	if r.input.LeasePerNode && request.Target.Node != "" && !c.planned.Decision.TargetConfirmed {
		id = workflows.NodeLeaseWorkflowID(r.incidentRef.Cluster, request.Target, facet)
	}
	heard, hear := workflow.NewFuture(ctx)
	r.waitingHolders[holder.ID] = hear

	if err := c.startOrJoin(ctx, id, holder); err != nil {
		delete(r.waitingHolders, holder.ID)
		return playbooks.LeaseReport{}, err
	}
	if early, ok := r.earlyLeaseReports[holder.ID]; ok {
		return early, nil
	}
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	var report playbooks.LeaseReport
	err := fmt.Errorf("the lease %s did not report within %s; `stanch leases` shows it", id,
		duration.Format(leaseReportTimeout))
	workflow.NewSelector(ctx).
		AddFuture(heard, func(f workflow.Future) { err = f.Get(ctx, &report) }).
		AddFuture(workflow.NewTimer(timerCtx, leaseReportTimeout),
			func(workflow.Future) { delete(r.waitingHolders, holder.ID) }).
		Select(ctx)
	if ctx.Err() != nil && err != nil {
		return report, fmt.Errorf(
			"its block timed out before the lease %s reported; the lease continues and ends automatically",
			id,
		)
	}
	return report, err
}

// startOrJoin starts the lease or, if it is running, joins it. Between the two it may end, so both are tried a few
// times.
func (c *containment) startOrJoin(ctx workflow.Context, id string, holder lease.Holder) error {
	for try := range 5 {
		childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID:            id,
			ParentClosePolicy:     enumspb.PARENT_CLOSE_POLICY_ABANDON,
			WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
			TypedSearchAttributes: temporal.NewSearchAttributes(
				temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(c.incidentRef.ID),
			),
		})
		child := workflow.ExecuteChildWorkflow(childCtx, c.Leases.Lease, lease.Input{
			Target: c.request.Target, Facet: c.Catalog[c.step.Action].Facet,
			FirstHolder: holder, Timing: c.input.LeaseTiming,
		})
		err := child.GetChildWorkflowExecution().Get(ctx, nil)
		var running *temporal.ChildWorkflowExecutionAlreadyStartedError
		var started *serviceerror.WorkflowExecutionAlreadyStarted // the error of the SDK's test environment
		if errors.As(err, &running) || errors.As(err, &started) {
			err = workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalJoinLease, holder).Get(ctx, nil)
		}
		if err == nil {
			return nil
		}
		if try == 4 {
			return fmt.Errorf("start or join the lease %s: %w", id, err)
		}
		// It ended between the start and the signal.
		if err := workflow.Sleep(ctx, 100*time.Millisecond); err != nil {
			return err //nolint:wrapcheck // canceled
		}
	}
	return nil
}
