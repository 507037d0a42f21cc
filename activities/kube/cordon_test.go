package kube_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stanch/activities"
	lab "stanch/testenv/kube"
)

func TestCordon(t *testing.T) {
	p := newFixture(t)
	a := p.restrictedAction(t, "node.cordon")
	for name, scenario := range map[string]func(*testing.T, fixture, activities.Containment){
		"and back":                                  testCordonAndUndo,
		"an early end needs a grant":                testCordonEarlyEnd,
		"the last node is left":                     testCordonRefusesLastNode,
		"a node that is cordoned already stays so":  testCordonKeepsExistingCordon,
		"another lease's node is left":              testCordonRefusesOtherLease,
		"undo of what someone changed is a drift":   testCordonUndoDrift,
		"planning needs no right to write":          testCordonPlanIsReadOnly,
		"the sweeper finds what lost its lease":     testCordonOrphansFound,
		"an orphan without its prior state stays":   testCordonOrphanWithoutPrior,
		"the node is held when the pod is gone too": testCordonAfterPodGone,
		"a node that is gone is no target anymore":  testCordonNodeGone,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, a) })
	}
}

// registerNode registers a node without a kubelet, ready according to the API server, with a pod on it. The request is
// for that pod.
func (p fixture) registerNode(t *testing.T, name string) (string, activities.Request) {
	t.Helper()
	name = p.namespace + "-" + name
	nodes := p.Client().CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	requireNoError(t, err)
	t.Cleanup(func() {
		err := nodes.Delete(context.Background(), name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	lab.Eventually(t, 10*time.Second, "the node to be ready", func() error {
		if node, err = nodes.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		node.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue,
			LastHeartbeatTime: metav1.Now(),
		}}
		_, err = nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		return err
	})
	pod := lab.NewPod(strings.TrimPrefix(name, p.namespace+"-"), lab.BusyboxImage, "sleep", "600")
	pod.Spec.NodeName = name
	pod, err = p.Client().CoreV1().Pods(p.namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	requireNoError(t, err)
	return name, newActivityRequest(t, podRef(pod), oneHourFromNow())
}

func (p fixture) getNode(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := p.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	requireNoError(t, err)
	return n
}

func (p fixture) patchNode(t *testing.T, name, body string) {
	t.Helper()
	_, err := p.Client().CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "someone"})
	requireNoError(t, err)
}

// wantCordoned requires the node's state. It has a stamp exactly if stamped is true.
func (p fixture) wantCordoned(t *testing.T, name string, unschedulable, stamped bool) {
	t.Helper()
	n := p.getNode(t, name)
	var markers []string
	for _, m := range []map[string]string{n.Labels, n.Annotations} {
		for k := range m {
			if strings.Contains(k, "stanch.dev") {
				markers = append(markers, k)
			}
		}
	}
	slices.Sort(markers)
	var want []string
	if stamped {
		want = []string{
			"scheduling.stanch.dev/expires", "scheduling.stanch.dev/incident", "scheduling.stanch.dev/lease",
			"scheduling.stanch.dev/prior", "stanch.dev/cordon",
		}
	}
	if n.Spec.Unschedulable != unschedulable || !slices.Equal(markers, want) {
		t.Errorf("unschedulable %t, stamped %v; want %t, %v", n.Spec.Unschedulable, markers, unschedulable, want)
	}
}

func testCordonAndUndo(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "back")
	plan := planAndApply(t, a, r)
	if !strings.Contains(string(plan.PriorState), `"node":"`+name+`"`) ||
		!strings.Contains(string(plan.PriorState), `"was_unschedulable":false`) || len(plan.Changes) != 2 {
		t.Errorf("plan %+v, prior %s", plan, plan.PriorState)
	}
	p.wantCordoned(t, name, true, true)
	again := planAndApply(t, a, r)
	if len(again.Changes) != 0 || string(again.PriorState) != string(plan.PriorState) || !again.NothingToDo {
		t.Errorf("repeated: %+v", again)
	}
	wantInForce(t, a, r, plan)
	other := r
	other.LeaseID = "lab/another"
	if drift, err := undoWithGrant(t, a, other, plan); err != nil || drift == nil {
		t.Errorf("another lease's undo: %v, %v", drift, err)
	}
	p.wantCordoned(t, name, true, true)
	for range 2 { // a second undo does nothing
		drift, err := undoWithGrant(t, a, r, plan)
		wantUndone(t, drift, err)
	}
	p.wantCordoned(t, name, false, false)
}

func testCordonEarlyEnd(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "early")
	testEarlyEndsNeedGrant(t, a, r)
	p.wantCordoned(t, name, false, false)
}

func testCordonRefusesLastNode(t *testing.T, p fixture, a activities.Containment) {
	_, ref := p.runSleeperPod(t, "on-the-only-node")
	_, err := a.Plan(t.Context(), newActivityRequest(t, ref, oneHourFromNow()))
	wantRefusal(t, "is the only node that is ready and schedulable", err)
}

func testCordonKeepsExistingCordon(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "already")
	p.patchNode(t, name, `{"spec":{"unschedulable":true}}`)
	plan := planAndApply(t, a, r)
	if !strings.Contains(string(plan.PriorState), `"was_unschedulable":true`) || len(plan.Changes) != 1 {
		t.Errorf("plan %+v, prior %s", plan, plan.PriorState)
	}
	drift, err := undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
	p.wantCordoned(t, name, true, false) // someone's cordon stays
}

func testCordonRefusesOtherLease(t *testing.T, p fixture, a activities.Containment) {
	_, r := p.registerNode(t, "foreign")
	planAndApply(t, a, r)
	r.LeaseID = "lab/other"
	_, err := a.Plan(t.Context(), r)
	wantRefusal(t, "is under another lease, lab/TestCordon", err)
}

func testCordonUndoDrift(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "drift")
	plan := planAndApply(t, a, r)
	p.patchNode(t, name, `{"spec":{"unschedulable":false}}`)
	inForce, detail, err := a.Verify(t.Context(), r, plan.PriorState)
	if inForce || err != nil || !strings.HasPrefix(detail, "Node "+name+": spec.unschedulable is false, expected true") {
		t.Errorf("uncordoned by someone: %t, %q, %v", inForce, detail, err)
	}
	for _, lease := range []string{`"mine"`, "null"} { // someone keeps the node cordoned
		p.patchNode(t, name, `{"spec":{"unschedulable":true},"metadata":{"annotations":{"scheduling.stanch.dev/lease":`+lease+
			`}}}`)
		drift, err := undoWithGrant(t, a, r, plan)
		if err != nil || drift == nil || // the API server does not record who writes fields of nodes
			!strings.HasPrefix(drift.Detail, "Node "+name+": annotation scheduling.stanch.dev/lease is ") {
			t.Errorf("%s: drift %v, %v", lease, drift, err)
		}
		if !p.getNode(t, name).Spec.Unschedulable {
			t.Error("someone's cordon was lifted")
		}
	}
}

func testCordonPlanIsReadOnly(t *testing.T, p fixture, _ activities.Containment) {
	_, r := p.registerNode(t, "planned")
	reader := p.planningAction(t, "node.cordon")
	plan, err := reader.Plan(t.Context(), r)
	requireNoError(t, err)
	if len(plan.Changes) != 2 {
		t.Errorf("plan %+v", plan)
	}
	if _, err := apply(t.Context(), reader, r, plan); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func testCordonOrphansFound(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "sweep")
	planAndApply(t, a, r)
	if o := findOrphan(t, a, r.LeaseID, time.Now()); o != nil {
		t.Errorf("before its end: %+v", o)
	}
	o := findOrphan(t, a, r.LeaseID, r.ExpiresAt)
	if o == nil || o.ObjectName != "Node "+name || o.Target.ID() != r.Target.ID() || o.Facet != a.Spec().Facet ||
		!o.Lease.ExpiresAt.Equal(r.ExpiresAt) || o.Lease.IncidentID != "INC-01TEST" {
		t.Fatalf("orphan %+v", o)
	}
	drift, err := o.Undo(t.Context())
	wantUndone(t, drift, err)
	p.wantCordoned(t, name, false, false)
}

func testCordonOrphanWithoutPrior(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "tampered")
	planAndApply(t, a, r)
	p.patchNode(t, name, `{"metadata":{"annotations":{"scheduling.stanch.dev/prior":"{"}}}`)
	o := findOrphan(t, a, r.LeaseID, r.ExpiresAt)
	if o == nil {
		t.Fatal("no orphan")
	}
	drift, err := o.Undo(t.Context())
	if err == nil || drift != nil || !strings.Contains(err.Error(), "undo it manually") {
		t.Errorf("undo: %v, %v", drift, err)
	}
	p.wantCordoned(t, name, true, true)
}

func testCordonAfterPodGone(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "podless")
	plan := planAndApply(t, a, r)
	p.deletePod(t, r.Target.Name)
	wantInForce(t, a, r, plan)
	drift, err := undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
	p.wantCordoned(t, name, false, false)
}

func testCordonNodeGone(t *testing.T, p fixture, a activities.Containment) {
	name, r := p.registerNode(t, "gone")
	plan := planAndApply(t, a, r)
	requireNoError(t, p.Client().CoreV1().Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}))
	_, _, err := a.Verify(t.Context(), r, plan.PriorState)
	wantGone(t, err)
	drift, err := undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
}
