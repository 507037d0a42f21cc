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

// TriageKind is what a person decides about an incident: who works on it, or what it turned out to be.
type TriageKind string

// The triage kinds. After each of them no further playbook starts in the incident.
const (
	// TriageAssigned assigns the incident to the person. Its running playbooks start no further containments, and their
	// pending approval requests are denied; leases stay in force until they end.
	TriageAssigned TriageKind = "assigned"
	// TriageFalsePositive resolves the incident: what was detected did not happen. Its leases are released and its
	// pending approval requests are denied.
	TriageFalsePositive TriageKind = "false-positive"
	// TriageTruePositive resolves the incident: it was an attack. Nothing is released or denied: leases stay in force
	// until they end, and running playbooks and their approval requests continue.
	TriageTruePositive TriageKind = "true-positive"
	// TriageBenign resolves the incident: what was detected happened and is permitted, such as a penetration test. It
	// has the effects of TriageFalsePositive: a run that continued would contain again what was just released.
	TriageBenign TriageKind = "benign"
)

// Dispositions returns the kinds that resolve an incident.
func Dispositions() []TriageKind {
	return []TriageKind{TriageFalsePositive, TriageTruePositive, TriageBenign}
}

// IsDisposition reports whether k resolves an incident.
func (k TriageKind) IsDisposition() bool { return slices.Contains(Dispositions(), k) }

// ReleasesLeases reports whether k ends the incident's leases.
func (k TriageKind) ReleasesLeases() bool { return k == TriageFalsePositive || k == TriageBenign }

// SuspendsPlaybooks reports whether k stops running playbooks from containing further, which denies their pending
// approval requests.
func (k TriageKind) SuspendsPlaybooks() bool { return k == TriageAssigned || k.ReleasesLeases() }

// Describe returns a disposition as a noun, such as "a false positive"; any other kind as it is.
func (k TriageKind) Describe() string {
	switch k {
	case TriageFalsePositive:
		return "a false positive"
	case TriageTruePositive:
		return "a true positive"
	case TriageAssigned, TriageBenign:
	}
	return string(k)
}

// TriageDecision is a person's decision about an incident, with the grant by which the gateway proves who decided.
type TriageDecision struct {
	Kind   TriageKind           `json:"kind"`
	Person string               `json:"person"`
	Reason string               `json:"reason,omitempty"`
	Grant  attestation.Envelope `json:"grant"`
}

// handleTriage applies a person's decision. No further playbook starts in an incident that is assigned or resolved.
// Leases are released by the gateway, with a grant of their own.
func (r *incidentRun) handleTriage(ctx workflow.Context, m TriageDecision) {
	now := workflow.Now(ctx)
	var text string
	switch {
	case m.Kind == TriageAssigned:
		r.Incident.Assignee = m.Person
		text = "assigned to " + m.Person + ": no further containments start automatically"
	case m.Kind.IsDisposition():
		r.Incident.Disposition, r.Incident.DispositionBy = string(m.Kind), m.Person
		text = m.Person + " resolved the incident as " + m.Kind.Describe()
	default:
		return
	}
	if m.Reason != "" {
		text += ": " + m.Reason
	}
	r.addTimeline(now, text)
	r.Incident.Updated = now
	if !m.Kind.SuspendsPlaybooks() {
		return
	}
	for _, p := range r.Incident.Playbooks {
		if p.Ended.IsZero() { // a run that has just ended does not receive the signal, and has nothing left to do
			workflow.SignalExternalWorkflow(ctx, p.WorkflowID, "", workflows.SignalSuspend, notStartedReason(r.Incident))
		}
	}
}

// isAssigned reports whether a person decides from now on.
func (r *incidentRun) isAssigned() bool {
	return r.Incident.Assignee != "" || r.Incident.Disposition != ""
}

// notifyDelay is how long a change waits for further ones before the message workflow is notified: a containment causes
// several changes at once, and notifications must not slow it down.
const notifyDelay = time.Second

// keepMessageSynced notifies the message workflow of changes, and starts it the first time.
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

// notifyChatMessage starts or signals the message workflow. If it was terminated, a new one is started.
func (r *incidentRun) notifyChatMessage(ctx workflow.Context) {
	id := workflows.ChatMessageWorkflowID(r.Incident.ID)
	if r.ChatMessageStarted && workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalSyncMessage, nil).Get(ctx,
		nil) == nil {
		return
	}
	before := r.ChatMessageStarted
	r.ChatMessageStarted = true
	childCtx := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:            id,
		ParentClosePolicy:     enumspb.PARENT_CLOSE_POLICY_ABANDON,
		WorkflowIDReusePolicy: enumspb.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword(workflows.IncidentSearchAttribute).ValueSet(r.Incident.ID),
		),
	})
	if err := workflow.ExecuteChildWorkflow(childCtx, chatmessage.ChatMessage, chatmessage.Input{
		IncidentID:      r.Incident.ID,
		MayExistAlready: before,
	}).GetChildWorkflowExecution().Get(ctx, nil); err != nil {
		workflow.GetLogger(ctx).Error("the workflow that posts the incident's message could not be started", "error", err)
	}
}

// finalSync makes sure that the chat message shows the end. It returns true if it had to wait.
func (r *incidentRun) finalSync(ctx workflow.Context) bool {
	if r.input.ChatEnabled {
		r.notifyChatMessage(ctx)
	}
	return r.input.ChatEnabled
}

// maxActors is the maximum number of actors of an incident. With more, nobody may answer its approval requests, because
// it is unknown who is an actor.
const maxActors = 50

// addActor records who caused a detection: nobody may approve the response to what they caused.
func (s *incidentState) addActor(d sensors.Detection) {
	switch a := d.Event.Actor; {
	case a == "" || slices.Contains(s.Incident.Actors, a):
	case len(s.Incident.Actors) < maxActors:
		s.Incident.Actors = append(s.Incident.Actors, a)
	default:
		s.Incident.ActorsTruncated = true
	}
}

// notStartedReason returns why a matching playbook does not run.
func notStartedReason(in playbooks.Incident) string {
	if in.Disposition != "" {
		return fmt.Sprintf("no further containments start: %s resolved the incident as %s", in.DispositionBy,
			TriageKind(in.Disposition).Describe())
	}
	return fmt.Sprintf("no further containments start: the incident is assigned to %s", in.Assignee)
}
