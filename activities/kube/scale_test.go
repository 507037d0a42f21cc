package kube_test

import (
	"encoding/json"
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

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	lab "stanch/testenv/kube"
)

func TestScale(t *testing.T) {
	p := newFixture(t)
	a := p.restrictedAction(t, "workload.scale")
	for name, scenario := range map[string]func(*testing.T, fixture, activities.Containment){
		"to zero and back":                       testScaleToZeroAndUndo,
		"an early end needs a grant":             testScaleEarlyEnd,
		"a stateful set":                         testScaleStatefulSet,
		"planning needs no right to write":       testScalePlanIsReadOnly,
		"repeating keeps what was saved first":   testScaleRepeatKeepsFirstPrior,
		"an autoscaler is reported":              testScaleReportsAutoscaler,
		"what is refused":                        testScaleRefusals,
		"undo of what someone scaled is a drift": testScaleUndoDrift,
		"the sweeper finds what lost its lease":  testScaleOrphansFound,
		"a half-made undo is finished":           testScaleFinishesHalfUndone,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, a) })
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

func newScaleRequest(t *testing.T, d metav1.Object, replicas int32) activities.Request {
	r := newActivityRequest(t, kube.PodRef{}, oneHourFromNow())
	r.Target = playbooks.Target{
		Kind: playbooks.TargetWorkload, WorkloadKind: "Deployment", Namespace: d.GetNamespace(), Name: d.GetName(),
		UID: string(d.GetUID()),
	}
	return withReplicas(r, replicas)
}

func withReplicas(r activities.Request, replicas int32) activities.Request {
	r.Params = json.RawMessage(fmt.Sprintf(`{"replicas":%d}`, replicas))
	return r
}

func testScaleToZeroAndUndo(t *testing.T, p fixture, a activities.Containment) {
	before := p.createDeployment(t, "zero", 2)
	r := newScaleRequest(t, before, 0)
	plan := planAndApply(t, a, r)
	if string(plan.PriorState) != `{"replicas":2}` || len(plan.Changes) != 2 ||
		!strings.HasSuffix(plan.Changes[1], "from 2 to 0") {
		t.Errorf("plan %+v, prior %s", plan, plan.PriorState)
	}
	p.waitForReplicas(t, "zero", 0)
	wantInForce(t, a, r, plan)
	drift, err := undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
	after := p.waitForReplicas(t, "zero", 2)
	if !maps.Equal(after.Labels, before.Labels) || !maps.Equal(after.Annotations, before.Annotations) {
		t.Errorf("after: %v %v, before: %v %v", after.Labels, after.Annotations, before.Labels, before.Annotations)
	}
	drift, err = undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
}

func testScaleEarlyEnd(t *testing.T, p fixture, a activities.Containment) {
	testEarlyEndsNeedGrant(t, a, newScaleRequest(t, p.createDeployment(t, "early", 1), 0))
	p.waitForReplicas(t, "early", 1)
}

func testScaleStatefulSet(t *testing.T, p fixture, a activities.Containment) {
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
	requireNoError(t, err)
	r := newScaleRequest(t, s, 0)
	r.Target.WorkloadKind = "StatefulSet"
	plan := planAndApply(t, a, r)
	o := findOrphan(t, a, r.LeaseID, r.ExpiresAt)
	if o == nil || o.ObjectName != "StatefulSet "+p.namespace+"/db" {
		t.Errorf("orphan %+v", o)
	}
	drift, err := undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
	if s, err = api.Get(t.Context(), "db", metav1.GetOptions{}); err != nil || *s.Spec.Replicas != 1 {
		t.Errorf("after undo: %v, %v", *s.Spec.Replicas, err)
	}
}

func testScalePlanIsReadOnly(t *testing.T, p fixture, _ activities.Containment) {
	r := newScaleRequest(t, p.createDeployment(t, "planned", 1), 0)
	reader := p.planningAction(t, "workload.scale")
	plan, err := reader.Plan(t.Context(), r)
	requireNoError(t, err)
	if len(plan.Changes) != 2 || !strings.HasSuffix(plan.Changes[1], "from 1 to 0") {
		t.Errorf("plan %+v", plan)
	}
	if _, err := apply(t.Context(), reader, r, plan); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func testScaleRepeatKeepsFirstPrior(t *testing.T, p fixture, a activities.Containment) {
	r := newScaleRequest(t, p.createDeployment(t, "again", 2), 0)
	// The strictest holder of the lease decides, so the number may change during the lease.
	for _, replicas := range []int32{0, 0, 1} {
		r = withReplicas(r, replicas)
		if plan := planAndApply(t, a, r); string(plan.PriorState) != `{"replicas":2}` {
			t.Fatalf("the saved state became %s", plan.PriorState)
		}
	}
	drift, err := undoWithGrant(t, a, r, activities.Plan{PriorState: json.RawMessage(`{"replicas":7}`)})
	wantUndone(t, drift, err)
	p.waitForReplicas(t, "again", 2) // by the stamp, and not by the request
}

func testScaleReportsAutoscaler(t *testing.T, p fixture, a activities.Containment) {
	d := p.createDeployment(t, "auto", 1)
	_, err := p.Client().AutoscalingV1().HorizontalPodAutoscalers(p.namespace).Create(t.Context(),
		&autoscalingv1.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Name: "grow"},
			Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
				MaxReplicas: 3, ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{
					Kind: "Deployment", Name: "auto",
					APIVersion: "apps/v1",
				},
			},
		}, metav1.CreateOptions{})
	requireNoError(t, err)
	for replicas, want := range map[int32]string{0: "pauses at 0 replicas", 2: "will scale it back"} {
		plan, err := a.Plan(t.Context(), newScaleRequest(t, d, replicas))
		requireNoError(t, err)
		if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], want) {
			t.Errorf("to %d: %q", replicas, plan.Warnings)
		}
	}
}

func testScaleRefusals(t *testing.T, p fixture, a activities.Containment) {
	d := p.createDeployment(t, "refused", 1)
	r := newScaleRequest(t, d, 0)
	gone := r
	gone.Target.UID = "another"
	_, err := a.Plan(t.Context(), gone)
	wantGone(t, err)
	if inForce, detail, err := a.Verify(t.Context(), gone, nil); inForce || err != nil ||
		!strings.Contains(detail, "is gone") {
		t.Errorf("a workload that is gone: %t, %q, %v", inForce, detail, err)
	}
	daemon := r
	daemon.Target.WorkloadKind = "DaemonSet"
	_, err = a.Plan(t.Context(), daemon)
	wantRefusal(t, "has no replica count", err)
	unknown := r
	unknown.Target.UID = ""
	_, err = a.Plan(t.Context(), unknown)
	wantRefusal(t, "is unknown", err)

	sets, err := p.Client().AppsV1().ReplicaSets(p.namespace).List(t.Context(),
		metav1.ListOptions{LabelSelector: "app=refused"})
	if err != nil || len(sets.Items) != 1 {
		t.Fatalf("replica sets: %v, %v", sets, err)
	}
	owned := newScaleRequest(t, &sets.Items[0], 0)
	owned.Target.WorkloadKind = "ReplicaSet"
	_, err = a.Plan(t.Context(), owned)
	wantRefusal(t, "which would scale it back", err)

	planAndApply(t, a, r)
	r.LeaseID = "another"
	_, err = a.Plan(t.Context(), r)
	wantRefusal(t, "is under another lease", err)
}

func testScaleUndoDrift(t *testing.T, p fixture, a activities.Containment) {
	r := newScaleRequest(t, p.createDeployment(t, "drift", 2), 0)
	plan := planAndApply(t, a, r)
	p.waitForReplicas(t, "drift", 0)
	p.patchDeployment(t, "drift", `{"spec":{"replicas":1}}`)
	if inForce, _, err := a.Verify(t.Context(), r, plan.PriorState); inForce || err != nil {
		t.Errorf("it holds although someone scaled it, %v", err)
	}
	drift, err := undoWithGrant(t, a, r, plan)
	wantDrift(t, drift, err, "Deployment "+p.namespace+"/drift: spec.replicas is 1, expected 0 (last written by someone")
	if after := p.waitForReplicas(t, "drift", 1); after.Annotations["replicas.stanch.dev/lease"] != r.LeaseID {
		t.Errorf("the lease's annotations are gone: %v", after.Annotations)
	}
}

func testScaleOrphansFound(t *testing.T, p fixture, a activities.Containment) {
	r := newScaleRequest(t, p.createDeployment(t, "swept", 1), 0)
	planAndApply(t, a, r)
	if o := findOrphan(t, a, r.LeaseID, time.Now()); o != nil {
		t.Errorf("before the expiry: %+v", o)
	}
	o := findOrphan(t, a, r.LeaseID, r.ExpiresAt)
	if o == nil || o.Target.ID() != r.Target.ID() || o.Facet != a.Spec().Facet {
		t.Fatalf("after the expiry: %+v", o)
	}
	p.patchDeployment(t, "swept", `{"metadata":{"annotations":{"replicas.stanch.dev/prior":"many"}}}`)
	if drift, err := findOrphan(t, a, r.LeaseID, r.ExpiresAt).Undo(t.Context()); err == nil || drift != nil ||
		!strings.Contains(err.Error(), "undo it manually") {
		t.Errorf("without its prior state: %v, %v", drift, err)
	}
	drift, err := o.Undo(t.Context())
	wantUndone(t, drift, err)
	if o := findOrphan(t, a, r.LeaseID, r.ExpiresAt); o != nil {
		t.Errorf("after the undo: %+v", o)
	}
	p.waitForReplicas(t, "swept", 1)
}

// testScaleFinishesHalfUndone: the undo died after it had restored the number.
func testScaleFinishesHalfUndone(t *testing.T, p fixture, a activities.Containment) {
	r := newScaleRequest(t, p.createDeployment(t, "half", 1), 0)
	plan := planAndApply(t, a, r)
	p.patchDeployment(t, "half", `{"spec":{"replicas":1}}`)
	drift, err := undoWithGrant(t, a, r, plan)
	wantUndone(t, drift, err)
	if after := p.waitForReplicas(t, "half", 1); after.Annotations["replicas.stanch.dev/lease"] != "" ||
		after.Labels["stanch.dev/scale"] != "" {
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
