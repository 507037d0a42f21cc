package queries

import (
	"context"
	"fmt"
	"slices"
	"time"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// runningPlaybookTimeout limits the query of one running playbook; without an answer, the incident's own data is shown.
const runningPlaybookTimeout = 5 * time.Second

// addRunningPlaybooks adds the steps of running playbooks to an incident. A playbook reports to its incident once, at
// its end: until then each reader queries it, which does not slow down the response.
func (r *Service) addRunningPlaybooks(ctx context.Context, in *playbooks.Incident) {
	for i := range in.Playbooks {
		if run := &in.Playbooks[i]; run.Ended.IsZero() && run.WorkflowID != "" && in.Status == "open" {
			r.addRunningPlaybook(ctx, in, run)
		}
	}
	in.Timeline = display.SortedTimeline(*in)
}

func (r *Service) addRunningPlaybook(ctx context.Context, in *playbooks.Incident, run *playbooks.PlaybookRun) {
	ctx, cancel := context.WithTimeout(ctx, runningPlaybookTimeout)
	defer cancel()
	var report playbook.Report
	if r.queryWorkflow(ctx, run.WorkflowID, workflows.QuerySteps, &report) != nil {
		return
	}
	run.SourceHash, run.Steps, run.ResponderGuide = report.SourceHash, report.Steps, report.ResponderGuide
	for _, s := range report.Steps {
		in.Timeline = append(in.Timeline, playbooks.TimelineEntry{At: s.At, Text: display.StepTimelineText(run.Playbook, s)})
	}
	for _, e := range report.Evidence {
		if !slices.ContainsFunc(in.Evidence, func(o playbooks.EvidenceRef) bool { return o == e }) {
			in.Evidence = append(in.Evidence, e)
		}
	}
}

// OpenRequests returns the pending approval requests of one playbook run.
func (r *Service) OpenRequests(ctx context.Context, run string) (out []playbook.ApprovalRequest, err error) {
	return out, r.queryWorkflow(ctx, run, workflows.QueryPendingApprovals, &out)
}

// ClosedRequests returns the most recently closed requests of one playbook run.
func (r *Service) ClosedRequests(ctx context.Context, run string) (out []activities.ApprovalOutcome, err error) {
	return out, r.queryWorkflow(ctx, run, workflows.QueryAnsweredApprovals, &out)
}

func (r *Service) queryWorkflow(ctx context.Context, workflow, query string, out any) error {
	value, err := r.Temporal.QueryWorkflow(ctx, workflow, "", query)
	if err == nil {
		err = value.Get(out)
	}
	if err != nil {
		return fmt.Errorf("query %s of workflow %s: %w", query, workflow, err)
	}
	return nil
}
