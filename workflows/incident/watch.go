package incident

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/workflows"
)

// watchGap is the least time between two words to playbooks that wait for a change: a storm of detections must not fill
// their histories.
const watchGap = 5 * time.Second

// heardWatch takes in that a playbook of this incident waits for a change of it, or no longer does.
func (r *run) heardWatch(ctx workflow.Context, id string, watches bool) {
	if !watches {
		r.Watchers = slices.DeleteFunc(r.Watchers, func(other string) bool { return other == id })
		return
	}
	mine := slices.ContainsFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool { return p.WorkflowID == id && p.Ended.IsZero() })
	if !mine || slices.Contains(r.Watchers, id) {
		return
	}
	r.Watchers = append(r.Watchers, id)
	r.changed = true
	r.keepWatchers(ctx)
}

// keepWatchers tells playbooks that wait how the incident is, when they begin to wait and whenever it has changed.
func (r *run) keepWatchers(ctx workflow.Context) {
	if len(r.Watchers) == 0 || r.watched {
		return
	}
	r.watched = true
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			if workflow.Await(ctx, func() bool { return r.changed && len(r.Watchers) > 0 }) != nil {
				return
			}
			r.changed = false
			r.tellWatchers(ctx)
			r.Told++
			if workflow.Sleep(ctx, watchGap<<min(r.Told/20, 6)) != nil { // the longer the rarer: five minutes at last
				return
			}
		}
	})
}

func (r *run) tellWatchers(ctx workflow.Context) {
	r.Watchers = slices.DeleteFunc(r.Watchers, func(id string) bool {
		return slices.ContainsFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool { return p.WorkflowID == id && !p.Ended.IsZero() })
	})
	now := r.Incident
	now.Timeline, now.Playbooks, now.Evidence = nil, nil, nil
	for _, id := range r.Watchers {
		workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalLive, now) // one that has just ended hears nothing
	}
}
