package kube_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"stanch/activities/kube"
)

// TestRestartIsRefusedWhereTheEvictionAPIRefuses checks the plan against the rules of the API server's eviction.go.
func TestRestartIsRefusedWhereTheEvictionAPIRefuses(t *testing.T) {
	always, healthy := policyv1.AlwaysAllow, policyv1.IfHealthyBudget
	budget := func(name, label string, allowed, current int32,
		policy *policyv1.UnhealthyPodEvictionPolicyType,
	) *policyv1.PodDisruptionBudget {
		return &policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Generation: 1},
			Spec: policyv1.PodDisruptionBudgetSpec{
				Selector:                   &metav1.LabelSelector{MatchLabels: map[string]string{label: "db"}},
				UnhealthyPodEvictionPolicy: policy,
			},
			Status: policyv1.PodDisruptionBudgetStatus{
				DisruptionsAllowed: allowed, ObservedGeneration: 1,
				CurrentHealthy: current, DesiredHealthy: 2, ExpectedPods: 3,
			},
		}
	}
	const running, pending = corev1.PodRunning, corev1.PodPending
	for name, c := range map[string]struct {
		phase   corev1.PodPhase
		ready   bool
		budgets []*policyv1.PodDisruptionBudget
		refused string
	}{
		"two budgets that allow it": {
			running, true,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 1, 3, nil), budget("b", "tier", 1, 3, nil)},
			"shop/a, shop/b",
		},
		"two budgets, a pod that is pending": {
			pending, false,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 1, 3, nil), budget("b", "tier", 1, 3, nil)},
			"",
		},
		"ready, none allowed": {
			running, true,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 0, 2, nil)},
			"2 of 2 pods are healthy",
		},
		"ready, one allowed": {
			running, true,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 1, 3, nil)},
			"",
		},
		"not ready, AlwaysAllow": {
			running, false,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 0, 1, &always)},
			"",
		},
		"ready, AlwaysAllow": {
			running, true,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 0, 1, &always)},
			"1 of 2 pods are healthy",
		},
		"not ready, as many healthy as wanted": {
			running, false,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 0, 2, &healthy)},
			"",
		},
		"not ready, fewer healthy than are wanted": {
			running, false,
			[]*policyv1.PodDisruptionBudget{budget("a", "app", 0, 1, nil)},
			"1 of 2 pods are healthy",
		},
		"a budget of other pods": {
			running, true,
			[]*policyv1.PodDisruptionBudget{budget("a", "other", 0, 2, nil)},
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			yes, ready := true, corev1.ConditionFalse
			if c.ready {
				ready = corev1.ConditionTrue
			}
			client := fake.NewClientset(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0", UID: "u1", Labels: map[string]string{
					"app":  "db",
					"tier": "db",
				}, OwnerReferences: []metav1.OwnerReference{{
					APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db",
					UID: "o1", Controller: &yes,
				}}},
				Status: corev1.PodStatus{
					Phase:      c.phase,
					Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
				},
			})
			for _, b := range c.budgets {
				if err := client.Tracker().Add(b); err != nil {
					t.Fatal(err)
				}
			}
			_, err := findContainment(t, client, "pod.restart").Plan(t.Context(),
				newActivityRequest(t, kube.PodRef{Namespace: "shop", Name: "db-0", UID: "u1"}, oneHourFromNow()))
			if c.refused == "" {
				requireNoError(t, err)
				return
			}
			wantRefusal(t, c.refused, err)
		})
	}
}
