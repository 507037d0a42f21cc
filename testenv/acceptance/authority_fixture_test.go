package acceptance

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors"
	"stanch/sensors/attestation"
	"stanch/sensors/probe"
	"stanch/testenv/harness"
	"stanch/workflows/lease"
)

// attackFixture is what an intruder finds: a container that is held, one that people released, one about which there is
// a genuine detection and that is not held, and one about which nobody ever said anything.
type attackFixture struct {
	*harness.Harness
	isolated, released, detected, undetected             *harness.Container
	isolatedIncident, releasedIncident, detectedIncident playbooks.Incident
	isolatedLease, releasedLease                         *lease.Machine       // as they were while both were held
	releaseGrant                                         attestation.Envelope // the genuine release of freed
	isolatedTarget, releasedTarget                       playbooks.Target
	lock                                                 probe.EgressLockState
}

func (w *attackFixture) undetectedTarget() playbooks.Target {
	target := w.isolatedTarget
	target.UID, target.ContainerID, target.Name = w.undetected.ID, w.undetected.ID, w.undetected.ID[:12]
	return target
}

func newAttackFixture(t *testing.T) *attackFixture {
	t.Helper()
	w := &attackFixture{Harness: harness.Start(t, stanchBinary, harness.Options{
		Config:    autoContainConfig,
		Playbooks: isolatePlaybook(30 * time.Minute),
	})}
	reader := newIntruder(t, w.Harness, true)
	w.released, w.releasedIncident = startIsolatedContainer(t, w.Harness)
	w.releasedTarget = w.releasedIncident.Targets[0]
	w.releasedLease = reader.readLease(w.releasedTarget)
	_, stderr, code := w.Run(t, "release", "--all")
	require.Zero(t, code, stderr)
	w.WaitForIncident(t, w.released.ID, 20*time.Second, "released", isUndone)
	w.releaseGrant = *reader.readLease(w.releasedTarget).ReleaseGrant

	_, stderr, code = w.Run(t, "pause")
	require.Zero(t, code, stderr)
	w.detected = w.NewContainer(t)
	w.detected.StartAttack(t)
	w.detectedIncident = w.WaitForIncident(t, w.detected.ID, 20*time.Second, "refused by the kill switch",
		hasPlaybookEnded)
	require.Empty(t, w.detectedIncident.Leases)
	_, stderr, code = w.Run(t, "resume")
	require.Zero(t, code, stderr)

	w.undetected = w.NewContainer(t)
	w.undetected.StartAttack(t, "web-server", "--port", "8080")
	w.isolated, w.isolatedIncident = startIsolatedContainer(t, w.Harness)
	w.isolatedTarget = w.isolatedIncident.Targets[0]
	w.isolatedLease = reader.readLease(w.isolatedTarget)
	locks := w.ActiveLocks(t)
	require.Len(t, locks, 1)
	w.lock = locks[0]
	return w
}

// requireUnchanged is what must hold after every attack: read from the kernel and from what arrives.
func (w *attackFixture) requireUnchanged(t *testing.T) {
	t.Helper()
	require.True(t, w.isolated.IsSilent(300*time.Millisecond), "the held container sends: its lock was lifted")
	locks := w.ActiveLocks(t)
	require.Len(t, locks, 1, "one lock was in force and one must be")
	require.Equal(t, w.lock.LeaseID, locks[0].LeaseID)
	require.Equal(t, w.lock.Cgroups, locks[0].Cgroups)
	require.WithinDuration(t, w.lock.ExpiresAt, locks[0].ExpiresAt, time.Second, "its end was moved")
	for name, c := range map[string]*harness.Container{
		"released": w.released, "known": w.detected,
		"clean": w.undetected,
	} {
		require.True(t, c.WaitForTraffic(time.Second), "the %s container is contained", name)
	}
}

// isolatedRequest is an honest request of the held lease.
func (w *attackFixture) isolatedRequest() activities.Request {
	return w.isolatedLease.ActivityRequest()
}

// forgedRequest is a request to isolate a target under a lease of the intruder's invention.
func (w *attackFixture) forgedRequest(target playbooks.Target, name string) activities.Request {
	r := w.isolatedRequest()
	r.Target, r.LeaseID, r.ExpiresAt = target, name, time.Now().Add(10*time.Minute)
	return r
}

func (w *attackFixture) leaseInput(target playbooks.Target, basis activities.Authorization) lease.Input {
	plan := activities.Plan{Action: "pod.isolate", TargetID: target.ID(), PriorState: w.isolatedLease.PriorState}
	return lease.Input{Target: target, Facet: playbooks.FacetNetwork, FirstHolder: lease.Holder{
		ID: "intruder", IncidentRef: w.isolatedLease.IncidentRef, Action: "pod.isolate", Params: w.isolatedLease.Params,
		Duration: 10 * time.Minute, Plan: plan, Authorization: basis,
	}}
}

func forgedAttestation(target playbooks.Target) attestation.Attestation {
	return attestation.Attestation{
		DetectionID: "invented", TargetID: target.ID(), Rule: "miner-process",
		Objective: "crypto-mining", Severity: "critical", Confidence: 1, Node: target.Node, AcceptedAt: time.Now(),
	}
}

func forgedReleaseGrant(name string) attestation.Grant {
	return attestation.Grant{
		Nonce: uuid.NewString(), Operation: attestation.OperationRelease, LeaseID: name,
		GrantedBy: []string{"root"}, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
	}
}

// forgedDetection is an invented detection about a container.
func forgedDetection(target playbooks.Target) sensors.Detection {
	return sensors.Detection{
		ID: uuid.NewString(), Rule: "miner-process", Title: "invented", Severity: sensors.SeverityCritical, Confidence: 1,
		Objective: sensors.ObjectiveCryptoMining,
		Source:    "stanch", Time: time.Now(), Node: target.Node, Event: sensors.Event{
			Kind:      sensors.KindExec,
			Container: sensors.Container{ID: target.UID, Name: target.Name},
		},
	}
}
