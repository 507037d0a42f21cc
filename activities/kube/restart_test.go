package kube_test

import (
	"errors"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestRestart(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "restarter", kube.RestartPermissions().ApplyRules)
	for name, scenario := range map[string]func(*testing.T, fixture, kubernetes.Interface){
		"another pod comes in its place":          testRestartReplacesPod,
		"a pod that has its name now is left":     testRestartKeepsSameNamedPod,
		"what nobody would start again is left":   testRestartRefusesBarePod,
		"a disruption budget is kept":             testRestartRespectsDisruptionBudget,
		"planning needs no right to write":        testRestartPlanIsReadOnly,
		"a process that ignores its end is ended": testRestartKillsAfterGracePeriod,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, client) })
	}
}

func (p fixture) waitUntilPodGone(t *testing.T, client kubernetes.Interface, r kube.RestartRequest) {
	t.Helper()
	lab.Eventually(t, 30*time.Second, "the pod to be gone", func() error {
		gone, detail, err := kube.VerifyRestart(t.Context(), client, r)
		if err == nil && !gone {
			err = errors.New(detail)
		}
		return err
	})
}

func testRestartReplacesPod(t *testing.T, p fixture, client kubernetes.Interface) {
	p.createDeployment(t, "once", 1)
	before := p.findRunningPod(t, "once")
	r := kube.RestartRequest{Pod: podRef(before), GracePeriod: time.Second}
	if gone, _, err := kube.VerifyRestart(t.Context(), client, r); gone || err != nil {
		t.Fatalf("before: gone %t, %v", gone, err)
	}
	done, refusal, err := kube.ApplyRestart(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if !done {
		t.Error("there was something to do")
	}
	p.waitUntilPodGone(t, client, r)
	if after := p.findRunningPod(t, "once"); after.UID == before.UID {
		t.Error("it is the same pod")
	}
	done, refusal, err = kube.ApplyRestart(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if done {
		t.Error("what is gone was restarted again")
	}
}

func testRestartKeepsSameNamedPod(t *testing.T, p fixture, client kubernetes.Interface) {
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
	done, refusal, err := kube.ApplyRestart(t.Context(), client, kube.RestartRequest{Pod: old, GracePeriod: time.Second})
	requireNoRefusal(t, refusal, err)
	after, err := api.Get(t.Context(), "ordinal-0", metav1.GetOptions{})
	if done || err != nil || after.UID != now.UID || after.DeletionTimestamp != nil {
		t.Errorf("done %t, %v: its namesake was touched", done, err)
	}
}

func testRestartRefusesBarePod(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "bare")
	_, refusal, err := kube.ApplyRestart(t.Context(), client, kube.RestartRequest{Pod: ref, GracePeriod: time.Second})
	wantRefusal(t, kube.ReasonNoController, refusal, err)
	if pod, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "bare", metav1.GetOptions{}); err != nil ||
		pod.DeletionTimestamp != nil {
		t.Errorf("it was evicted all the same: %v", err)
	}
}

func testRestartRespectsDisruptionBudget(t *testing.T, p fixture, client kubernetes.Interface) {
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
	_, refusal, err := kube.ApplyRestart(t.Context(), client,
		kube.RestartRequest{Pod: podRef(p.findRunningPod(t, "budgeted")), GracePeriod: time.Second})
	wantRefusal(t, kube.ReasonDisruptionBudget, refusal, err)
}

func testRestartPlanIsReadOnly(t *testing.T, p fixture, _ kubernetes.Interface) {
	p.createDeployment(t, "planned-restart", 1)
	r := kube.RestartRequest{Pod: podRef(p.findRunningPod(t, "planned-restart")), GracePeriod: time.Second}
	reader := p.restrictedClient(t, "restart-planner", kube.RestartPermissions().PlanRules)
	plan, refusal, err := kube.PlanRestart(t.Context(), reader, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 1 || plan.PodGone {
		t.Errorf("plan %+v", plan)
	}
	if _, _, err := kube.ApplyRestart(t.Context(), reader, r); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

// A sleeping busybox is the first process of its container and ignores SIGTERM. The pod's grace period is two minutes,
// the restart's two seconds.
func testRestartKillsAfterGracePeriod(t *testing.T, p fixture, client kubernetes.Interface) {
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
	r := kube.RestartRequest{Pod: podRef(pod), GracePeriod: 2 * time.Second}
	begin := time.Now()
	_, refusal, err := kube.ApplyRestart(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.waitUntilPodGone(t, client, r)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it had %s to end", took)
	}
	next := p.findRunningPod(t, "stubborn") // it must not delay the end of the namespace
	if err := api.Delete(t.Context(), "stubborn", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.deletePod(t, next.Name)
}
