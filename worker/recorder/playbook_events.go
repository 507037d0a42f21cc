package recorder

import (
	commonpb "go.temporal.io/api/common/v1"
	historypb "go.temporal.io/api/history/v1"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/worker/audit"
	"stanch/workflows/playbook"
)

func (r *recorder) recordPlaybookStarted(e *historypb.HistoryEvent) {
	a := e.GetStartChildWorkflowExecutionInitiatedEventAttributes()
	var in playbook.Input
	if a.GetWorkflowType().GetName() != audit.TypePlaybook || !r.decodePayloads(e, a.GetInput(), &in) {
		return
	}
	book, _ := playbooks.ParsePlaybook(in.File, in.Source)
	r.recording.Playbooks = append(r.recording.Playbooks, recording.Playbook{
		Name: book.Name, File: in.File,
		SourceHash: playbooks.HashWithCallees(in.Source, in.Callees), WorkflowID: a.GetWorkflowId(),
		OffsetMS: r.offsetMS(e.GetEventTime().AsTime()),
	})
}

// recordLocalPlan records a plan of a local activity.
func (r *recorder) recordLocalPlan(e *historypb.HistoryEvent) {
	a := e.GetMarkerRecordedEventAttributes()
	var data struct{ ActivityType string }
	if a.GetMarkerName() != "LocalActivity" || !r.decodePayloads(e, a.GetDetails()["data"], &data) ||
		data.ActivityType != "Plan" || a.GetFailure() != nil {
		return
	}
	var got activities.PlanResult
	if r.decodePayloads(e, a.GetDetails()["result"], &got) {
		r.recordPlan(e, got.Plan.Action, got.Plan.TargetID, got, "")
	}
}

// recordActivityEnd records the end of one attempt of an activity.
func (r *recorder) recordActivityEnd(p scheduledActivity, e *historypb.HistoryEvent, result *commonpb.Payloads,
	failure string,
) {
	var q struct {
		Request activities.Request `json:"request"`
	}
	switch p.name {
	case activities.TypeObserve, activities.TypePlan, activities.TypeApply, activities.TypeVerify, activities.TypeUndo:
		if !r.decodePayloads(p.event, p.input, &q) {
			return
		}
	case activities.TypeCountVotes:
		r.recordApprovalRequest(p)
		return
	default:
		return
	}
	answer := recording.ActionResult{
		Action: q.Request.Action, Target: q.Request.Target.ID(), Params: q.Request.Params, FailureReason: failure,
		OffsetMS:   r.offsetMS(e.GetEventTime().AsTime()),
		DurationMS: e.GetEventTime().AsTime().Sub(p.event.GetEventTime().AsTime()).Milliseconds(),
	}
	got := activityResult{recorder: r, event: e, payloads: result, failed: failure != ""}
	switch p.name {
	case activities.TypeObserve:
		got.addObservation(&answer)
	case activities.TypePlan:
		var plan activities.PlanResult
		if failure == "" {
			r.decodePayloads(e, result, &plan)
		}
		r.recordPlan(e, q.Request.Action, q.Request.Target.ID(), plan, failure)
		return
	case activities.TypeApply:
		got.addEffect(&answer)
	case activities.TypeVerify:
		answer.Operation = recording.OperationVerify
		var v activities.VerifyResult
		if got.decode(&v) {
			answer.InForce, answer.TargetGone, answer.VerifyDetail = v.InForce, v.TargetGone, v.Detail
		}
	case activities.TypeUndo:
		answer.Operation = recording.OperationUndo
		var u activities.UndoResult
		if got.decode(&u) {
			answer.Undone, answer.RefusalReason = u.Undone, u.RefusalReason
			if u.Drift != nil {
				answer.Drift = u.Drift.Detail
			}
		}
	}
	r.recording.ActionResults = append(r.recording.ActionResults, answer)
}

// activityResult is the encoded result of an activity.
type activityResult struct {
	*recorder
	event    *historypb.HistoryEvent
	payloads *commonpb.Payloads
	failed   bool
}

// decode reports whether there is a result that can be decoded.
func (a activityResult) decode(into any) bool {
	return !a.failed && a.decodePayloads(a.event, a.payloads, into)
}

func (a activityResult) addObservation(answer *recording.ActionResult) {
	answer.Operation = recording.OperationObserve
	var got activities.Result
	if !a.decode(&got) {
		return
	}
	answer.Outcome, answer.Reason, answer.Outputs = got.Outcome, got.Reason, got.Outputs
	switch got.Outcome { //nolint:exhaustive // the others need no text
	case playbooks.OutcomeRefused:
		answer.RefusalReason = got.Reason
	case playbooks.OutcomeFailed:
		answer.FailureReason = got.Reason
	}
	for _, ref := range got.Evidence {
		piece := recording.Artifact{Name: ref.Name, SHA256: ref.SHA256, SizeBytes: ref.SizeBytes}
		answer.Artifacts = append(answer.Artifacts, piece)
		a.recording.Evidence = append(a.recording.Evidence, recording.EvidenceArtifact{
			Artifact: piece, Action: ref.Action, Target: ref.Target,
		})
	}
}

func (a activityResult) addEffect(answer *recording.ActionResult) {
	answer.Operation = recording.OperationApply
	var got activities.ApplyResult
	if !a.decode(&got) {
		return
	}
	answer.GuardDecision = toGuardDecision(got.Decision)
	answer.Outcome, answer.Reason = got.Effect.Outcome, got.Effect.Reason
	if got.Decision.Verdict == activities.VerdictRefuse && got.Decision.Guard == "action" {
		answer.RefusalReason = got.Decision.Reason
	}
	if !got.Effect.AppliedAt.IsZero() {
		answer.AppliedAfterMS = a.offsetMS(got.Effect.AppliedAt)
	}
}

func (r *recorder) recordPlan(e *historypb.HistoryEvent, action, target string, got activities.PlanResult,
	failure string,
) {
	if action == "" {
		return // a refusal of an earlier version, which does not name its operation
	}
	answer := recording.ActionResult{
		Operation: recording.OperationPlan, Action: action, Target: target, OffsetMS: r.offsetMS(e.GetEventTime().AsTime()),
		Params: got.Plan.Params, FailureReason: failure,
		Changes: got.Plan.Changes, Warnings: got.Plan.Warnings, PriorState: got.Plan.PriorState,
		NothingToDo: got.Plan.NothingToDo, AlreadyHeld: got.Plan.AlreadyHeld,
		LeaseDurationMS: got.Plan.Duration.Milliseconds(),
	}
	if failure == "" {
		answer.GuardDecision = toGuardDecision(got.Decision)
		if got.Decision.Verdict == activities.VerdictRefuse && (got.Decision.Guard == "action" || got.Decision.Guard == "") {
			answer.RefusalReason = got.Decision.Reason
		}
	}
	r.recording.ActionResults = append(r.recording.ActionResults, answer)
}

func (r *recorder) recordApprovalRequest(p scheduledActivity) {
	var q activities.CountVotesInput
	if !r.decodePayloads(p.event, p.input, &q) || r.recordedRequests[q.WorkflowID+"\x00"+q.RequestID] {
		return
	}
	r.recordedRequests[q.WorkflowID+"\x00"+q.RequestID] = true
	out := recording.ApprovalRequest{
		OffsetMS: r.offsetMS(q.Deadline.Add(-q.Approvers.Timeout)), WorkflowID: q.WorkflowID, Step: q.RequestID,
		Approvers: toApprovers(q.Approvers), DeadlineAfterMS: r.offsetMS(q.Deadline), Actions: []string{},
	}
	for _, plan := range q.Plans {
		out.Actions = append(out.Actions, plan.Plan.Action+" on "+plan.Plan.TargetID)
	}
	r.recording.ApprovalRequests = append(r.recording.ApprovalRequests, out)
}
