package kube_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

// BenchmarkIsolate measures isolation by NetworkPolicy on a real API server, next to one plain create, after whose
// response the object is visible. Run it on an idle machine.
func BenchmarkIsolate(b *testing.B) {
	c := lab.Shared(b)
	namespace := c.NewNamespace(b)
	var client kubernetes.Interface
	client, err := kube.NewClient(c.Config())
	if err != nil {
		b.Fatal(err)
	}
	pod := c.RunPod(b, namespace, lab.NewPod("victim", lab.BusyboxImage, "sleep", "3600"))
	ref := kube.PodRef{Namespace: namespace, Name: pod.Name, UID: string(pod.UID)}
	var bare, apply, undo []time.Duration
	for i := 0; b.Loop(); i++ {
		policy := &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bare-%d", i)},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"no": "pod"}},
			},
		}
		began := time.Now()
		if _, err := client.NetworkingV1().NetworkPolicies(namespace).Create(b.Context(), policy,
			metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
		bare = append(bare, time.Since(began))
		r := kube.IsolateRequest{Pod: ref, Lease: activities.LeaseStamp{
			ID: fmt.Sprint(i), IncidentID: "INC-BENCH",
			ExpiresAt: time.Now().Add(time.Hour),
		}}
		began = time.Now()
		if _, err := kube.ApplyIsolate(b.Context(), client, r); err != nil {
			b.Fatal(err)
		}
		apply = append(apply, time.Since(began))
		began = time.Now()
		if drift, err := kube.UndoIsolate(b.Context(), client, r); err != nil || drift != nil {
			b.Fatal(drift, err)
		}
		undo = append(undo, time.Since(began))
		_ = client.NetworkingV1().NetworkPolicies(namespace).Delete(b.Context(), policy.Name, metav1.DeleteOptions{})
	}
	for _, m := range []struct {
		name  string
		times []time.Duration
	}{{"bare", bare}, {"apply", apply}, {"undo", undo}} {
		slices.Sort(m.times)
		at := func(p int) float64 { return float64(m.times[(len(m.times)-1)*p/100].Microseconds()) / 1000 }
		b.ReportMetric(at(50), m.name+"-p50-ms")
		b.ReportMetric(at(99), m.name+"-p99-ms")
	}
}
