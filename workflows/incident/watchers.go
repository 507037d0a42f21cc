package incident

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/workflows"
)

// watcherNotifyInterval is the least time between two words to playbooks that wait for a change: a storm of detections must not fill
// their histories.
const watcherNotifyInterval = 5 * time.Second

// handleWatch takes in that a playbook of this incident waits for a change of it, or no longer does.
func (r *incidentRun) handleWatch(ctx workflow.Context, id string, watches bool) {
	if !watches {
		r.WatcherWorkflowIDs = slices.DeleteFunc(r.WatcherWorkflowIDs, func(other string) bool { return other == id })
		return
	}
	mine := slices.ContainsFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool { return p.WorkflowID == id && p.Ended.IsZero() })
	if !mine || slices.Contains(r.WatcherWorkflowIDs, id) {
		return
	}
	r.WatcherWorkflowIDs = append(r.WatcherWorkflowIDs, id)
	r.watchersOutdated = true
	r.runWatcherLoop(ctx)
}

// runWatcherLoop tells playbooks that wait how the incident is, when they begin to wait and whenever it has changed.
func (r *incidentRun) runWatcherLoop(ctx workflow.Context) {
	if len(r.WatcherWorkflowIDs) == 0 || r.watcherLoopRunning {
		return
	}
	r.watcherLoopRunning = true
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			if workflow.Await(ctx, func() bool { return r.watchersOutdated && len(r.WatcherWorkflowIDs) > 0 }) != nil {
				return
			}
			r.watchersOutdated = false
			r.notifyWatchers(ctx)
			r.WatcherNotifications++
			if workflow.Sleep(ctx, watcherNotifyInterval<<min(r.WatcherNotifications/20, 6)) != nil { // the longer the rarer: five minutes at last
				return
			}
		}
	})
}

func (r *incidentRun) notifyWatchers(ctx workflow.Context) {
	r.WatcherWorkflowIDs = slices.DeleteFunc(r.WatcherWorkflowIDs, func(id string) bool {
		return slices.ContainsFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool { return p.WorkflowID == id && !p.Ended.IsZero() })
	})
	now := r.Incident
	now.Timeline, now.Playbooks, now.Evidence = nil, nil, nil
	for _, id := range r.WatcherWorkflowIDs {
		workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalIncidentState, now) // one that has just ended hears nothing
	}
}
