package kube_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	"stanch/sensors/attestation"
)

func findContainment(t *testing.T, client kubernetes.Interface, name string) activities.Containment {
	t.Helper()
	for _, a := range kube.Actions(client) {
		if c, ok := a.(activities.Containment); ok && a.Spec().Name == name {
			return c
		}
	}
	t.Fatalf("unknown contain action %s", name)
	return nil
}

func newActivityRequest(t *testing.T, ref kube.PodRef, until time.Time) activities.Request {
	return activities.Request{
		Target:  playbooks.Target{Kind: playbooks.TargetPod, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID},
		LeaseID: "lab/" + t.Name(), ExpiresAt: until.Truncate(time.Second),
		IncidentRef: activities.IncidentRef{ID: "INC-01TEST"},
	}
}

func TestActionsWithoutClusterAreRefused(t *testing.T) {
	for _, name := range []string{"pod.restart", "node.cordon", "workload.scale"} {
		_, err := findContainment(t, nil, name).Plan(t.Context(),
			newActivityRequest(t, kube.PodRef{Namespace: "shop", Name: "web-1", UID: "u"}, oneHourFromNow()))
		if _, refused := activities.AsRefusal(err); !refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRestartAction(t *testing.T) {
	p := newFixture(t)
	a := findContainment(t, p.restrictedClient(t, "restart-action", kube.RestartPermissions().ApplyRules), "pod.restart")
	p.createDeployment(t, "acted", 1)
	r := newActivityRequest(t, podRef(p.findRunningPod(t, "acted")), oneHourFromNow())
	r.Params = json.RawMessage(`{"grace":1}`)
	before, err := a.Plan(t.Context(), r)
	if err != nil || before.NothingToDo {
		t.Fatalf("plan %+v, %v", before, err)
	}
	effect, err := a.Apply(t.Context(), r, before.PriorState, attestation.Envelope{})
	if err != nil || effect.Outcome != playbooks.OutcomeChanged {
		t.Fatalf("%+v, %v", effect, err)
	}
	if gone, detail, err := a.Verify(t.Context(), r, nil); !gone || err != nil {
		t.Errorf("it said changed, and the pod is there: %s, %v", detail, err)
	}
	// A retry after a crash is the same permitted action, and has nothing to do.
	after, err := a.Plan(t.Context(), r)
	if err != nil || after.Hash() != before.Hash() || !after.NothingToDo {
		t.Errorf("planned again: %+v, %v", after, err)
	}
	if effect, err := a.Apply(t.Context(), r, nil, attestation.Envelope{}); err != nil ||
		effect.Outcome != playbooks.OutcomeUnchanged {
		t.Errorf("applied again: %+v, %v", effect, err)
	}
}

func TestCordonAction(t *testing.T) {
	p := newFixture(t)
	a := findContainment(t, p.restrictedClient(t, "cordon-action", kube.CordonPermissions().ApplyRules), "node.cordon")
	name, machine := p.registerNode(t, "acted")
	r := newActivityRequest(t, machine.Pod, oneHourFromNow())
	plan, err := a.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if effect, err := a.Apply(t.Context(), r, plan.PriorState, attestation.Envelope{}); err != nil ||
		effect.Outcome != playbooks.OutcomeChanged {
		t.Fatalf("%+v, %v", effect, err)
	}
	var refused *activities.Refusal
	if _, err := a.Undo(t.Context(), r, plan.PriorState, nil); !errors.As(err, &refused) {
		t.Errorf("undone before its stamped end without a grant: %v", err)
	}
	shorter := r
	shorter.ExpiresAt = r.ExpiresAt.Add(-30 * time.Minute)
	if _, err := a.Apply(t.Context(), shorter, plan.PriorState, attestation.Envelope{}); !errors.As(err, &refused) {
		t.Errorf("shortened without a grant: %v", err)
	}
	other := r
	other.LeaseID = "lab/another"
	if drift, err := a.Undo(t.Context(), other, plan.PriorState, nil); err != nil || drift == nil {
		t.Errorf("another lease's undo: %v, %v", drift, err)
	}
	if !p.getNode(t, name).Spec.Unschedulable {
		t.Fatal("it is not cordoned anymore")
	}
	if drift, err := a.Undo(t.Context(), r, plan.PriorState, &attestation.Envelope{}); err != nil || drift != nil {
		t.Errorf("undo with a grant: %v, %v", drift, err)
	}
	if inForce, _, err := a.Verify(t.Context(), r, plan.PriorState); inForce || err != nil {
		t.Errorf("after the undo it is in force, %v", err)
	}
	if p.getNode(t, name).Spec.Unschedulable {
		t.Error("it is still cordoned")
	}
}
