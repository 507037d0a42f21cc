package guards_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker/config"
)

// useCloudTarget changes the fixture's request to a role that was found through the fixture's pod, in the namespace
// bank, which is in phase 3; the grant permits it.
func (d *guardFixture) useCloudTarget() {
	d.moveToNamespace("bank")
	d.chain.Config.ProtectedTargets.Roles = []string{"billing-*", "arn:aws:iam::1:role/pay"}
	d.target = playbooks.Target{
		Kind: playbooks.TargetRole, Namespace: "bank", Name: "web", UID: "AROA1",
		ARN: "arn:aws:iam::1:role/web",
	}
	d.input.Request.Target, d.input.Spec = d.target, playbooks.ActionSpec{
		Name:  "aws.role.revoke-sessions",
		Class: playbooks.ClassDisrupt,
	}
	d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
}

func TestCloudTargetHasScopeOfItsPod(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(*guardFixture)
		verdict activities.Verdict
		guard   string
		reason  string
	}{
		"valid, with any evidence of the incident": {func(*guardFixture) {}, activities.VerdictRun, "phase", "granted"},
		"no attempt to capture evidence": {
			func(d *guardFixture) { d.input.Authorization.Receipts = nil },
			activities.VerdictRefuse, "evidence", "no attempt to capture evidence",
		},
		"evidence of another incident": {
			func(d *guardFixture) { d.input.Request.IncidentRef.ID = "INC-2" },
			activities.VerdictRefuse, "evidence", "no attempt to capture evidence",
		},
		"pod's detection without a grant": {func(d *guardFixture) {
			d.input.Authorization.Grant, d.input.Spec.Class = nil, playbooks.ClassContain
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"protected name": {
			func(d *guardFixture) { d.input.Request.Target.Name = "billing-eu" },
			activities.VerdictRefuse, "protected", "billing-*",
		},
		"protected ARN": {
			func(d *guardFixture) { d.input.Request.Target.ARN = "arn:aws:iam::1:role/pay" },
			activities.VerdictRefuse, "protected", "role/pay",
		},
		"namespace without a detection": {
			func(d *guardFixture) { d.input.Authorization.Attestations = nil },
			activities.VerdictPropose, "phase", "phase 1 of scope default",
		},
		"namespace of another attestation": {func(d *guardFixture) {
			d.input.Request.Target.Namespace = "shop"
			d.renewGrant("shop")
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"expired attestation of the namespace": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeAttestation,
				attestation.Attestation{Namespace: "bank", TargetConfirmed: true, AcceptedAt: now.Add(-25 * time.Hour)})}
		}, activities.VerdictPropose, "phase", "phase 1"},
		"attestation older than an hour": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeAttestation,
				attestation.Attestation{Namespace: "bank", TargetConfirmed: true, AcceptedAt: now.Add(-time.Hour)})}
		}, activities.VerdictRun, "phase", "granted"},
		"namespace reported only by a node": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeAttestation,
				attestation.Attestation{Namespace: "bank", AcceptedAt: now.Add(-time.Hour)})}
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"registered role of a drill": {func(d *guardFixture) {
			d.chain.Config.Phase = 1
			d.registerDrill("role:AROA1")
		}, activities.VerdictRun, "phase", "granted"},
		"unregistered role with a drill's name": {func(d *guardFixture) {
			d.chain.Config.Phase = 1
			d.input.Request.Target.Name = config.DrillRolePrefix + "x"
		}, activities.VerdictPropose, "phase", "phase 1"},
		"role of a drill's pod": {func(d *guardFixture) {
			d.chain.Config.Phase = 2
			d.registerDrill("pod:uid-1")
		}, activities.VerdictPropose, "phase", "phase 2"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuardFixture(t)
			d.useCloudTarget()
			c.spoil(d)
			got := d.decide()
			require.Equal(t, c.verdict, got.Verdict, got.Reason)
			require.Equal(t, c.guard, got.Guard)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}

// renewGrant signs a new grant for a namespace.
func (d *guardFixture) renewGrant(namespace string) {
	g := d.validGrant()
	g.Namespace = namespace
	d.input.Authorization.Grant = d.grant(d.signingKey, g)
}

func TestDenyingOnePodNeedsNoApproval(t *testing.T) {
	d := newGuardFixture(t)
	d.input.Spec = playbooks.ActionSpec{
		Name: "aws.role.deny-pod", Class: playbooks.ClassContain,
		Targets: []playbooks.TargetKind{playbooks.TargetPod},
	}
	require.Equal(t, activities.VerdictRun, d.decide().Verdict)
}
