package audit

import (
	"fmt"
	"slices"
	"strings"

	commonpb "go.temporal.io/api/common/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// reader reads one run: it gives payloads, names events, and remembers what could not be read.
type reader struct {
	*teller
	run *Run
	// activities are what was scheduled, by event id.
	activities map[int64]*task
	held       *held // in a lease's run
	// plans are those that were decided, by their hash and verdict; program is what a playbook's run runs.
	plans   map[string]bool
	granted map[string]bool // hashes of plans that people permitted
	program *playbooks.Program
}

// task is one activity from its scheduling to its end.
type task struct {
	name      string
	scheduled *historypb.HistoryEvent
	started   *historypb.HistoryEvent
	attempt   int32
}

func (r *reader) ref(e *historypb.HistoryEvent) Ref {
	return Ref{Workflow: r.run.Workflow, Run: r.run.ID, Event: e.GetEventId(), Type: strings.TrimPrefix(e.GetEventType().String(), "EVENT_TYPE_")}
}

func (r *reader) problem(e *historypb.HistoryEvent, format string, args ...any) {
	r.story.Problems = append(r.story.Problems, Difference{What: fmt.Sprintf(format, args...), Ref: r.ref(e)})
}

// decode reads payloads into out; what does not decrypt is a problem of the event.
func (r *reader) decode(e *historypb.HistoryEvent, what string, payloads *commonpb.Payloads, out any) bool {
	if payloads == nil {
		r.problem(e, "%s is missing", what)
		return false
	}
	if err := r.o.Converter.FromPayloads(payloads, out); err != nil {
		r.problem(e, "%s cannot be read: %v", what, err)
		return false
	}
	return true
}

// open verifies a statement and reads it; one that does not verify is read all the same, and named.
func (r *reader) open(e *historypb.HistoryEvent, what string, s attestation.Envelope, purpose attestation.PayloadType, out any) bool {
	if err := r.o.Keys.Verify(s, purpose, out); err != nil {
		r.problem(e, "%s does not hold: %v", what, err)
		_ = unsigned(s, out)
		return false
	}
	return true
}

func (r *reader) line(e *historypb.HistoryEvent, kind Kind, who, what string, details map[string]any) {
	r.story.Lines = append(r.story.Lines, Line{At: e.GetEventTime().AsTime(), Kind: kind, What: what, Who: who, Ref: r.ref(e), Details: details})
}

// failure is what a failure says, with its causes. The message of an encrypted one is in its attributes.
func (r *reader) failure(f *failurepb.Failure) string {
	var parts []string
	for depth := 0; f != nil && depth < 10; f, depth = f.GetCause(), depth+1 {
		text := f.GetMessage()
		if encoded := f.GetEncodedAttributes(); encoded != nil {
			var plain struct {
				Message string `json:"message"`
			}
			if err := r.o.Converter.FromPayload(encoded, &plain); err == nil && plain.Message != "" {
				text = plain.Message
			}
		}
		if t := f.GetTimeoutFailureInfo(); t != nil {
			text = "no answer in time (" + strings.ToLower(strings.TrimPrefix(t.GetTimeoutType().String(), "TIMEOUT_TYPE_")) + ")"
		}
		if text != "" && !slices.Contains(parts, text) {
			parts = append(parts, text)
		}
	}
	if len(parts) == 0 {
		return "it does not say why"
	}
	return strings.Join(parts, ": ")
}

// schedule remembers an activity; start notes what failed before.
func (r *reader) schedule(e *historypb.HistoryEvent) *task {
	a := e.GetActivityTaskScheduledEventAttributes()
	t := &task{name: a.GetActivityType().GetName(), scheduled: e}
	r.activities[e.GetEventId()] = t
	return t
}

func (r *reader) start(e *historypb.HistoryEvent) {
	a := e.GetActivityTaskStartedEventAttributes()
	t := r.activities[a.GetScheduledEventId()]
	if t == nil {
		return
	}
	t.started, t.attempt = e, a.GetAttempt()
	if a.GetAttempt() > 1 {
		r.line(e, KindRetry, "", fmt.Sprintf("%s was tried again (attempt %d): before, %s", r.nameOf(t), a.GetAttempt(), r.failure(a.GetLastFailure())),
			map[string]any{"attempt": a.GetAttempt(), "last_failure": r.failure(a.GetLastFailure())})
	}
}

// nameOf is an activity as people say it: its action and target where it has them.
func (r *reader) nameOf(t *task) string {
	verb := map[string]string{"Observe": "", "Plan": "planning ", "Apply": "applying ", "Verify": "observing ", "Undo": "undoing "}[t.name]
	var in struct {
		Request struct {
			Action string `json:"action"`
			Target struct {
				Kind string `json:"kind"`
				UID  string `json:"uid"`
			} `json:"target"`
		} `json:"request"`
	}
	if r.o.Converter.FromPayloads(t.scheduled.GetActivityTaskScheduledEventAttributes().GetInput(), &in) != nil || in.Request.Action == "" {
		switch t.name {
		case "CountVotes":
			return "counting the votes"
		case "Attempted":
			return "the receipt for evidence that did not answer"
		}
		return t.name
	}
	return verb + in.Request.Action + " on " + r.targetName(in.Request.Target.Kind+":"+in.Request.Target.UID)
}

// marker reads a local activity's name and attempt.
func (r *reader) marker(e *historypb.HistoryEvent) (name string, attempt int32) {
	var data struct {
		ActivityType string
		Attempt      int32
	}
	a := e.GetMarkerRecordedEventAttributes()
	if a.GetMarkerName() != "LocalActivity" || !r.decode(e, "the record of a local activity", a.GetDetails()["data"], &data) {
		return "", 0
	}
	return data.ActivityType, data.Attempt
}

// ended says that a task or a workflow ended badly, as every type of workflow may.
func (r *reader) common(e *historypb.HistoryEvent) {
	switch {
	case e.GetWorkflowTaskFailedEventAttributes() != nil:
		a := e.GetWorkflowTaskFailedEventAttributes()
		r.line(e, KindFailure, "", "Stanch could not go on with this workflow and tries again: "+r.failure(a.GetFailure()), nil)
	case e.GetWorkflowTaskTimedOutEventAttributes() != nil:
		r.line(e, KindRetry, "", "Stanch's process did not answer in time (it was restarted or busy); the work was given out again", nil)
	case e.GetWorkflowExecutionTerminatedEventAttributes() != nil:
		a := e.GetWorkflowExecutionTerminatedEventAttributes()
		r.line(e, KindFailure, a.GetIdentity(), "Somebody with access to Temporal terminated this workflow: "+orNone(a.GetReason()), nil)
	case e.GetWorkflowExecutionCancelRequestedEventAttributes() != nil:
		a := e.GetWorkflowExecutionCancelRequestedEventAttributes()
		r.line(e, KindFailure, a.GetIdentity(), "Somebody with access to Temporal asked to cancel this workflow: "+orNone(a.GetCause()), nil)
	case e.GetWorkflowExecutionFailedEventAttributes() != nil:
		r.line(e, KindFailure, "", "This workflow failed: "+r.failure(e.GetWorkflowExecutionFailedEventAttributes().GetFailure()), nil)
	case e.GetWorkflowExecutionTimedOutEventAttributes() != nil:
		r.line(e, KindFailure, "", "This workflow ran out of time", nil)
	}
}

func orNone(s string) string {
	if s == "" {
		return "no reason was given"
	}
	return s
}
