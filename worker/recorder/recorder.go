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
		Version: recording.FormatVersion, Detections: []recording.Detection{}, Playbooks: []recording.Playbook{}, ActionResults: []recording.ActionResult{}, Steps: []recording.StepResult{},
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
	if !r.decode(e, e.GetWorkflowExecutionStartedEventAttributes().GetInput(), &in) || in.Resume != nil {
		return
	}
	r.out.Incident = recording.Incident{
		ID: in.ID, GroupingKey: in.GroupingKey, Cluster: in.Cluster, Scope: in.Scope, Phase: in.Phase, Drill: in.Drill, Opened: e.GetEventTime().AsTime(),
		IdleTimeoutMS: in.IdleTimeout.Milliseconds(), VerifyIntervalMS: in.LeaseTiming.VerifyInterval.Milliseconds(), ConfigHash: in.ConfigHash,
	}
}

func (r *recorder) signal(run audit.Run, e *historypb.HistoryEvent) {
	a, after := e.GetWorkflowExecutionSignaledEventAttributes(), r.after(e.GetEventTime().AsTime())
	switch a.GetSignalName() {
	case workflows.SignalDetections:
		var batch []incident.AttestedDetection
		if r.decode(e, a.GetInput(), &batch) {
			r.batch++
			for _, one := range batch {
				r.drillTargets(one.Attestation)
				r.out.Detections = append(r.out.Detections, recording.Detection{OffsetMS: after, BatchNumber: r.batch, Detection: one.Detection})
			}
		}
	case workflows.SignalLeaseReport:
		var report lease.OutgoingReport
		if run.Type == audit.TypeIncident && r.decode(e, a.GetInput(), &report) {
			report.Lease.Warnings = nil // the plan has them
			r.out.Leases = append(r.out.Leases, recording.LeaseReport{OffsetMS: after, Report: report.Lease})
		}
	case workflows.SignalVote:
		var signed attestation.Envelope
		var v attestation.Vote
		if r.decode(e, a.GetInput(), &signed) && audit.Unsigned(signed, &v) == nil {
			r.out.Votes = append(r.out.Votes, recording.Vote{OffsetMS: after, WorkflowID: v.WorkflowID, Step: v.Step, Person: v.Person, AuthenticatedBy: v.AuthenticatedBy, Groups: v.Groups, Approved: v.Approved, Reason: v.Reason, BreakGlass: v.BreakGlass, WithdrawsRequest: v.WithdrawsRequest, RejectionReason: v.RejectionReason})
		}
	case workflows.SignalTriage:
		var m incident.TriageDecision
		if run.Type == audit.TypeIncident && r.decode(e, a.GetInput(), &m) {
			r.out.TriageDecisions = append(r.out.TriageDecisions, recording.TriageDecision{OffsetMS: after, Kind: string(m.Kind), Person: m.Person, Reason: m.Reason})
		}
	case workflows.SignalReleaseLease:
		var s lease.ReleaseSignal
		if r.decode(e, a.GetInput(), &s) {
			r.grant(after, s.Grant, time.Time{})
		}
	case workflows.SignalExtendLease:
		var s lease.ExtendSignal
		if r.decode(e, a.GetInput(), &s) {
			r.grant(after, s.Grant, s.ExpiresAt)
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
	release := recording.LeaseChange{OffsetMS: after, LeaseID: g.LeaseID, GrantedBy: g.GrantedBy}
	if !until.IsZero() {
		release.ExtendedUntilMS = r.after(until)
	}
	r.out.LeaseChanges = append(r.out.LeaseChanges, release)
}

func (r *recorder) started(e *historypb.HistoryEvent) {
	a := e.GetStartChildWorkflowExecutionInitiatedEventAttributes()
	var in playbook.Input
	if a.GetWorkflowType().GetName() != audit.TypePlaybook || !r.decode(e, a.GetInput(), &in) {
		return
	}
	book, _ := playbooks.ParsePlaybook(in.File, in.Source)
	r.out.Playbooks = append(r.out.Playbooks, recording.Playbook{Name: book.Name, File: in.File, SourceHash: playbooks.HashWithCallees(in.Source, in.Callees), WorkflowID: a.GetWorkflowId(), OffsetMS: r.after(e.GetEventTime().AsTime())})
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
		r.plan(e, got.Plan.Action, got.Plan.TargetID, got, "")
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
	answer := recording.ActionResult{
		Action: q.Request.Action, Target: q.Request.Target.ID(), Params: q.Request.Params, FailureReason: failure,
		OffsetMS: r.after(e.GetEventTime().AsTime()), DurationMS: e.GetEventTime().AsTime().Sub(p.event.GetEventTime().AsTime()).Milliseconds(),
	}
	switch p.name {
	case "Observe":
		answer.Operation = recording.OperationObserve
		var got activities.Result
		if failure == "" && r.decode(e, result, &got) {
			answer.Outcome, answer.Reason, answer.Outputs = got.Outcome, got.Reason, got.Outputs
			switch got.Outcome { //nolint:exhaustive // the others have no words of their own
			case playbooks.OutcomeRefused:
				answer.RefusalReason = got.Reason
			case playbooks.OutcomeFailed:
				answer.FailureReason = got.Reason
			}
			for _, ref := range got.Evidence {
				piece := recording.Artifact{Name: ref.Name, SHA256: ref.SHA256, SizeBytes: ref.SizeBytes}
				answer.Artifacts = append(answer.Artifacts, piece)
				r.out.Evidence = append(r.out.Evidence, recording.EvidenceArtifact{Artifact: piece, Action: ref.Action, Target: ref.Target})
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
		answer.Operation = recording.OperationApply
		var got activities.ApplyResult
		if failure == "" && r.decode(e, result, &got) {
			answer.GuardDecision = decision(got.Decision)
			answer.Outcome, answer.Reason = got.Effect.Outcome, got.Effect.Reason
			if got.Decision.Verdict == activities.VerdictRefuse && got.Decision.Guard == "action" {
				answer.RefusalReason = got.Decision.Reason
			}
			if !got.Effect.AppliedAt.IsZero() {
				answer.AppliedAfterMS = r.after(got.Effect.AppliedAt)
			}
		}
	case "Verify":
		answer.Operation = recording.OperationVerify
		var got activities.VerifyResult
		if failure == "" && r.decode(e, result, &got) {
			answer.InForce, answer.TargetGone, answer.VerifyDetail = got.InForce, got.TargetGone, got.Detail
		}
	case "Undo":
		answer.Operation = recording.OperationUndo
		var got activities.UndoResult
		if failure == "" && r.decode(e, result, &got) {
			answer.Undone, answer.RefusalReason = got.Undone, got.RefusalReason
			if got.Drift != nil {
				answer.Drift = got.Drift.Detail
			}
		}
	}
	r.out.ActionResults = append(r.out.ActionResults, answer)
}

func (r *recorder) plan(e *historypb.HistoryEvent, action, target string, got activities.PlanResult, failure string) {
	if action == "" {
		return // a refusal of an older version, which does not say of what
	}
	answer := recording.ActionResult{
		Operation: recording.OperationPlan, Action: action, Target: target, OffsetMS: r.after(e.GetEventTime().AsTime()), Params: got.Plan.Params, FailureReason: failure,
		Changes: got.Plan.Changes, Warnings: got.Plan.Warnings, PriorState: got.Plan.PriorState, NothingToDo: got.Plan.NothingToDo, AlreadyHeld: got.Plan.AlreadyHeld, LeaseDurationMS: got.Plan.Duration.Milliseconds(),
	}
	if failure == "" {
		answer.GuardDecision = decision(got.Decision)
		if got.Decision.Verdict == activities.VerdictRefuse && (got.Decision.Guard == "action" || got.Decision.Guard == "") {
			answer.RefusalReason = got.Decision.Reason
		}
	}
	r.out.ActionResults = append(r.out.ActionResults, answer)
}

func (r *recorder) question(p pending) {
	var q activities.CountVotesInput
	if !r.decode(p.event, p.input, &q) || r.asked[q.WorkflowID+"\x00"+q.RequestID] {
		return
	}
	r.asked[q.WorkflowID+"\x00"+q.RequestID] = true
	out := recording.ApprovalRequest{
		OffsetMS: r.after(q.Deadline.Add(-q.Approvers.Timeout)), WorkflowID: q.WorkflowID, Step: q.RequestID, Approvers: approvers(q.Approvers), DeadlineAfterMS: r.after(q.Deadline), Actions: []string{},
	}
	for _, plan := range q.Plans {
		out.Actions = append(out.Actions, plan.Plan.Action+" on "+plan.Plan.TargetID)
	}
	r.out.ApprovalRequests = append(r.out.ApprovalRequests, out)
}

func (r *recorder) completed(run audit.Run, e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionCompletedEventAttributes()
	switch run.Type {
	case audit.TypeIncident:
		r.out.Incident.ClosedAfterMS = r.after(e.GetEventTime().AsTime())
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
			r.out.Steps = append(r.out.Steps, recording.StepResult{Playbook: report.Playbook, Step: s.Step, Action: s.Action, Target: s.Target, Outcome: s.Outcome, Reason: s.Reason, OffsetMS: r.after(s.At)})
		}
	}
}

// number puts the answers into the order in which they came and counts each action's attempts.
func (r *recorder) number() {
	slices.SortStableFunc(r.out.ActionResults, func(a, b recording.ActionResult) int { return cmp.Compare(a.OffsetMS, b.OffsetMS) })
	for i := range r.out.ActionResults {
		a := &r.out.ActionResults[i]
		key := strings.Join([]string{string(a.Operation), a.Action, a.Target}, "\x00")
		r.attempts[key]++
		a.AttemptNumber = r.attempts[key]
	}
	slices.SortStableFunc(r.out.Detections, func(a, b recording.Detection) int { return cmp.Compare(a.OffsetMS, b.OffsetMS) })
}
