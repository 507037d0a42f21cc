package installation_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stanch/worker/installation"
)

var cleanupLabels = map[string]string{"app.kubernetes.io/name": "stanch-cleanup"}

// newCleanup returns a DaemonSet for three nodes, of which some are clean.
func newCleanup(ready int32) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "stanch-cleanup", Namespace: namespace, Generation: 2},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: cleanupLabels}},
		Status:     appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 3, NumberReady: ready},
	}
}

func newCleanupPod(node string, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "stanch-cleanup-" + node, Namespace: namespace, Labels: cleanupLabels},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
}

func TestNodesThatAreNotCleanAreNamed(t *testing.T) {
	other := newCleanupPod("node-9", corev1.ConditionFalse)
	other.Labels = map[string]string{"app.kubernetes.io/name": "shop"}
	starting := newCleanupPod("node-3", corev1.ConditionFalse)
	starting.Status.Conditions = nil
	client := fake.NewClientset(newCleanup(1), newCleanupPod("node-1", corev1.ConditionTrue),
		newCleanupPod("node-2", corev1.ConditionFalse), starting, other)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := installation.WaitForNodes(ctx, client, namespace, "stanch-cleanup")
	require.EqualError(t, err, "wait until the nodes are clean: 1 of 3 nodes are clean; not yet: node-2, node-3; run "+
		"`stanch-sensor cleanup` there yourself")
}

func TestWaitEndsWhenAllNodesAreClean(t *testing.T) {
	client, ready := fake.NewClientset(), int32(1)
	client.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		set := newCleanup(ready)
		ready = min(ready+1, 3)
		return true, set, nil
	})
	require.NoError(t, installation.WaitForNodes(t.Context(), client, namespace, "stanch-cleanup"))
	gets := 0
	for _, a := range client.Actions() {
		if a.Matches("get", "daemonsets") {
			gets++
		}
	}
	require.Equal(t, 3, gets)
}

// A DaemonSet whose controller has not seen it yet has no pods, and no node is clean.
func TestNewDaemonSetIsNotClean(t *testing.T) {
	set := newCleanup(0)
	set.Status = appsv1.DaemonSetStatus{ObservedGeneration: 1}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := installation.WaitForNodes(ctx, fake.NewClientset(set), namespace, "stanch-cleanup")
	require.ErrorContains(t, err, "wait until the nodes are clean: 0 of 0 nodes are clean")
}

func TestMissingDaemonSetIsNamed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := installation.WaitForNodes(ctx, fake.NewClientset(), namespace, "stanch-cleanup")
	require.ErrorContains(t, err, "wait until the nodes are clean: read the DaemonSet stanch-system/stanch-cleanup: ")
}
