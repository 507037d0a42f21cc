package guards_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker/config"
	"stanch/worker/guards"
)

func TestApproversAreThoseOfScopeOrDrill(t *testing.T) {
	d := newGuardFixture(t)
	d.chain.Config.Scopes[0].Approvers.Escalate = &config.Escalation{
		After: config.Duration(time.Minute), Groups: []string{"managers"}, Users: []string{"boss"},
	}
	require.Equal(t, playbooks.Approvers{Groups: []string{config.DrillScope}, Quorum: 1, Timeout: time.Minute},
		d.chain.ApproversForNamespace("shop", true))
	shop := d.chain.ApproversForNamespace("shop", false)
	require.Equal(t, []string{"oncall"}, shop.Groups)
	require.Equal(t, 2, shop.Quorum)
	require.Equal(t, &playbooks.Escalation{After: time.Minute, Groups: []string{"managers"}, Users: []string{"boss"}},
		shop.Escalate)
}

func TestDecisionSaysWhatItIsBasedOn(t *testing.T) {
	d := newGuardFixture(t)
	d.input.Authorization.Attestations = []attestation.Envelope{
		d.attest(d.signingKey, d.target.ID(), 0.9, now.Add(-3*time.Minute)),
		d.attest(d.signingKey, d.target.ID(), 0.9, now.Add(-time.Minute)),
		d.attest(d.signingKey, d.target.ID(), 0.9, now.Add(-2*time.Minute)),
	}
	got := d.decide()
	require.Equal(t, activities.VerdictRun, got.Verdict)
	require.Equal(t, "d", got.BasisID)
	require.True(t, got.AuthorizedAt.Equal(now.Add(-time.Minute)), "the newest detection")
	require.True(t, got.TargetConfirmed)
	require.False(t, got.Drill)
	require.Equal(t, -1, got.BudgetReplicas, "the number of pods is unknown")

	d.input.Request.IncidentRef.Replicas = 4
	require.Equal(t, 4, d.decide().BudgetReplicas)
	d.resolvedTarget = &activities.TargetFacts{Namespace: "shop", Replicas: 1}
	require.Equal(t, 1, d.decide().BudgetReplicas)
	d.useContainerTarget()
	d.resolvedTarget, d.input.Request.IncidentRef.Replicas = &activities.TargetFacts{OutsideCluster: true}, 0
	require.Zero(t, d.decide().BudgetReplicas, "a container has no workload")
	require.False(t, d.decide().TargetConfirmed)
	d.registerDrill(d.target.ID())
	require.True(t, d.decide().Drill)
}

// fixedBudget is a budget that is used up between the decision and the effect.
type fixedBudget struct{ guards.ContainmentBudget }

func (fixedBudget) CheckLeft(guards.Input) string { return "" }
func (fixedBudget) Spend(guards.Input) string     { return "used up meanwhile" }
func (fixedBudget) UsedCounts(guards.Input) (hour, held int) {
	return 0, 0
}

func TestBudgetThatIsUsedUpMeanwhileProposes(t *testing.T) {
	d := newGuardFixture(t)
	d.chain.Budget = fixedBudget{}
	got := d.decide()
	require.Equal(t, activities.VerdictPropose, got.Verdict)
	require.Equal(t, "budget", got.Guard)
	require.Equal(t, "used up meanwhile", got.Reason)
	require.Equal(t, 2, got.Phase)
	require.NotNil(t, got.DecisionInputs)
	d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
	require.Equal(t, activities.VerdictRun, d.decide().Verdict, "people permitted it")
}

func TestPlanSaysThatBudgetIsUsedUp(t *testing.T) {
	d := newGuardFixture(t)
	for _, id := range []string{"LSE-1", "LSE-2", "LSE-3"} {
		d.input.Request.LeaseID = id
		require.Equal(t, activities.VerdictRun, d.decide().Verdict)
	}
	d.input.Enforce, d.input.Request.LeaseID = false, ""
	got := d.decide()
	require.Equal(t, activities.VerdictPropose, got.Verdict)
	require.Equal(t, "budget", got.Guard)
	d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
	require.Equal(t, activities.VerdictRun, d.decide().Verdict)
}

func TestObservationNeedsNoDetection(t *testing.T) {
	d := newGuardFixture(t)
	d.input.Spec.Class, d.input.Authorization.Attestations = playbooks.ClassObserve, nil
	d.resolvedTarget = &activities.TargetFacts{Namespace: "another", UnresolvedReason: ""}
	got := d.decide()
	require.Equal(t, activities.VerdictRun, got.Verdict, got.Reason)
	require.Equal(t, "it changes nothing", got.Reason)
	require.False(t, got.TargetConfirmed, "nothing is looked up")
}

func TestPlanNeedsNoEvidenceYet(t *testing.T) {
	d := newGuardFixture(t)
	d.input.Authorization.Receipts, d.input.Enforce = nil, false
	require.Equal(t, activities.VerdictRun, d.decide().Verdict)
}

func TestDecisionsAtTheirLimits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*guardFixture)
		want   activities.Verdict
		reason string
	}{
		"confidence of the scope": {func(d *guardFixture) {
			d.chain.Config.Scopes[0].ConfidenceThreshold = 0.9
		}, activities.VerdictRun, ""},
		"longest duration": {func(d *guardFixture) {
			d.input.Request.Duration = 24 * time.Hour
		}, activities.VerdictRun, ""},
		"longer than the longest duration": {func(d *guardFixture) {
			d.input.Request.Duration = 24*time.Hour + 1
		}, activities.VerdictAskApproval, "budget.max_duration"},
		"end with the longest delay": {func(d *guardFixture) {
			d.input.Request.ExpiresAt = now.Add(time.Hour + 5*time.Minute)
		}, activities.VerdictRun, ""},
		"end after the longest delay": {func(d *guardFixture) {
			d.input.Request.ExpiresAt = now.Add(time.Hour + 5*time.Minute + 1)
		}, activities.VerdictRefuse, "the planned duration of 1h"},
		"oldest detection": {func(d *guardFixture) {
			d.input.Authorization.Attestations[0] = d.attest(d.signingKey, d.target.ID(), 0.9, now.Add(-15*time.Minute))
		}, activities.VerdictRun, ""},
		"older than the oldest detection": {func(d *guardFixture) {
			d.input.Authorization.Attestations[0] = d.attest(d.signingKey, d.target.ID(), 0.9, now.Add(-15*time.Minute-1))
		}, activities.VerdictRefuse, "no attested detection about pod shop/web-1 within the last 15m"},
		"attested protected workload of an unresolved pod": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out"}
			d.input.Authorization.Attestations[0] = d.sign(d.signingKey, attestation.PayloadTypeAttestation,
				attestation.Attestation{
					TargetID: d.target.ID(), Namespace: "shop", AcceptedAt: now, Workload: "shop/Deployment/db",
				})
		}, activities.VerdictRefuse, "the workload shop/Deployment/db is protected"},
		"workload of the incident in another namespace": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out"}
			d.chain.Config.ProtectedTargets.Workloads = []string{"bank/Deployment/db"}
			d.input.Request.IncidentRef.Workload = playbooks.WorkloadIdentity{
				Namespace: "bank", Kind: "Deployment", Name: "db",
			}
		}, activities.VerdictAskApproval, "timed out"},
		"protected workload that is not resolved": {func(d *guardFixture) {
			d.useWorkloadTarget("db")
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out"}
		}, activities.VerdictRefuse, "the workload shop/Deployment/db is protected"},
		"workload that is not resolved, of an incident with a protected one": {func(d *guardFixture) {
			d.useWorkloadTarget("web")
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out"}
			d.input.Request.IncidentRef.Workload.Name = "db"
		}, activities.VerdictAskApproval, "timed out"},
		"unresolved target in another place": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out", Namespace: "bank"}
		}, activities.VerdictAskApproval, "timed out"},
		"unresolved pod of a drill": {func(d *guardFixture) {
			d.registerDrill(d.target.ID())
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out"}
		}, activities.VerdictAskApproval, "timed out"},
		"unresolved container of a drill": {func(d *guardFixture) {
			d.useContainerTarget()
			d.registerDrill(d.target.ID())
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "timed out"}
		}, activities.VerdictRun, ""},
		"resolved pod of a drill with an unreadable owner": {func(d *guardFixture) {
			d.registerDrill(d.target.ID())
			d.resolvedTarget = &activities.TargetFacts{Namespace: "shop", IncompleteReason: "forbidden"}
		}, activities.VerdictAskApproval, "may belong to the protected workload"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuardFixture(t)
			c.change(d)
			got := d.decide()
			require.Equal(t, c.want, got.Verdict, got.Reason)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}

// useWorkloadTarget makes the target a workload of the namespace shop.
func (d *guardFixture) useWorkloadTarget(name string) {
	d.target = playbooks.Target{
		Kind: playbooks.TargetWorkload, Namespace: "shop", WorkloadKind: "Deployment", Name: name, UID: "uid-w",
	}
	d.input.Request.Target = d.target
	d.moveToNamespace("shop")
	d.input.Authorization.Receipts = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeEvidenceReceipt,
		attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID(), AttemptedAt: now})}
}

// Only a fresh registration puts a target into the scope of drills, which is in phase 3.
func TestDrillRegistrationIsFreshAndOfTheNamespace(t *testing.T) {
	for name, c := range map[string]struct {
		age       time.Duration
		namespace string
		drill     bool
	}{
		"oldest": {15 * time.Minute, "shop", true}, "too old": {15*time.Minute + 1, "shop", false},
		"newest": {-5 * time.Minute, "shop", true}, "in the future": {-5*time.Minute - 1, "shop", false},
		"an hour in the future": {-time.Hour, "shop", false}, "of another namespace": {time.Minute, "bank", false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuardFixture(t)
			d.registerDrill(d.target.ID())
			d.target.Namespace = c.namespace
			d.input.Authorization.Attestations = []attestation.Envelope{
				d.attest(d.signingKey, d.target.ID(), 0.9, now.Add(-c.age)),
			}
			got := d.decide()
			require.Equal(t, c.drill, got.Drill)
			require.Equal(t, map[bool]int{true: 3, false: 2}[c.drill], got.Phase)
			require.Equal(t, c.drill, got.DecisionInputs.ConfidenceThreshold == 0.8 && got.DecisionInputs.Approvers.Quorum == 1)
		})
	}
	d := newGuardFixture(t)
	d.registerDrill(d.target.ID())
	d.input.Authorization.Attestations[0].Signature[0] ^= 1
	require.False(t, d.decide().Drill, "a forged registration")
}

func TestLocationOfCloudTargetIsKnownForADay(t *testing.T) {
	for age, phase := range map[time.Duration]int{
		24*time.Hour - 1: 3, 24 * time.Hour: 1, 5*time.Minute*-1 + 1: 3, -5 * time.Minute: 1,
	} {
		d := newGuardFixture(t)
		d.useCloudTarget()
		d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, "pod:uid-1", 0.9, now.Add(-age))}
		got := d.decide()
		require.Equal(t, phase, got.Phase, age)
		if phase == 1 {
			require.Equal(t, 1, got.DecisionInputs.Approvers.Quorum)
			require.Empty(t, got.DecisionInputs.Approvers.Groups)
		}
	}
}
