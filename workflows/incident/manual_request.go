package incident

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stanch/playbooks"
	"stanch/sensors"
)

// MatchManualRequestActivity is the local activity that returns the playbook of a manual request. The worker implements
// it with its loaded library. It returns an error for a playbook that is not part of the installation.
const MatchManualRequestActivity = "MatchRequestedPlaybook"

// startManualRequests starts manually requested playbooks in their current version: it may be a corrected one, and the
// plan that the person saw is of this version. The attestation is used for this run only. The gateway attested who the
// person is and that they are entitled; the guards read that attestation and decide whether anything is contained.
// Assigning or resolving an incident stops automatic starts, not later manual requests.
func (r *incidentRun) startManualRequests(ctx workflow.Context, asked []AttestedDetection) {
	for _, a := range asked {
		d, target := a.Detection, TargetOfDetection(a.Detection)
		local := workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
			ScheduleToCloseTimeout: 10 * time.Second, RetryPolicy: &temporal.RetryPolicy{MaximumAttempts: 3},
		})
		var selected SelectedPlaybook
		if err := workflow.ExecuteLocalActivity(local, MatchManualRequestActivity, *d.ManualRequest).Get(ctx,
			&selected); err != nil {
			r.addTimeline(workflow.Now(ctx), "what "+d.ManualRequest.Person+" requested could not be started: "+err.Error())
			r.Incident.Playbooks = append(r.Incident.Playbooks, playbooks.PlaybookRun{
				Playbook: d.ManualRequest.Playbook, RequestID: d.ID, RequestedBy: d.ManualRequest.Person,
				Started: workflow.Now(ctx), Ended: workflow.Now(ctx), Outcome: playbooks.OutcomeFailed, Error: err.Error(),
			})
			continue
		}
		r.startPlaybook(ctx, selected, []playbooks.Target{target}, a.Attestation)
		run := &r.Incident.Playbooks[len(r.Incident.Playbooks)-1]
		run.RequestID, run.RequestedBy = d.ID, d.ManualRequest.Person
	}
}

// isManualOnly reports whether nothing was detected. Such an incident runs only what people requested, and no playbook
// automatically.
func (s *incidentState) isManualOnly() bool {
	for _, d := range s.Incident.Detections {
		if d.Rule != sensors.RuleManualRequest {
			return false
		}
	}
	return len(s.Incident.Detections) > 0
}
