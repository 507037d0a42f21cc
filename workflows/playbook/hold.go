package playbook

import (
	"errors"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/duration"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// reportWait is how long a lease may take to report its first outcome.
const reportWait = 3 * time.Minute

// hold starts the lease of the action's facet of the target, or joins the one that is in force, and waits for its
// first word. The lease outlives this run.
func (r *run) hold(ctx workflow.Context, f frame, s *playbooks.Step, request activities.Request, planned activities.PlanResult, basis activities.Authorization) (playbooks.LeaseReport, error) {
	r.holders++
	holder := lease.Holder{
		ID: fmt.Sprintf("%s/%s%s/%d", r.id, f.prefix, s.Path, r.holders), ReportTo: r.id, Incident: r.brief,
		Action: s.Action, Params: request.Params, For: s.LeaseDuration, Plan: planned.Plan, Basis: basis,
	}
	facet := r.Catalogue[s.Action].Facet
	id := workflows.LeaseID(r.brief.Cluster, request.Target, facet)
	if r.in.LeasePerNode && request.Target.Node != "" && !planned.Decision.TargetConfirmed {
		id = workflows.NodeLeaseID(r.brief.Cluster, request.Target, facet)
	}
	heard, hear := workflow.NewFuture(ctx)
	r.waiting[holder.ID] = hear

	for try := range 5 {
		childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID: id, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON,
			WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
			TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentAttribute).ValueSet(r.brief.ID)),
		})
		child := workflow.ExecuteChildWorkflow(childCtx, r.Leases.Lease, lease.Input{Target: request.Target, Facet: facet, First: holder, Timing: r.in.Timing})
		err := child.GetChildWorkflowExecution().Get(ctx, nil)
		var running *temporal.ChildWorkflowExecutionAlreadyStartedError
		var started *serviceerror.WorkflowExecutionAlreadyStarted // what the SDK's test environment says
		if errors.As(err, &running) || errors.As(err, &started) {
			err = workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalJoin, holder).Get(ctx, nil)
		}
		if err == nil {
			break
		}
		if try == 4 {
			delete(r.waiting, holder.ID)
			return playbooks.LeaseReport{}, fmt.Errorf("start or join the lease %s: %w", id, err)
		}
		// It ended between the start and the signal.
		if err := workflow.Sleep(ctx, 100*time.Millisecond); err != nil {
			return playbooks.LeaseReport{}, err //nolint:wrapcheck // cancelled
		}
	}
	if early, ok := r.early[holder.ID]; ok {
		return early, nil
	}
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	var report playbooks.LeaseReport
	err := fmt.Errorf("the lease %s did not report within %s; `stanch leases` shows it", id, duration.Format(reportWait))
	workflow.NewSelector(ctx).
		AddFuture(heard, func(f workflow.Future) { err = f.Get(ctx, &report) }).
		AddFuture(workflow.NewTimer(timerCtx, reportWait), func(workflow.Future) { delete(r.waiting, holder.ID) }).
		Select(ctx)
	if ctx.Err() != nil && err != nil {
		return report, fmt.Errorf("the time of its block was over before the lease %s reported; it goes on and ends by itself", id)
	}
	return report, err
}
