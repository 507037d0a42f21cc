package guards_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

func key(t *testing.T, seed byte) attestation.SigningKey {
	t.Helper()
	k, err := attestation.NewSigningKey(bytes.Repeat([]byte{seed}, 32))
	require.NoError(t, err)
	return k
}

// desk is a guard chain with everything in order for an automatic containment in phase 2; scenarios spoil one thing.
type desk struct {
	t      *testing.T
	key    attestation.SigningKey
	chain  *guards.Chain
	target playbooks.Target
	q      activities.GuardInput
	drill  *attestation.DrillRegistration // the registration that attestations carry
	// known is what the API server says of the target; nil is that it agrees with the request, and that the workload web owns it.
	known *activities.TargetFacts
}

// ResolveTarget answers in place of an API server.
func (d *desk) ResolveTarget(_ context.Context, t playbooks.Target) activities.TargetFacts {
	if d.known != nil {
		return *d.known
	}
	return activities.TargetFacts{Namespace: t.Namespace, Pod: t.Name, Node: t.Node, Owners: []playbooks.WorkloadIdentity{{Namespace: t.Namespace, Kind: "Deployment", Name: "web"}}}
}

type fixedSwitch struct {
	stopped bool
	err     error
}

func (s fixedSwitch) Stopped(context.Context) (bool, string, error) {
	return s.stopped, "by alice", s.err
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	cfg, problems := config.Parse("stanch.yaml", []byte(`
phase: 3
scopes:
  - { name: shop, namespaces: [shop], phase: 2, approvers: { groups: [oncall], quorum: 2 } }
  - { name: bank, namespaces: [bank], phase: 3 }
  - { name: look, namespaces: [look], phase: 1 }
people: [{ name: alice, uid: 1, groups: [oncall] }]
protected: { namespaces: [kube-system], workloads: [shop/Deployment/db] }
budget: { per_hour: 3, share: 0.5 }
`))
	require.Empty(t, problems)
	k := key(t, 1)
	d := &desk{t: t, key: k, target: playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "web-1", UID: "uid-1"}}
	d.chain = &guards.Chain{Config: cfg, Keys: attestation.NewKeyring(k.PublicKey()), Switch: fixedSwitch{}, Budget: guards.NewWindow(nil)}
	d.chain.Targets = d
	d.q = activities.GuardInput{
		Spec: playbooks.ActionSpec{Name: "pod.isolate", Class: playbooks.ClassContain, Facet: playbooks.FacetNetwork}, PlanHash: "plan", Now: now, Enforce: true,
		Request: activities.Request{Target: d.target, LeaseID: "LSE-1", Duration: time.Hour, ExpiresAt: now.Add(time.Hour), IncidentRef: activities.IncidentRef{
			ID:       "INC-1",
			Workload: playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Deployment", Name: "web"},
		}},
	}
	d.q.Authorization.Attestations = []attestation.Envelope{d.attest(k, d.target.ID(), 0.9, now.Add(-time.Minute))}
	d.q.Authorization.Receipts = []attestation.Envelope{d.sign(k, attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID(), AttemptedAt: now})}
	return d
}

func (d *desk) sign(k attestation.SigningKey, purpose attestation.PayloadType, body any) attestation.Envelope {
	s, err := k.Sign(purpose, body)
	require.NoError(d.t, err)
	return s
}

func (d *desk) attest(k attestation.SigningKey, target string, confidence float64, at time.Time) attestation.Envelope {
	return d.sign(k, attestation.PayloadTypeAttestation, attestation.Attestation{
		DetectionID: "d", TargetID: target, Namespace: d.target.Namespace, TargetConfirmed: true, Rule: "r", Objective: "crypto-mining", Severity: "high", Confidence: confidence, AcceptedAt: at,
		Drill: d.drill,
	})
}

func (d *desk) grant(k attestation.SigningKey, g attestation.Grant) *attestation.Envelope {
	if g.IssuedAt.IsZero() {
		g.IssuedAt, g.ExpiresAt = now.Add(-time.Minute), now.Add(time.Minute)
	}
	s := d.sign(k, attestation.PayloadTypeGrant, g)
	return &s
}

func (d *desk) goodGrant() attestation.Grant {
	return attestation.Grant{Nonce: "n", Operation: attestation.OperationApply, PlanHash: "plan", Targets: []string{d.target.ID()}, Namespace: d.target.Namespace, GrantedBy: []string{"alice", "bob"}}
}

func (d *desk) decide() activities.GuardDecision {
	got, err := d.chain.Decide(context.Background(), d.q)
	require.NoError(d.t, err)
	return got
}

func TestEveryGuardDecidesForItsReason(t *testing.T) {
	thief := key(t, 9)
	for name, c := range map[string]struct {
		spoil   func(*desk)
		verdict activities.Verdict
		guard   string
		reason  string
	}{
		"all in order":                {func(*desk) {}, activities.VerdictRun, "phase", "confidence 0.90"},
		"somebody stopped everything": {func(d *desk) { d.chain.Switch = fixedSwitch{stopped: true} }, activities.VerdictRefuse, "kill-switch", "by alice"},
		"the switch cannot be read":   {func(d *desk) { d.chain.Switch = fixedSwitch{err: errors.New("disk")} }, activities.VerdictRefuse, "kill-switch", "cannot be read"},
		"a protected namespace":       {func(d *desk) { d.q.Request.Target.Namespace = "kube-system" }, activities.VerdictRefuse, "protected", "kube-system"},
		"a misstated namespace":       {func(d *desk) { d.q.Request.Target.Namespace = "bank" }, activities.VerdictRefuse, "phase", "without proof"},
		"a pod of a protected workload, whatever its alert says": {func(d *desk) {
			d.known = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", Owners: []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "ReplicaSet", Name: "x"}, {Namespace: "shop", Kind: "Deployment", Name: "db"}}}
		}, activities.VerdictRefuse, "protected", "shop/Deployment/db"},
		"a protected owner in the middle of the chain": {func(d *desk) {
			d.known = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", Owners: []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "Deployment", Name: "db"}, {Namespace: "shop", Kind: "Database", Name: "main"}}}
		}, activities.VerdictRefuse, "protected", "shop/Deployment/db"},
		"an alert that claims a protected workload prevents nothing": {func(d *desk) { d.q.Request.IncidentRef.Workload.Name = "db" }, activities.VerdictRun, "phase", "confidence"},
		"what cannot be looked up needs a person":                    {func(d *desk) { d.known = &activities.TargetFacts{UnresolvedReason: "no route to host"} }, activities.VerdictAskApproval, "phase", "no route to host"},
		"nothing to look it up with needs a person":                  {func(d *desk) { d.chain.Targets = nil }, activities.VerdictAskApproval, "phase", "could not be looked up"},
		"a person may contain what cannot be looked up": {func(d *desk) {
			d.known = &activities.TargetFacts{UnresolvedReason: "no route to host"}
			d.q.Authorization.Grant = d.grant(d.key, d.goodGrant())
		}, activities.VerdictRun, "phase", "granted"},
		"what cannot be looked up is refused where its alert names a protected workload": {func(d *desk) {
			d.known = &activities.TargetFacts{UnresolvedReason: "no route to host"}
			d.q.Request.IncidentRef.Workload.Name = "db"
		}, activities.VerdictRefuse, "protected", "shop/Deployment/db"},
		"an owner that may not be read could be the protected one": {func(d *desk) {
			d.known = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", Owners: []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "Cluster", Name: "x"}}, IncompleteReason: "forbidden"}
		}, activities.VerdictAskApproval, "phase", "may belong to the protected workload shop/Deployment/db"},
		"an owner that may not be read where nothing is protected": {func(d *desk) {
			d.move("bank")
			d.known = &activities.TargetFacts{Namespace: "bank", Pod: "web-1", Owners: []playbooks.WorkloadIdentity{{Namespace: "bank", Kind: "Cluster", Name: "x"}}, IncompleteReason: "forbidden"}
		}, activities.VerdictRun, "phase", "confidence"},
		"a pod that is in another namespace": {func(d *desk) { d.known = &activities.TargetFacts{Namespace: "kube-system", Pod: "web-1"} }, activities.VerdictRefuse, "target", `in the namespace "kube-system"`},
		"a pod that runs on another node":    {func(d *desk) { d.known = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", Node: "node-b"} }, activities.VerdictRefuse, "target", `runs on node "node-b"`},
		"a pod on the host's network, whatever its alert says": {func(d *desk) {
			d.known = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", HostNetwork: true}
		}, activities.VerdictRefuse, "target", "shares the node's network"},
		"a container that belongs to a pod": {func(d *desk) {
			d.container()
			d.known = &activities.TargetFacts{Namespace: "kube-system", Pod: "etcd-a", Node: "node-a"}
		}, activities.VerdictRefuse, "target", "belongs to the pod kube-system/etcd-a"},
		"a container of no pod on a node of the cluster needs a person": {func(d *desk) {
			d.container()
			d.known = &activities.TargetFacts{UnresolvedReason: "no pod on node node-a has the container c1"}
		}, activities.VerdictAskApproval, "phase", "no pod on node node-a"},
		"a container of a machine outside of the cluster": {func(d *desk) {
			d.container()
			d.known = &activities.TargetFacts{OutsideCluster: true, Node: "node-a"}
		}, activities.VerdictRun, "phase", "confidence"},
		"a detection from another node is no proof": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeAttestation, attestation.Attestation{
				DetectionID: "d", TargetID: d.target.ID(), Namespace: "shop", Node: "node-b", Rule: "r", Objective: "crypto-mining", Severity: "high", Confidence: 0.9, AcceptedAt: now,
			})}
		}, activities.VerdictRefuse, "phase", "without proof"},
		"an end beyond what was planned":    {func(d *desk) { d.q.Request.ExpiresAt = now.Add(2 * time.Hour) }, activities.VerdictRefuse, "duration", "the 1h that was planned"},
		"a later end that its token covers": {func(d *desk) { d.q.Request.ExpiresAt, d.q.HeldUntil = now.Add(2*time.Hour), now.Add(2*time.Hour) }, activities.VerdictRun, "phase", "confidence"},
		"a hold that is too long by itself": {func(d *desk) { d.q.Request.Duration, d.q.Request.ExpiresAt = 25*time.Hour, now.Add(25*time.Hour) }, activities.VerdictAskApproval, "phase", "1d that `budget.longest`"},
		"a plan that affects others too":    {func(d *desk) { d.q.ApprovalReason = "others share its network" }, activities.VerdictAskApproval, "phase", "others share its network"},
		"such a plan that people granted": {func(d *desk) {
			d.q.ApprovalReason = "others share its network"
			d.q.Authorization.Grant = d.grant(d.key, d.goodGrant())
		}, activities.VerdictRun, "phase", "alice"},
		"Stanch itself":                {func(d *desk) { d.chain.Self = []string{"uid-1"} }, activities.VerdictRefuse, "protected", "Stanch itself"},
		"no evidence was attempted":    {func(d *desk) { d.q.Authorization.Receipts = nil }, activities.VerdictRefuse, "evidence", "no evidence"},
		"evidence of another incident": {func(d *desk) { d.q.Request.IncidentRef.ID = "INC-2" }, activities.VerdictRefuse, "evidence", "no evidence"},
		"a receipt that somebody else signed": {func(d *desk) {
			d.q.Authorization.Receipts = []attestation.Envelope{d.sign(thief, attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID()})}
		}, activities.VerdictRefuse, "evidence", "no evidence"},
		"no attestation":                {func(d *desk) { d.q.Authorization.Attestations = nil }, activities.VerdictRefuse, "phase", "without proof"},
		"an attestation of another pod": {func(d *desk) { d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, "pod:other", 0.9, now)} }, activities.VerdictRefuse, "phase", "without proof"},
		"an old attestation": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.9, now.Add(-16*time.Minute))}
		}, activities.VerdictRefuse, "phase", "without proof"},
		"an attestation from the future": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.9, now.Add(time.Hour))}
		}, activities.VerdictRefuse, "phase", "without proof"},
		"an attestation that somebody signed": {func(d *desk) { d.q.Authorization.Attestations = []attestation.Envelope{d.attest(thief, d.target.ID(), 0.9, now)} }, activities.VerdictRefuse, "phase", "without proof"},
		"a changed attestation": {func(d *desk) {
			d.q.Authorization.Attestations[0].Payload = bytes.Replace(d.q.Authorization.Attestations[0].Payload, []byte("0.9"), []byte("1.0"), 1)
		}, activities.VerdictRefuse, "phase", "without proof"},
		"a grant offered as an attestation": {func(d *desk) { d.q.Authorization.Attestations = []attestation.Envelope{*d.grant(d.key, d.goodGrant())} }, activities.VerdictRefuse, "phase", "without proof"},
		"low confidence asks":               {func(d *desk) { d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.6, now)} }, activities.VerdictAskApproval, "phase", "below the 0.80"},
		"a claim of confidence is not believed": {func(d *desk) {
			d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.6, now)}
			d.q.Request.IncidentRef.Confidence = 1
		}, activities.VerdictAskApproval, "phase", "0.60"},
		"phase 1 proposes":                 {func(d *desk) { d.move("look") }, activities.VerdictPropose, "phase", "phase 1"},
		"the playbook's ceiling":           {func(d *desk) { d.q.Request.IncidentRef.MaxPhase = 1 }, activities.VerdictPropose, "phase", "phase 1"},
		"a claim of scope is not believed": {func(d *desk) { d.move("look"); d.q.Request.IncidentRef.Scope = "drill" }, activities.VerdictPropose, "phase", "phase 1"},
		"a claim of the drill's namespace is not believed": {func(d *desk) {
			d.move("look")
			d.q.Request.Target.Namespace = config.DrillNamespace
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"a claim of a laxer namespace is not believed": {func(d *desk) {
			d.move("look")
			d.q.Request.Target.Namespace = "shop"
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"disrupt in phase 2 is proposed": {func(d *desk) { d.q.Spec.Class = playbooks.ClassDisrupt }, activities.VerdictPropose, "phase", "disrupt"},
		"disrupt in phase 2 is proposed even with a grant": {func(d *desk) {
			d.q.Spec.Class = playbooks.ClassDisrupt
			d.q.Authorization.Grant = d.grant(d.key, d.goodGrant())
		}, activities.VerdictPropose, "phase", "disrupt"},
		"disrupt in phase 3 asks": {func(d *desk) { d.move("bank"); d.q.Spec.Class = playbooks.ClassDisrupt }, activities.VerdictAskApproval, "phase", "grant"},
		"disrupt in phase 3 with its grant": {func(d *desk) {
			d.move("bank")
			d.q.Spec.Class = playbooks.ClassDisrupt
			d.q.Authorization.Grant = d.grant(d.key, d.goodGrant())
		}, activities.VerdictRun, "phase", "alice, bob"},
		"a grant of another plan":   {func(d *desk) { g := d.goodGrant(); g.PlanHash = "other"; d.q.Authorization.Grant = d.grant(d.key, g) }, activities.VerdictRefuse, "grant", "plan changed"},
		"a grant of another target": {func(d *desk) { g := d.goodGrant(); g.Targets = []string{"pod:x"}; d.q.Authorization.Grant = d.grant(d.key, g) }, activities.VerdictRefuse, "grant", "not among"},
		"a grant of the approvers of another namespace": {func(d *desk) {
			g := d.goodGrant()
			g.Namespace = "bank"
			d.q.Authorization.Grant = d.grant(d.key, g)
		}, activities.VerdictRefuse, "grant", "for the namespace"},
		"a grant that a drill's key gave": {func(d *desk) { g := d.goodGrant(); g.DrillOnly = true; d.q.Authorization.Grant = d.grant(d.key, g) }, activities.VerdictRefuse, "grant", "outside of a drill"},
		"a grant that has expired": {func(d *desk) {
			g := d.goodGrant()
			g.IssuedAt, g.ExpiresAt = now.Add(-time.Hour), now.Add(-time.Minute)
			d.q.Authorization.Grant = d.grant(d.key, g)
		}, activities.VerdictRefuse, "grant", "valid from"},
		"a grant for a release": {func(d *desk) {
			g := d.goodGrant()
			g.Operation = attestation.OperationRelease
			d.q.Authorization.Grant = d.grant(d.key, g)
		}, activities.VerdictRefuse, "grant", "release"},
		"a grant that somebody signed":                 {func(d *desk) { d.q.Authorization.Grant = d.grant(thief, d.goodGrant()) }, activities.VerdictRefuse, "grant", "unknown key"},
		"a grant stands for low confidence":            {func(d *desk) { d.q.Authorization.Attestations = nil; d.q.Authorization.Grant = d.grant(d.key, d.goodGrant()) }, activities.VerdictRun, "phase", "granted"},
		"inside of an approval it waits for the grant": {func(d *desk) { d.q.Authorization.RequiresGrant = true }, activities.VerdictAskApproval, "phase", "grant of its approval"},
		"a registered target of a drill is phase 3": {func(d *desk) {
			d.chain.Config.Phase = 1
			d.register(d.target.ID())
			d.q.Spec.Class, d.q.Authorization.RequiresGrant = playbooks.ClassDisrupt, true
		}, activities.VerdictAskApproval, "phase", "grant"},
		"the namespace of drills puts nothing into a drill's scope": {func(d *desk) {
			d.chain.Config.Phase = 1
			d.move(config.DrillNamespace)
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"a workload in the namespace of drills is not a drill's by its name": {func(d *desk) {
			d.chain.Config.Phase = 1
			d.target = playbooks.Target{Kind: playbooks.TargetWorkload, Namespace: config.DrillNamespace, WorkloadKind: "Deployment", Name: "victim", UID: "uid-w"}
			d.q.Request.Target = d.target
			d.move(config.DrillNamespace)
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"a registration of another target is none": {func(d *desk) {
			d.chain.Config.Phase = 1
			d.register("pod:other")
		}, activities.VerdictPropose, "phase", "phase 1"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			c.spoil(d)
			got := d.decide()
			require.Equal(t, c.verdict, got.Verdict, got.Reason)
			require.Equal(t, c.guard, got.Guard)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}

// register attests that a drill registered a target.
func (d *desk) register(id string) {
	d.drill = &attestation.DrillRegistration{Name: "cryptominer", Targets: []attestation.DrillTarget{{ID: id}}}
	d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.9, now.Add(-time.Minute))}
}

// container makes the target a container of which no pod is known.
func (d *desk) container() {
	d.target = playbooks.Target{Kind: playbooks.TargetContainer, Name: "c1", UID: "c1"}
	d.q.Request.Target = d.target
	d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.9, now.Add(-time.Minute))}
	d.q.Authorization.Receipts = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID(), AttemptedAt: now})}
}

// move puts the target into another namespace.
func (d *desk) move(namespace string) {
	d.target.Namespace, d.q.Request.Target.Namespace, d.q.Request.IncidentRef.Workload.Namespace = namespace, namespace, namespace
	d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, d.target.ID(), 0.9, now.Add(-time.Minute))}
}

func TestTheBudgetBoundsWhatRunsWithoutAPerson(t *testing.T) {
	d := newDesk(t)
	for i := range 3 {
		d.q.Request.LeaseID = fmt.Sprintf("LSE-%d", i)
		require.Equal(t, activities.VerdictRun, d.decide().Verdict)
	}
	require.Equal(t, activities.VerdictRun, d.decide().Verdict, "a retry of one that was paid for costs nothing")
	d.q.Request.LeaseID = "LSE-4"
	got := d.decide()
	require.Equal(t, activities.VerdictPropose, got.Verdict)
	require.Contains(t, got.Reason, "3 containments an hour")
	d.q.Now = now.Add(14 * time.Minute)
	require.Equal(t, activities.VerdictPropose, d.decide().Verdict)
	d.q.Authorization.RequiresGrant = true
	require.Equal(t, activities.VerdictAskApproval, d.decide().Verdict, "inside of an approval people are asked, however much was contained")
	require.Equal(t, 3, d.decide().DecisionInputs.UsedLastHour)
	d.q.Authorization.Grant = d.grant(d.key, func() attestation.Grant {
		g := d.goodGrant()
		g.IssuedAt, g.ExpiresAt = d.q.Now, d.q.Now.Add(time.Minute)
		return g
	}())
	require.Equal(t, activities.VerdictRun, d.decide().Verdict, "people may go beyond it")
}

func TestOnlyOnePodIsContainedWhileTheReplicasAreUnknown(t *testing.T) {
	d := newDesk(t)
	d.q.Request.IncidentRef.Replicas = 0
	for i, want := range []activities.Verdict{activities.VerdictRun, activities.VerdictPropose} {
		uid := fmt.Sprintf("uid-%d", i)
		d.q.Request.Target.UID, d.q.Request.LeaseID = uid, "LSE-"+uid
		d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, "pod:"+uid, 0.9, now)}
		d.q.Authorization.Receipts = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: "pod:" + uid, AttemptedAt: now})}
		got := d.decide()
		require.Equal(t, want, got.Verdict, got.Reason)
	}
	require.Contains(t, d.decide().Reason, "number of replicas is unknown")
}

func TestNoMoreThanItsShareOfAWorkloadIsHeldAtOnce(t *testing.T) {
	d := newDesk(t)
	d.q.Request.IncidentRef.Replicas = 4
	for i, want := range []activities.Verdict{activities.VerdictRun, activities.VerdictRun, activities.VerdictPropose} {
		uid := fmt.Sprintf("uid-%d", i)
		d.q.Request.Target.UID, d.q.Request.LeaseID = uid, "LSE-"+uid
		d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, "pod:"+uid, 0.9, now)}
		d.q.Authorization.Receipts = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: "pod:" + uid, AttemptedAt: now})}
		require.Equal(t, want, d.decide().Verdict, uid)
	}
}

func TestBudgetShareIsTakenByTheResolvedOwner(t *testing.T) {
	d := newDesk(t)
	for i, want := range []activities.Verdict{activities.VerdictRun, activities.VerdictRun, activities.VerdictPropose} {
		uid := fmt.Sprintf("uid-%d", i)
		d.known = &activities.TargetFacts{Namespace: "shop", Pod: uid, Replicas: 4, Owners: []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "Deployment", Name: "web"}}}
		d.q.Request.IncidentRef.Workload = playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Pod", Name: uid} // as a name alone says it
		d.q.Request.Target.UID, d.q.Request.LeaseID = uid, "LSE-"+uid
		d.q.Authorization.Attestations = []attestation.Envelope{d.attest(d.key, "pod:"+uid, 0.9, now)}
		d.q.Authorization.Receipts = []attestation.Envelope{d.sign(d.key, attestation.PayloadTypeEvidenceReceipt, attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: "pod:" + uid, AttemptedAt: now})}
		require.Equal(t, want, d.decide().Verdict, uid)
	}
}
