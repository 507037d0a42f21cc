package incident

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/workflows"
)

// watcherNotifyInterval is the minimum time between notifications of playbooks that wait for a change: a flood of
// detections must not fill their histories.
const watcherNotifyInterval = 5 * time.Second

// handleWatch records that a playbook of this incident starts or stops waiting for a change of it.
func (r *incidentRun) handleWatch(ctx workflow.Context, id string, watches bool) {
	if !watches {
		r.WatcherWorkflowIDs = slices.DeleteFunc(r.WatcherWorkflowIDs, func(other string) bool { return other == id })
		return
	}
	mine := slices.ContainsFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool {
		return p.WorkflowID == id &&
			p.Ended.IsZero()
	})
	if !mine || slices.Contains(r.WatcherWorkflowIDs, id) {
		return
	}
	r.WatcherWorkflowIDs = append(r.WatcherWorkflowIDs, id)
	r.watchersOutdated = true
	r.runWatcherLoop(ctx)
}

// runWatcherLoop sends the incident's state to waiting playbooks when they start to wait and whenever it changes.
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
			// less and less often, finally every five minutes
			if workflow.Sleep(ctx, watcherNotifyInterval<<min(r.WatcherNotifications/20, 6)) != nil {
				return
			}
		}
	})
}

func (r *incidentRun) notifyWatchers(ctx workflow.Context) {
	r.WatcherWorkflowIDs = slices.DeleteFunc(r.WatcherWorkflowIDs, func(id string) bool {
		return slices.ContainsFunc(r.Incident.Playbooks, func(p playbooks.PlaybookRun) bool {
			return p.WorkflowID == id &&
				!p.Ended.IsZero()
		})
	})
	now := r.Incident
	now.Timeline, now.Playbooks, now.Evidence = nil, nil, nil
	for _, id := range r.WatcherWorkflowIDs {
		// a playbook that has just ended receives nothing
		workflow.SignalExternalWorkflow(ctx, id, "", workflows.SignalIncidentState, now)
	}
}
