// Package recorder makes a recording from the histories of an incident. It refuses to guess: what cannot be read is an
// error, and what no history says is not in the recording.
package recorder

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	commonpb "go.temporal.io/api/common/v1"
	failurepb "go.temporal.io/api/failure/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/converter"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
	"stanch/worker/audit"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// recorder is one recording under way.
type recorder struct {
	out       recording.Recording
	converter converter.DataConverter
	attempts  map[string]int
	asked     map[string]bool
	err       error
	batch     int
	incident  string
}

// From makes a recording. It is redacted; Anonymise of the recording goes further.
func From(runs []audit.Run, incidentID string, c converter.DataConverter) (recording.Recording, error) {
	r := &recorder{converter: c, attempts: map[string]int{}, asked: map[string]bool{}, incident: incidentID, out: recording.Recording{
		Version: recording.Version, Detections: []recording.Detection{}, Playbooks: []recording.Playbook{}, Answers: []recording.Answer{}, Steps: []recording.Step{},
	}}
	runs = slices.Clone(runs)
	order := map[string]int{audit.TypeIncident: -3, audit.TypePlaybook: -2, audit.TypeLease: -1}
	slices.SortStableFunc(runs, func(a, b audit.Run) int {
		if a.Type != b.Type {
			return cmp.Compare(order[a.Type], order[b.Type])
		}
		return began(a).Compare(began(b))
	})
	for _, run := range runs {
		if len(run.Events) == 0 {
			return r.out, fmt.Errorf("record %s: the history of %s is empty", incidentID, run.Workflow)
		}
		r.run(run)
	}
	if r.err != nil {
		return r.out, fmt.Errorf("record %s: %w", incidentID, r.err)
	}
	if r.out.Incident.ID == "" {
		return r.out, fmt.Errorf("record %s: %w", incidentID, errors.New("there is no history of the incident itself"))
	}
	r.number()
	return recording.Redact(r.out), nil
}

func began(r audit.Run) time.Time {
	if len(r.Events) == 0 {
		return time.Time{}
	}
	return r.Events[0].GetEventTime().AsTime()
}

func (r *recorder) after(at time.Time) int64 { return at.Sub(r.out.Incident.Opened).Milliseconds() }

func (r *recorder) decode(e *historypb.HistoryEvent, p *commonpb.Payloads, out any) bool {
	if err := r.converter.FromPayloads(p, out); err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("event %d: %w", e.GetEventId(), err))
		return false
	}
	return true
}

// pending is an activity that was scheduled.
type pending struct {
	event *historypb.HistoryEvent
	name  string
	input *commonpb.Payloads
}

func (r *recorder) run(run audit.Run) {
	scheduled := map[int64]pending{}
	for _, e := range run.Events {
		switch {
		case e.GetWorkflowExecutionStartedEventAttributes() != nil && run.Type == audit.TypeIncident:
			r.opened(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.signal(run, e)
		case e.GetStartChildWorkflowExecutionInitiatedEventAttributes() != nil && run.Type == audit.TypeIncident:
			r.started(e)
		case e.GetMarkerRecordedEventAttributes() != nil:
			r.marker(e)
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			a := e.GetActivityTaskScheduledEventAttributes()
			scheduled[e.GetEventId()] = pending{e, a.GetActivityType().GetName(), a.GetInput()}
		case e.GetActivityTaskStartedEventAttributes() != nil:
			// An attempt that failed is told by the start of the next one.
			a := e.GetActivityTaskStartedEventAttributes()
			if p, ok := scheduled[a.GetScheduledEventId()]; ok && a.GetAttempt() > 1 {
				for range a.GetAttempt() - 1 {
					r.ended(p, e, nil, r.failure(a.GetLastFailure()))
				}
			}
		case e.GetActivityTaskCompletedEventAttributes() != nil:
			a := e.GetActivityTaskCompletedEventAttributes()
			r.ended(scheduled[a.GetScheduledEventId()], e, a.GetResult(), "")
		case e.GetActivityTaskFailedEventAttributes() != nil:
			a := e.GetActivityTaskFailedEventAttributes()
			r.ended(scheduled[a.GetScheduledEventId()], e, nil, r.failure(a.GetFailure()))
		case e.GetActivityTaskTimedOutEventAttributes() != nil:
			a := e.GetActivityTaskTimedOutEventAttributes()
			r.ended(scheduled[a.GetScheduledEventId()], e, nil, "no answer in time")
		case e.GetWorkflowExecutionCompletedEventAttributes() != nil:
			r.completed(run, e)
		}
	}
}

func (r *recorder) failure(f *failurepb.Failure) string {
	converter.DecodeCommonFailureAttributes(r.converter, f)
	if f.GetCause() != nil && f.GetMessage() == "" {
		return r.failure(f.GetCause())
	}
	return cmp.Or(f.GetMessage(), "it does not say why")
}

func (r *recorder) opened(e *historypb.HistoryEvent) {
	var in incident.Input
	if !r.decode(e, e.GetWorkflowExecutionStartedEventAttributes().GetInput(), &in) || in.Carry != nil {
		return
	}
	r.out.Incident = recording.Incident{
		ID: in.ID, Key: in.Key, Cluster: in.Cluster, Scope: in.Scope, Phase: in.Phase, Drill: in.Drill, Opened: e.GetEventTime().AsTime(),
		QuietMS: in.Quiet.Milliseconds(), VerifyMS: in.Timing.Verify.Milliseconds(), Config: in.Config,
	}
}

func (r *recorder) signal(run audit.Run, e *historypb.HistoryEvent) {
	a, after := e.GetWorkflowExecutionSignaledEventAttributes(), r.after(e.GetEventTime().AsTime())
	switch a.GetSignalName() {
	case workflows.SignalDetections:
		var batch []incident.Attested
		if r.decode(e, a.GetInput(), &batch) {
			r.batch++
			for _, one := range batch {
				r.drillTargets(one.Attestation)
				r.out.Detections = append(r.out.Detections, recording.Detection{AfterMS: after, Batch: r.batch, Detection: one.Detection})
			}
		}
	case workflows.SignalLeaseReport:
		var report lease.Report
		if run.Type == audit.TypeIncident && r.decode(e, a.GetInput(), &report) {
			report.Lease.Warnings = nil // the plan has them
			r.out.Leases = append(r.out.Leases, recording.LeaseReport{AfterMS: after, Report: report.Lease})
		}
	case workflows.SignalVote:
		var signed attestation.Envelope
		var v attestation.Vote
		if r.decode(e, a.GetInput(), &signed) && audit.Unsigned(signed, &v) == nil {
			r.out.Votes = append(r.out.Votes, recording.Vote{AfterMS: after, Run: v.WorkflowID, Step: v.Step, Person: v.Person, Proved: v.AuthenticatedBy, Groups: v.Groups, Approve: v.Approved, Reason: v.Reason, BreakGlass: v.BreakGlass, Withdraws: v.WithdrawsRequest, Refused: v.RejectionReason})
		}
	case workflows.SignalMark:
		var m incident.Mark
		if run.Type == audit.TypeIncident && r.decode(e, a.GetInput(), &m) {
			r.out.Marks = append(r.out.Marks, recording.Mark{AfterMS: after, Kind: string(m.Kind), Person: m.Person, Reason: m.Reason})
		}
	case workflows.SignalRelease:
		var s lease.ReleaseSignal
		if r.decode(e, a.GetInput(), &s) {
			r.grant(after, s.Grant, time.Time{})
		}
	case workflows.SignalExtend:
		var s lease.ExtendSignal
		if r.decode(e, a.GetInput(), &s) {
			r.grant(after, s.Grant, s.Until)
		}
	}
}

// drillTargets keeps what the drill of an attestation registered: a simulation attests the same.
func (r *recorder) drillTargets(signed attestation.Envelope) {
	var a attestation.Attestation
	if audit.Unsigned(signed, &a) != nil || a.Drill == nil {
		return
	}
	for _, t := range a.Drill.Targets {
		if !slices.Contains(r.out.Incident.DrillTargets, t.ID) {
			r.out.Incident.DrillTargets = append(r.out.Incident.DrillTargets, t.ID)
		}
	}
}

func (r *recorder) grant(after int64, signed attestation.Envelope, until time.Time) {
	var g attestation.Grant
	if audit.Unsigned(signed, &g) != nil {
		return
	}
	release := recording.Release{AfterMS: after, Lease: g.LeaseID, People: g.GrantedBy}
	if !until.IsZero() {
		release.UntilMS = r.after(until)
	}
	r.out.Releases = append(r.out.Releases, release)
}

func (r *recorder) started(e *historypb.HistoryEvent) {
	a := e.GetStartChildWorkflowExecutionInitiatedEventAttributes()
	var in playbook.Input
	if a.GetWorkflowType().GetName() != audit.TypePlaybook || !r.decode(e, a.GetInput(), &in) {
		return
	}
	book, _ := playbooks.Parse(in.File, in.Source)
	r.out.Playbooks = append(r.out.Playbooks, recording.Playbook{Name: book.Name, File: in.File, Hash: playbooks.HashOf(in.Source, in.Called), Run: a.GetWorkflowId(), AfterMS: r.after(e.GetEventTime().AsTime())})
}

// marker reads a plan that was made inside of a workflow task.
func (r *recorder) marker(e *historypb.HistoryEvent) {
	a := e.GetMarkerRecordedEventAttributes()
	var data struct{ ActivityType string }
	if a.GetMarkerName() != "LocalActivity" || !r.decode(e, a.GetDetails()["data"], &data) || data.ActivityType != "Plan" || a.GetFailure() != nil {
		return
	}
	var got activities.PlanResult
	if r.decode(e, a.GetDetails()["result"], &got) {
		r.plan(e, got.Plan.Action, got.Plan.Target, got, "")
	}
}

// ended records how one attempt of an activity ended.
func (r *recorder) ended(p pending, e *historypb.HistoryEvent, result *commonpb.Payloads, failure string) {
	var q struct {
		Request activities.Request `json:"request"`
	}
	switch p.name {
	case "Observe", "Plan", "Apply", "Verify", "Undo":
		if !r.decode(p.event, p.input, &q) {
			return
		}
	case "CountVotes":
		r.question(p)
		return
	default:
		return
	}
	answer := recording.Answer{
		Action: q.Request.Action, Target: q.Request.Target.ID(), Params: q.Request.Params, Failure: failure,
		AfterMS: r.after(e.GetEventTime().AsTime()), TookMS: e.GetEventTime().AsTime().Sub(p.event.GetEventTime().AsTime()).Milliseconds(),
	}
	switch p.name {
	case "Observe":
		answer.Operation = recording.Observe
		var got activities.Result
		if failure == "" && r.decode(e, result, &got) {
			answer.Outcome, answer.Reason, answer.Outputs = got.Outcome, got.Reason, got.Outputs
			switch got.Outcome { //nolint:exhaustive // the others have no words of their own
			case playbooks.OutcomeRefused:
				answer.Refused = got.Reason
			case playbooks.OutcomeFailed:
				answer.Failure = got.Reason
			}
			for _, ref := range got.Evidence {
				piece := recording.Piece{Name: ref.Name, SHA256: ref.SHA256, Bytes: ref.Bytes}
				answer.Pieces = append(answer.Pieces, piece)
				r.out.Evidence = append(r.out.Evidence, recording.EvidencePart{Piece: piece, Action: ref.Action, Target: ref.Target})
			}
		}
	case "Plan":
		var got activities.PlanResult
		if failure == "" {
			r.decode(e, result, &got)
		}
		r.plan(e, q.Request.Action, q.Request.Target.ID(), got, failure)
		return
	case "Apply":
		answer.Operation = recording.Apply
		var got activities.ApplyResult
		if failure == "" && r.decode(e, result, &got) {
			answer.Decision = decision(got.Decision)
			answer.Outcome, answer.Reason = got.Effect.Outcome, got.Effect.Reason
			if got.Decision.Verdict == activities.VerdictRefuse && got.Decision.Guard == "action" {
				answer.Refused = got.Decision.Reason
			}
			if !got.Effect.AppliedAt.IsZero() {
				answer.AppliedMS = r.after(got.Effect.AppliedAt)
			}
		}
	case "Verify":
		answer.Operation = recording.Verify
		var got activities.VerifyResult
		if failure == "" && r.decode(e, result, &got) {
			answer.InForce, answer.Gone, answer.Detail = got.InForce, got.Gone, got.Detail
		}
	case "Undo":
		answer.Operation = recording.Undo
		var got activities.UndoResult
		if failure == "" && r.decode(e, result, &got) {
			answer.Undone, answer.Refused = got.Undone, got.Reason
			if got.Drift != nil {
				answer.Drift = got.Drift.Detail
			}
		}
	}
	r.out.Answers = append(r.out.Answers, answer)
}

func (r *recorder) plan(e *historypb.HistoryEvent, action, target string, got activities.PlanResult, failure string) {
	if action == "" {
		return // a refusal of an older version, which does not say of what
	}
	answer := recording.Answer{
		Operation: recording.Plan, Action: action, Target: target, AfterMS: r.after(e.GetEventTime().AsTime()), Params: got.Plan.Params, Failure: failure,
		Changes: got.Plan.Changes, Warnings: got.Plan.Warnings, Prior: got.Plan.Prior, Nothing: got.Plan.Nothing, Held: got.Plan.Held, ForMS: got.Plan.For.Milliseconds(),
	}
	if failure == "" {
		answer.Decision = decision(got.Decision)
		if got.Decision.Verdict == activities.VerdictRefuse && (got.Decision.Guard == "action" || got.Decision.Guard == "") {
			answer.Refused = got.Decision.Reason
		}
	}
	r.out.Answers = append(r.out.Answers, answer)
}

func (r *recorder) question(p pending) {
	var q activities.TallyInput
	if !r.decode(p.event, p.input, &q) || r.asked[q.Run+"\x00"+q.Step] {
		return
	}
	r.asked[q.Run+"\x00"+q.Step] = true
	out := recording.Question{
		AfterMS: r.after(q.Deadline.Add(-q.Approvers.Timeout)), Run: q.Run, Step: q.Step, Approvers: approvers(q.Approvers), DeadlineMS: r.after(q.Deadline), Actions: []string{},
	}
	for _, plan := range q.Plans {
		out.Actions = append(out.Actions, plan.Plan.Action+" on "+plan.Plan.Target)
	}
	r.out.Questions = append(r.out.Questions, out)
}

func (r *recorder) completed(run audit.Run, e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionCompletedEventAttributes()
	switch run.Type {
	case audit.TypeIncident:
		r.out.Incident.ClosedMS = r.after(e.GetEventTime().AsTime())
		var in playbooks.Incident
		if r.decode(e, a.GetResult(), &in) {
			r.out.NotSelected = in.NotSelected
		}
	case audit.TypePlaybook:
		var report playbook.Report
		if !r.decode(e, a.GetResult(), &report) {
			return
		}
		for _, s := range report.Steps {
			r.out.Steps = append(r.out.Steps, recording.Step{Playbook: report.Playbook, Step: s.Step, Action: s.Action, Target: s.Target, Outcome: s.Outcome, Reason: s.Reason, AfterMS: r.after(s.At)})
		}
	}
}

// number puts the answers into the order in which they came and counts each action's attempts.
func (r *recorder) number() {
	slices.SortStableFunc(r.out.Answers, func(a, b recording.Answer) int { return cmp.Compare(a.AfterMS, b.AfterMS) })
	for i := range r.out.Answers {
		a := &r.out.Answers[i]
		key := strings.Join([]string{string(a.Operation), a.Action, a.Target}, "\x00")
		r.attempts[key]++
		a.Attempt = r.attempts[key]
	}
	slices.SortStableFunc(r.out.Detections, func(a, b recording.Detection) int { return cmp.Compare(a.AfterMS, b.AfterMS) })
}
