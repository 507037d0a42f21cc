package kube_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	lab "stanch/testenv/kube"
)

func TestRestart(t *testing.T) {
	p := newFixture(t)
	a := p.restrictedAction(t, "pod.restart")
	for name, scenario := range map[string]func(*testing.T, fixture, activities.Containment){
		"another pod comes in its place":          testRestartReplacesPod,
		"a pod that has its name now is left":     testRestartKeepsSameNamedPod,
		"what nobody would start again is left":   testRestartRefusesBarePod,
		"a disruption budget is kept":             testRestartRespectsDisruptionBudget,
		"planning needs no right to write":        testRestartPlanIsReadOnly,
		"a process that ignores its end is ended": testRestartKillsAfterGracePeriod,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, a) })
	}
}

// newRestartRequest returns a request with a grace period of some seconds.
func newRestartRequest(t *testing.T, ref kube.PodRef, grace int) activities.Request {
	r := newActivityRequest(t, ref, oneHourFromNow())
	r.Params = json.RawMessage(fmt.Sprintf(`{"grace":%d}`, grace))
	return r
}

// restart applies a request and returns the outcome.
func restart(t *testing.T, a activities.Containment, r activities.Request) playbooks.Outcome {
	t.Helper()
	effect, err := apply(t.Context(), a, r, activities.Plan{})
	requireNoError(t, err)
	return effect.Outcome
}

func testRestartReplacesPod(t *testing.T, p fixture, a activities.Containment) {
	p.createDeployment(t, "once", 1)
	before := p.findRunningPod(t, "once")
	r := newRestartRequest(t, podRef(before), 1)
	plan, err := a.Plan(t.Context(), r)
	if err != nil || plan.NothingToDo {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	if gone, _, err := a.Verify(t.Context(), r, nil); gone || err != nil {
		t.Fatalf("before: gone %t, %v", gone, err)
	}
	if outcome := restart(t, a, r); outcome != playbooks.OutcomeChanged {
		t.Errorf("outcome %s", outcome)
	}
	if gone, detail, err := a.Verify(t.Context(), r, nil); !gone || err != nil {
		t.Errorf("it said changed, and the pod is there: %s, %v", detail, err)
	}
	if after := p.findRunningPod(t, "once"); after.UID == before.UID {
		t.Error("it is the same pod")
	}
	// A retry after a crash is the same permitted action, and has nothing to do.
	again, err := a.Plan(t.Context(), r)
	if err != nil || again.Hash() != plan.Hash() || !again.NothingToDo {
		t.Errorf("planned again: %+v, %v", again, err)
	}
	if outcome := restart(t, a, r); outcome != playbooks.OutcomeUnchanged {
		t.Errorf("what is gone was restarted again: %s", outcome)
	}
}

func testRestartKeepsSameNamedPod(t *testing.T, p fixture, a activities.Containment) {
	one := int32(1)
	pod := lab.NewPod("ordinal", lab.BusyboxImage, "sleep", "600")
	if _, err := p.Client().AppsV1().StatefulSets(p.namespace).Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "ordinal"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	api := p.Client().CoreV1().Pods(p.namespace)
	var now *corev1.Pod
	lab.Eventually(t, 30*time.Second, "the pod", func() (err error) {
		now, err = api.Get(t.Context(), "ordinal-0", metav1.GetOptions{})
		return err
	})
	old := podRef(now)
	old.UID = "8d3b1c1e-0000-4000-8000-000000000000" // the previous pod
	outcome := restart(t, a, newRestartRequest(t, old, 1))
	after, err := api.Get(t.Context(), "ordinal-0", metav1.GetOptions{})
	if outcome != playbooks.OutcomeUnchanged || err != nil || after.UID != now.UID || after.DeletionTimestamp != nil {
		t.Errorf("%s, %v: its namesake was touched", outcome, err)
	}
}

func testRestartRefusesBarePod(t *testing.T, p fixture, a activities.Containment) {
	_, ref := p.runSleeperPod(t, "bare")
	_, err := apply(t.Context(), a, newRestartRequest(t, ref, 1), activities.Plan{})
	wantRefusal(t, "has no controller", err)
	if pod, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "bare", metav1.GetOptions{}); err != nil ||
		pod.DeletionTimestamp != nil {
		t.Errorf("it was evicted all the same: %v", err)
	}
}

func testRestartRespectsDisruptionBudget(t *testing.T, p fixture, a activities.Containment) {
	d := p.createDeployment(t, "budgeted", 1)
	all := intstr.FromInt32(1)
	budgets := p.Client().PolicyV1().PodDisruptionBudgets(p.namespace)
	if _, err := budgets.Create(t.Context(), &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "budgeted"}, Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &all,
			Selector:     d.Spec.Selector,
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 30*time.Second, "the budget to be counted", func() error {
		b, err := budgets.Get(t.Context(), "budgeted", metav1.GetOptions{})
		if err == nil && b.Status.CurrentHealthy != 1 {
			err = errors.New("not yet")
		}
		return err
	})
	_, err := apply(t.Context(), a, newRestartRequest(t, podRef(p.findRunningPod(t, "budgeted")), 1), activities.Plan{})
	wantRefusal(t, "allows no disruption", err)
}

func testRestartPlanIsReadOnly(t *testing.T, p fixture, _ activities.Containment) {
	p.createDeployment(t, "planned-restart", 1)
	r := newRestartRequest(t, podRef(p.findRunningPod(t, "planned-restart")), 1)
	reader := p.planningAction(t, "pod.restart")
	plan, err := reader.Plan(t.Context(), r)
	requireNoError(t, err)
	if len(plan.Changes) != 1 || plan.NothingToDo {
		t.Errorf("plan %+v", plan)
	}
	if _, err := apply(t.Context(), reader, r, plan); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

// A sleeping busybox is the first process of its container and ignores SIGTERM. The pod's grace period is two minutes,
// the restart's two seconds.
func testRestartKillsAfterGracePeriod(t *testing.T, p fixture, a activities.Containment) {
	d := p.createDeployment(t, "stubborn", 1)
	patience := int64(120)
	d.Spec.Template.Spec.TerminationGracePeriodSeconds = &patience
	api := p.Client().AppsV1().Deployments(p.namespace)
	if _, err := api.Update(t.Context(), d, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.waitForReplicas(t, "stubborn", 1)
	pod := p.findRunningPod(t, "stubborn")
	if *pod.Spec.TerminationGracePeriodSeconds != patience {
		t.Fatalf("the pod is of the template before: %d", *pod.Spec.TerminationGracePeriodSeconds)
	}
	begin := time.Now()
	if outcome := restart(t, a, newRestartRequest(t, podRef(pod), 2)); outcome != playbooks.OutcomeChanged {
		t.Errorf("outcome %s", outcome)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it had %s to end", took)
	}
	next := p.findRunningPod(t, "stubborn") // it must not delay the end of the namespace
	if err := api.Delete(t.Context(), "stubborn", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.deletePod(t, next.Name)
}
