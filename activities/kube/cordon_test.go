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
	"k8s.io/client-go/kubernetes"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestCordon(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "cordoner", kube.CordonPermissions().ApplyRules)
	for name, scenario := range map[string]func(*testing.T, fixture, kubernetes.Interface){
		"and back":              testCordonAndUndo,
		"the last node is left": testCordonRefusesLastNode,
		"a node that is cordoned already stays so":  testCordonKeepsExistingCordon,
		"another lease's node is left":              testCordonRefusesOtherLease,
		"undo of what someone changed is a drift":   testCordonUndoDrift,
		"planning needs no right to write":          testCordonPlanIsReadOnly,
		"the sweeper finds what lost its lease":     testCordonOrphansFound,
		"the node is held when the pod is gone too": testCordonAfterPodGone,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, client) })
	}
}

// registerNode registers a node without a kubelet, ready according to the API server, with a pod on it.
func (p fixture) registerNode(t *testing.T, name string) (string, kube.CordonRequest) {
	t.Helper()
	name = p.namespace + "-" + name
	nodes := p.Client().CoreV1().Nodes()
	node, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nodes.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
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
	if pod, err = p.Client().CoreV1().Pods(p.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return name, kube.CordonRequest{Pod: podRef(pod), Lease: kube.Lease{
		ID:         "lab/" + t.Name() + "/scheduling",
		IncidentID: "INC-01TEST", ExpiresAt: oneHourFromNow().Truncate(time.Second),
	}}
}

func (p fixture) getNode(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := p.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (p fixture) patchNode(t *testing.T, name, body string) {
	t.Helper()
	if _, err := p.Client().CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "someone"}); err != nil {
		t.Fatal(err)
	}
}

// stanchMarkers returns what Stanch left on a node.
func stanchMarkers(n *corev1.Node) (out []string) {
	for _, m := range []map[string]string{n.Labels, n.Annotations} {
		for k := range m {
			if strings.Contains(k, "stanch.dev") {
				out = append(out, k)
			}
		}
	}
	slices.Sort(out)
	return out
}

func testCordonAndUndo(t *testing.T, p fixture, client kubernetes.Interface) {
	name, r := p.registerNode(t, "back")
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if plan.Prior.Node != name || plan.Prior.WasUnschedulable || len(plan.Changes) != 2 {
		t.Errorf("plan %+v", plan)
	}
	if n := p.getNode(t, name); !n.Spec.Unschedulable || len(stanchMarkers(n)) != 5 {
		t.Errorf("unschedulable %t, stamped %v", n.Spec.Unschedulable, stanchMarkers(n))
	}
	again, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if len(again.Changes) != 0 || again.Prior != plan.Prior {
		t.Errorf("repeated: %+v", again)
	}
	v, refusal, err := kube.VerifyCordon(t.Context(), client, r, plan.Prior)
	wantInForce(t, v, refusal, err)
	for range 2 { // a second undo does nothing
		drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
		wantUndone(t, drift, err)
	}
	if n := p.getNode(t, name); n.Spec.Unschedulable || len(stanchMarkers(n)) != 0 {
		t.Errorf("after undo: unschedulable %t, stamped %v", n.Spec.Unschedulable, stanchMarkers(n))
	}
}

func testCordonRefusesLastNode(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "on-the-only-node")
	_, refusal, err := kube.PlanCordon(t.Context(), client,
		kube.CordonRequest{Pod: ref, Lease: newLease(t, oneHourFromNow())})
	wantRefusal(t, kube.ReasonLastNode, refusal, err)
}

func testCordonKeepsExistingCordon(t *testing.T, p fixture, client kubernetes.Interface) {
	name, r := p.registerNode(t, "already")
	p.patchNode(t, name, `{"spec":{"unschedulable":true}}`)
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if !plan.Prior.WasUnschedulable || len(plan.Changes) != 1 {
		t.Errorf("plan %+v", plan)
	}
	drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
	wantUndone(t, drift, err)
	if n := p.getNode(t, name); !n.Spec.Unschedulable || len(stanchMarkers(n)) != 0 {
		t.Errorf("someone's cordon was lifted; stamped %v", stanchMarkers(n))
	}
}

func testCordonRefusesOtherLease(t *testing.T, p fixture, client kubernetes.Interface) {
	_, r := p.registerNode(t, "foreign")
	_, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	other := r
	other.Lease.ID = "lab/other/scheduling"
	_, refusal, err = kube.ApplyCordon(t.Context(), client, other)
	wantRefusal(t, kube.ReasonForeignObject, refusal, err)
}

func testCordonUndoDrift(t *testing.T, p fixture, client kubernetes.Interface) {
	name, r := p.registerNode(t, "drift")
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.patchNode(t, name, `{"spec":{"unschedulable":false}}`)
	v, refusal, err := kube.VerifyCordon(t.Context(), client, r, plan.Prior)
	requireNoRefusal(t, refusal, err)
	if v.InForce || len(v.Differences) != 1 {
		t.Errorf("uncordoned by someone: %+v", v)
	}
	for _, lease := range []string{`"mine"`, "null"} { // someone keeps the node cordoned
		p.patchNode(t, name, `{"spec":{"unschedulable":true},"metadata":{"annotations":{"scheduling.stanch.dev/lease":`+lease+
			`}}}`)
		drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
		if err != nil || drift == nil || !strings.HasPrefix(drift.Differences[0].String(),
			"Node "+name+": annotation scheduling.stanch.dev/lease") {
			t.Errorf("%s: drift %v, %v", lease, drift, err)
		}
		if !p.getNode(t, name).Spec.Unschedulable {
			t.Error("someone's cordon was lifted")
		}
	}
}

func testCordonPlanIsReadOnly(t *testing.T, p fixture, _ kubernetes.Interface) {
	_, r := p.registerNode(t, "planned")
	reader := p.restrictedClient(t, "cordon-planner", kube.CordonPermissions().PlanRules)
	plan, refusal, err := kube.PlanCordon(t.Context(), reader, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 2 {
		t.Errorf("plan %+v", plan)
	}
	if _, _, err := kube.ApplyCordon(t.Context(), reader, r); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func testCordonOrphansFound(t *testing.T, p fixture, client kubernetes.Interface) {
	name, r := p.registerNode(t, "sweep")
	_, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	found := func(now time.Time) *kube.Orphan {
		t.Helper()
		all, err := kube.FindOrphanedCordons(t.Context(), client, now)
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if all[i].Object == "Node "+name {
				return &all[i]
			}
		}
		return nil
	}
	if found(time.Now()) != nil {
		t.Error("it was swept before its end")
	}
	o := found(time.Now().Add(2 * time.Hour))
	if o == nil || o.CordonRequest == nil || o.CordonRequest.Pod != r.Pod || o.CordonPrior == nil {
		t.Fatalf("orphan %+v", o)
	}
	drift, err := kube.UndoCordon(t.Context(), client, *o.CordonRequest, *o.CordonPrior)
	wantUndone(t, drift, err)
	if n := p.getNode(t, name); n.Spec.Unschedulable || len(stanchMarkers(n)) != 0 {
		t.Errorf("after the sweep: unschedulable %t, stamped %v", n.Spec.Unschedulable, stanchMarkers(n))
	}
}

func testCordonAfterPodGone(t *testing.T, p fixture, client kubernetes.Interface) {
	name, r := p.registerNode(t, "podless")
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.deletePod(t, r.Pod.Name)
	v, refusal, err := kube.VerifyCordon(t.Context(), client, r, plan.Prior)
	wantInForce(t, v, refusal, err)
	drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
	wantUndone(t, drift, err)
	if p.getNode(t, name).Spec.Unschedulable {
		t.Error("it is still cordoned")
	}
}
