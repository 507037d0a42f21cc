package guards_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"stanch/activities"
	"stanch/playbooks"
	"stanch/sensors/attestation"
	"stanch/worker/config"
)

func TestGuardDecisions(t *testing.T) {
	thief := newSigningKey(t, 9)
	for name, c := range map[string]struct {
		spoil   func(*guardFixture)
		verdict activities.Verdict
		guard   string
		reason  string
	}{
		"valid input": {func(*guardFixture) {}, activities.VerdictRun, "phase", "confidence 0.90"},
		"paused": {
			func(d *guardFixture) { d.chain.KillSwitch = fixedKillSwitch{paused: true} },
			activities.VerdictRefuse, "kill-switch", "by alice",
		},
		"unreadable kill switch": {
			func(d *guardFixture) { d.chain.KillSwitch = fixedKillSwitch{err: errors.New("disk")} },
			activities.VerdictRefuse, "kill-switch", "cannot be read",
		},
		"protected namespace": {
			func(d *guardFixture) { d.input.Request.Target.Namespace = "kube-system" },
			activities.VerdictRefuse, "protected", "kube-system",
		},
		"wrong namespace": {
			func(d *guardFixture) { d.input.Request.Target.Namespace = "bank" },
			activities.VerdictRefuse, "phase", "no attested detection",
		},
		"pod of a protected workload": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{
				Namespace: "shop", Pod: "web-1",
				Owners: []playbooks.WorkloadIdentity{
					{Namespace: "shop", Kind: "ReplicaSet", Name: "x"},
					{Namespace: "shop", Kind: "Deployment", Name: "db"},
				},
			}
		}, activities.VerdictRefuse, "protected", "shop/Deployment/db"},
		"protected owner in the middle of the chain": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{
				Namespace: "shop", Pod: "web-1",
				Owners: []playbooks.WorkloadIdentity{
					{Namespace: "shop", Kind: "Deployment", Name: "db"},
					{Namespace: "shop", Kind: "Database", Name: "main"},
				},
			}
		}, activities.VerdictRefuse, "protected", "shop/Deployment/db"},
		"claimed protected workload": {
			func(d *guardFixture) { d.input.Request.IncidentRef.Workload.Name = "db" },
			activities.VerdictRun, "phase", "confidence",
		},
		"unresolved target": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "no route to host"}
		}, activities.VerdictAskApproval, "phase", "no route to host"},
		"no resolver": {
			func(d *guardFixture) { d.chain.TargetResolver = nil }, activities.VerdictAskApproval, "phase",
			"could not be looked up",
		},
		"unresolved target with a grant": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "no route to host"}
			d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
		}, activities.VerdictRun, "phase", "granted"},
		"unresolved target of a protected workload": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "no route to host"}
			d.input.Request.IncidentRef.Workload.Name = "db"
		}, activities.VerdictRefuse, "protected", "shop/Deployment/db"},
		"unreadable owner that may be protected": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{
				Namespace: "shop", Pod: "web-1",
				Owners:           []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "Cluster", Name: "x"}},
				IncompleteReason: "forbidden",
			}
		}, activities.VerdictAskApproval, "phase", "may belong to the protected workload shop/Deployment/db"},
		"unreadable owner without protected workloads": {func(d *guardFixture) {
			d.moveToNamespace("bank")
			d.resolvedTarget = &activities.TargetFacts{
				Namespace: "bank", Pod: "web-1",
				Owners:           []playbooks.WorkloadIdentity{{Namespace: "bank", Kind: "Cluster", Name: "x"}},
				IncompleteReason: "forbidden",
			}
		}, activities.VerdictRun, "phase", "confidence"},
		"pod in another namespace": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{Namespace: "kube-system", Pod: "web-1"}
		}, activities.VerdictRefuse, "target", `in the namespace "kube-system"`},
		"pod on another node": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", Node: "node-b"}
		}, activities.VerdictRefuse, "target", `runs on node "node-b"`},
		"pod on the host network": {func(d *guardFixture) {
			d.resolvedTarget = &activities.TargetFacts{Namespace: "shop", Pod: "web-1", HostNetwork: true}
		}, activities.VerdictRefuse, "target", "shares the node's network"},
		"container of a pod": {func(d *guardFixture) {
			d.useContainerTarget()
			d.resolvedTarget = &activities.TargetFacts{Namespace: "kube-system", Pod: "etcd-a", Node: "node-a"}
		}, activities.VerdictRefuse, "target", "belongs to the pod kube-system/etcd-a"},
		"container without a pod on a cluster node": {func(d *guardFixture) {
			d.useContainerTarget()
			d.resolvedTarget = &activities.TargetFacts{UnresolvedReason: "no pod on node node-a has the container c1"}
		}, activities.VerdictAskApproval, "phase", "no pod on node node-a"},
		"container outside of the cluster": {func(d *guardFixture) {
			d.useContainerTarget()
			d.resolvedTarget = &activities.TargetFacts{OutsideCluster: true, Node: "node-a"}
		}, activities.VerdictRun, "phase", "confidence"},
		"detection from another node": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeAttestation,
				attestation.Attestation{
					DetectionID: "d", TargetID: d.target.ID(), Namespace: "shop", Node: "node-b", Rule: "r",
					Objective: "crypto-mining",
					Severity:  "high", Confidence: 0.9, AcceptedAt: now,
				})}
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"end after the planned duration": {
			func(d *guardFixture) { d.input.Request.ExpiresAt = now.Add(2 * time.Hour) },
			activities.VerdictRefuse, "duration", "the planned duration of 1h",
		},
		"later end within the token": {func(d *guardFixture) {
			d.input.Request.ExpiresAt, d.input.HeldUntil = now.Add(2*time.Hour), now.Add(2*time.Hour)
		}, activities.VerdictRun, "phase", "confidence"},
		"duration above the limit": {func(d *guardFixture) {
			d.input.Request.Duration, d.input.Request.ExpiresAt = 25*time.Hour, now.Add(25*time.Hour)
		}, activities.VerdictAskApproval, "phase", "1d that `budget.max_duration`"},
		"plan that affects other containers": {
			func(d *guardFixture) { d.input.ApprovalReason = "others share its network" },
			activities.VerdictAskApproval, "phase", "others share its network",
		},
		"plan that affects other containers with a grant": {func(d *guardFixture) {
			d.input.ApprovalReason = "others share its network"
			d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
		}, activities.VerdictRun, "phase", "alice"},
		"Stanch's own pod": {
			func(d *guardFixture) { d.chain.OwnPodUIDs = []string{"uid-1"} },
			activities.VerdictRefuse, "protected", "Stanch itself",
		},
		"no attempt to capture evidence": {
			func(d *guardFixture) { d.input.Authorization.Receipts = nil },
			activities.VerdictRefuse, "evidence", "no attempt to capture evidence",
		},
		"evidence of another incident": {
			func(d *guardFixture) { d.input.Request.IncidentRef.ID = "INC-2" },
			activities.VerdictRefuse, "evidence", "no attempt to capture evidence",
		},
		"receipt signed with another key": {func(d *guardFixture) {
			d.input.Authorization.Receipts = []attestation.Envelope{d.sign(thief, attestation.PayloadTypeEvidenceReceipt,
				attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: d.target.ID()})}
		}, activities.VerdictRefuse, "evidence", "no attempt to capture evidence"},
		"no attestation": {
			func(d *guardFixture) { d.input.Authorization.Attestations = nil }, activities.VerdictRefuse,
			"phase", "no attested detection",
		},
		"attestation of another pod": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, "pod:other", 0.9, now)}
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"old attestation": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.9,
				now.Add(-16*time.Minute))}
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"attestation from the future": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.9,
				now.Add(time.Hour))}
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"attestation signed with another key": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.attest(thief, d.target.ID(), 0.9, now)}
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"changed attestation": {func(d *guardFixture) {
			d.input.Authorization.Attestations[0].Payload = bytes.Replace(d.input.Authorization.Attestations[0].Payload,
				[]byte("0.9"), []byte("1.0"), 1)
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"grant as attestation": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{*d.grant(d.signingKey, d.validGrant())}
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"low confidence": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.6, now)}
		}, activities.VerdictAskApproval, "phase", "below the 0.80"},
		"claimed confidence": {func(d *guardFixture) {
			d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, d.target.ID(), 0.6, now)}
			d.input.Request.IncidentRef.Confidence = 1
		}, activities.VerdictAskApproval, "phase", "0.60"},
		"phase 1": {
			func(d *guardFixture) { d.moveToNamespace("look") }, activities.VerdictPropose, "phase",
			"phase 1",
		},
		"max_phase of the playbook": {
			func(d *guardFixture) { d.input.Request.IncidentRef.MaxPhase = 1 },
			activities.VerdictPropose, "phase", "phase 1",
		},
		"claimed scope": {func(d *guardFixture) {
			d.moveToNamespace("look")
			d.input.Request.IncidentRef.Scope = "drill"
		}, activities.VerdictPropose, "phase", "phase 1"},
		"claimed drill namespace": {func(d *guardFixture) {
			d.moveToNamespace("look")
			d.input.Request.Target.Namespace = config.DrillNamespace
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"claimed less strict namespace": {func(d *guardFixture) {
			d.moveToNamespace("look")
			d.input.Request.Target.Namespace = "shop"
		}, activities.VerdictRefuse, "phase", "no attested detection"},
		"disrupt in phase 2": {
			func(d *guardFixture) { d.input.Spec.Class = playbooks.ClassDisrupt },
			activities.VerdictPropose, "phase", "disrupt",
		},
		"disrupt in phase 2 with a grant": {func(d *guardFixture) {
			d.input.Spec.Class = playbooks.ClassDisrupt
			d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
		}, activities.VerdictPropose, "phase", "disrupt"},
		"disrupt in phase 3": {
			func(d *guardFixture) {
				d.moveToNamespace("bank")
				d.input.Spec.Class = playbooks.ClassDisrupt
			}, activities.VerdictAskApproval, "phase",
			"requires approval",
		},
		"disrupt in phase 3 with a grant": {func(d *guardFixture) {
			d.moveToNamespace("bank")
			d.input.Spec.Class = playbooks.ClassDisrupt
			d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
		}, activities.VerdictRun, "phase", "alice, bob"},
		"grant for another plan": {func(d *guardFixture) {
			g := d.validGrant()
			g.PlanHash = "other"
			d.input.Authorization.Grant = d.grant(d.signingKey, g)
		}, activities.VerdictRefuse, "grant", "plan changed"},
		"grant for another target": {func(d *guardFixture) {
			g := d.validGrant()
			g.Targets = []string{"pod:x"}
			d.input.Authorization.Grant = d.grant(d.signingKey, g)
		}, activities.VerdictRefuse, "grant", "not among"},
		"grant for another namespace": {func(d *guardFixture) {
			g := d.validGrant()
			g.Namespace = "bank"
			d.input.Authorization.Grant = d.grant(d.signingKey, g)
		}, activities.VerdictRefuse, "grant", "for the namespace"},
		"grant of a drill's key": {func(d *guardFixture) {
			g := d.validGrant()
			g.DrillOnly = true
			d.input.Authorization.Grant = d.grant(d.signingKey, g)
		}, activities.VerdictRefuse, "grant", "outside of a drill"},
		"expired grant": {func(d *guardFixture) {
			g := d.validGrant()
			g.IssuedAt, g.ExpiresAt = now.Add(-time.Hour), now.Add(-time.Minute)
			d.input.Authorization.Grant = d.grant(d.signingKey, g)
		}, activities.VerdictRefuse, "grant", "valid from"},
		"grant for a release": {func(d *guardFixture) {
			g := d.validGrant()
			g.Operation = attestation.OperationRelease
			d.input.Authorization.Grant = d.grant(d.signingKey, g)
		}, activities.VerdictRefuse, "grant", "release"},
		"grant signed with another key": {func(d *guardFixture) {
			d.input.Authorization.Grant = d.grant(thief, d.validGrant())
		}, activities.VerdictRefuse, "grant", "unknown key"},
		"low confidence with a grant": {func(d *guardFixture) {
			d.input.Authorization.Attestations = nil
			d.input.Authorization.Grant = d.grant(d.signingKey, d.validGrant())
		}, activities.VerdictRun, "phase", "granted"},
		"inside of an approval without a grant": {
			func(d *guardFixture) { d.input.Authorization.RequiresGrant = true },
			activities.VerdictAskApproval, "phase", "this action requires approval",
		},
		"registered drill target": {func(d *guardFixture) {
			d.chain.Config.Phase = 1
			d.registerDrill(d.target.ID())
			d.input.Spec.Class, d.input.Authorization.RequiresGrant = playbooks.ClassDisrupt, true
		}, activities.VerdictAskApproval, "phase", "requires approval"},
		"unregistered pod in the drill namespace": {func(d *guardFixture) {
			d.chain.Config.Phase = 1
			d.moveToNamespace(config.DrillNamespace)
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"unregistered workload in the drill namespace": {func(d *guardFixture) {
			d.chain.Config.Phase = 1
			d.target = playbooks.Target{
				Kind: playbooks.TargetWorkload, Namespace: config.DrillNamespace,
				WorkloadKind: "Deployment", Name: "victim", UID: "uid-w",
			}
			d.input.Request.Target = d.target
			d.moveToNamespace(config.DrillNamespace)
		}, activities.VerdictPropose, "phase", "phase 1 of scope default"},
		"registration of another target": {func(d *guardFixture) {
			d.chain.Config.Phase = 1
			d.registerDrill("pod:other")
		}, activities.VerdictPropose, "phase", "phase 1"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuardFixture(t)
			c.spoil(d)
			got := d.decide()
			require.Equal(t, c.verdict, got.Verdict, got.Reason)
			require.Equal(t, c.guard, got.Guard)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}

func TestBudgetLimitsContainmentsWithoutApproval(t *testing.T) {
	d := newGuardFixture(t)
	for i := range 3 {
		d.input.Request.LeaseID = fmt.Sprintf("LSE-%d", i)
		require.Equal(t, activities.VerdictRun, d.decide().Verdict)
	}
	require.Equal(t, activities.VerdictRun, d.decide().Verdict, "a retry uses no more budget")
	d.input.Request.LeaseID = "LSE-4"
	got := d.decide()
	require.Equal(t, activities.VerdictPropose, got.Verdict)
	require.Contains(t, got.Reason, "3 containments per hour")
	d.input.Now = now.Add(14 * time.Minute)
	require.Equal(t, activities.VerdictPropose, d.decide().Verdict)
	d.input.Authorization.RequiresGrant = true
	require.Equal(t, activities.VerdictAskApproval, d.decide().Verdict, "inside of an approval the budget does not apply")
	require.Equal(t, 3, d.decide().DecisionInputs.UsedLastHour)
	d.input.Authorization.Grant = d.grant(d.signingKey, func() attestation.Grant {
		g := d.validGrant()
		g.IssuedAt, g.ExpiresAt = d.input.Now, d.input.Now.Add(time.Minute)
		return g
	}())
	require.Equal(t, activities.VerdictRun, d.decide().Verdict, "a grant overrides the budget")
}

func TestUnknownReplicasAllowOneContainedPod(t *testing.T) {
	d := newGuardFixture(t)
	d.input.Request.IncidentRef.Replicas = 0
	for i, want := range []activities.Verdict{activities.VerdictRun, activities.VerdictPropose} {
		uid := fmt.Sprintf("uid-%d", i)
		d.input.Request.Target.UID, d.input.Request.LeaseID = uid, "LSE-"+uid
		d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, "pod:"+uid, 0.9, now)}
		d.input.Authorization.Receipts = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeEvidenceReceipt,
			attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: "pod:" + uid, AttemptedAt: now})}
		got := d.decide()
		require.Equal(t, want, got.Verdict, got.Reason)
	}
	require.Contains(t, d.decide().Reason, "number of replicas is unknown")
}

func TestBudgetLimitsFractionOfWorkload(t *testing.T) {
	d := newGuardFixture(t)
	d.input.Request.IncidentRef.Replicas = 4
	for i, want := range []activities.Verdict{activities.VerdictRun, activities.VerdictRun, activities.VerdictPropose} {
		uid := fmt.Sprintf("uid-%d", i)
		d.input.Request.Target.UID, d.input.Request.LeaseID = uid, "LSE-"+uid
		d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, "pod:"+uid, 0.9, now)}
		d.input.Authorization.Receipts = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeEvidenceReceipt,
			attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: "pod:" + uid, AttemptedAt: now})}
		require.Equal(t, want, d.decide().Verdict, uid)
	}
}

func TestBudgetFractionUsesResolvedOwner(t *testing.T) {
	d := newGuardFixture(t)
	for i, want := range []activities.Verdict{activities.VerdictRun, activities.VerdictRun, activities.VerdictPropose} {
		uid := fmt.Sprintf("uid-%d", i)
		d.resolvedTarget = &activities.TargetFacts{
			Namespace: "shop", Pod: uid, Replicas: 4,
			Owners: []playbooks.WorkloadIdentity{{Namespace: "shop", Kind: "Deployment", Name: "web"}},
		}
		// derived from a name only
		d.input.Request.IncidentRef.Workload = playbooks.WorkloadIdentity{Namespace: "shop", Kind: "Pod", Name: uid}
		d.input.Request.Target.UID, d.input.Request.LeaseID = uid, "LSE-"+uid
		d.input.Authorization.Attestations = []attestation.Envelope{d.attest(d.signingKey, "pod:"+uid, 0.9, now)}
		d.input.Authorization.Receipts = []attestation.Envelope{d.sign(d.signingKey, attestation.PayloadTypeEvidenceReceipt,
			attestation.EvidenceReceipt{IncidentID: "INC-1", TargetID: "pod:" + uid, AttemptedAt: now})}
		require.Equal(t, want, d.decide().Verdict, uid)
	}
}
