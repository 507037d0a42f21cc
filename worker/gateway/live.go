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

// liveLimit is how long one running playbook may take to say what it has done: one that does not answer shows what the
// incident knows of it.
const liveLimit = 5 * time.Second

// live enters into an incident what its running playbooks have done so far. A playbook reports to its incident once, at
// its end: until then each reader asks it, which costs the response nothing.
func (r *Reader) live(ctx context.Context, in *playbooks.Incident) {
	for i := range in.Playbooks {
		if run := &in.Playbooks[i]; run.Ended.IsZero() && run.WorkflowID != "" && in.Status == "open" {
			r.liveRun(ctx, in, run)
		}
	}
	in.Timeline = display.SortedTimeline(*in)
}

func (r *Reader) liveRun(ctx context.Context, in *playbooks.Incident, run *playbooks.PlaybookRun) {
	ctx, cancel := context.WithTimeout(ctx, liveLimit)
	defer cancel()
	var report playbook.Report
	if r.query(ctx, run.WorkflowID, workflows.QuerySteps, &report) != nil {
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
