package guards_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

// useManualRequest makes a person's request for pod.isolate for an hour the only authorization of the fixture's
// request.
func (d *guardFixture) useManualRequest(at time.Time) {
	d.input.Request.Action = "pod.isolate"
	d.input.Authorization.Attestations = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeAttestation,
		attestation.Attestation{
			DetectionID: "request/1", TargetID: "pod:uid-1", Namespace: d.target.Namespace, TargetConfirmed: true,
			Rule: "requested-by-a-person", Severity: "high", Confidence: 1, AcceptedAt: at,
			ManualRequest: &attestation.ManualRequest{
				Person: "alice", AuthenticatedBy: "uid 1", Reason: "beacons",
				Actions: []string{"pod.isolate"}, MaxDuration: time.Hour,
			},
		})}
}

// A signed request permits exactly the requested action on the target, for the duration, for a short time. Full access
// to Temporal does not extend it.
func TestManualRequestPermitsOnlyWhatWasRequested(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(*guardFixture)
		verdict activities.Verdict
		reason  string
	}{
		"requested containment": {
			func(*guardFixture) {}, activities.VerdictRun,
			"phase 2, requested by alice (uid 1): beacons",
		},
		"shorter duration": {func(d *guardFixture) {
			d.input.Request.Duration = time.Minute
			d.input.Request.ExpiresAt = now.Add(time.Minute)
		}, activities.VerdictRun, "requested by alice"},
		"longer duration": {func(d *guardFixture) {
			d.input.Request.Duration, d.input.Request.ExpiresAt = time.Hour+time.Second, now.Add(time.Hour+time.Second)
		}, activities.VerdictRefuse, "no attested detection"},
		"end after the duration": {
			func(d *guardFixture) { d.input.Request.ExpiresAt = now.Add(2 * time.Hour) },
			activities.VerdictRefuse, "the planned duration of 1h",
		},
		"another action": {
			func(d *guardFixture) { d.input.Request.Action = "pod.freeze" }, activities.VerdictRefuse,
			"no attested detection",
		},
		"another pod": {
			func(d *guardFixture) { d.input.Request.Target.UID = "uid-2" }, activities.VerdictRefuse,
			"no attempt to capture evidence",
		},
		"old request": {
			func(d *guardFixture) { d.useManualRequest(now.Add(-time.Hour)) },
			activities.VerdictRefuse, "no attested detection",
		},
		"without evidence": {
			func(d *guardFixture) { d.input.Authorization.Receipts = nil }, activities.VerdictRefuse,
			"no attempt to capture evidence",
		},
		"while paused": {
			func(d *guardFixture) { d.chain.KillSwitch = fixedKillSwitch{paused: true} },
			activities.VerdictRefuse, "by alice",
		},
		"in phase 1": {
			func(d *guardFixture) { d.moveToNamespace("look"); d.useManualRequest(now) },
			activities.VerdictPropose, "phase 1",
		},
		"disruptive action": {func(d *guardFixture) {
			d.moveToNamespace("bank")
			d.useManualRequest(now)
			d.input.Spec.Class = playbooks.ClassDisrupt
		}, activities.VerdictAskApproval, "requires approval"},
		"granted action on a role of the pod": {func(d *guardFixture) {
			d.useCloudTarget()
			d.useManualRequest(now)
		}, activities.VerdictRun, "granted"},
		// the namespace's phase 3 applies to nothing that was not requested
		"another action on that role": {func(d *guardFixture) {
			d.useCloudTarget()
			d.useManualRequest(now)
			d.input.Request.Action = "aws.role.revoke-sessions"
		}, activities.VerdictPropose, "phase 1 of scope default"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuardFixture(t)
			d.useManualRequest(now.Add(-time.Minute))
			c.spoil(d)
			got := d.decide()
			require.Equal(t, c.verdict, got.Verdict, got.Reason)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}
