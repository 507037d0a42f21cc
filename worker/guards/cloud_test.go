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

// cloud makes the desk's request one about a role that was reached through the desk's pod, in the namespace bank, which
// is in phase 3; the grant permits it.
func (d *desk) cloud() {
	d.move("bank")
	d.chain.Config.Protected.Roles = []string{"billing-*", "arn:aws:iam::1:role/pay"}
	d.target = playbooks.Target{Kind: playbooks.TargetRole, Namespace: "bank", Name: "web", UID: "AROA1", ARN: "arn:aws:iam::1:role/web"}
	d.q.Request.Target, d.q.Spec = d.target, playbooks.ActionSpec{Name: "aws.role.revoke-sessions", Class: playbooks.ClassDisrupt}
	d.q.Authorization.Grant = d.grant(d.key, d.goodGrant())
}

func TestACloudTargetIsJudgedByThePodThroughWhichItWasReached(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(*desk)
		verdict activities.Verdict
		guard   string
		reason  string
	}{
		"all in order, on any evidence of the incident": {func(*desk) {}, activities.VerdictRun, "phase", "granted"},
		"no evidence was attempted":                     {func(d *desk) { d.q.Authorization.Receipts = nil }, activities.VerdictRefuse, "evidence", "no evidence"},
		"evidence of another incident":                  {func(d *desk) { d.q.Request.IncidentRef.ID = "INC-2" }, activities.VerdictRefuse, "evidence", "no evidence"},
		"without a grant the pod's detection is no proof about the role": {func(d *desk) {
			d.q.Authorization.Grant, d.q.Spec.Class = nil, playbooks.ClassContain
		}, activities.VerdictRefuse, "phase", "without proof"},
		"a protected name": {func(d *desk) { d.q.Request.Target.Name = "billing-eu" }, activities.VerdictRefuse, "protected", "billing-*"},
		"a protected ARN":  {func(d *desk) { d.q.Request.Target.ARN = "arn:aws:iam::1:role/pay" }, activities.VerdictRefuse, "protected", "role/pay"},
		"a namespace that no detection was in lends its phase to nobody": {func(d *desk) { d.q.Authorization.Attestations = nil }, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"nor does one of another's": {func(d *desk) {
			d.q.Request.Target.Namespace = "shop"
			d.granted("shop")
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"nor an old one": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeAttestation, attestation.Attestation{Namespace: "bank", TargetConfirmed: true, AcceptedAt: now.Add(-25 * time.Hour)})}
		}, activities.VerdictPropose, "phase", "phase 1"},
		"an hour's wait for people changes nothing": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeAttestation, attestation.Attestation{Namespace: "bank", TargetConfirmed: true, AcceptedAt: now.Add(-time.Hour)})}
		}, activities.VerdictRun, "phase", "granted"},
		"nor a namespace that only a node's word names": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeAttestation, attestation.Attestation{Namespace: "bank", AcceptedAt: now.Add(-time.Hour)})}
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"a role that a drill registered is phase 3": {func(d *desk) {
			d.chain.Config.Phase = 1
			d.register("role:AROA1")
		}, activities.VerdictRun, "phase", "granted"},
		"a role with the name of a drill's is not a drill's": {func(d *desk) {
			d.chain.Config.Phase = 1
			d.q.Request.Target.Name = config.DrillRole + "x"
		}, activities.VerdictPropose, "phase", "phase 1"},
		"a drill's pod does not make a drill of its role": {func(d *desk) {
			d.chain.Config.Phase = 2
			d.register("pod:uid-1")
		}, activities.VerdictPropose, "phase", "phase 2"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.cloud()
			c.spoil(d)
			got := d.decide()
			require.Equal(t, c.verdict, got.Verdict, got.Reason)
			require.Equal(t, c.guard, got.Guard)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}

// granted gives the grant anew, for a namespace.
func (d *desk) granted(namespace string) {
	g := d.goodGrant()
	g.Namespace = namespace
	d.q.Authorization.Grant = d.grant(d.key, g)
}

func TestDenyingOnePodMayRunByItself(t *testing.T) {
	d := newDesk(t)
	d.q.Spec = playbooks.ActionSpec{Name: "aws.role.deny-pod", Class: playbooks.ClassContain, Targets: []playbooks.TargetKind{playbooks.TargetPod}}
	require.Equal(t, activities.VerdictRun, d.decide().Verdict)
}
