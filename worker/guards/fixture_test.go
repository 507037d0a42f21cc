package guards_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/worker/guards"
)

var now = time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)

func newSigningKey(t *testing.T, seed byte) attestation.SigningKey {
	t.Helper()
	k, err := attestation.NewSigningKey(bytes.Repeat([]byte{seed}, 32))
	require.NoError(t, err)
	return k
}

// guardFixture is a guard chain with a valid input for an automatic containment in phase 2; each test changes one
// thing.
type guardFixture struct {
	t          *testing.T
	signingKey attestation.SigningKey
	chain      *guards.GuardChain
	target     playbooks.Target
	input      activities.GuardInput
	drill      *attestation.DrillRegistration // the registration in the attestations
	// resolvedTarget is the API server's data about the target; nil means that it agrees with the request, and that the
	// workload web owns it.
	resolvedTarget *activities.TargetFacts
}

// ResolveTarget is a fake API server.
func (d *guardFixture) ResolveTarget(_ context.Context, t playbooks.Target) activities.TargetFacts {
	if d.resolvedTarget != nil {
		return *d.resolvedTarget
	}
	return activities.TargetFacts{
		Namespace: t.Namespace, Pod: t.Name, Node: t.Node,
		Owners: []playbooks.WorkloadIdentity{{Namespace: t.Namespace, Kind: "Deployment", Name: "web"}},
	}
}

type fixedKillSwitch struct {
	paused bool
	err    error
}

func (s fixedKillSwitch) IsPaused(context.Context) (bool, string, error) {
	return s.paused, "by alice", s.err
}

func newGuardFixture(t *testing.T) *guardFixture {
	t.Helper()
	cfg, problems := config.Parse("stanch.yaml", []byte(`
phase: 3
scopes:
  - { name: shop, namespaces: [shop], phase: 2, approvers: { groups: [oncall], quorum: 2 } }
  - { name: bank, namespaces: [bank], phase: 3 }
  - { name: look, namespaces: [look], phase: 1 }
people: [{ name: alice, uid: 1, groups: [oncall] }]
protected: { namespaces: [kube-system], workloads: [shop/Deployment/db] }
budget: { per_hour: 3, max_fraction: 0.5 }
`))
	require.Empty(t, problems)
	k := newSigningKey(t, 1)
	d := &guardFixture{t: t, signingKey: k, target: playbooks.Target{
		Kind: playbooks.TargetPod, Namespace: "shop",
		Name: "web-1", UID: "uid-1",
	}}
	d.chain = &guards.GuardChain{
		Config: cfg, Keyring: attestation.NewKeyring(k.PublicKey()),
		KillSwitch: fixedKillSwitch{}, Budget: guards.NewBudgetWindow(nil),
	}
	d.chain.TargetResolver = d
	d.input = activities.GuardInput{
		Spec:     playbooks.ActionSpec{Name: "pod.isolate", Class: playbooks.ClassContain, Facet: playbooks.FacetNetwork},
		PlanHash: "plan", Now: now, Enforce: true,
		Request: activities.Request{
			Target: d.target, LeaseID: "LSE-1", Duration: time.Hour, ExpiresAt: now.Add(time.Hour),
			IncidentRef: activities.IncidentRef{
				ID:       "INC-1",
				Workload: playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Deployment", Name: "web"},
			},
		},
	}
	d.input.Authorization.Attestations = []attestation.Envelope{d.attest(k, d.target.ID(), 0.9, now.Add(-time.Minute))}
	d.input.Authorization.Receipts = []attestation.Envelope{d.sign(k, attestation.PayloadTypeEvidenceReceipt,
		attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID(), AttemptedAt: now})}
	return d
}

func (d *guardFixture) sign(k attestation.SigningKey, purpose attestation.PayloadType, body any) attestation.Envelope {
	s, err := k.Sign(purpose, body)
	require.NoError(d.t, err)
	return s
}

func (d *guardFixture) attest(k attestation.SigningKey, target string, confidence float64,
	at time.Time,
) attestation.Envelope {
	return d.sign(k, attestation.PayloadTypeAttestation, attestation.Attestation{
		DetectionID: "d", TargetID: target, Namespace: d.target.Namespace, TargetConfirmed: true, Rule: "r",
		Objective: "crypto-mining", Severity: "high", Confidence: confidence, AcceptedAt: at,
		Drill: d.drill,
	})
}

func (d *guardFixture) grant(k attestation.SigningKey, g attestation.Grant) *attestation.Envelope {
	if g.IssuedAt.IsZero() {
		g.IssuedAt, g.ExpiresAt = now.Add(-time.Minute), now.Add(time.Minute)
	}
	s := d.sign(k, attestation.PayloadTypeGrant, g)
	return &s
}

func (d *guardFixture) validGrant() attestation.Grant {
	return attestation.Grant{
		Nonce: "n", Operation: attestation.OperationApply, PlanHash: "plan",
		Targets: []string{d.target.ID()}, Namespace: d.target.Namespace, GrantedBy: []string{"alice", "bob"},
	}
}

func (d *guardFixture) decide() activities.GuardDecision {
	got, err := d.chain.Decide(context.Background(), d.input)
	require.NoError(d.t, err)
	return got
}

// registerDrill attests that a drill registered a target.
func (d *guardFixture) registerDrill(id string) {
	d.drill = &attestation.DrillRegistration{Name: "cryptominer", Targets: []attestation.DrillTarget{{ID: id}}}
	d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.9,
		now.Add(-time.Minute))}
}

// useContainerTarget makes the target a container without a known pod.
func (d *guardFixture) useContainerTarget() {
	d.target = playbooks.Target{Kind: playbooks.TargetContainer, Name: "c1", UID: "c1"}
	d.input.Request.Target = d.target
	d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.9,
		now.Add(-time.Minute))}
	d.input.Authorization.Receipts = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeEvidenceReceipt,
		attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID(), AttemptedAt: now})}
}

// moveToNamespace moves the target to another namespace.
func (d *guardFixture) moveToNamespace(namespace string) {
	d.target.Namespace, d.input.Request.Target.Namespace, d.input.Request.IncidentRef.Workload.Namespace = namespace,
		namespace, namespace
	d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.9,
		now.Add(-time.Minute))}
}
