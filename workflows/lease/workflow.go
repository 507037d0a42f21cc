package lease

import (
	"encoding/json"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows"
)

// Input starts a lease, or continues one after continue-as-new.
type Input struct {
	Target      playbooks.Target `json:"target"`
	Facet       playbooks.Facet  `json:"facet"`
	FirstHolder Holder           `json:"first"`
	Timing      Timing           `json:"timing"`
	Resume      *Machine         `json:"resume,omitempty"`
}

// ReleaseSignal ends a holder's part of the lease, with the grant that permits it. The gateway sends it.
type ReleaseSignal struct {
	HolderID string               `json:"holder,omitempty"`
	Grant    attestation.Envelope `json:"grant"`
}

// ExtendSignal moves a holder's end, with the grant that permits it. The gateway sends it.
type ExtendSignal struct {
	HolderID  string               `json:"holder,omitempty"`
	ExpiresAt time.Time            `json:"until"`
	Grant     attestation.Envelope `json:"grant"`
}

// Workflows contains the lease workflow and the catalog that combines parameters.
type Workflows struct{ Catalog playbooks.Catalog }

// Lease runs one lease to its end. It ignores cancellation: a containment ends at its end or by a grant.
func (w *Workflows) Lease(ctx workflow.Context, in Input) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	m := in.Resume
	if m == nil {
		m = NewMachine(leaseIDFromRun(workflow.GetInfo(ctx)), in, workflow.Now(ctx))
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryLease, func() (*Machine, error) { return m, nil }); err != nil {
		return err //nolint:wrapcheck // a programming error
	}
	l := &workflowLoop{Machine: m, combineParams: w.Catalog[m.Action].ParamsCombiner()}
	for {
		l.receiveSignals(ctx)
		l.sendReports(ctx)
		switch cmd := m.NextCommand(workflow.Now(ctx)); cmd.Kind {
		case CommandApply:
			l.runApply(ctx)
		case CommandVerify:
			l.runVerify(ctx)
		case CommandUndo:
			l.runUndo(ctx)
		case CommandWait:
			l.waitUntil(ctx, cmd.Until)
		case CommandEnd:
			l.waitForSends(ctx)
			return nil
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			l.receiveSignals(ctx)
			l.waitForSends(ctx)
			return workflow.NewContinueAsNewError(ctx, w.Lease, Input{Target: in.Target, Facet: in.Facet, Resume: m})
		}
	}
}

// leaseIDFromRun returns the lease's id, derived from the first run of its chain: it is unique and never reused.
// Simulation has no such id and uses the workflow's id.
func leaseIDFromRun(info *workflow.Info) string {
	if len(strings.ReplaceAll(info.FirstRunID, "-", "")) < leaseIDDigits {
		return IDFromFirstRun(attestation.HashJSON([]string{info.WorkflowExecution.ID, info.WorkflowExecution.RunID}))
	}
	return IDFromFirstRun(info.FirstRunID)
}

const leaseIDDigits = 20

// IDFromFirstRun returns the id of the lease whose chain of runs starts with this run.
func IDFromFirstRun(firstRun string) string {
	digits := strings.ToUpper(strings.ReplaceAll(firstRun, "-", ""))
	return "LSE-" + digits[:min(leaseIDDigits, len(digits))]
}

type workflowLoop struct {
	*Machine
	combineParams func(a, b json.RawMessage) (json.RawMessage, error)
	pendingSends  []workflow.Future
}

// receiveSignals handles every pending signal.
func (l *workflowLoop) receiveSignals(ctx workflow.Context) {
	now := workflow.Now(ctx)
	for {
		var h Holder
		if !workflow.GetSignalChannel(ctx, workflows.SignalJoinLease).ReceiveAsync(&h) {
			break
		}
		l.Join(h, now, l.combineParams)
	}
	for {
		var r ReleaseSignal
		if !workflow.GetSignalChannel(ctx, workflows.SignalReleaseLease).ReceiveAsync(&r) {
			break
		}
		l.Release(r.HolderID, r.Grant, now)
	}
	for {
		var e ExtendSignal
		if !workflow.GetSignalChannel(ctx, workflows.SignalExtendLease).ReceiveAsync(&e) {
			break
		}
		l.Extend(e.HolderID, e.ExpiresAt, e.Grant)
	}
}

// sendReports sends the pending reports. Reports to an incident or playbook that has ended are dropped without an
// error.
func (l *workflowLoop) sendReports(ctx workflow.Context) {
	for _, r := range l.PendingReports {
		l.pendingSends = append(l.pendingSends, workflow.SignalExternalWorkflow(ctx, r.WorkflowID, "",
			workflows.SignalLeaseReport, r))
	}
	l.PendingReports = nil
}

// waitForSends waits until sent signals have arrived, because those of a closing workflow could be lost.
func (l *workflowLoop) waitForSends(ctx workflow.Context) {
	l.sendReports(ctx)
	for _, f := range l.pendingSends {
		if err := f.Get(ctx, nil); err != nil {
			workflow.GetLogger(ctx).Info("a report was not delivered: its workflow has ended", "error", err)
		}
	}
	l.pendingSends = nil
}

func (l *workflowLoop) waitUntil(ctx workflow.Context, until time.Time) {
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	woken := workflow.NewSelector(ctx).AddFuture(workflow.NewTimer(timerCtx, until.Sub(workflow.Now(ctx))),
		func(workflow.Future) {})
	for _, name := range []string{workflows.SignalJoinLease, workflows.SignalReleaseLease, workflows.SignalExtendLease} {
		woken.AddReceive(workflow.GetSignalChannel(ctx, name), func(workflow.ReceiveChannel, bool) {})
	}
	woken.Select(ctx)
}

// runActivity runs an activity for the lease's target.
func (l *workflowLoop) runActivity(ctx workflow.Context, attempts int32, activity, in, out any) error {
	options := workflow.ActivityOptions{
		StartToCloseTimeout: 30 * time.Second, HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{
			InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2,
			MaximumInterval: 10 * time.Second, MaximumAttempts: attempts,
		},
	}
	return l.Timing.Route.RunActivity(ctx, l.Target, //nolint:wrapcheck // the state machine adds context
		workflows.ActivityCall{Options: options, Activity: activity, In: in, Out: out})
}

func (l *workflowLoop) runApply(ctx workflow.Context) {
	var set *activities.Activities
	r := l.ActivityRequest()
	var result activities.ApplyResult
	err := l.runActivity(ctx, 4, set.Apply, activities.ApplyInput{
		Request: r, Authorization: l.Authorization,
		PriorState: l.PriorState, LeaseToken: l.LeaseToken,
	}, &result)
	if err != nil {
		l.OnApplyFailed(err, workflow.Now(ctx))
		return
	}
	l.OnApplied(result, r.ExpiresAt, workflow.Now(ctx))
}

func (l *workflowLoop) runVerify(ctx workflow.Context) {
	var set *activities.Activities
	var result activities.VerifyResult
	err := l.runActivity(ctx, 2, set.Verify, activities.VerifyInput{
		Request:    l.ActivityRequest(),
		PriorState: l.PriorState,
	}, &result)
	l.OnVerified(result, err, workflow.Now(ctx))
}

func (l *workflowLoop) runUndo(ctx workflow.Context) {
	var set *activities.Activities
	var result activities.UndoResult
	err := l.runActivity(ctx, 3, set.Undo, activities.UndoInput{
		Request: l.ActivityRequest(), PriorState: l.PriorState,
		ReleaseGrant: l.ReleaseGrant,
	}, &result)
	l.OnUndone(result, err, workflow.Now(ctx))
}
