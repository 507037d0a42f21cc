package gateway

import (
	"context"
	"slices"
	"time"

	"stanch/playbooks"
	"stanch/playbooks/display"
	"stanch/workflows"
	"stanch/workflows/playbook"
)

// runningPlaybookTimeout is how long one running playbook may take to say what it has done: one that does not answer shows what the
// incident knows of it.
const runningPlaybookTimeout = 5 * time.Second

// addRunningPlaybooks enters into an incident what its running playbooks have done so far. A playbook reports to its incident once, at
// its end: until then each reader asks it, which costs the response nothing.
func (r *QueryService) addRunningPlaybooks(ctx context.Context, in *playbooks.Incident) {
	for i := range in.Playbooks {
		if run := &in.Playbooks[i]; run.Ended.IsZero() && run.WorkflowID != "" && in.Status == "open" {
			r.addRunningPlaybook(ctx, in, run)
		}
	}
	in.Timeline = display.SortedTimeline(*in)
}

func (r *QueryService) addRunningPlaybook(ctx context.Context, in *playbooks.Incident, run *playbooks.PlaybookRun) {
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
