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

// Input starts a lease, or goes on with one after continue-as-new.
type Input struct {
	Target playbooks.Target `json:"target"`
	Facet  playbooks.Facet  `json:"facet"`
	First  Holder           `json:"first"`
	Timing Timing           `json:"timing"`
	Carry  *Machine         `json:"carry,omitempty"`
}

// ReleaseSignal and ExtendSignal come from the gateway, with the grant that permits them.
type ReleaseSignal struct {
	Holder string       `json:"holder,omitempty"`
	Grant  attestation.Envelope `json:"grant"`
}

// ExtendSignal moves a holder's end.
type ExtendSignal struct {
	Holder string       `json:"holder,omitempty"`
	Until  time.Time    `json:"until"`
	Grant  attestation.Envelope `json:"grant"`
}

// Workflows are the lease workflow with the catalogue that it combines parameters by.
type Workflows struct{ Catalogue playbooks.Catalog }

// Lease runs one lease to its end. It is deaf to cancellation: a containment ends by its end or by a grant.
func (w *Workflows) Lease(ctx workflow.Context, in Input) error {
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	m := in.Carry
	if m == nil {
		m = New(idOf(workflow.GetInfo(ctx)), in.Target, in.Facet, in.First, workflow.Now(ctx), in.Timing)
	}
	if err := workflow.SetQueryHandler(ctx, workflows.QueryLease, func() (*Machine, error) { return m, nil }); err != nil {
		return err //nolint:wrapcheck // a mistake of the program
	}
	l := &loop{Machine: m, combine: w.Catalogue[m.Action].ParamsCombiner()}
	for {
		l.receive(ctx)
		l.send(ctx)
		switch cmd := m.Next(workflow.Now(ctx)); cmd.Kind {
		case CommandApply:
			l.apply(ctx)
		case CommandVerify:
			l.verify(ctx)
		case CommandUndo:
			l.undo(ctx)
		case CommandWait:
			l.wait(ctx, cmd.Until)
		case CommandEnd:
			l.finish(ctx)
			return nil
		}
		if workflow.GetInfo(ctx).GetContinueAsNewSuggested() {
			l.receive(ctx)
			l.finish(ctx)
			return workflow.NewContinueAsNewError(ctx, w.Lease, Input{Target: in.Target, Facet: in.Facet, Carry: m})
		}
	}
}

// idOf names a lease by the first run of its chain: it is unique and never used twice. Simulation gives no such id; the
// name is then made from the workflow's own.
func idOf(info *workflow.Info) string {
	if len(strings.ReplaceAll(info.FirstRunID, "-", "")) < idDigits {
		return ID(attestation.HashJSON([]string{info.WorkflowExecution.ID, info.WorkflowExecution.RunID}))
	}
	return ID(info.FirstRunID)
}

const idDigits = 20

// ID is the id of the lease whose chain of runs begins with this one.
func ID(firstRun string) string {
	digits := strings.ToUpper(strings.ReplaceAll(firstRun, "-", ""))
	return "LSE-" + digits[:min(idDigits, len(digits))]
}

type loop struct {
	*Machine
	combine func(a, b json.RawMessage) (json.RawMessage, error)
	sending []workflow.Future
}

// receive takes in every signal that is there.
func (l *loop) receive(ctx workflow.Context) {
	now := workflow.Now(ctx)
	for {
		var h Holder
		if !workflow.GetSignalChannel(ctx, workflows.SignalJoin).ReceiveAsync(&h) {
			break
		}
		l.Join(h, now, l.combine)
	}
	for {
		var r ReleaseSignal
		if !workflow.GetSignalChannel(ctx, workflows.SignalRelease).ReceiveAsync(&r) {
			break
		}
		l.Release(r.Holder, r.Grant, now)
	}
	for {
		var e ExtendSignal
		if !workflow.GetSignalChannel(ctx, workflows.SignalExtend).ReceiveAsync(&e) {
			break
		}
		l.Extend(e.Holder, e.Until, e.Grant)
	}
}

// send sends what the machine owes; an incident or playbook that has ended already is no error.
func (l *loop) send(ctx workflow.Context) {
	for _, r := range l.Reports {
		l.sending = append(l.sending, workflow.SignalExternalWorkflow(ctx, r.To, "", workflows.SignalLeaseReport, r))
	}
	l.Reports = nil
}

// finish waits until what was sent has arrived: a closing workflow's signals could be lost.
func (l *loop) finish(ctx workflow.Context) {
	l.send(ctx)
	for _, f := range l.sending {
		if err := f.Get(ctx, nil); err != nil {
			workflow.GetLogger(ctx).Info("a report did not arrive; its workflow has ended", "error", err)
		}
	}
	l.sending = nil
}

func (l *loop) wait(ctx workflow.Context, until time.Time) {
	timerCtx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	woken := workflow.NewSelector(ctx).AddFuture(workflow.NewTimer(timerCtx, until.Sub(workflow.Now(ctx))), func(workflow.Future) {})
	for _, name := range []string{workflows.SignalJoin, workflows.SignalRelease, workflows.SignalExtend} {
		woken.AddReceive(workflow.GetSignalChannel(ctx, name), func(workflow.ReceiveChannel, bool) {})
	}
	woken.Select(ctx)
}

// call runs an activity of the lease's target.
func (l *loop) call(ctx workflow.Context, attempts int32, activity, in, out any) error {
	return l.Timing.Route.Run(ctx, l.Target, workflow.ActivityOptions{ //nolint:wrapcheck // the machine says what was done
		StartToCloseTimeout: 30 * time.Second, HeartbeatTimeout: activities.HeartbeatTimeout,
		RetryPolicy: &temporal.RetryPolicy{InitialInterval: 200 * time.Millisecond, BackoffCoefficient: 2, MaximumInterval: 10 * time.Second, MaximumAttempts: attempts},
	}, activity, in, out)
}

func (l *loop) apply(ctx workflow.Context) {
	var set *activities.Activities
	r := l.Request()
	var result activities.ApplyResult
	err := l.call(ctx, 4, set.Apply, activities.ApplyInput{Request: r, Authorization: l.Basis, PriorState: l.Prior, LeaseToken: l.Token}, &result)
	if err != nil {
		l.ChangeFailed(err, workflow.Now(ctx))
		return
	}
	l.Changed(result, r.ExpiresAt, workflow.Now(ctx))
}

func (l *loop) verify(ctx workflow.Context) {
	var set *activities.Activities
	var result activities.VerifyResult
	err := l.call(ctx, 2, set.Verify, activities.VerifyInput{Request: l.Request(), PriorState: l.Prior}, &result)
	l.Observed(result, err, workflow.Now(ctx))
}

func (l *loop) undo(ctx workflow.Context) {
	var set *activities.Activities
	var result activities.UndoResult
	err := l.call(ctx, 3, set.Undo, activities.UndoInput{Request: l.Request(), PriorState: l.Prior, ReleaseGrant: l.Grant}, &result)
	l.TakenBack(result, err, workflow.Now(ctx))
}
