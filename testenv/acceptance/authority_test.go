package acceptance

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// An attacker with full access to Temporal and, in most attacks, the payload codec's key, but never the authority's.
func TestTemporalAccessCanNeitherContainNorRelease(t *testing.T) {
	w := newAttackFixture(t)
	for _, attack := range temporalAttacks {
		t.Run(attack.name, func(t *testing.T) {
			attack.do(t, w, newIntruder(t, w.Harness, !attack.keyless))
			w.requireUnchanged(t)
		})
	}
	// After all of that a person can still release, and the lease is undone.
	_, stderr, code := w.Run(t, "release", w.lock.LeaseID)
	require.Zero(t, code, stderr)
	w.WaitForIncident(t, w.isolated.ID, 40*time.Second, "released by a person", isUndone)
	require.True(t, w.isolated.WaitForTraffic(2*time.Second))
}

var temporalAttacks = []struct {
	name    string
	keyless bool // without the codec's key
	do      func(t *testing.T, w *attackFixture, i *intruder)
}{
	{"without the codec's key, an invented incident in plain text", true, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		i.startWorkflow("Incident", "incident/invented", incident.Input{
			ID:          "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV",
			GroupingKey: "invented", Phase: 3,
		})
	}},
	{"without the codec's key, a lease in plain text", true, func(_ *testing.T, w *attackFixture, i *intruder) {
		i.startWorkflow("Lease", leaseWorkflowID(w.undetectedTarget()), w.leaseInput(w.undetectedTarget(),
			activities.Authorization{}))
	}},
	{"without the codec's key, a release in plain text", true, func(t *testing.T, w *attackFixture, i *intruder) {
		require.NoError(t, i.SignalWorkflow(i.timeoutContext(), leaseWorkflowID(w.isolatedTarget), "",
			workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: i.signWithOwnKey(attestation.PayloadTypeGrant,
				forgedReleaseGrant(w.lock.LeaseID))}))
	}},
	{"without the codec's key, the encrypted start of a released lease again", true, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		var raw []any
		for _, p := range i.readWorkflowInput(leaseWorkflowID(w.releasedTarget)) {
			raw = append(raw, converter.NewRawValue(p))
		}
		run, err := i.ExecuteWorkflow(i.timeoutContext(), client.StartWorkflowOptions{
			ID:        leaseWorkflowID(w.releasedTarget),
			TaskQueue: workflows.TaskQueue,
		}, "Lease", raw...)
		i.t.Logf("started: %v %v", run, err)
		i.waitUntilIdle(leaseWorkflowID(w.releasedTarget))
		_ = i.TerminateWorkflow(i.timeoutContext(), leaseWorkflowID(w.releasedTarget), "", "the attack is over")
	}},
	{"canceling the held lease", true, func(t *testing.T, w *attackFixture, i *intruder) {
		require.NoError(t, i.CancelWorkflow(i.timeoutContext(), leaseWorkflowID(w.isolatedTarget), ""))
	}},
	{"an invented incident with an unsigned attestation", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		body, _ := json.Marshal(forgedAttestation(w.undetectedTarget()))
		i.startForgedIncident(incident.AttestedDetection{
			Detection:   forgedDetection(w.undetectedTarget()),
			Attestation: attestation.Envelope{PayloadType: attestation.PayloadTypeAttestation, Payload: body},
		})
	}},
	{"an invented incident with a self-signed attestation", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		i.startForgedIncident(incident.AttestedDetection{
			Detection:   forgedDetection(w.undetectedTarget()),
			Attestation: i.signWithOwnKey(attestation.PayloadTypeAttestation, forgedAttestation(w.undetectedTarget())),
		})
	}},
	{"an invented incident with another target's attestation", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		i.startForgedIncident(incident.AttestedDetection{
			Detection:   forgedDetection(w.undetectedTarget()),
			Attestation: w.isolatedLease.Authorization.Attestations[0],
		})
	}},
	{"a playbook of one's own", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		in := w.isolatedIncident
		in.Targets = []playbooks.Target{w.undetectedTarget()}
		i.startWorkflow("Playbook", "playbook/"+uuid.NewString(), playbook.Input{
			LanguageVersion: playbooks.LanguageVersion,
			File:            "x.yaml",
			Source:          []byte(strings.ReplaceAll(isolatePlaybook(time.Hour)["hold.yaml"], "MARK", w.ContainerPrefix)),
			Incident:        in,
			IncidentRef:     w.isolatedLease.IncidentRef,
			Attestations: map[string][]attestation.Envelope{
				w.undetectedTarget().ID(): w.isolatedLease.Authorization.Attestations,
			},
		})
	}},
	{"a lease with another target's attestation and token", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		in := w.leaseInput(w.undetectedTarget(), w.isolatedLease.Authorization)
		m := lease.NewMachine("LSE-INVENTED", in, time.Now())
		m.LeaseToken, m.Authorization = w.isolatedLease.LeaseToken, w.isolatedLease.Authorization
		in.Resume = m
		i.startWorkflow("Lease", leaseWorkflowID(w.undetectedTarget()), in)
	}},
	{"applying with a self-signed attestation and receipt", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		r := w.forgedRequest(w.undetectedTarget(), "LSE-INVENTED")
		i.orderApply(
			r,
			activities.Authorization{
				Attestations: []attestation.Envelope{
					i.signWithOwnKey(attestation.PayloadTypeAttestation, forgedAttestation(r.Target)),
				},
			},
			w,
			nil,
		)
	}},
	{"applying with an attestation that pretends to the authority's key", false, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		r := w.forgedRequest(w.undetectedTarget(), "LSE-INVENTED")
		i.orderApply(
			r,
			activities.Authorization{
				Attestations: []attestation.Envelope{
					i.signWithForgedKeyID(
						*w.isolatedLease.LeaseToken,
						attestation.PayloadTypeAttestation,
						forgedAttestation(r.Target),
					),
				},
			},
			w,
			nil,
		)
	}},
	{"applying with a self-signed grant", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		r := w.forgedRequest(w.undetectedTarget(), "LSE-INVENTED")
		grant := i.signWithOwnKey(attestation.PayloadTypeGrant,
			attestation.Grant{
				Nonce: "x", Operation: attestation.OperationApply, Targets: []string{r.Target.ID()},
				GrantedBy: []string{"root"}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
			})
		i.orderApply(r, activities.Authorization{Grant: &grant}, w, nil)
	}},
	{"applying with a self-signed token", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		r := w.forgedRequest(w.undetectedTarget(), "LSE-INVENTED")
		token := i.signWithOwnKey(attestation.PayloadTypeLeaseToken, attestation.LeaseToken{
			Nonce: "x", LeaseID: r.LeaseID,
			Action: r.Action, TargetID: r.Target.ID(), ParamsHash: attestation.HashJSON(r.Params), IssuedAt: time.Now(),
			ExpiresAt: r.ExpiresAt,
		})
		i.orderApply(r, activities.Authorization{}, w, &token)
	}},
	{"applying with an attestation dressed up as a token", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		token := w.isolatedLease.Authorization.Attestations[0]
		token.PayloadType = attestation.PayloadTypeLeaseToken
		i.orderApply(w.forgedRequest(w.undetectedTarget(), "LSE-INVENTED"), activities.Authorization{}, w, &token)
	}},
	{"votes of one's own", false, func(t *testing.T, w *attackFixture, i *intruder) {
		r := w.forgedRequest(w.undetectedTarget(), "LSE-INVENTED")
		plan := activities.Plan{Action: r.Action, TargetID: r.Target.ID(), Params: r.Params}
		in := activities.CountVotesInput{
			IncidentID: r.IncidentRef.ID, WorkflowID: "x", RequestID: "x", PlansHash: "x",
			Plans:     []activities.PlanResult{{Plan: plan, PlanHash: plan.Hash()}},
			Approvers: playbooks.Approvers{Users: []string{"root"}, Quorum: 1}, Deadline: time.Now().Add(time.Hour),
		}
		in.PlansHash = activities.ApprovalRequestHash(in.Plans, in.Approvers)
		in.Votes = []attestation.Envelope{i.signWithOwnKey(attestation.PayloadTypeVote,
			attestation.Vote{
				IncidentID: in.IncidentID, WorkflowID: "x", Step: "x", PlanHash: in.PlansHash, Person: "root",
				Approved: true, DecidedAt: time.Now(),
			})}
		raw, err := i.orderActivity("CountVotes", in)
		require.NoError(t, err)
		var tally activities.VoteCount
		require.NoError(t, json.Unmarshal(raw, &tally))
		require.False(t, tally.Granted)
	}},
	{"a release with a self-signed grant", false, func(t *testing.T, w *attackFixture, i *intruder) {
		require.NoError(t, i.SignalWorkflow(i.timeoutContext(), leaseWorkflowID(w.isolatedTarget), "",
			workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: i.signWithOwnKey(attestation.PayloadTypeGrant,
				forgedReleaseGrant(w.lock.LeaseID))}))
		i.waitUntilIdle(leaseWorkflowID(w.isolatedTarget))
	}},
	{"a release with the genuine grant of another lease", false, func(t *testing.T, w *attackFixture, i *intruder) {
		require.NoError(t, i.SignalWorkflow(i.timeoutContext(), leaseWorkflowID(w.isolatedTarget), "",
			workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: w.releaseGrant}))
		i.waitUntilIdle(leaseWorkflowID(w.isolatedTarget))
	}},
	{"an undo whose end is claimed to have passed", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		r := w.isolatedRequest()
		r.ExpiresAt = time.Now().Add(-time.Hour)
		_, _ = i.orderActivity("Undo", activities.UndoInput{Request: r, PriorState: w.isolatedLease.PriorState})
	}},
	{"an undo with a self-signed grant", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		grant := i.signWithForgedKeyID(w.releaseGrant, attestation.PayloadTypeGrant, forgedReleaseGrant(w.lock.LeaseID))
		_, _ = i.orderActivity("Undo", activities.UndoInput{
			Request:    w.isolatedRequest(),
			PriorState: w.isolatedLease.PriorState, ReleaseGrant: &grant,
		})
	}},
	{"an undo with the genuine grant of another lease", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		_, _ = i.orderActivity("Undo", activities.UndoInput{
			Request:    w.isolatedRequest(),
			PriorState: w.isolatedLease.PriorState, ReleaseGrant: &w.releaseGrant,
		})
	}},
	{"a lease whose carried state says that the held one is being undone", false, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		m := *w.isolatedLease
		m.State, m.StampedUntil, m.NextCheckAt, m.Timing = lease.StateUndoing, time.Now().Add(-time.Hour), time.Time{},
			lease.Timing{UndoRetryInitial: time.Second, UndoRetryMax: time.Second}
		in := w.leaseInput(w.isolatedTarget, w.isolatedLease.Authorization)
		in.Resume = &m
		i.startWorkflow("Lease", "lease/invented", in)
	}},
	{"applying the held lease with an earlier end", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		r := w.isolatedRequest()
		r.ExpiresAt = time.Now().Add(3 * time.Second)
		i.orderApply(r, activities.Authorization{Attestations: w.isolatedLease.Authorization.Attestations}, w, nil)
		i.orderApply(r, activities.Authorization{}, w, w.isolatedLease.LeaseToken)
		require.True(i.t, w.isolated.IsSilent(4*time.Second), "it was let go at the earlier end")
	}},
	{"applying the held lease with a later end than was planned", false, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		r := w.isolatedRequest()
		r.ExpiresAt = time.Now().Add(30 * 24 * time.Hour)
		i.orderApply(r, activities.Authorization{Attestations: w.isolatedLease.Authorization.Attestations}, w, nil)
		i.orderApply(r, activities.Authorization{Attestations: w.isolatedLease.Authorization.Attestations}, w,
			w.isolatedLease.LeaseToken)
	}},
	{"applying the held lease for longer than runs without a person", false, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		r := w.isolatedRequest()
		r.Duration, r.ExpiresAt = 30*24*time.Hour, time.Now().Add(30*24*time.Hour)
		i.orderApply(r, activities.Authorization{Attestations: w.isolatedLease.Authorization.Attestations}, w, nil)
	}},
	{"applying the held lease with everything allowed", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		r := w.isolatedRequest()
		r.Params = json.RawMessage(`{"allow":["0.0.0.0/0"]}`)
		i.orderApply(r, activities.Authorization{Attestations: w.isolatedLease.Authorization.Attestations}, w, nil)
	}},
	{"joining the held lease with everything allowed", false, func(t *testing.T, w *attackFixture, i *intruder) {
		h := w.leaseInput(w.isolatedTarget, w.isolatedLease.Authorization).FirstHolder
		h.Params, h.Duration = json.RawMessage(`{"allow":["0.0.0.0/0"]}`), time.Minute
		require.NoError(t, i.SignalWorkflow(i.timeoutContext(), leaseWorkflowID(w.isolatedTarget), "",
			workflows.SignalJoinLease, h))
		i.waitUntilIdle(leaseWorkflowID(w.isolatedTarget))
	}},
	{"applying the held lease so that it fails and is rolled back", false, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		r := w.isolatedRequest()
		var many []string
		for n := range 80_000 {
			many = append(many, fmt.Sprintf("10.%d.%d.%d/32", n>>16, n>>8&255, n&255))
		}
		r.Params, _ = json.Marshal(map[string]any{"allow": many})
		i.orderApply(r, activities.Authorization{Attestations: w.isolatedLease.Authorization.Attestations}, w, nil)
	}},
	{"applying the held lease to another target", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		target := w.detectedIncident.Targets[0]
		r := w.forgedRequest(target, w.lock.LeaseID)
		i.orderApply(r, activities.Authorization{Attestations: i.readAttestations(w.detectedIncident.Playbooks[0].WorkflowID,
			target)}, w, nil)
	}},
	{"applying a released lease again with its own token", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		i.orderApply(w.releasedLease.ActivityRequest(), w.releasedLease.Authorization, w, w.releasedLease.LeaseToken)
	}},
	{"applying a released lease again with its own attestation", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		i.orderApply(w.releasedLease.ActivityRequest(), w.releasedLease.Authorization, w, nil)
	}},
	{"a new lease on a released target with the old attestation", false, func(_ *testing.T, w *attackFixture,
		i *intruder,
	) {
		i.orderApply(w.forgedRequest(w.releasedTarget, "LSE-INVENTED"), w.releasedLease.Authorization, w, nil)
	}},
	{"an extension with a self-signed grant", false, func(t *testing.T, w *attackFixture, i *intruder) {
		g := forgedReleaseGrant(w.lock.LeaseID)
		g.Operation, g.NewEnd = attestation.OperationExtend, time.Now().Add(10*time.Hour)
		require.NoError(t, i.SignalWorkflow(i.timeoutContext(), leaseWorkflowID(w.isolatedTarget), "",
			workflows.SignalExtendLease, lease.ExtendSignal{
				ExpiresAt: g.NewEnd,
				Grant:     i.signWithOwnKey(attestation.PayloadTypeGrant, g),
			}))
		i.waitUntilIdle(leaseWorkflowID(w.isolatedTarget))
	}},
	{"answering the node's and the workers' tasks falsely", false, func(_ *testing.T, w *attackFixture, i *intruder) {
		i.answerTasksFalsely(w.isolatedTarget.Node, 6*time.Second)
	}},
}

// waitUntilIdle polls until a workflow has done what the last signal led to: no task and no activity of it is under
// way.
func (i *intruder) waitUntilIdle(id string) {
	i.t.Helper()
	quiet := 0
	require.Eventually(i.t, func() bool {
		d, err := i.DescribeWorkflowExecution(i.timeoutContext(), id, "")
		if quiet++; err != nil || d.GetPendingWorkflowTask() != nil || len(d.GetPendingActivities()) > 0 {
			quiet = 0
		}
		return quiet == 3
	}, 15*time.Second, 50*time.Millisecond, "%s never settled", id)
}

// startForgedIncident starts an incident of the intruder's invention.
func (i *intruder) startForgedIncident(a incident.AttestedDetection) {
	i.t.Helper()
	key := "local/Container/" + a.Detection.Event.Container.Name
	_, err := i.SignalWithStartWorkflow(i.timeoutContext(), workflows.IncidentWorkflowID(key), workflows.SignalDetections,
		[]incident.AttestedDetection{a},
		client.StartWorkflowOptions{TaskQueue: workflows.TaskQueue}, "Incident",
		incident.Input{
			ID: "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV", GroupingKey: key, Cluster: "local", Scope: "drill", Phase: 3,
			Drill: true,
		})
	require.NoError(i.t, err)
	require.Eventually(i.t, func() bool {
		value, err := i.QueryWorkflow(i.timeoutContext(), workflows.IncidentWorkflowID(key), "", workflows.QueryIncident)
		var in playbooks.Incident
		return err == nil && value.Get(&in) == nil && hasPlaybookEnded(in)
	}, 15*time.Second, 100*time.Millisecond, "its playbook ran to its end")
	_ = i.TerminateWorkflow(i.timeoutContext(), workflows.IncidentWorkflowID(key), "", "the attack is over")
}

// orderApply orders the Apply activity.
func (i *intruder) orderApply(r activities.Request, basis activities.Authorization, w *attackFixture,
	token *attestation.Envelope,
) {
	i.t.Helper()
	// A receipt is had for the asking: what refuses must be something better.
	basis.Receipts = append(i.requestEvidenceReceipt(r), basis.Receipts...)
	_, _ = i.orderActivity("Apply", activities.ApplyInput{
		Request: r, Authorization: basis,
		PriorState: w.isolatedLease.PriorState, LeaseToken: token,
	})
}
