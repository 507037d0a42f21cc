package incident

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/sensors"
)

// MatchManualRequestActivity is the local activity that finds the playbook of what a person asked for; the worker implements it from
// the library that it loaded. What is no playbook of this installation's is an error.
const MatchManualRequestActivity = "MatchRequestedPlaybook"

// startManualRequests starts what a person asked for, with the playbook as it is now: they may have corrected the one that ran
// before, and the plan that they saw is of this one. Its attestation goes to this run alone. Who they are, and that they may, the gateway attested; whether anything is
// contained is for the guards, which read that attestation. A person who took the incident over, or called it a false
// positive, stops what starts by itself, and not what people ask for afterwards.
func (r *incidentRun) startManualRequests(ctx workflow.Context, asked []AttestedDetection) {
	for _, a := range asked {
		d, target := a.Detection, TargetOfDetection(a.Detection)
		local := workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
			ScheduleToCloseTimeout: 10 * time.Second, RetryPolicy: &temporal.RetryPolicy{MaximumAttempts: 3},
		})
		var selected SelectedPlaybook
		if err := workflow.ExecuteLocalActivity(local, MatchManualRequestActivity, *d.ManualRequest).Get(ctx, &selected); err != nil {
			r.addTimeline(workflow.Now(ctx), "what "+d.ManualRequest.Person+" requested could not be started: "+err.Error())
			r.Incident.Playbooks = append(r.Incident.Playbooks, playbooks.PlaybookRun{
				Playbook: d.ManualRequest.Playbook, RequestID: d.ID, RequestedBy: d.ManualRequest.Person, Started: workflow.Now(ctx), Ended: workflow.Now(ctx), Outcome: playbooks.OutcomeFailed, Error: err.Error(),
			})
			continue
		}
		r.startPlaybook(ctx, selected, []playbooks.Target{target}, a.Attestation)
		run := &r.Incident.Playbooks[len(r.Incident.Playbooks)-1]
		run.RequestID, run.RequestedBy = d.ID, d.ManualRequest.Person
	}
}

// isManualOnly reports whether nothing was detected: an incident that people began by hand runs what they asked for, and
// no playbook by itself.
func (s *incidentState) isManualOnly() bool {
	for _, d := range s.Incident.Detections {
		if d.Rule != sensors.RuleManualRequest {
			return false
		}
	}
	return len(s.Incident.Detections) > 0
}
