package kube_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestIsolate(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", actionSpec(t, "pod.isolate").ApplyPermissions)
	for name, scenario := range map[string]func(*testing.T, fixture, kubernetes.Interface){
		"one pod and none of its siblings":              testIsolateOnlyOnePod,
		"planning needs no right to write":              testIsolatePlanIsReadOnly,
		"repeating and extending":                       testIsolateRepeatAndExtend,
		"someone else's policies defeat it":             testIsolatePolicyConflicts,
		"what is refused":                               testIsolateRefusals,
		"a static pod is refused":                       testIsolateRefusesStaticPod,
		"a pod that came later is not touched":          testIsolateIgnoresReplacedPod,
		"undo of what someone changed is a drift":       testIsolateUndoDrift,
		"apply puts back what someone removed":          testIsolateReappliesRemoved,
		"undo gives up labels that others wrote too":    testIsolateUndoCoOwnedLabels,
		"the sweeper finds what lost its lease":         testIsolateOrphansFound,
		"undo works when the pod is gone":               testIsolateUndoAfterPodGone,
		"an expired policy without its pod is undone":   testIsolateUndoLonePolicy,
		"undo leaves a policy that replaced ours":       testIsolateUndoKeepsReplacedPolicy,
		"a half-applied isolation is finished by apply": testIsolateFinishesHalfApplied,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, client) })
	}
}

func newIsolateRequest(t *testing.T, ref kube.PodRef) kube.IsolateRequest {
	return kube.IsolateRequest{Pod: ref, Lease: newLeaseStamp(t, oneHourFromNow())}
}

func testIsolateOnlyOnePod(t *testing.T, p fixture, client kubernetes.Interface) {
	ctx := t.Context()
	before, ref := p.runSleeperPod(t, "one")
	sibling, _ := p.runSleeperPod(t, "two")
	r := newIsolateRequest(t, ref)
	r.Ingress = true

	plan, err := kube.ApplyIsolate(ctx, client, r)
	requireNoError(t, err)
	if len(plan.Changes) != 2 || len(plan.PolicyConflicts) > 0 || plan.AlreadyLabeled {
		t.Errorf("plan %+v", plan)
	}
	v, err := kube.VerifyIsolate(ctx, client, r)
	wantNoDifference(t, v, err)
	policy, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(ctx, plan.PolicyName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	if err != nil {
		t.Fatal(err)
	}
	selected, err := p.Client().CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil || len(selected.Items) != 1 || selected.Items[0].UID != before.UID {
		t.Errorf("the policy selects %d pods, %v", len(selected.Items), err)
	}
	if len(policy.Spec.PolicyTypes) != 2 || len(policy.Spec.Egress)+len(policy.Spec.Ingress) != 0 {
		t.Errorf("the policy allows something: %+v", policy.Spec)
	}
	if by := policy.ManagedFields[0].Manager; by != "stanch/INC-01TEST" {
		t.Errorf("field manager %q", by)
	}

	drift, err := kube.UndoIsolate(ctx, client, r)
	wantUndone(t, drift, err)
	after, err := p.Client().CoreV1().Pods(p.namespace).Get(ctx, "one", metav1.GetOptions{})
	if err != nil || !maps.Equal(after.Labels, before.Labels) || !maps.Equal(after.Annotations, before.Annotations) {
		t.Errorf("labels %v, annotations %v, %v; want them as before: %v, %v", after.Labels, after.Annotations, err,
			before.Labels, before.Annotations)
	}
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(ctx, plan.PolicyName,
		metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the policy after undo: %v", err)
	}
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(ctx, "two", metav1.GetOptions{})
	if err != nil || !maps.Equal(now.Labels, sibling.Labels) {
		t.Errorf("the sibling: %v, %v", now.Labels, err)
	}
	drift, err = kube.UndoIsolate(ctx, client, r) // a retried undo
	wantUndone(t, drift, err)
}

func testIsolatePlanIsReadOnly(t *testing.T, p fixture, _ kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "planned")
	reader := p.restrictedClient(t, "planner", actionSpec(t, "pod.isolate").PlanPermissions)
	plan, err := kube.PlanIsolate(t.Context(), reader, newIsolateRequest(t, ref))
	requireNoError(t, err)
	if len(plan.Changes) != 2 {
		t.Errorf("changes %q", plan.Changes)
	}
	if _, err := kube.ApplyIsolate(t.Context(), reader, newIsolateRequest(t, ref)); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func testIsolateRepeatAndExtend(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "again")
	r := newIsolateRequest(t, ref)
	for range 3 {
		_, err := kube.ApplyIsolate(t.Context(), client, r)
		requireNoError(t, err)
	}
	r.Lease.ExpiresAt = r.Lease.ExpiresAt.Add(time.Hour)
	v, err := kube.VerifyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(v) != 2 {
		t.Errorf("the old expiry is on both objects, and %v differ", v)
	}
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(plan.Changes) != 0 || !plan.AlreadyLabeled {
		t.Errorf("plan of the extension: %+v", plan)
	}
	v, err = kube.VerifyIsolate(t.Context(), client, r)
	wantNoDifference(t, v, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
}

func testIsolatePolicyConflicts(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "web")
	api := p.Client().NetworkingV1().NetworkPolicies(p.namespace)
	allowAll := []networkingv1.NetworkPolicyEgressRule{{}}
	for name, spec := range map[string]networkingv1.NetworkPolicySpec{
		"allows": {
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: allowAll,
		},
		"denies": {
			PodSelector: metav1.LabelSelector{}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		},
		"other": {PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}, Egress: allowAll},
		"lets-in": {
			PodSelector: metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "app", Operator: metav1.LabelSelectorOpExists},
			}}, Ingress: []networkingv1.NetworkPolicyIngressRule{{}},
		},
	} {
		policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
		if _, err := api.Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = p.Client().NetworkingV1().NetworkPolicies(p.namespace).Delete(t.Context(), name, metav1.DeleteOptions{})
		})
	}
	defer func() {
		for _, name := range []string{"allows", "denies", "other", "lets-in"} {
			_ = api.Delete(t.Context(), name, metav1.DeleteOptions{})
		}
	}()
	r := newIsolateRequest(t, ref)
	plan, err := kube.PlanIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(plan.PolicyConflicts) != 1 ||
		plan.PolicyConflicts[0].String() != "NetworkPolicy allows selects by app and allows egress everything" {
		t.Errorf("defeats %v", plan.PolicyConflicts)
	}
	r.Ingress = true
	plan, err = kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(plan.PolicyConflicts) != 2 {
		t.Errorf("with ingress: defeats %v", plan.PolicyConflicts)
	}
	pod, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || pod.Labels["app"] != "web" {
		t.Errorf("the user's label is gone: %v, %v", pod.Labels, err)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
}

func testIsolateRefusals(t *testing.T, p fixture, client kubernetes.Interface) {
	host := lab.NewPod("host", lab.BusyboxImage, "sleep", "600")
	host.Spec.HostNetwork = true
	hostPod := p.RunPod(t, p.namespace, host)
	_, err := kube.ApplyIsolate(t.Context(), client, newIsolateRequest(t, podRef(hostPod)))
	wantRefusal(t, "uses the host network", err)

	_, err = kube.PlanIsolate(t.Context(), client,
		newIsolateRequest(t, kube.PodRef{Namespace: p.namespace, Name: "nobody", UID: "u"}))
	wantGone(t, err)

	pod, ref := p.runSleeperPod(t, "held")
	r := newIsolateRequest(t, ref)
	_, err = kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	other := r
	other.Lease.ID = "another"
	_, err = kube.ApplyIsolate(t.Context(), client, other)
	wantRefusal(t, "does not belong to this lease", err)
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)

	// A policy of someone else with the same name as Stanch's is neither used nor removed.
	foreign := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "stanch-isolate-" +
		kube.ShortLeaseID(r.Lease.ID)}}
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Create(t.Context(), foreign,
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = kube.ApplyIsolate(t.Context(), client, r)
	wantRefusal(t, "does not belong to this lease", err)
	if now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), pod.Name, metav1.GetOptions{}); err != nil ||
		now.Labels[kube.IsolateLabel] != "" {
		t.Errorf("the pod was labeled for a refusal: %v, %v", now.Labels, err)
	}
	drift, err = kube.UndoIsolate(t.Context(), client, r)
	wantDrift(t, drift, err,
		"NetworkPolicy "+p.namespace+"/"+foreign.Name+": annotation network.stanch.dev/lease is absent")
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), foreign.Name,
		metav1.GetOptions{}); err != nil {
		t.Errorf("the foreign policy after an undo: %v", err)
	}
}

// testIsolateRefusesStaticPod: the kubelet ignores a label on the mirror of a static pod.
func testIsolateRefusesStaticPod(t *testing.T, p fixture, client kubernetes.Interface) {
	static := lab.NewPod("static-"+p.namespace, lab.BusyboxImage, "sleep", "600")
	static.Namespace, static.TypeMeta = p.namespace, metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	static.Spec.AutomountServiceAccountToken = new(bool)
	manifest, err := yaml.Marshal(static)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(p.StaticPodDir(), static.Name+".yaml")
	if err := os.WriteFile(file, manifest, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file)
	var mirror *corev1.Pod
	lab.Eventually(t, 30*time.Second, "the mirror pod", func() (err error) {
		mirror, err = p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), static.Name+"-"+p.NodeName, metav1.GetOptions{})
		return err
	})
	_, err = kube.ApplyIsolate(t.Context(), client, newIsolateRequest(t, podRef(mirror)))
	wantRefusal(t, "is a static pod", err)
}

func testIsolateIgnoresReplacedPod(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "again-by-name")
	r := newIsolateRequest(t, ref)
	_, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	p.replacePod(t, "again-by-name")
	_, err = kube.ApplyIsolate(t.Context(), client, r)
	wantGone(t, err)
	_, err = kube.VerifyIsolate(t.Context(), client, r)
	wantGone(t, err)
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "again-by-name", metav1.GetOptions{})
	if err != nil || now.Labels[kube.IsolateLabel] != "" {
		t.Errorf("the pod that came later is labeled: %v, %v", now.Labels, err)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
}

func testIsolateReappliesRemoved(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "restore")
	r := newIsolateRequest(t, ref)
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	p.patchPolicy(t, plan.PolicyName, `{"spec":{"egress":[{}]}}`)
	p.patchPod(t, "restore", `{"metadata":{"labels":{"stanch.dev/isolate":null}}}`)
	v, err := kube.VerifyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(v) != 2 {
		t.Errorf("differences %v", v)
	}
	plan, err = kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(plan.Changes) != 2 || !strings.HasPrefix(plan.Changes[0], "restore") {
		t.Errorf("changes %q", plan.Changes)
	}
	v, err = kube.VerifyIsolate(t.Context(), client, r)
	wantNoDifference(t, v, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
}

func testIsolateFinishesHalfApplied(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "half")
	r := newIsolateRequest(t, ref)
	_, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	p.patchPod(t, "half", `{"metadata":{"labels":{"stanch.dev/isolate":null},"annotations":null}}`)
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if len(plan.Changes) != 1 || !strings.HasPrefix(plan.Changes[0], "label pod ") {
		t.Errorf("changes %q", plan.Changes)
	}
	v, err := kube.VerifyIsolate(t.Context(), client, r)
	wantNoDifference(t, v, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
}
