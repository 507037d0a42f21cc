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
	"stanch/sensors/proof"
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
	Grant  proof.Signed `json:"grant"`
}

// heardMark takes in a person's word: Stanch starts nothing new in an incident that is a person's or that is none.
// What holds goes on to its end.
func (r *run) heardMark(m Mark, now time.Time) {
	text := m.Person + " has taken it over: no further playbook starts by itself"
	switch m.Kind {
	case MarkTakenOver:
		r.Incident.Owner = m.Person
	case MarkFalsePositive:
		r.Incident.Judged, r.Incident.JudgedBy = string(m.Kind), m.Person
		text = m.Person + " says that it is a false positive"
	default:
		return
	}
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	r.line(now, text)
	r.Incident.Updated = now
}

// inHand tells whether a person decides what happens from now on.
func (r *run) inHand() bool { return r.Incident.Owner != "" || r.Incident.Judged != "" }

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
	r.Threaded = true
	childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: id, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentAttribute).ValueSet(r.Incident.ID)),
	})
	if err := workflow.ExecuteChildWorkflow(childCtx, thread.Thread, thread.Input{Incident: r.Incident.ID}).GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		workflow.GetLogger(ctx).Error("the incident's thread could not be started", "error", err)
	}
}

// lastLook makes sure that the thread shows the end.
func (r *run) lastLook(ctx workflow.Context) {
	if r.in.Thread {
		r.tell(ctx)
	}
}

// maxActors bounds who is named as having done it.
const maxActors = 10

// actor notes who did what was detected: nobody approves what they triggered.
func (s *state) actor(d sensors.Detection) {
	if a := d.Event.Actor; a != "" && !slices.Contains(s.Incident.Actors, a) && len(s.Incident.Actors) < maxActors {
		s.Incident.Actors = append(s.Incident.Actors, a)
	}
}

// notStarted says why a playbook that matches does not run.
func notStarted(in playbooks.Incident) string {
	if in.Judged != "" {
		return fmt.Sprintf("no further playbook starts: %s says that it is a false positive", in.JudgedBy)
	}
	return fmt.Sprintf("no further playbook starts: %s has taken it over", in.Owner)
}
