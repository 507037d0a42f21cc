package incident

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// maxStepReports is the maximum number of step reports that an incident keeps, because its state is passed on as a
// whole.
const maxStepReports = 1500

func (r *incidentRun) handlePlaybookReport(report playbook.Report, now time.Time) {
	i := slices.IndexFunc(r.Incident.Playbooks,
		func(p playbooks.PlaybookRun) bool { return p.WorkflowID == report.WorkflowID })
	if i < 0 || !r.Incident.Playbooks[i].Ended.IsZero() {
		return
	}
	complete := report // its outcome depends on all of them
	for _, other := range r.Incident.Playbooks {
		report.Steps = report.Steps[:min(len(report.Steps), max(0, maxStepReports-len(other.Steps)))]
	}
	p := &r.Incident.Playbooks[i]
	p.SourceHash, p.Steps, p.Error, p.Ended, p.Outcome, p.Reason, p.ResponderGuide = report.SourceHash, report.Steps,
		report.Error, report.Ended, report.Outcome, report.Reason, report.ResponderGuide
	r.Incident.Evidence = append(r.Incident.Evidence, report.Evidence...)
	for _, step := range report.Steps {
		r.addTimeline(step.At, display.StepTimelineText(report.Playbook, step))
	}
	ended := report.Ended
	if ended.IsZero() {
		ended = now
	}
	r.addTimeline(ended, fmt.Sprintf("playbook %s ended: %s", report.Playbook, display.SummarizeRun(r.Incident, *p)))
	r.Incident.Updated = now
	r.releaseRefusedTargets(complete)
}

func (r *incidentRun) handleLeaseReport(l playbooks.LeaseReport) {
	text := fmt.Sprintf("lease %s of %s on %s: %s", l.ID, l.Action, display.TargetName(r.Incident, l.Target),
		display.DescribeLease(l))
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	r.addTimeline(l.At, text)
	r.Incident.Updated = l.At
	if i := slices.IndexFunc(r.Incident.Leases, func(x playbooks.LeaseReport) bool { return x.ID == l.ID }); i >= 0 {
		r.Incident.Leases[i] = l
		return
	}
	r.Incident.Leases = append(r.Incident.Leases, l)
}

// enrichContext requests the context once, in parallel with the playbooks. Playbooks that match only with the context
// start after it.
func (r *incidentRun) enrichContext(ctx workflow.Context) {
	if r.enriched || len(r.Incident.Targets) == 0 {
		return
	}
	r.enriched = true
	r.activeEnrichments++
	target := r.Incident.Targets[0]
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer func() {
			r.activeEnrichments--
			r.messageUpToDate, r.watchersOutdated = false, true
			r.startAfterEnrichment(ctx)
		}()
		var set *activities.Activities
		var result activities.Result
		o := workflow.ActivityOptions{
			TaskQueue: workflows.TaskQueue, StartToCloseTimeout: 20 * time.Second, ScheduleToCloseTimeout: time.Minute,
			RetryPolicy: &temporal.RetryPolicy{InitialInterval: time.Second, MaximumAttempts: 3},
		}
		err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.Observe,
			activities.ObserveInput{Request: activities.Request{
				Action: "workload", Target: target,
				IncidentRef: r.incidentRef(),
			}}).Get(ctx, &result)
		if err != nil || !result.Outcome.HasOutputs() {
			reason := result.Reason
			if err != nil {
				reason = err.Error()
			}
			r.Incident.Context.Missing = append(r.Incident.Context.Missing, "workload: "+reason)
			return
		}
		var w activities.WorkloadContext
		if err := json.Unmarshal(result.Outputs, &w); err != nil {
			r.Incident.Context.Missing = append(r.Incident.Context.Missing, "workload: "+err.Error())
			return
		}
		r.Incident.Context = playbooks.ContextStatus{Enriched: true, Missing: w.Missing}
		w.ApplyToIncident(&r.Incident)
		r.recompute()
		r.enrichmentWaitRunning = false
		r.startMatchingPlaybooks(ctx)
	})
}
