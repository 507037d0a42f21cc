package playbook

import (
	"encoding/json"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows"
)

// runObserve runs an action without side effects, and keeps what later steps need.
func (r *playbookRun) runObserve(ctx workflow.Context, f executionFrame, s *playbooks.Step,
	request activities.Request,
) stepOutcome {
	var set *activities.Activities
	var result activities.Result
	in := activities.ObserveInput{Request: request, Attestations: lastN(r.input.Attestations[request.Target.ID()], 1)}
	if err := r.input.LeaseTiming.Route.RunActivity(ctx, request.Target, workflows.ActivityCall{
		Options: r.activityOptions(s), Activity: set.Observe, In: in, Out: &result,
	}); err != nil {
		result = activities.Result{Outcome: playbooks.OutcomeFailed, Reason: activityErrorText(err)}
		if s.Verb == playbooks.VerbEvidence {
			result.Receipt = r.recordTimedOutEvidence(ctx, request)
		}
	}
	if s.Action == "workload" && result.Outcome.HasOutputs() {
		// Steps on the workload need its identity, which detections do not contain.
		var found activities.WorkloadContext
		if json.Unmarshal(result.Outputs, &found) == nil {
			found.ApplyToIncident(&r.input.Incident)
		}
	}
	if s.Action == "aws.identity" && result.Outcome.HasOutputs() {
		// No detection is about a role: the guards use the pod through which it was found.
		var found struct {
			Role  playbooks.Target   `json:"role"`
			Keys  []playbooks.Target `json:"keys"`
			Users []playbooks.Target `json:"users"`
		}
		if r.input.Attestations != nil && json.Unmarshal(result.Outputs, &found) == nil {
			for _, t := range slices.Concat([]playbooks.Target{found.Role}, found.Keys, found.Users) {
				if t.UID != "" && t.Kind.IsCloud() {
					r.input.Attestations[t.ID()] = append(r.input.Attestations[t.ID()],
						lastN(r.input.Attestations[request.Target.ID()], 1)...)
				}
			}
		}
	}
	if result.Receipt != nil {
		r.receipts[request.Target.ID()] = append(r.receipts[request.Target.ID()], *result.Receipt)
	}
	r.report.Evidence = append(r.report.Evidence,
		result.Evidence[:min(len(result.Evidence), max(0, maxEvidenceRefs-len(r.report.Evidence)))]...)
	r.recordStepReport(ctx, f, s, playbooks.StepReport{
		Target: request.Target.ID(), Outcome: result.Outcome,
		Reason: result.Reason,
	})
	return stepOutcome{Outcome: result.Outcome, reason: result.Reason, outputs: result.Outputs}
}

// recordTimedOutEvidence requests a receipt for evidence that was attempted and timed out: an attacker who makes
// evidence hang must not be able to prevent containment.
func (r *playbookRun) recordTimedOutEvidence(ctx workflow.Context, request activities.Request) *attestation.Envelope {
	var set *activities.Activities
	var receipt attestation.Envelope
	o := workflow.ActivityOptions{
		TaskQueue:           r.input.LeaseTiming.Route.DefaultQueue(),
		StartToCloseTimeout: 10 * time.Second,
	}
	if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.RecordAttempt, request).Get(ctx,
		&receipt); err != nil {
		return nil
	}
	return &receipt
}
