// Package recorder creates a recording from the histories of an incident. It never guesses: unreadable data is an
// error, and data in no history is not in the recording.
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

	"stanch/playbooks"
	"stanch/playbooks/recording"
	"stanch/sensors/attestation"
	"stanch/worker/audit"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// recorder is one recording in progress.
type recorder struct {
	recording        recording.Recording
	converter        converter.DataConverter
	attemptCounts    map[string]int
	recordedRequests map[string]bool
	firstError       error
	batchNumber      int
	incidentID       string
}

// FromHistories returns a redacted recording. recording.Anonymize removes names as well.
func FromHistories(runs []audit.WorkflowRun, incidentID string, c converter.DataConverter) (recording.Recording,
	error,
) {
	r := &recorder{
		converter: c, attemptCounts: map[string]int{}, recordedRequests: map[string]bool{},
		incidentID: incidentID, recording: recording.Recording{
			Version: recording.FormatVersion, Detections: []recording.Detection{}, Playbooks: []recording.Playbook{},
			ActionResults: []recording.ActionResult{}, Steps: []recording.StepResult{},
		},
	}
	runs = slices.Clone(runs)
	order := map[string]int{audit.TypeIncident: -3, audit.TypePlaybook: -2, audit.TypeLease: -1}
	slices.SortStableFunc(runs, func(a, b audit.WorkflowRun) int {
		if a.WorkflowType != b.WorkflowType {
			return cmp.Compare(order[a.WorkflowType], order[b.WorkflowType])
		}
		return runStartedAt(a).Compare(runStartedAt(b))
	})
	for _, run := range runs {
		if len(run.Events) == 0 {
			return r.recording, fmt.Errorf("record %s: the history of %s is empty", incidentID, run.WorkflowID)
		}
		r.readRun(run)
	}
	if r.firstError != nil {
		return r.recording, fmt.Errorf("record %s: %w", incidentID, r.firstError)
	}
	if r.recording.Incident.ID == "" {
		return r.recording, fmt.Errorf("record %s: %w", incidentID,
			errors.New("the history of the incident itself is missing"))
	}
	r.orderAndNumberResults()
	return recording.Redact(r.recording), nil
}

func runStartedAt(r audit.WorkflowRun) time.Time {
	if len(r.Events) == 0 {
		return time.Time{}
	}
	return r.Events[0].GetEventTime().AsTime()
}

func (r *recorder) offsetMS(at time.Time) int64 {
	return at.Sub(r.recording.Incident.Opened).Milliseconds()
}

func (r *recorder) decodePayloads(e *historypb.HistoryEvent, p *commonpb.Payloads, out any) bool {
	if err := r.converter.FromPayloads(p, out); err != nil {
		r.firstError = errors.Join(r.firstError, fmt.Errorf("event %d: %w", e.GetEventId(), err))
		return false
	}
	return true
}

// scheduledActivity is a scheduled activity.
type scheduledActivity struct {
	event *historypb.HistoryEvent
	name  string
	input *commonpb.Payloads
}

func (r *recorder) readRun(run audit.WorkflowRun) {
	scheduled := map[int64]scheduledActivity{}
	for _, e := range run.Events {
		switch {
		case e.GetWorkflowExecutionStartedEventAttributes() != nil && run.WorkflowType == audit.TypeIncident:
			r.recordIncidentOpened(e)
		case e.GetWorkflowExecutionSignaledEventAttributes() != nil:
			r.recordSignal(run, e)
		case e.GetStartChildWorkflowExecutionInitiatedEventAttributes() != nil && run.WorkflowType == audit.TypeIncident:
			r.recordPlaybookStarted(e)
		case e.GetMarkerRecordedEventAttributes() != nil:
			r.recordLocalPlan(e)
		case e.GetActivityTaskScheduledEventAttributes() != nil:
			a := e.GetActivityTaskScheduledEventAttributes()
			scheduled[e.GetEventId()] = scheduledActivity{e, a.GetActivityType().GetName(), a.GetInput()}
		case e.GetActivityTaskStartedEventAttributes() != nil:
			// The start of the next attempt contains the failure of the previous one.
			a := e.GetActivityTaskStartedEventAttributes()
			if p, ok := scheduled[a.GetScheduledEventId()]; ok && a.GetAttempt() > 1 {
				for range a.GetAttempt() - 1 {
					r.recordActivityEnd(p, e, nil, r.failureText(a.GetLastFailure()))
				}
			}
		case e.GetActivityTaskCompletedEventAttributes() != nil:
			a := e.GetActivityTaskCompletedEventAttributes()
			r.recordActivityEnd(scheduled[a.GetScheduledEventId()], e, a.GetResult(), "")
		case e.GetActivityTaskFailedEventAttributes() != nil:
			a := e.GetActivityTaskFailedEventAttributes()
			r.recordActivityEnd(scheduled[a.GetScheduledEventId()], e, nil, r.failureText(a.GetFailure()))
		case e.GetActivityTaskTimedOutEventAttributes() != nil:
			a := e.GetActivityTaskTimedOutEventAttributes()
			r.recordActivityEnd(scheduled[a.GetScheduledEventId()], e, nil, "timed out")
		case e.GetWorkflowExecutionCompletedEventAttributes() != nil:
			r.recordWorkflowCompleted(run, e)
		}
	}
}

func (r *recorder) failureText(f *failurepb.Failure) string {
	converter.DecodeCommonFailureAttributes(r.converter, f)
	if f.GetCause() != nil && f.GetMessage() == "" {
		return r.failureText(f.GetCause())
	}
	return cmp.Or(f.GetMessage(), "no failure message")
}

func (r *recorder) recordIncidentOpened(e *historypb.HistoryEvent) {
	var in incident.Input
	if !r.decodePayloads(e, e.GetWorkflowExecutionStartedEventAttributes().GetInput(), &in) || in.Resume != nil {
		return
	}
	r.recording.Incident = recording.Incident{
		ID: in.ID, GroupingKey: in.GroupingKey, Cluster: in.Cluster, Scope: in.Scope, Phase: in.Phase, Drill: in.Drill,
		Opened:        e.GetEventTime().AsTime(),
		IdleTimeoutMS: in.IdleTimeout.Milliseconds(), VerifyIntervalMS: in.LeaseTiming.VerifyInterval.Milliseconds(),
		ConfigHash: in.ConfigHash,
	}
}

func (r *recorder) recordSignal(run audit.WorkflowRun, e *historypb.HistoryEvent) {
	a, after := e.GetWorkflowExecutionSignaledEventAttributes(), r.offsetMS(e.GetEventTime().AsTime())
	switch a.GetSignalName() {
	case workflows.SignalDetections:
		var batch []incident.AttestedDetection
		if r.decodePayloads(e, a.GetInput(), &batch) {
			r.batchNumber++
			for _, one := range batch {
				r.recordDrillTargets(one.Attestation)
				r.recording.Detections = append(r.recording.Detections, recording.Detection{
					OffsetMS:    after,
					BatchNumber: r.batchNumber, Detection: one.Detection,
				})
			}
		}
	case workflows.SignalLeaseReport:
		var report lease.OutgoingReport
		if run.WorkflowType == audit.TypeIncident && r.decodePayloads(e, a.GetInput(), &report) {
			report.Lease.Warnings = nil // the plan contains them
			r.recording.Leases = append(r.recording.Leases, recording.LeaseReport{OffsetMS: after, Report: report.Lease})
		}
	case workflows.SignalVote:
		var signed attestation.Envelope
		var v attestation.Vote
		if r.decodePayloads(e, a.GetInput(), &signed) && audit.DecodeUnverified(signed, &v) == nil {
			r.recording.Votes = append(r.recording.Votes, recording.Vote{
				OffsetMS: after, WorkflowID: v.WorkflowID, Step: v.Step,
				Person: v.Person, AuthenticatedBy: v.AuthenticatedBy, Groups: v.Groups, Approved: v.Approved, Reason: v.Reason,
				BreakGlass: v.BreakGlass, WithdrawsRequest: v.WithdrawsRequest, RejectionReason: v.RejectionReason,
			})
		}
	case workflows.SignalTriage:
		var m incident.TriageDecision
		if run.WorkflowType == audit.TypeIncident && r.decodePayloads(e, a.GetInput(), &m) {
			r.recording.TriageDecisions = append(r.recording.TriageDecisions, recording.TriageDecision{
				OffsetMS: after,
				Kind:     string(m.Kind), Person: m.Person, Reason: m.Reason,
			})
		}
	case workflows.SignalReleaseLease:
		var s lease.ReleaseSignal
		if r.decodePayloads(e, a.GetInput(), &s) {
			r.recordGrant(after, s.Grant, time.Time{})
		}
	case workflows.SignalExtendLease:
		var s lease.ExtendSignal
		if r.decodePayloads(e, a.GetInput(), &s) {
			r.recordGrant(after, s.Grant, s.ExpiresAt)
		}
	}
}

// recordDrillTargets records the targets that the drill of an attestation registered, so that a simulation attests the
// same.
func (r *recorder) recordDrillTargets(signed attestation.Envelope) {
	var a attestation.Attestation
	if audit.DecodeUnverified(signed, &a) != nil || a.Drill == nil {
		return
	}
	for _, t := range a.Drill.Targets {
		if !slices.Contains(r.recording.Incident.DrillTargets, t.ID) {
			r.recording.Incident.DrillTargets = append(r.recording.Incident.DrillTargets, t.ID)
		}
	}
}

func (r *recorder) recordGrant(after int64, signed attestation.Envelope, until time.Time) {
	var g attestation.Grant
	if audit.DecodeUnverified(signed, &g) != nil {
		return
	}
	release := recording.LeaseChange{OffsetMS: after, LeaseID: g.LeaseID, GrantedBy: g.GrantedBy}
	if !until.IsZero() {
		release.ExtendedUntilMS = r.offsetMS(until)
	}
	r.recording.LeaseChanges = append(r.recording.LeaseChanges, release)
}

func (r *recorder) recordWorkflowCompleted(run audit.WorkflowRun, e *historypb.HistoryEvent) {
	a := e.GetWorkflowExecutionCompletedEventAttributes()
	switch run.WorkflowType {
	case audit.TypeIncident:
		r.recording.Incident.ClosedAfterMS = r.offsetMS(e.GetEventTime().AsTime())
		var in playbooks.Incident
		if r.decodePayloads(e, a.GetResult(), &in) {
			r.recording.NotSelected = in.NotSelected
		}
	case audit.TypePlaybook:
		var report playbook.Report
		if !r.decodePayloads(e, a.GetResult(), &report) {
			return
		}
		for _, s := range report.Steps {
			r.recording.Steps = append(r.recording.Steps, recording.StepResult{
				Playbook: report.Playbook, Step: s.Step,
				Action: s.Action, Target: s.Target, Outcome: s.Outcome, Reason: s.Reason, OffsetMS: r.offsetMS(s.At),
			})
		}
	}
}

// orderAndNumberResults sorts the results by time, and numbers each action's attempts.
func (r *recorder) orderAndNumberResults() {
	slices.SortStableFunc(r.recording.ActionResults, func(a, b recording.ActionResult) int {
		return cmp.Compare(a.OffsetMS,
			b.OffsetMS)
	})
	for i := range r.recording.ActionResults {
		a := &r.recording.ActionResults[i]
		key := strings.Join([]string{string(a.Operation), a.Action, a.Target}, "\x00")
		r.attemptCounts[key]++
		a.AttemptNumber = r.attemptCounts[key]
	}
	slices.SortStableFunc(r.recording.Detections, func(a, b recording.Detection) int {
		return cmp.Compare(a.OffsetMS,
			b.OffsetMS)
	})
}
