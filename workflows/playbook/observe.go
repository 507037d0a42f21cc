package playbook

import (
	"encoding/json"
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// observe runs an action that changes nothing, and keeps what later steps need of it.
func (r *run) observe(ctx workflow.Context, f frame, s *playbooks.Step, request activities.Request) outcome {
	var set *activities.Activities
	var result activities.Result
	in := activities.ObserveInput{Request: request, Attestations: last(r.in.Attestations[request.Target.ID()], 1)}
	if err := r.in.Timing.Route.Run(ctx, request.Target, r.activityOptions(s), set.Observe, in, &result); err != nil {
		result = activities.Result{Outcome: playbooks.OutcomeFailed, Reason: activityError(err)}
		if s.Verb == playbooks.VerbEvidence {
			result.Receipt = r.timedOutReceipt(ctx, request)
		}
	}
	if s.Action == "workload" && result.Outcome.HasOutputs() {
		// Steps on the workload need its identity, which detections do not carry.
		var found activities.WorkloadContext
		if json.Unmarshal(result.Outputs, &found) == nil {
			found.ApplyToIncident(&r.in.Incident)
		}
	}
	if s.Action == "aws.identity" && result.Outcome.HasOutputs() {
		// No detection is about a role: the guards learn from the pod's through whom it was reached.
		var found struct {
			Role        playbooks.Target
			Keys, Users []playbooks.Target
		}
		if r.in.Attestations != nil && json.Unmarshal(result.Outputs, &found) == nil {
			for _, t := range slices.Concat([]playbooks.Target{found.Role}, found.Keys, found.Users) {
				if t.UID != "" && t.Kind.IsCloud() {
					r.in.Attestations[t.ID()] = append(r.in.Attestations[t.ID()], last(r.in.Attestations[request.Target.ID()], 1)...)
				}
			}
		}
	}
	if result.Receipt != nil {
		r.receipts[request.Target.ID()] = append(r.receipts[request.Target.ID()], *result.Receipt)
	}
	r.report.Evidence = append(r.report.Evidence, result.Evidence[:min(len(result.Evidence), max(0, maxEvidence-len(r.report.Evidence)))]...)
	r.note(ctx, f, s, playbooks.StepReport{Target: request.Target.ID(), Outcome: result.Outcome, Reason: result.Reason})
	return outcome{Outcome: result.Outcome, reason: result.Reason, outputs: result.Outputs}
}

// timedOutReceipt gets a receipt for evidence that was attempted and never answered: an attacker who makes evidence
// hang must not prevent containment.
func (r *run) timedOutReceipt(ctx workflow.Context, request activities.Request) *attestation.Envelope {
	var set *activities.Activities
	var receipt attestation.Envelope
	o := workflow.ActivityOptions{TaskQueue: r.in.Timing.Route.Anywhere(), StartToCloseTimeout: 10 * time.Second}
	if err := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, o), set.Attempted, request).Get(ctx, &receipt); err != nil {
		return nil
	}
	return &receipt
}
