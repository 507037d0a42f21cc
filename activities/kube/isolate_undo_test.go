package kube_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities/kube"
	"stanch/playbooks"
)

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
	plan, err := kube.ApplyIsolate(ctx, client, r)
	requireNoError(t, err)
	policies := p.Client().NetworkingV1().NetworkPolicies(p.namespace)
	cfg := p.ConfigWithRules(t, p.namespace, "swapper", toRules(actionSpec(t, "pod.isolate").ApplyPermissions)...)
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
	if _, err := kube.UndoIsolate(ctx, slow, r); !apierrors.IsConflict(err) {
		t.Errorf("undo answered %v, want a conflict", err)
	}
	if _, err := policies.Get(ctx, plan.PolicyName, metav1.GetOptions{}); err != nil {
		t.Errorf("the policy that someone made is gone: %v", err)
	}
	drift, err := kube.UndoIsolate(ctx, client, r)
	wantDrift(t, drift, err, "NetworkPolicy")
	if err := policies.Delete(ctx, plan.PolicyName, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

func testIsolateUndoDrift(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "drift")
	r := newIsolateRequest(t, ref)
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	p.patchPolicy(t, plan.PolicyName, `{"spec":{"egress":[{}]}}`)
	p.patchPod(t, "drift", `{"metadata":{"labels":{"stanch.dev/isolate":"mine"}}}`)

	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantDrift(t, drift, err, "NetworkPolicy "+p.namespace+"/"+plan.PolicyName+": spec is ", "Pod "+ref.String()+
		": label stanch.dev/isolate is mine")
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), plan.PolicyName,
		metav1.GetOptions{}); err != nil {
		t.Errorf("a drifted undo touched the policy: %v", err)
	}
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "drift", metav1.GetOptions{})
	if err != nil || now.Labels[kube.IsolateLabel] != "mine" {
		t.Errorf("someone else's label after the undo: %v, %v", now.Labels, err)
	}
}

// testIsolateUndoCoOwnedLabels: a GitOps tool that wrote the complete object back owns the label too.
func testIsolateUndoCoOwnedLabels(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "both")
	r := newIsolateRequest(t, ref)
	_, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	body := `{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"stanch.dev/isolate":"` +
		kube.ShortLeaseID(r.Lease.ID) + `"}}}`
	if _, err := p.Client().CoreV1().Pods(p.namespace).Patch(t.Context(), "both", types.ApplyPatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "gitops"}); err != nil {
		t.Fatal(err)
	}
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
	now, err := p.Client().CoreV1().Pods(p.namespace).Get(t.Context(), "both", metav1.GetOptions{})
	if err != nil || now.Labels[kube.IsolateLabel] != "" {
		t.Errorf("labels after undo: %v, %v", now.Labels, err)
	}
}

func testIsolateOrphansFound(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "swept")
	r := newIsolateRequest(t, ref)
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	if found := p.findIsolationOrphans(t, client, time.Now()); len(found) != 0 {
		t.Errorf("before the expiry: %+v", found)
	}
	after := r.Lease.ExpiresAt.Add(time.Second)
	found := p.findIsolationOrphans(t, client, after)
	if len(found) != 1 || found[0].Lease.ID != r.Lease.ID || !found[0].Lease.ExpiresAt.Equal(r.Lease.ExpiresAt) ||
		found[0].Facet != playbooks.FacetNetwork || found[0].Target.ID() != "pod:"+ref.UID {
		t.Fatalf("after the expiry: %+v", found)
	}
	// Without the policy, the pod's label still identifies the lease.
	if err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Delete(t.Context(), plan.PolicyName,
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	found = p.findIsolationOrphans(t, client, after)
	if len(found) != 1 || found[0].ObjectName != "Pod "+ref.String() {
		t.Fatalf("the label alone: %+v", found)
	}
	drift, err := found[0].Undo(t.Context())
	wantUndone(t, drift, err)
	if found := p.findIsolationOrphans(t, client, after); len(found) != 0 {
		t.Errorf("after the undo: %+v", found)
	}
}

func testIsolateUndoAfterPodGone(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "gone")
	r := newIsolateRequest(t, ref)
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	p.deletePod(t, "gone")
	drift, err := kube.UndoIsolate(t.Context(), client, r)
	wantUndone(t, drift, err)
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Get(t.Context(), plan.PolicyName,
		metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the policy stays: %v", err)
	}
}

func testIsolateUndoLonePolicy(t *testing.T, p fixture, client kubernetes.Interface) {
	_, ref := p.runSleeperPod(t, "lone")
	r := newIsolateRequest(t, ref)
	plan, err := kube.ApplyIsolate(t.Context(), client, r)
	requireNoError(t, err)
	p.patchPolicy(t, plan.PolicyName, `{"metadata":{"annotations":{"network.stanch.dev/prior":"tampered"}}}`)
	p.deletePod(t, "lone")
	found := p.findIsolationOrphans(t, client, r.Lease.ExpiresAt)
	if len(found) != 1 {
		t.Fatalf("orphans %+v", found)
	}
	drift, err := found[0].Undo(t.Context())
	wantUndone(t, drift, err)
	if found := p.findIsolationOrphans(t, client, r.Lease.ExpiresAt); len(found) != 0 {
		t.Errorf("after the undo: %+v", found)
	}
}
