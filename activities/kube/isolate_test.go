package kube_test

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestIsolate(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", kube.IsolatePermissions().ApplyRules)
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
	return kube.IsolateRequest{Pod: ref, Lease: newLease(t, oneHourFromNow())}
}

func testIsolateOnlyOnePod(t *testing.T, p fixture, client kubernetes.Interface) {
	ctx := t.Context()
	before, ref := p.runSleeperPod(t, "one")
	sibling, _ := p.runSleeperPod(t, "two")
	r := newIsolateRequest(t, ref)
	r.Ingress = true

	plan, refusal, err := kube.ApplyIsolate(ctx, client, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 2 || len(plan.PolicyConflicts) > 0 || plan.Prior.AlreadyLabeled {
		t.Errorf("plan %+v", plan)
	}
	v, refusal, err := kube.VerifyIsolate(ctx, client, r)
	wantInForce(t, v, refusal, err)
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

	drift, err := kube.UndoIsolate(ctx, client, r, false)
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
	drift, err = kube.UndoIsolate(ctx, client, r, false) // a retried undo
	wantUndone(t, drift, err)
}

// deleteHookTransport calls a hook before the client's first DELETE.
type deleteHookTransport struct {
	http.RoundTripper
	once sync.Once
	hook func()
}

func (b *deleteHookTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodDelete {
		b.once.Do(b.hook)
	}
	return b.RoundTripper.RoundTrip(r)
}

// testIsolateUndoKeepsReplacedPolicy replaces Stanch's policy with another one after undo read it and before undo
// deletes it.
func testIsolateUndoKeepsReplacedPolicy(t *testing.T, p fixture, client kubernetes.Interface) {
	ctx := t.Context()
	_, ref := p.runSleeperPod(t, "swapped")
	r := newIsolateRequest(t, ref)
	plan, refusal, err := kube.ApplyIsolate(ctx, client, r)
	requireNoRefusal(t, refusal, err)
	policies := p.Client().NetworkingV1().NetworkPolicies(p.namespace)
	cfg := p.ConfigWithRules(t, p.namespace, "swapper", kube.IsolatePermissions().ApplyRules...)
	cfg.Wrap(func(inner http.RoundTripper) http.RoundTripper {
		return &deleteHookTransport{RoundTripper: inner, hook: func() {
			if err := policies.Delete(ctx, plan.PolicyName, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
			theirs := &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Name: plan.PolicyName},
				Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
			}
			if _, err := policies.Create(ctx, theirs, metav1.CreateOptions{}); err != nil {
				t.Error(err)
			}
		}}
	})
	slow, err := kube.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kube.UndoIsolate(ctx, slow, r, false); !apierrors.IsConflict(err) {
		t.Errorf("undo answered %v, want a conflict", err)
	}
	if _, err := policies.Get(ctx, plan.PolicyName, metav1.GetOptions{}); err != nil {
		t.Errorf("the policy that someone made is gone: %v", err)
	}
	drift, err := kube.UndoIsolate(ctx, client, r, false)
	wantDrift(t, drift, err, "NetworkPolicy")
	if err := policies.Delete(ctx, plan.PolicyName, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

func testIsolatePlanIsReadOnly(t *testing.T, p fixture, _ kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "planned")
	reader := p.restrictedClient(t, "planner", kube.IsolatePermissions().PlanRules)
	plan, refusal, err := kube.PlanIsolate(t.Context(), reader, newIsolateRequest(t, ref))
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 2 {
		t.Errorf("changes %q", plan.Changes)
	}
	if _, _, err := kube.ApplyIsolate(t.Context(), reader, newIsolateRequest(t, ref)); !apierrors.IsForbidden(err) {
		t.Errorf("apply with the rights of plan: %v", err)
	}
}

func testIsolateRepeatAndExtend(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "again")
	r := newIsolateRequest(t, ref)
	for range 3 {
		_, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
		requireNoRefusal(t, refusal, err)
	}
	r.Lease.ExpiresAt = r.Lease.ExpiresAt.Add(time.Hour)
	v, refusal, err := kube.VerifyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if v.InForce || len(v.Differences) != 2 {
		t.Errorf("the old expiry is on both objects, and %v differ", v.Differences)
	}
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 0 || !plan.Prior.AlreadyLabeled {
		t.Errorf("plan of the extension: %+v", plan)
	}
	v, refusal, err = kube.VerifyIsolate(t.Context(), client, r)
	wantInForce(t, v, refusal, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
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
	plan, refusal, err := kube.PlanIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.PolicyConflicts) != 1 ||
		plan.PolicyConflicts[0].String() != "NetworkPolicy allows selects by app and allows egress everything" {
		t.Errorf("defeats %v", plan.PolicyConflicts)
	}
	r.Ingress = true
	plan, refusal, err = kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.PolicyConflicts) != 2 {
		t.Errorf("with ingress: defeats %v", plan.PolicyConflicts)
	}
	pod, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil || pod.Labels["app"] != "web" {
		t.Errorf("the user's label is gone: %v, %v", pod.Labels, err)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)
}

func testIsolateRefusals(t *testing.T, p fixture, client kubernetes.Interface) {
	host := lab.NewPod("host", lab.BusyboxImage, "sleep", "600")
	host.Spec.HostNetwork = true
	hostPod := p.RunPod(t, p.namespace, host)
	_, refusal, err := kube.ApplyIsolate(t.Context(), client, newIsolateRequest(t, podRef(hostPod)))
	wantRefusal(t, kube.ReasonHostNetwork, refusal, err)

	_, refusal, err = kube.PlanIsolate(t.Context(), client,
		newIsolateRequest(t, kube.PodRef{Namespace: p.namespace, Name: "nobody", UID: "u"}))
	wantRefusal(t, kube.ReasonNotFound, refusal, err)

	pod, ref := p.runSleeperPod(t, "held")
	r := newIsolateRequest(t, ref)
	_, refusal, err = kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	other := r
	other.Lease.ID = "another"
	_, refusal, err = kube.ApplyIsolate(t.Context(), client, other)
	wantRefusal(t, kube.ReasonForeignObject, refusal, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)

	// A policy of someone else with the same name as Stanch's is neither used nor removed.
	foreign := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "stanch-isolate-" +
		kube.ShortLeaseID(r.Lease.ID)}}
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Create(t.Context(), foreign,
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, refusal, err = kube.ApplyIsolate(t.Context(), client, r)
	wantRefusal(t, kube.ReasonForeignObject, refusal, err)
	if now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), pod.Name, metav1.GetOptions{}); err != nil ||
		now.Labels[kube.IsolateLabel] != "" {
		t.Errorf("the pod was labeled for a refusal: %v, %v", now.Labels, err)
	}
	drift, err = kube.UndoIsolate(t.Context(), client, r, true)
	wantUndone(t, drift, err)
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), foreign.Name,
		metav1.GetOptions{}); err != nil {
		t.Errorf("the foreign policy after a forced undo: %v", err)
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
	_, refusal, err := kube.ApplyIsolate(t.Context(), client, newIsolateRequest(t, podRef(mirror)))
	wantRefusal(t, kube.ReasonStaticPod, refusal, err)
}

func testIsolateIgnoresReplacedPod(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "again-by-name")
	r := newIsolateRequest(t, ref)
	_, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.replacePod(t, "again-by-name")
	_, refusal, err = kube.ApplyIsolate(t.Context(), client, r)
	wantRefusal(t, kube.ReasonNotFound, refusal, err)
	_, refusal, err = kube.VerifyIsolate(t.Context(), client, r)
	wantRefusal(t, kube.ReasonNotFound, refusal, err)
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "again-by-name", metav1.GetOptions{})
	if err != nil || now.Labels[kube.IsolateLabel] != "" {
		t.Errorf("the pod that came later is labeled: %v, %v", now.Labels, err)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)
}

func testIsolateUndoDrift(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "drift")
	r := newIsolateRequest(t, ref)
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.patchPolicy(t, plan.PolicyName, `{"spec":{"egress":[{}]}}`)
	p.patchPod(t, "drift", `{"metadata":{"labels":{"stanch.dev/isolate":"mine"}}}`)

	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantDrift(t, drift, err, "NetworkPolicy "+p.namespace+"/"+plan.PolicyName+": spec is ", "Pod "+ref.String()+
		": label stanch.dev/isolate is mine")
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), plan.PolicyName,
		metav1.GetOptions{}); err != nil {
		t.Errorf("a drifted undo touched the policy: %v", err)
	}
	drift, err = kube.UndoIsolate(t.Context(), client, r, true)
	wantUndone(t, drift, err)
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), plan.PolicyName,
		metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the forced undo: %v", err)
	}
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "drift", metav1.GetOptions{})
	if err != nil || now.Labels[kube.IsolateLabel] != "mine" {
		t.Errorf("someone else's label after the forced undo: %v, %v", now.Labels, err)
	}
}

func testIsolateReappliesRemoved(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "restore")
	r := newIsolateRequest(t, ref)
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.patchPolicy(t, plan.PolicyName, `{"spec":{"egress":[{}]}}`)
	p.patchPod(t, "restore", `{"metadata":{"labels":{"stanch.dev/isolate":null}}}`)
	v, refusal, err := kube.VerifyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if v.InForce || len(v.Differences) != 2 {
		t.Errorf("differences %v", v.Differences)
	}
	plan, refusal, err = kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 2 || !strings.HasPrefix(plan.Changes[0], "restore") {
		t.Errorf("changes %q", plan.Changes)
	}
	v, refusal, err = kube.VerifyIsolate(t.Context(), client, r)
	wantInForce(t, v, refusal, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)
}

// testIsolateUndoCoOwnedLabels: a GitOps tool that wrote the complete object back owns the label too.
func testIsolateUndoCoOwnedLabels(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "both")
	r := newIsolateRequest(t, ref)
	_, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	body := `{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"stanch.dev/isolate":"` +
		kube.ShortLeaseID(r.Lease.ID) + `"}}}`
	if _, err := p.Client().CoreV1().Pods(p.namespace).Patch(t.Context(), "both", types.ApplyPatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "gitops"}); err != nil {
		t.Fatal(err)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "both", metav1.GetOptions{})
	if err != nil || now.Labels[kube.IsolateLabel] != "" {
		t.Errorf("labels after undo: %v, %v", now.Labels, err)
	}
}

func testIsolateOrphansFound(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "swept")
	r := newIsolateRequest(t, ref)
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if found := p.findIsolationOrphans(t, client, time.Now()); len(found) != 0 {
		t.Errorf("before the expiry: %+v", found)
	}
	after := r.Lease.ExpiresAt.Add(time.Second)
	found := p.findIsolationOrphans(t, client, after)
	if len(found) != 1 || found[0].LeaseID != r.Lease.ID || found[0].IsolateRequest.Pod != ref {
		t.Fatalf("after the expiry: %+v", found)
	}
	// Without the policy, the pod's label still identifies the lease.
	if err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Delete(t.Context(), plan.PolicyName,
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	found = p.findIsolationOrphans(t, client, after)
	if len(found) != 1 || found[0].Object != "Pod "+ref.String() {
		t.Fatalf("the label alone: %+v", found)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, *found[0].IsolateRequest, false)
	wantUndone(t, drift, err)
	if found := p.findIsolationOrphans(t, client, after); len(found) != 0 {
		t.Errorf("after the undo: %+v", found)
	}
}

func testIsolateUndoAfterPodGone(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "gone")
	r := newIsolateRequest(t, ref)
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.deletePod(t, "gone")
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), plan.PolicyName,
		metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the policy stays: %v", err)
	}
}

func testIsolateUndoLonePolicy(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "lone")
	r := newIsolateRequest(t, ref)
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.patchPolicy(t, plan.PolicyName, `{"metadata":{"annotations":{"network.stanch.dev/prior":"tampered"}}}`)
	p.deletePod(t, "lone")
	found := p.findIsolationOrphans(t, client, r.Lease.ExpiresAt)
	if len(found) != 1 {
		t.Fatalf("orphans %+v", found)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, *found[0].IsolateRequest, false)
	wantUndone(t, drift, err)
	if found := p.findIsolationOrphans(t, client, r.Lease.ExpiresAt); len(found) != 0 {
		t.Errorf("after the undo: %+v", found)
	}
}

func testIsolateFinishesHalfApplied(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "half")
	r := newIsolateRequest(t, ref)
	_, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	p.patchPod(t, "half", `{"metadata":{"labels":{"stanch.dev/isolate":null},"annotations":null}}`)
	plan, refusal, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoRefusal(t, refusal, err)
	if len(plan.Changes) != 1 || !strings.HasPrefix(plan.Changes[0], "label pod ") {
		t.Errorf("changes %q", plan.Changes)
	}
	v, refusal, err := kube.VerifyIsolate(t.Context(), client, r)
	wantInForce(t, v, refusal, err)
	drift, err := kube.UndoIsolate(t.Context(), client, r, false)
	wantUndone(t, drift, err)
}
