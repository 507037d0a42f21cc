package kube_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestScale(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", kube.ScalePermissions().ApplyRules)
	for name, scenario := range map[string]func(*testing.T, fixture, kubernetes.Interface){
		"to zero and back":                       testScaleToZeroAndUndo,
		"a stateful set":                         testScaleStatefulSet,
		"planning needs no right to write":       testScalePlanIsReadOnly,
		"repeating keeps what was saved first":   testScaleRepeatKeepsFirstPrior,
		"an autoscaler is reported":              testScaleReportsAutoscaler,
		"what is refused":                        testScaleRefusals,
		"undo of what someone scaled is a drift": testScaleUndoDrift,
		"the sweeper finds what lost its lease":  testScaleOrphansFound,
		"a half-made undo is finished":           testScaleFinishesHalfUndone,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, client) })
	}
}

// createDeployment creates a deployment and waits until its pods are ready.
func (p fixture) createDeployment(t *testing.T, name string, replicas int32) *appsv1.Deployment {
	t.Helper()
	pod := lab.NewPod(name, lab.BusyboxImage, "sleep", "600")
	api := p.Client().AppsV1().Deployments(p.namespace)
	if _, err := api.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: pod.Labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return p.waitForReplicas(t, name, replicas)
}

// waitForReplicas waits until the deployment has this many ready replicas and its controller is done.
func (p fixture) waitForReplicas(t *testing.T, name string, replicas int32) (d *appsv1.Deployment) {
	t.Helper()
	lab.Eventually(t, 60*time.Second, "the deployment to settle", func() (err error) {
		d, err = p.Client().AppsV1().Deployments(p.namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && (d.Status.ReadyReplicas != replicas || d.Status.Replicas != replicas ||
			d.Status.UpdatedReplicas != replicas || d.Status.ObservedGeneration != d.Generation) {
			err = fmt.Errorf("status %+v", d.Status)
		}
		return err
	})
	return d
}

func newScaleRequest(t *testing.T, d *appsv1.Deployment, replicas int32) kube.ScaleRequest {
	return kube.ScaleRequest{
		Target:   kube.WorkloadRef{Kind: "Deployment", Namespace: d.Namespace, Name: d.Name, UID: string(d.UID)},
		Replicas: replicas, Lease: newLease(t, oneHourFromNow()),
	}
}

func testScaleToZeroAndUndo(t *testing.T, p fixture, client kubernetes.Interface) {
	before := p.createDeployment(t, "zero", 2)
	r := newScaleRequest(t, before, 0)
	plan, refusal, err := kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if plan.FromReplicas != 2 || plan.ToReplicas != 0 || plan.Prior.Replicas != 2 || len(plan.Changes) != 2 {
		t.Errorf("plan %+v", plan)
	}
	p.waitForReplicas(t, "zero", 0)
	v, refusal, err := kube.VerifyScale(t.Context(), client, r)
	wantInForce(t, v, refusal, err)
	drift, err := kube.UndoScale(t.Context(), client, r, plan.Prior, false)
	wantUndone(t, drift, err)
	after := p.waitForReplicas(t, "zero", 2)
	if !maps.Equal(after.Labels, before.Labels) || !maps.Equal(after.Annotations, before.Annotations) {
		t.Errorf("after: %v %v, before: %v %v", after.Labels, after.Annotations, before.Labels, before.Annotations)
	}
	drift, err = kube.UndoScale(t.Context(), client, r, plan.Prior, false)
	wantUndone(t, drift, err)
}

func testScaleStatefulSet(t *testing.T, p fixture, client kubernetes.Interface) {
	one := int32(1)
	pod := lab.NewPod("db", lab.BusyboxImage, "sleep", "600")
	api := p.Client().AppsV1().StatefulSets(p.namespace)
	s, err := api.Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := kube.ScaleRequest{Target: kube.WorkloadRef{
		Kind: "StatefulSet", Namespace: p.namespace, Name: "db",
		UID: string(s.UID),
	}, Lease: newLease(t, oneHourFromNow())}
	plan, refusal, err := kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	lab.Eventually(t, 30*time.Second, "the stateful set to be empty", func() error {
		v, refusal, err := kube.VerifyScale(t.Context(), client, r)
		requireNoRefusal(t, refusal, err)
		if !v.InForce {
			return fmt.Errorf("%v", v.Differences)
		}
		return nil
	})
	drift, err := kube.UndoScale(t.Context(), client, r, plan.Prior, false)
	wantUndone(t, drift, err)
	if s, err = api.Get(t.Context(), "db", metav1.GetOptions{}); err != nil || *s.Spec.Replicas != 1 {
		t.Errorf("after undo: %v, %v", *s.Spec.Replicas, err)
	}
}

func testScalePlanIsReadOnly(t *testing.T, p fixture, _ kubernetes.Interface) {
	r := newScaleRequest(t, p.createDeployment(t, "planned", 1), 0)
	reader := p.restrictedClient(t, "planner", kube.ScalePermissions().PlanRules)
	plan, refusal, err := kube.PlanScale(t.Context(), reader, r)
	requireNoRefusal(t, refusal, err)
	if plan.FromReplicas != 1 || plan.ToReplicas != 0 {
		t.Errorf("plan %+v", plan)
	}
	if _, _, err := kube.ApplyScale(t.Context(), reader, r); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func testScaleRepeatKeepsFirstPrior(t *testing.T, p fixture, client kubernetes.Interface) {
	r := newScaleRequest(t, p.createDeployment(t, "again", 2), 0)
	for range 3 {
		plan, refusal, err := kube.ApplyScale(t.Context(), client, r)
		requireNoRefusal(t, refusal, err)
		if plan.Prior.Replicas != 2 {
			t.Fatalf("the saved state became %+v", plan.Prior)
		}
	}
	// The strictest holder of the lease decides, so the number may change during the lease.
	r.Replicas = 1
	plan, refusal, err := kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if plan.Prior.Replicas != 2 {
		t.Errorf("the saved state became %+v", plan.Prior)
	}
	drift, err := kube.UndoScale(t.Context(), client, r, plan.Prior, false)
	wantUndone(t, drift, err)
	p.waitForReplicas(t, "again", 2)
}

func testScaleReportsAutoscaler(t *testing.T, p fixture, client kubernetes.Interface) {
	d := p.createDeployment(t, "auto", 1)
	if _, err := p.Client().AutoscalingV1().HorizontalPodAutoscalers(p.namespace).Create(t.Context(),
		&autoscalingv1.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Name: "grow"},
			Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
				MaxReplicas: 3, ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{
					Kind: "Deployment", Name: "auto",
					APIVersion: "apps/v1",
				},
			},
		}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for replicas, want := range map[int32]string{0: "pauses at 0 replicas", 2: "will scale it back"} {
		plan, refusal, err := kube.PlanScale(t.Context(), client, newScaleRequest(t, d, replicas))
		requireNoRefusal(t, refusal, err)
		if len(plan.Conflicts) != 1 || !strings.Contains(plan.Conflicts[0], want) {
			t.Errorf("to %d: %q", replicas, plan.Conflicts)
		}
	}
}

func testScaleRefusals(t *testing.T, p fixture, client kubernetes.Interface) {
	d := p.createDeployment(t, "refused", 1)
	r := newScaleRequest(t, d, 0)
	gone := r
	gone.Target.UID = "another"
	_, refusal, err := kube.ApplyScale(t.Context(), client, gone)
	wantRefusal(t, kube.ReasonNotFound, refusal, err)
	daemon := r
	daemon.Target.Kind = "DaemonSet"
	_, refusal, err = kube.ApplyScale(t.Context(), client, daemon)
	wantRefusal(t, kube.ReasonUnsupported, refusal, err)

	sets, err := p.Client().AppsV1().ReplicaSets(p.namespace).List(t.Context(),
		metav1.ListOptions{LabelSelector: "app=refused"})
	if err != nil || len(sets.Items) != 1 {
		t.Fatalf("replica sets: %v, %v", sets, err)
	}
	owned := r
	owned.Target = kube.WorkloadRef{
		Kind: "ReplicaSet", Namespace: p.namespace, Name: sets.Items[0].Name,
		UID: string(sets.Items[0].UID),
	}
	_, refusal, err = kube.ApplyScale(t.Context(), client, owned)
	wantRefusal(t, kube.ReasonControllerOwned, refusal, err)

	_, refusal, err = kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	other := r
	other.Lease.ID = "another"
	_, refusal, err = kube.ApplyScale(t.Context(), client, other)
	wantRefusal(t, kube.ReasonForeignObject, refusal, err)
}

func testScaleUndoDrift(t *testing.T, p fixture, client kubernetes.Interface) {
	r := newScaleRequest(t, p.createDeployment(t, "drift", 2), 0)
	plan, refusal, err := kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.waitForReplicas(t, "drift", 0)
	p.patchDeployment(t, "drift", `{"spec":{"replicas":1}}`)
	v, refusal, err := kube.VerifyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if v.InForce {
		t.Error("it holds although someone scaled it")
	}
	drift, err := kube.UndoScale(t.Context(), client, r, plan.Prior, false)
	wantDrift(t, drift, err, "Deployment "+p.namespace+"/drift: spec.replicas is 1, expected 0 (last written by someone")
	p.waitForReplicas(t, "drift", 1)
	drift, err = kube.UndoScale(t.Context(), client, r, plan.Prior, true)
	wantUndone(t, drift, err)
	if after := p.waitForReplicas(t, "drift", 2); after.Annotations[kube.FacetReplicas.LeaseAnnotation()] != "" {
		t.Errorf("annotations stay: %v", after.Annotations)
	}
}

func testScaleOrphansFound(t *testing.T, p fixture, client kubernetes.Interface) {
	r := newScaleRequest(t, p.createDeployment(t, "swept", 1), 0)
	_, refusal, err := kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	find := func(now time.Time) []kube.Orphan {
		all, err := kube.FindOrphanedScalings(t.Context(), client, now)
		if err != nil {
			t.Fatal(err)
		}
		var ours []kube.Orphan
		for _, o := range all {
			if o.LeaseID == r.Lease.ID {
				ours = append(ours, o)
			}
		}
		return ours
	}
	if found := find(time.Now()); len(found) != 0 {
		t.Errorf("before the expiry: %+v", found)
	}
	found := find(r.Lease.ExpiresAt)
	if len(found) != 1 || found[0].ScalePrior == nil {
		t.Fatalf("after the expiry: %+v", found)
	}
	drift, err := kube.UndoScale(t.Context(), client, *found[0].ScaleRequest, *found[0].ScalePrior, false)
	wantUndone(t, drift, err)
	if found := find(r.Lease.ExpiresAt); len(found) != 0 {
		t.Errorf("after the undo: %+v", found)
	}
	p.waitForReplicas(t, "swept", 1)
}

// testScaleFinishesHalfUndone: the undo died after it had restored the number.
func testScaleFinishesHalfUndone(t *testing.T, p fixture, client kubernetes.Interface) {
	r := newScaleRequest(t, p.createDeployment(t, "half", 1), 0)
	plan, refusal, err := kube.ApplyScale(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.patchDeployment(t, "half", `{"spec":{"replicas":1}}`)
	drift, err := kube.UndoScale(t.Context(), client, r, plan.Prior, false)
	wantUndone(t, drift, err)
	if after := p.waitForReplicas(t, "half", 1); after.Annotations[kube.FacetReplicas.LeaseAnnotation()] != "" ||
		after.Labels[kube.ScaleLabel] != "" {
		t.Errorf("marks stay: %v %v", after.Annotations, after.Labels)
	}
}

func (p fixture) patchDeployment(t *testing.T, name, body string) {
	t.Helper()
	if _, err := p.Client().AppsV1().Deployments(p.namespace).Patch(t.Context(), name, types.MergePatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "someone"}); err != nil {
		t.Fatal(err)
	}
}
