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
	"stanch/workflows/chatmessage"
)

// TriageKind is what a person says about an incident.
type TriageKind string

// The marks.
const (
	TriageAssigned      TriageKind = "taken-over"
	TriageFalsePositive TriageKind = "false-positive"
)

// TriageDecision is a person's word about an incident, with the gateway's proof of whose it is.
type TriageDecision struct {
	Kind   TriageKind           `json:"kind"`
	Person string               `json:"person"`
	Reason string               `json:"reason,omitempty"`
	Grant  attestation.Envelope `json:"grant"`
}

// handleTriage takes in a person's word: Stanch starts nothing new in an incident that is a person's or that is none.
// What holds goes on to its end.
func (r *incidentRun) handleTriage(ctx workflow.Context, m TriageDecision) {
	now := workflow.Now(ctx)
	text := m.Person + " has taken it over: nothing further is contained by itself"
	switch m.Kind {
	case TriageAssigned:
		r.Incident.Assignee = m.Person
	case TriageFalsePositive:
		r.Incident.Disposition, r.Incident.DispositionBy = string(m.Kind), m.Person
		text = m.Person + " says that it is a false positive"
	default:
		return
	}
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	r.addTimeline(now, text)
	r.Incident.Updated = now
	for _, p := range r.Incident.Playbooks {
		if p.Ended.IsZero() { // one that has just ended hears nothing, and has nothing left to do
			workflow.SignalExternalWorkflow(ctx, p.WorkflowID, "", workflows.SignalSuspend, notStartedReason(r.Incident))
		}
	}
}

// isAssigned tells whether a person decides what happens from now on.
func (r *incidentRun) isAssigned() bool {
	return r.Incident.Assignee != "" || r.Incident.Disposition != ""
}

// notifyDelay is how long a change waits for the next before people are told: a containment makes several in a moment, and
// telling must not slow it down.
const notifyDelay = time.Second

// keepMessageSynced tells the incident's thread when something happened, and starts it the first time.
func (r *incidentRun) keepMessageSynced(ctx workflow.Context) {
	if !r.input.ChatEnabled {
		return
	}
	r.messageUpToDate = r.input.Resume == nil
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			if workflow.Await(ctx, func() bool { return !r.messageUpToDate }) != nil || workflow.Sleep(ctx, notifyDelay) != nil {
				return
			}
			r.messageUpToDate = true
			r.notifyChatMessage(ctx)
		}
	})
}

// notifyChatMessage starts the thread, or signals it. A thread that was terminated is started anew.
func (r *incidentRun) notifyChatMessage(ctx workflow.Context) {
	id := workflows.ChatMessageWorkflowID(r.Incident.ID)
	if r.ChatMessageStarted && workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalSyncMessage, nil).Get(ctx, nil) == nil {
		return
	}
	before := r.ChatMessageStarted
	r.ChatMessageStarted = true
	childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: id, ParentClosePolicy: enumspb.PARENT_CLOSE_POLICY_ABANDON,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(r.Incident.ID)),
	})
	if err := workflow.ExecuteChildWorkflow(childCtx, chatmessage.ChatMessage, chatmessage.Input{IncidentID: r.Incident.ID, MayExistAlready: before}).GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		workflow.GetLogger(ctx).Error("the incident's thread could not be started", "error", err)
	}
}

// finalSync makes sure that the thread shows the end; true if it waited for that.
func (r *incidentRun) finalSync(ctx workflow.Context) bool {
	if r.input.ChatEnabled {
		r.notifyChatMessage(ctx)
	}
	return r.input.ChatEnabled
}

// maxActors bounds who is named as having done it. Past it nobody can tell any more who may answer, and so nobody may.
const maxActors = 50

// addActor notes who did what was detected: nobody approves what they triggered.
func (s *incidentState) addActor(d sensors.Detection) {
	switch a := d.Event.Actor; {
	case a == "" || slices.Contains(s.Incident.Actors, a):
	case len(s.Incident.Actors) < maxActors:
		s.Incident.Actors = append(s.Incident.Actors, a)
	default:
		s.Incident.ActorsTruncated = true
	}
}

// notStartedReason says why a playbook that matches does not run.
func notStartedReason(in playbooks.Incident) string {
	if in.Disposition != "" {
		return fmt.Sprintf("nothing further is contained: %s says that it is a false positive", in.DispositionBy)
	}
	return fmt.Sprintf("nothing further is contained: %s has taken it over", in.Assignee)
}
