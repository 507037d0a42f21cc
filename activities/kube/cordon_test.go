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
	p := newPlace(t)
	client := p.as(t, "cordoner", kube.CordonPermissions().Apply)
	for name, scenario := range map[string]func(*testing.T, place, kubernetes.Interface){
		"and back":              cordonAndBack,
		"the last node is left": cordonLast,
		"a node that is cordoned already stays so":  cordonAlready,
		"another lease's node is left":              cordonForeign,
		"undo of what somebody changed is a drift":  cordonDrift,
		"planning needs no right to write":          cordonPlanOnly,
		"the sweeper finds what lost its lease":     cordonSweep,
		"the node is held when the pod is gone too": cordonWithoutPod,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, client) })
	}
}

// machine registers a node without a kubelet, ready as far as the API server knows, with a pod on it.
func (p place) machine(t *testing.T, name string) (string, kube.CordonRequest) {
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
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
		_, err = nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		return err
	})
	pod := lab.Pod(strings.TrimPrefix(name, p.namespace+"-"), lab.BusyboxImage, "sleep", "600")
	pod.Spec.NodeName = name
	if pod, err = p.Client().CoreV1().Pods(p.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return name, kube.CordonRequest{Pod: refOf(pod), Lease: kube.Lease{ID: "lab/" + t.Name() + "/scheduling", Incident: "INC-01TEST", Expires: inAnHour().Truncate(time.Second)}}
}

func (p place) node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := p.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (p place) patchNode(t *testing.T, name, body string) {
	t.Helper()
	if _, err := p.Client().CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "somebody"}); err != nil {
		t.Fatal(err)
	}
}

// stamps are what Stanch left on a node.
func stamps(n *corev1.Node) (out []string) {
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

func cordonAndBack(t *testing.T, p place, client kubernetes.Interface) {
	name, r := p.machine(t, "back")
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	if plan.Prior.Node != name || plan.Prior.Unschedulable || len(plan.Changes) != 2 {
		t.Errorf("plan %+v", plan)
	}
	if n := p.node(t, name); !n.Spec.Unschedulable || len(stamps(n)) != 5 {
		t.Errorf("unschedulable %t, stamped %v", n.Spec.Unschedulable, stamps(n))
	}
	again, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	if len(again.Changes) != 0 || again.Prior != plan.Prior {
		t.Errorf("repeated: %+v", again)
	}
	v, refusal, err := kube.VerifyCordon(t.Context(), client, r, plan.Prior)
	wantHolds(t, v, refusal, err)
	for range 2 { // undone is undone
		drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
		wantUndone(t, drift, err)
	}
	if n := p.node(t, name); n.Spec.Unschedulable || len(stamps(n)) != 0 {
		t.Errorf("after undo: unschedulable %t, stamped %v", n.Spec.Unschedulable, stamps(n))
	}
}

func cordonLast(t *testing.T, p place, client kubernetes.Interface) {
	_, ref := p.sleeper(t, "on-the-only-node")
	_, refusal, err := kube.PlanCordon(t.Context(), client, kube.CordonRequest{Pod: ref, Lease: lease(t, inAnHour())})
	wantRefusal(t, kube.ReasonLastNode, refusal, err)
}

func cordonAlready(t *testing.T, p place, client kubernetes.Interface) {
	name, r := p.machine(t, "already")
	p.patchNode(t, name, `{"spec":{"unschedulable":true}}`)
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	if !plan.Prior.Unschedulable || len(plan.Changes) != 1 {
		t.Errorf("plan %+v", plan)
	}
	drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
	wantUndone(t, drift, err)
	if n := p.node(t, name); !n.Spec.Unschedulable || len(stamps(n)) != 0 {
		t.Errorf("somebody's cordon was lifted; stamped %v", stamps(n))
	}
}

func cordonForeign(t *testing.T, p place, client kubernetes.Interface) {
	_, r := p.machine(t, "foreign")
	_, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	other := r
	other.Lease.ID = "lab/other/scheduling"
	_, refusal, err = kube.ApplyCordon(t.Context(), client, other)
	wantRefusal(t, kube.ReasonForeign, refusal, err)
}

func cordonDrift(t *testing.T, p place, client kubernetes.Interface) {
	name, r := p.machine(t, "drift")
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	p.patchNode(t, name, `{"spec":{"unschedulable":false}}`)
	v, refusal, err := kube.VerifyCordon(t.Context(), client, r, plan.Prior)
	must(t, refusal, err)
	if v.Holds || len(v.Differences) != 1 {
		t.Errorf("uncordoned by somebody: %+v", v)
	}
	for _, lease := range []string{`"mine"`, "null"} { // somebody keeps it for reasons of their own
		p.patchNode(t, name, `{"spec":{"unschedulable":true},"metadata":{"annotations":{"scheduling.stanch.dev/lease":`+lease+`}}}`)
		drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
		if err != nil || drift == nil || !strings.HasPrefix(drift.Differences[0].String(), "Node "+name+": annotation scheduling.stanch.dev/lease") {
			t.Errorf("%s: drift %v, %v", lease, drift, err)
		}
		if !p.node(t, name).Spec.Unschedulable {
			t.Error("somebody's cordon was lifted")
		}
	}
}

func cordonPlanOnly(t *testing.T, p place, _ kubernetes.Interface) {
	_, r := p.machine(t, "planned")
	reader := p.as(t, "cordon-planner", kube.CordonPermissions().Plan)
	plan, refusal, err := kube.PlanCordon(t.Context(), reader, r)
	must(t, refusal, err)
	if len(plan.Changes) != 2 {
		t.Errorf("plan %+v", plan)
	}
	if _, _, err := kube.ApplyCordon(t.Context(), reader, r); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func cordonSweep(t *testing.T, p place, client kubernetes.Interface) {
	name, r := p.machine(t, "sweep")
	_, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	found := func(now time.Time) *kube.Orphan {
		t.Helper()
		all, err := kube.SweepCordon(t.Context(), client, now)
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
	if o == nil || o.Cordon == nil || o.Cordon.Pod != r.Pod || o.CordonPrior == nil {
		t.Fatalf("orphan %+v", o)
	}
	drift, err := kube.UndoCordon(t.Context(), client, *o.Cordon, *o.CordonPrior)
	wantUndone(t, drift, err)
	if n := p.node(t, name); n.Spec.Unschedulable || len(stamps(n)) != 0 {
		t.Errorf("after the sweep: unschedulable %t, stamped %v", n.Spec.Unschedulable, stamps(n))
	}
}

func cordonWithoutPod(t *testing.T, p place, client kubernetes.Interface) {
	name, r := p.machine(t, "podless")
	plan, refusal, err := kube.ApplyCordon(t.Context(), client, r)
	must(t, refusal, err)
	p.remove(t, r.Pod.Name)
	v, refusal, err := kube.VerifyCordon(t.Context(), client, r, plan.Prior)
	wantHolds(t, v, refusal, err)
	drift, err := kube.UndoCordon(t.Context(), client, r, plan.Prior)
	wantUndone(t, drift, err)
	if p.node(t, name).Spec.Unschedulable {
		t.Error("it is still cordoned")
	}
}
