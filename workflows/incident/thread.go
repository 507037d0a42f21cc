package incident

import (
	"fmt"
	"slices"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/thread"
)

// MarkKind is what a person says about an incident.
type MarkKind string

// The marks.
const (
	MarkTakenOver     MarkKind = "taken-over"
	MarkFalsePositive MarkKind = "false-positive"
)

// Mark is a person's word about an incident, with the gateway's proof of whose it is.
type Mark struct {
	Kind   MarkKind     `json:"kind"`
	Person string       `json:"person"`
	Reason string       `json:"reason,omitempty"`
	Grant  attestation.Envelope `json:"grant"`
}

// heardMark takes in a person's word: Stanch starts nothing new in an incident that is a person's or that is none.
// What holds goes on to its end.
func (r *run) heardMark(ctx workflow.Context, m Mark) {
	now := workflow.Now(ctx)
	text := m.Person + " has taken it over: nothing further is contained by itself"
	switch m.Kind {
	case MarkTakenOver:
		r.Incident.Assignee = m.Person
	case MarkFalsePositive:
		r.Incident.Disposition, r.Incident.DispositionBy = string(m.Kind), m.Person
		text = m.Person + " says that it is a false positive"
	default:
		return
	}
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	r.line(now, text)
	r.Incident.Updated = now
	for _, p := range r.Incident.Playbooks {
		if p.Ended.IsZero() { // one that has just ended hears nothing, and has nothing left to do
			workflow.SignalExternalWorkflow(ctx, p.WorkflowID, "", workflows.SignalHalt, notStarted(r.Incident))
		}
	}
}

// inHand tells whether a person decides what happens from now on.
func (r *run) inHand() bool { return r.Incident.Assignee != "" || r.Incident.Disposition != "" }

// settle is how long a change waits for the next before people are told: a containment makes several in a moment, and
// telling must not slow it down.
const settle = time.Second

// keepThread tells the incident's thread when something happened, and starts it the first time.
func (r *run) keepThread(ctx workflow.Context) {
	if !r.in.Thread {
		return
	}
	r.told = r.in.Carry == nil
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			if workflow.Await(ctx, func() bool { return !r.told }) != nil || workflow.Sleep(ctx, settle) != nil {
				return
			}
			r.told = true
			r.tell(ctx)
		}
	})
}

// tell starts the thread, or signals it. A thread that was terminated is started anew.
func (r *run) tell(ctx workflow.Context) {
	id := workflows.ThreadID(r.Incident.ID)
	if r.Threaded && workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalLook, nil).Get(ctx, nil) == nil {
		return
	}
	before := r.Threaded
	r.Threaded = true
	childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: id, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentAttribute).ValueSet(r.Incident.ID)),
	})
	if err := workflow.ExecuteChildWorkflow(childCtx, thread.Thread, thread.Input{Incident: r.Incident.ID, Again: before}).GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		workflow.GetLogger(ctx).Error("the incident's thread could not be started", "error", err)
	}
}

// lastLook makes sure that the thread shows the end; true if it waited for that.
func (r *run) lastLook(ctx workflow.Context) bool {
	if r.in.Thread {
		r.tell(ctx)
	}
	return r.in.Thread
}

// maxActors bounds who is named as having done it. Past it nobody can tell any more who may answer, and so nobody may.
const maxActors = 50

// actor notes who did what was detected: nobody approves what they triggered.
func (s *state) actor(d sensors.Detection) {
	switch a := d.Event.Actor; {
	case a == "" || slices.Contains(s.Incident.Actors, a):
	case len(s.Incident.Actors) < maxActors:
		s.Incident.Actors = append(s.Incident.Actors, a)
	default:
		s.Incident.ActorsTruncated = true
	}
}

// notStarted says why a playbook that matches does not run.
func notStarted(in playbooks.Incident) string {
	if in.Disposition != "" {
		return fmt.Sprintf("nothing further is contained: %s says that it is a false positive", in.DispositionBy)
	}
	return fmt.Sprintf("nothing further is contained: %s has taken it over", in.Assignee)
}
