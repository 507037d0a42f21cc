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
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/probe"
	"stanch/testenv/stand"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// scene is what an intruder finds: a container that is held, one that people released, one about which there is a
// genuine detection and that is not held, and one about which nobody ever said anything.
type scene struct {
	*stand.Stand
	held, freed, known, clean *stand.Container
	heldIn, freedIn, knownIn  playbooks.Incident
	heldLease, freedLease     *lease.Machine       // as they were while both were held
	freedGrant                attestation.Envelope // the genuine release of freed
	target, freedTarget       playbooks.Target
	lock                      probe.EgressLockState
}

func (w *scene) cleanTarget() playbooks.Target {
	target := w.target
	target.UID, target.ContainerID, target.Name = w.clean.ID, w.clean.ID, w.clean.ID[:12]
	return target
}

func newScene(t *testing.T) *scene {
	t.Helper()
	w := &scene{Stand: stand.Start(t, binary, stand.Options{Config: contains, Playbooks: holdFor(30 * time.Minute)})}
	reader := newIntruder(t, w.Stand, true)
	w.freed, w.freedIn = contained(t, w.Stand)
	w.freedTarget = w.freedIn.Targets[0]
	w.freedLease = reader.lease(w.freedTarget)
	_, stderr, code := w.Run(t, "release", "--all")
	require.Zero(t, code, stderr)
	w.Incident(t, w.freed.ID, 20*time.Second, "released", undone)
	w.freedGrant = *reader.lease(w.freedTarget).ReleaseGrant

	_, stderr, code = w.Run(t, "stop")
	require.Zero(t, code, stderr)
	w.known = w.Container(t)
	w.known.Attack(t)
	w.knownIn = w.Incident(t, w.known.ID, 20*time.Second, "refused by the kill switch", playbookEnded)
	require.Empty(t, w.knownIn.Leases)
	_, stderr, code = w.Run(t, "resume")
	require.Zero(t, code, stderr)

	w.clean = w.Container(t)
	w.clean.Attack(t, "web-server", "--port", "8080")
	w.held, w.heldIn = contained(t, w.Stand)
	w.target = w.heldIn.Targets[0]
	w.heldLease = reader.lease(w.target)
	locks := w.Locks(t)
	require.Len(t, locks, 1)
	w.lock = locks[0]
	return w
}

// unchanged is what must hold after every attack: read from the kernel and from what arrives.
func (w *scene) unchanged(t *testing.T) {
	t.Helper()
	require.True(t, w.held.Silent(300*time.Millisecond), "the held container sends: its lock was lifted")
	locks := w.Locks(t)
	require.Len(t, locks, 1, "one lock was in force and one must be")
	require.Equal(t, w.lock.LeaseID, locks[0].LeaseID)
	require.Equal(t, w.lock.Cgroups, locks[0].Cgroups)
	require.WithinDuration(t, w.lock.ExpiresAt, locks[0].ExpiresAt, time.Second, "its end was moved")
	for name, c := range map[string]*stand.Container{"released": w.freed, "known": w.known, "clean": w.clean} {
		require.True(t, c.Resumed(time.Second), "the %s container is contained", name)
	}
}

// request is an honest request of the held lease.
func (w *scene) request() activities.Request { return w.heldLease.ActivityRequest() }

// on is a request to isolate a target under a lease of the intruder's invention.
func (w *scene) on(target playbooks.Target, name string) activities.Request {
	r := w.request()
	r.Target, r.LeaseID, r.ExpiresAt = target, name, time.Now().Add(10*time.Minute)
	return r
}

func (w *scene) holder(target playbooks.Target, basis activities.Authorization) lease.Input {
	plan := activities.Plan{Action: "pod.isolate", TargetID: target.ID(), PriorState: w.heldLease.PriorState}
	return lease.Input{Target: target, Facet: playbooks.FacetNetwork, FirstHolder: lease.Holder{
		ID: "intruder", IncidentRef: w.heldLease.IncidentRef, Action: "pod.isolate", Params: w.heldLease.Params, Duration: 10 * time.Minute, Plan: plan, Authorization: basis,
	}}
}

func attestationOf(target playbooks.Target) attestation.Attestation {
	return attestation.Attestation{DetectionID: "invented", TargetID: target.ID(), Rule: "miner-process", Objective: "crypto-mining", Severity: "critical", Confidence: 1, Node: target.Node, AcceptedAt: time.Now()}
}

func releaseOf(name string) attestation.Grant {
	return attestation.Grant{Nonce: uuid.NewString(), Operation: attestation.OperationRelease, LeaseID: name, GrantedBy: []string{"root"}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
}

// detectionOf is an invented detection about a container.
func detectionOf(target playbooks.Target) sensors.Detection {
	return sensors.Detection{
		ID: uuid.NewString(), Rule: "miner-process", Title: "invented", Severity: sensors.SeverityCritical, Confidence: 1, Objective: sensors.ObjectiveCryptoMining,
		Source: "stanch", Time: time.Now(), Node: target.Node, Event: sensors.Event{Kind: sensors.KindExec, Container: sensors.Container{ID: target.UID, Name: target.Name}},
	}
}

// Somebody who has everything of Temporal, and in most attacks the payload codec's key too, but never the authority's.
func TestWhoHasTemporalCanNeitherContainNorRelease(t *testing.T) {
	w := newScene(t)
	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			attack.do(t, w, newIntruder(t, w.Stand, !attack.keyless))
			w.unchanged(t)
		})
	}
	// After all of that a person can still release, and the lease is undone.
	_, stderr, code := w.Run(t, "release", w.lock.LeaseID)
	require.Zero(t, code, stderr)
	w.Incident(t, w.held.ID, 40*time.Second, "released by a person", undone)
	require.True(t, w.held.Resumed(2*time.Second))
}

var attacks = []struct {
	name    string
	keyless bool // without the codec's key
	do      func(t *testing.T, w *scene, i *intruder)
}{
	{"without the codec's key, an invented incident in plain text", true, func(_ *testing.T, w *scene, i *intruder) {
		i.start("Incident", "incident/invented", incident.Input{ID: "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV", GroupingKey: "invented", Phase: 3})
	}},
	{"without the codec's key, a lease in plain text", true, func(_ *testing.T, w *scene, i *intruder) {
		i.start("Lease", leaseID(w.cleanTarget()), w.holder(w.cleanTarget(), activities.Authorization{}))
	}},
	{"without the codec's key, a release in plain text", true, func(t *testing.T, w *scene, i *intruder) {
		require.NoError(t, i.SignalWorkflow(i.ctx(), leaseID(w.target), "", workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: i.forge(attestation.PayloadTypeGrant, releaseOf(w.lock.LeaseID))}))
	}},
	{"without the codec's key, the encrypted start of a released lease again", true, func(_ *testing.T, w *scene, i *intruder) {
		var raw []any
		for _, p := range i.input(leaseID(w.freedTarget)) {
			raw = append(raw, converter.NewRawValue(p))
		}
		run, err := i.ExecuteWorkflow(i.ctx(), client.StartWorkflowOptions{ID: leaseID(w.freedTarget), TaskQueue: workflows.TaskQueue}, "Lease", raw...)
		i.t.Logf("started: %v %v", run, err)
		i.settled(leaseID(w.freedTarget))
		_ = i.TerminateWorkflow(i.ctx(), leaseID(w.freedTarget), "", "the attack is over")
	}},
	{"cancelling the held lease", true, func(t *testing.T, w *scene, i *intruder) {
		require.NoError(t, i.CancelWorkflow(i.ctx(), leaseID(w.target), ""))
	}},
	{"an invented incident with an unsigned attestation", false, func(_ *testing.T, w *scene, i *intruder) {
		body, _ := json.Marshal(attestationOf(w.cleanTarget()))
		i.incident(incident.AttestedDetection{Detection: detectionOf(w.cleanTarget()), Attestation: attestation.Envelope{PayloadType: attestation.PayloadTypeAttestation, Payload: body}})
	}},
	{"an invented incident with a self-signed attestation", false, func(_ *testing.T, w *scene, i *intruder) {
		i.incident(incident.AttestedDetection{Detection: detectionOf(w.cleanTarget()), Attestation: i.forge(attestation.PayloadTypeAttestation, attestationOf(w.cleanTarget()))})
	}},
	{"an invented incident with another target's attestation", false, func(_ *testing.T, w *scene, i *intruder) {
		i.incident(incident.AttestedDetection{Detection: detectionOf(w.cleanTarget()), Attestation: w.heldLease.Authorization.Attestations[0]})
	}},
	{"a playbook of one's own", false, func(_ *testing.T, w *scene, i *intruder) {
		in := w.heldIn
		in.Targets = []playbooks.Target{w.cleanTarget()}
		i.start("Playbook", "playbook/"+uuid.NewString(), playbook.Input{
			LanguageVersion: playbooks.LanguageVersion, File: "x.yaml", Source: []byte(strings.ReplaceAll(holdFor(time.Hour)["hold.yaml"], "MARK", w.Mark)),
			Incident: in, IncidentRef: w.heldLease.IncidentRef, Attestations: map[string][]attestation.Envelope{w.cleanTarget().ID(): w.heldLease.Authorization.Attestations},
		})
	}},
	{"a lease with another target's attestation and token", false, func(_ *testing.T, w *scene, i *intruder) {
		in := w.holder(w.cleanTarget(), w.heldLease.Authorization)
		m := lease.NewMachine("LSE-INVENTED", in.Target, in.Facet, in.FirstHolder, time.Now(), lease.Timing{})
		m.LeaseToken, m.Authorization = w.heldLease.LeaseToken, w.heldLease.Authorization
		in.Resume = m
		i.start("Lease", leaseID(w.cleanTarget()), in)
	}},
	{"applying with a self-signed attestation and receipt", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.on(w.cleanTarget(), "LSE-INVENTED")
		i.apply(r, activities.Authorization{Attestations: []attestation.Envelope{i.forge(attestation.PayloadTypeAttestation, attestationOf(r.Target))}}, w, nil)
	}},
	{"applying with an attestation that pretends to the authority's key", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.on(w.cleanTarget(), "LSE-INVENTED")
		i.apply(r, activities.Authorization{Attestations: []attestation.Envelope{i.pretend(*w.heldLease.LeaseToken, attestation.PayloadTypeAttestation, attestationOf(r.Target))}}, w, nil)
	}},
	{"applying with a self-signed grant", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.on(w.cleanTarget(), "LSE-INVENTED")
		grant := i.forge(attestation.PayloadTypeGrant, attestation.Grant{Nonce: "x", Operation: attestation.OperationApply, Targets: []string{r.Target.ID()}, GrantedBy: []string{"root"}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)})
		i.apply(r, activities.Authorization{Grant: &grant}, w, nil)
	}},
	{"applying with a self-signed token", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.on(w.cleanTarget(), "LSE-INVENTED")
		token := i.forge(attestation.PayloadTypeLeaseToken, attestation.LeaseToken{Nonce: "x", LeaseID: r.LeaseID, Action: r.Action, TargetID: r.Target.ID(), ParamsHash: attestation.HashJSON(r.Params), IssuedAt: time.Now(), ExpiresAt: r.ExpiresAt})
		i.apply(r, activities.Authorization{}, w, &token)
	}},
	{"applying with an attestation dressed up as a token", false, func(_ *testing.T, w *scene, i *intruder) {
		token := w.heldLease.Authorization.Attestations[0]
		token.PayloadType = attestation.PayloadTypeLeaseToken
		i.apply(w.on(w.cleanTarget(), "LSE-INVENTED"), activities.Authorization{}, w, &token)
	}},
	{"votes of one's own", false, func(t *testing.T, w *scene, i *intruder) {
		r := w.on(w.cleanTarget(), "LSE-INVENTED")
		plan := activities.Plan{Action: r.Action, TargetID: r.Target.ID(), Params: r.Params}
		in := activities.CountVotesInput{
			IncidentID: r.IncidentRef.ID, WorkflowID: "x", RequestID: "x", PlansHash: "x", Plans: []activities.PlanResult{{Plan: plan, PlanHash: plan.Hash()}},
			Approvers: activities.Approvers{Users: []string{"root"}, Quorum: 1}, Deadline: time.Now().Add(time.Hour),
		}
		in.PlansHash = activities.ApprovalRequestHash(in.Plans, in.Approvers)
		in.Votes = []attestation.Envelope{i.forge(attestation.PayloadTypeVote, attestation.Vote{IncidentID: in.IncidentID, WorkflowID: "x", Step: "x", PlanHash: in.PlansHash, Person: "root", Approved: true, DecidedAt: time.Now()})}
		raw, err := i.order("CountVotes", in)
		require.NoError(t, err)
		var tally activities.VoteCount
		require.NoError(t, json.Unmarshal(raw, &tally))
		require.False(t, tally.Granted)
	}},
	{"a release with a self-signed grant", false, func(t *testing.T, w *scene, i *intruder) {
		require.NoError(t, i.SignalWorkflow(i.ctx(), leaseID(w.target), "", workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: i.forge(attestation.PayloadTypeGrant, releaseOf(w.lock.LeaseID))}))
		i.settled(leaseID(w.target))
	}},
	{"a release with the genuine grant of another lease", false, func(t *testing.T, w *scene, i *intruder) {
		require.NoError(t, i.SignalWorkflow(i.ctx(), leaseID(w.target), "", workflows.SignalReleaseLease, lease.ReleaseSignal{Grant: w.freedGrant}))
		i.settled(leaseID(w.target))
	}},
	{"an undo whose end is claimed to have passed", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.request()
		r.ExpiresAt = time.Now().Add(-time.Hour)
		_, _ = i.order("Undo", activities.UndoInput{Request: r, PriorState: w.heldLease.PriorState})
	}},
	{"an undo with a self-signed grant", false, func(_ *testing.T, w *scene, i *intruder) {
		grant := i.pretend(w.freedGrant, attestation.PayloadTypeGrant, releaseOf(w.lock.LeaseID))
		_, _ = i.order("Undo", activities.UndoInput{Request: w.request(), PriorState: w.heldLease.PriorState, ReleaseGrant: &grant})
	}},
	{"an undo with the genuine grant of another lease", false, func(_ *testing.T, w *scene, i *intruder) {
		_, _ = i.order("Undo", activities.UndoInput{Request: w.request(), PriorState: w.heldLease.PriorState, ReleaseGrant: &w.freedGrant})
	}},
	{"a lease whose carried state says that the held one is being undone", false, func(_ *testing.T, w *scene, i *intruder) {
		m := *w.heldLease
		m.State, m.StampedUntil, m.NextCheckAt, m.Timing = lease.StateUndoing, time.Now().Add(-time.Hour), time.Time{}, lease.Timing{UndoRetryInitial: time.Second, UndoRetryMax: time.Second}
		in := w.holder(w.target, w.heldLease.Authorization)
		in.Resume = &m
		i.start("Lease", "lease/invented", in)
	}},
	{"applying the held lease with an earlier end", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.request()
		r.ExpiresAt = time.Now().Add(3 * time.Second)
		i.apply(r, activities.Authorization{Attestations: w.heldLease.Authorization.Attestations}, w, nil)
		i.apply(r, activities.Authorization{}, w, w.heldLease.LeaseToken)
		require.True(i.t, w.held.Silent(4*time.Second), "it was let go at the earlier end")
	}},
	{"applying the held lease with a later end than was planned", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.request()
		r.ExpiresAt = time.Now().Add(30 * 24 * time.Hour)
		i.apply(r, activities.Authorization{Attestations: w.heldLease.Authorization.Attestations}, w, nil)
		i.apply(r, activities.Authorization{Attestations: w.heldLease.Authorization.Attestations}, w, w.heldLease.LeaseToken)
	}},
	{"applying the held lease for longer than runs without a person", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.request()
		r.Duration, r.ExpiresAt = 30*24*time.Hour, time.Now().Add(30*24*time.Hour)
		i.apply(r, activities.Authorization{Attestations: w.heldLease.Authorization.Attestations}, w, nil)
	}},
	{"applying the held lease with everything allowed", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.request()
		r.Params = json.RawMessage(`{"allow":["0.0.0.0/0"]}`)
		i.apply(r, activities.Authorization{Attestations: w.heldLease.Authorization.Attestations}, w, nil)
	}},
	{"joining the held lease with everything allowed", false, func(t *testing.T, w *scene, i *intruder) {
		h := w.holder(w.target, w.heldLease.Authorization).FirstHolder
		h.Params, h.Duration = json.RawMessage(`{"allow":["0.0.0.0/0"]}`), time.Minute
		require.NoError(t, i.SignalWorkflow(i.ctx(), leaseID(w.target), "", workflows.SignalJoinLease, h))
		i.settled(leaseID(w.target))
	}},
	{"applying the held lease so that it fails and is rolled back", false, func(_ *testing.T, w *scene, i *intruder) {
		r := w.request()
		var many []string
		for n := range 80_000 {
			many = append(many, fmt.Sprintf("10.%d.%d.%d/32", n>>16, n>>8&255, n&255))
		}
		r.Params, _ = json.Marshal(map[string]any{"allow": many})
		i.apply(r, activities.Authorization{Attestations: w.heldLease.Authorization.Attestations}, w, nil)
	}},
	{"applying the held lease to another target", false, func(_ *testing.T, w *scene, i *intruder) {
		target := w.knownIn.Targets[0]
		r := w.on(target, w.lock.LeaseID)
		i.apply(r, activities.Authorization{Attestations: i.attestations(w.knownIn.Playbooks[0].WorkflowID, target)}, w, nil)
	}},
	{"applying a released lease again with its own token", false, func(_ *testing.T, w *scene, i *intruder) {
		i.apply(w.freedLease.ActivityRequest(), w.freedLease.Authorization, w, w.freedLease.LeaseToken)
	}},
	{"applying a released lease again with its own attestation", false, func(_ *testing.T, w *scene, i *intruder) {
		i.apply(w.freedLease.ActivityRequest(), w.freedLease.Authorization, w, nil)
	}},
	{"a new lease on a released target with the old attestation", false, func(_ *testing.T, w *scene, i *intruder) {
		i.apply(w.on(w.freedTarget, "LSE-INVENTED"), w.freedLease.Authorization, w, nil)
	}},
	{"an extension with a self-signed grant", false, func(t *testing.T, w *scene, i *intruder) {
		g := releaseOf(w.lock.LeaseID)
		g.Operation, g.NewEnd = attestation.OperationExtend, time.Now().Add(10*time.Hour)
		require.NoError(t, i.SignalWorkflow(i.ctx(), leaseID(w.target), "", workflows.SignalExtendLease, lease.ExtendSignal{ExpiresAt: g.NewEnd, Grant: i.forge(attestation.PayloadTypeGrant, g)}))
		i.settled(leaseID(w.target))
	}},
	{"answering the node's and the workers' tasks falsely", false, func(_ *testing.T, w *scene, i *intruder) {
		i.answerFalsely(w.target.Node, 6*time.Second)
	}},
}

// settled polls until a workflow has done what the last signal led to: no task and no activity of it is under way.
func (i *intruder) settled(id string) {
	i.t.Helper()
	quiet := 0
	require.Eventually(i.t, func() bool {
		d, err := i.DescribeWorkflowExecution(i.ctx(), id, "")
		if quiet++; err != nil || d.GetPendingWorkflowTask() != nil || len(d.GetPendingActivities()) > 0 {
			quiet = 0
		}
		return quiet == 3
	}, 15*time.Second, 50*time.Millisecond, "%s never settled", id)
}

// incident starts an incident of the intruder's invention.
func (i *intruder) incident(a incident.AttestedDetection) {
	i.t.Helper()
	key := "local/Container/" + a.Detection.Event.Container.Name
	_, err := i.SignalWithStartWorkflow(i.ctx(), workflows.IncidentWorkflowID(key), workflows.SignalDetections, []incident.AttestedDetection{a},
		client.StartWorkflowOptions{TaskQueue: workflows.TaskQueue}, "Incident", incident.Input{ID: "INC-01ARZ3NDEKTSV4RRFFQ69G5FAV", GroupingKey: key, Cluster: "local", Scope: "drill", Phase: 3, Drill: true})
	require.NoError(i.t, err)
	require.Eventually(i.t, func() bool {
		value, err := i.QueryWorkflow(i.ctx(), workflows.IncidentWorkflowID(key), "", workflows.QueryIncident)
		var in playbooks.Incident
		return err == nil && value.Get(&in) == nil && playbookEnded(in)
	}, 15*time.Second, 100*time.Millisecond, "its playbook ran to its end")
	_ = i.TerminateWorkflow(i.ctx(), workflows.IncidentWorkflowID(key), "", "the attack is over")
}

// apply orders the Apply activity.
func (i *intruder) apply(r activities.Request, basis activities.Authorization, w *scene, token *attestation.Envelope) {
	i.t.Helper()
	// A receipt is had for the asking: what refuses must be something better.
	basis.Receipts = append(i.receipt(r), basis.Receipts...)
	_, _ = i.order("Apply", activities.ApplyInput{Request: r, Authorization: basis, PriorState: w.heldLease.PriorState, LeaseToken: token})
}
