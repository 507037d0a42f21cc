package audit

import (
	"fmt"
	"slices"
	"strings"

	commonpb "go.temporal.io/api/common/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// historyReader reads one run: it decodes payloads, references events, and records what could not be read.
type historyReader struct {
	*timelineBuilder
	run *WorkflowRun
	// scheduledActivities are the scheduled activities, by event id.
	scheduledActivities map[int64]*activityTask
	leaseState          *leaseState // for a lease's run
	// decidedPlans contains the decided plans, by hash and verdict. program is the playbook of a playbook's run.
	decidedPlans      map[string]bool
	grantedPlanHashes map[string]bool // hashes of the approved plans
	program           *playbooks.Program
}

// activityTask is one activity, from its scheduling to its end.
type activityTask struct {
	name      string
	scheduled *historypb.HistoryEvent
	started   *historypb.HistoryEvent
	attempt   int32
}

func (r *historyReader) eventRef(e *historypb.HistoryEvent) EventRef {
	return EventRef{
		WorkflowID: r.run.WorkflowID, RunID: r.run.RunID, EventID: e.GetEventId(),
		EventType: strings.TrimPrefix(e.GetEventType().String(), "EVENT_TYPE_"),
	}
}

func (r *historyReader) addProblem(e *historypb.HistoryEvent, format string, args ...any) {
	r.timeline.Problems = append(r.timeline.Problems, Difference{
		Description: fmt.Sprintf(format, args...),
		EventRef:    r.eventRef(e),
	})
}

// decodePayloads decodes payloads into out. If they cannot be decrypted, it records a problem of the event.
func (r *historyReader) decodePayloads(e *historypb.HistoryEvent, what string, payloads *commonpb.Payloads,
	out any,
) bool {
	if payloads == nil {
		r.addProblem(e, "%s is missing", what)
		return false
	}
	if err := r.options.DataConverter.FromPayloads(payloads, out); err != nil {
		r.addProblem(e, "%s cannot be decoded: %v", what, err)
		return false
	}
	return true
}

// verifyEnvelope verifies and decodes a signed statement. An invalid one is decoded too, and recorded as a problem.
func (r *historyReader) verifyEnvelope(e *historypb.HistoryEvent, what string, s attestation.Envelope,
	purpose attestation.PayloadType, out any,
) bool {
	if err := r.options.Keyring.Verify(s, purpose, out); err != nil {
		r.addProblem(e, "%s is invalid: %v", what, err)
		_ = decodeUnverified(s, out)
		return false
	}
	return true
}

func (r *historyReader) addEntry(e *historypb.HistoryEvent, kind EntryKind, who, what string, details map[string]any) {
	r.timeline.Entries = append(r.timeline.Entries, TimelineEntry{
		At: e.GetEventTime().AsTime(), Kind: kind, Text: what,
		Actor: who, EventRef: r.eventRef(e), Details: details,
	})
}

// failureText returns a failure's message with its causes. The message of an encrypted failure is in its attributes.
func (r *historyReader) failureText(f *failurepb.Failure) string {
	var parts []string
	for depth := 0; f != nil && depth < 10; f, depth = f.GetCause(), depth+1 {
		text := f.GetMessage()
		if encoded := f.GetEncodedAttributes(); encoded != nil {
			var plain struct {
				Message string `json:"message"`
			}
			if err := r.options.DataConverter.FromPayload(encoded, &plain); err == nil && plain.Message != "" {
				text = plain.Message
			}
		}
		if t := f.GetTimeoutFailureInfo(); t != nil {
			text = "timed out (" + strings.ToLower(strings.TrimPrefix(t.GetTimeoutType().String(), "TIMEOUT_TYPE_")) + ")"
		}
		if text != "" && !slices.Contains(parts, text) {
			parts = append(parts, text)
		}
	}
	if len(parts) == 0 {
		return "no failure message"
	}
	return strings.Join(parts, ": ")
}

// trackScheduled records a scheduled activity.
func (r *historyReader) trackScheduled(e *historypb.HistoryEvent) *activityTask {
	a := e.GetActivityTaskScheduledEventAttributes()
	t := &activityTask{name: a.GetActivityType().GetName(), scheduled: e}
	r.scheduledActivities[e.GetEventId()] = t
	return t
}

func (r *historyReader) trackStarted(e *historypb.HistoryEvent) {
	a := e.GetActivityTaskStartedEventAttributes()
	t := r.scheduledActivities[a.GetScheduledEventId()]
	if t == nil {
		return
	}
	t.started, t.attempt = e, a.GetAttempt()
	if a.GetAttempt() > 1 {
		r.addEntry(e, KindRetry, "", fmt.Sprintf("%s was retried (attempt %d) after: %s", r.activityLabel(t), a.GetAttempt(),
			r.failureText(a.GetLastFailure())),
			map[string]any{"attempt": a.GetAttempt(), "last_failure": r.failureText(a.GetLastFailure())})
	}
}

// activityLabel returns an activity's label: its action and target, if it has any.
func (r *historyReader) activityLabel(t *activityTask) string {
	verb := map[string]string{
		activities.TypeObserve: "", activities.TypePlan: "planning ",
		activities.TypeApply: "applying ", activities.TypeVerify: "observing ", activities.TypeUndo: "undoing ",
	}[t.name]
	var in struct {
		Request struct {
			Action string `json:"action"`
			Target struct {
				Kind string `json:"kind"`
				UID  string `json:"uid"`
			} `json:"target"`
		} `json:"request"`
	}
	if r.options.DataConverter.FromPayloads(t.scheduled.GetActivityTaskScheduledEventAttributes().GetInput(),
		&in) != nil || in.Request.Action == "" {
		switch t.name {
		case activities.TypeCountVotes:
			return "counting the votes"
		case activities.TypeRecordAttempt:
			return "the receipt for evidence that timed out"
		}
		return t.name
	}
	return verb + in.Request.Action + " on " + r.targetName(in.Request.Target.Kind+":"+in.Request.Target.UID)
}

// readLocalActivityMarker returns a local activity's name and attempt.
func (r *historyReader) readLocalActivityMarker(e *historypb.HistoryEvent) (name string, attempt int32) {
	var data struct {
		ActivityType string
		Attempt      int32
	}
	a := e.GetMarkerRecordedEventAttributes()
	if a.GetMarkerName() != "LocalActivity" || !r.decodePayloads(e, "the record of a local activity",
		a.GetDetails()["data"], &data) {
		return "", 0
	}
	return data.ActivityType, data.Attempt
}

// addFailureEvents adds failures of tasks and workflows, which every workflow type can have.
func (r *historyReader) addFailureEvents(e *historypb.HistoryEvent) {
	switch {
	case e.GetWorkflowTaskFailedEventAttributes() != nil:
		a := e.GetWorkflowTaskFailedEventAttributes()
		r.addEntry(e, KindFailure, "", "Stanch failed to continue this workflow and is retrying: "+
			r.failureText(a.GetFailure()),
			nil)
	case e.GetWorkflowTaskTimedOutEventAttributes() != nil:
		r.addEntry(e, KindRetry, "", "Stanch's process timed out (it was restarted or busy); the task is retried", nil)
	case e.GetWorkflowExecutionTerminatedEventAttributes() != nil:
		a := e.GetWorkflowExecutionTerminatedEventAttributes()
		r.addEntry(e, KindFailure, a.GetIdentity(), "Someone with access to Temporal terminated this workflow: "+
			valueOrNone(a.GetReason()), nil)
	case e.GetWorkflowExecutionCancelRequestedEventAttributes() != nil:
		a := e.GetWorkflowExecutionCancelRequestedEventAttributes()
		r.addEntry(e, KindFailure, a.GetIdentity(),
			"Someone with access to Temporal requested the cancellation of this workflow: "+valueOrNone(a.GetCause()), nil)
	case e.GetWorkflowExecutionFailedEventAttributes() != nil:
		r.addEntry(e, KindFailure, "", "This workflow failed: "+
			r.failureText(e.GetWorkflowExecutionFailedEventAttributes().GetFailure()), nil)
	case e.GetWorkflowExecutionTimedOutEventAttributes() != nil:
		r.addEntry(e, KindFailure, "", "This workflow timed out", nil)
	}
}

func valueOrNone(s string) string {
	if s == "" {
		return "no reason was given"
	}
	return s
}
