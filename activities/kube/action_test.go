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

func containment(t *testing.T, client kubernetes.Interface, name string) activities.Containment {
	t.Helper()
	for _, a := range kube.Actions(client) {
		if c, ok := a.(activities.Containment); ok && a.Spec().Name == name {
			return c
		}
	}
	t.Fatalf("there is no containment %s", name)
	return nil
}

func requestFor(t *testing.T, ref kube.PodRef, until time.Time) activities.Request {
	return activities.Request{
		Target: playbooks.Target{Kind: playbooks.TargetPod, Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID},
		Lease:  "lab/" + t.Name(), Until: until.Truncate(time.Second), Incident: activities.Brief{ID: "INC-01TEST"},
	}
}

func TestWithoutAClusterActionsAreRefused(t *testing.T) {
	for _, name := range []string{"pod.restart", "node.cordon", "workload.scale"} {
		_, err := containment(t, nil, name).Plan(t.Context(), requestFor(t, kube.PodRef{Namespace: "shop", Name: "web-1", UID: "u"}, inAnHour()))
		if _, refused := activities.AsRefusal(err); !refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheRestartAction(t *testing.T) {
	p := newPlace(t)
	a := containment(t, p.as(t, "restart-action", kube.RestartPermissions().Apply), "pod.restart")
	p.deploy(t, "acted", 1)
	r := requestFor(t, refOf(p.podOf(t, "acted")), inAnHour())
	r.Params = json.RawMessage(`{"grace":1}`)
	before, err := a.Plan(t.Context(), r)
	if err != nil || before.Nothing {
		t.Fatalf("plan %+v, %v", before, err)
	}
	effect, err := a.Apply(t.Context(), r, before.Prior, attestation.Envelope{})
	if err != nil || effect.Outcome != playbooks.OutcomeChanged {
		t.Fatalf("%+v, %v", effect, err)
	}
	if gone, detail, err := a.Verify(t.Context(), r, nil); !gone || err != nil {
		t.Errorf("it said changed, and the pod is there: %s, %v", detail, err)
	}
	// An act that is tried again after a crash is the one that was permitted, and has nothing to do.
	after, err := a.Plan(t.Context(), r)
	if err != nil || after.Hash() != before.Hash() || !after.Nothing {
		t.Errorf("planned again: %+v, %v", after, err)
	}
	if effect, err := a.Apply(t.Context(), r, nil, attestation.Envelope{}); err != nil || effect.Outcome != playbooks.OutcomeUnchanged {
		t.Errorf("applied again: %+v, %v", effect, err)
	}
}

func TestTheCordonAction(t *testing.T) {
	p := newPlace(t)
	a := containment(t, p.as(t, "cordon-action", kube.CordonPermissions().Apply), "node.cordon")
	name, machine := p.machine(t, "acted")
	r := requestFor(t, machine.Pod, inAnHour())
	plan, err := a.Plan(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if effect, err := a.Apply(t.Context(), r, plan.Prior, attestation.Envelope{}); err != nil || effect.Outcome != playbooks.OutcomeChanged {
		t.Fatalf("%+v, %v", effect, err)
	}
	var refused *activities.Refusal
	if _, err := a.Undo(t.Context(), r, plan.Prior, nil); !errors.As(err, &refused) {
		t.Errorf("undone before its stamped end without a grant: %v", err)
	}
	shorter := r
	shorter.Until = r.Until.Add(-30 * time.Minute)
	if _, err := a.Apply(t.Context(), shorter, plan.Prior, attestation.Envelope{}); !errors.As(err, &refused) {
		t.Errorf("shortened without a grant: %v", err)
	}
	other := r
	other.Lease = "lab/another"
	if drift, err := a.Undo(t.Context(), other, plan.Prior, nil); err != nil || drift == nil {
		t.Errorf("another lease's undo: %v, %v", drift, err)
	}
	if !p.node(t, name).Spec.Unschedulable {
		t.Fatal("it is not cordoned any more")
	}
	if drift, err := a.Undo(t.Context(), r, plan.Prior, &attestation.Envelope{}); err != nil || drift != nil {
		t.Errorf("undo with a grant: %v, %v", drift, err)
	}
	if inForce, _, err := a.Verify(t.Context(), r, plan.Prior); inForce || err != nil {
		t.Errorf("after the undo it is in force, %v", err)
	}
	if p.node(t, name).Spec.Unschedulable {
		t.Error("it is still cordoned")
	}
}
