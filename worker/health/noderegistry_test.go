package health_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"stanch/worker/health"
	"stanch/worker/nodeserver"
)

func TestRemovedSensorIsReportedAfterGatewayRestart(t *testing.T) {
	const namespace = "stanch-system"
	labels := map[string]string{"app": "sensor"}
	ready := corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}
	kube := fake.NewClientset(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: health.NodeRegistryConfigMap}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "watched"}, Status: ready},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "deleted"}, Status: ready},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "never"}, Status: ready}, // no sensor is expected there
		&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "a", Labels: labels},
			Spec:       corev1.PodSpec{NodeName: "watched"},
		},
		&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "b", Labels: labels},
			Spec:       corev1.PodSpec{NodeName: "deleted"},
		},
	)
	replica := func() *monitorFixture { // with an empty directory, as in a new pod
		return newMonitorFixture(health.Options{
			ClusterNodes: &health.KubernetesCluster{
				KubeClient: kube, Namespace: namespace, Selector: "app=sensor",
				CacheTTL: time.Nanosecond,
			},
			NodeRegistry: health.ConfigMapNodeRegistry{KubeClient: kube, Namespace: namespace},
		})
	}
	kept := func() map[string]string {
		m, err := kube.CoreV1().ConfigMaps(namespace).Get(t.Context(), health.NodeRegistryConfigMap, metav1.GetOptions{})
		require.NoError(t, err)
		return m.Data
	}
	one, two := replica(), replica()
	one.OnNodeEvent(nodeserver.Event{Node: "watched", Kind: nodeserver.Connected})
	one.OnNodeEvent(nodeserver.Event{Node: "not-in-this-cluster", Kind: nodeserver.Connected})
	two.OnNodeEvent(nodeserver.Event{Node: "deleted", Kind: nodeserver.Connected})
	two.CheckOnce(t.Context())
	one.CheckOnce(t.Context())
	require.Len(t, kept(), 2, "replicas do not overwrite each other")
	require.Contains(t, kept(), "watched")

	for _, name := range []string{"a", "b"} {
		require.NoError(t, kube.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	require.NoError(t, kube.CoreV1().Nodes().Delete(t.Context(), "deleted", metav1.DeleteOptions{}))
	three := replica()
	three.CheckOnce(t.Context())
	require.Empty(t, three.ingester.accepted, "the sensor had no time to connect")
	three.now = three.now.Add(6 * time.Minute)
	three.CheckOnce(t.Context())
	require.Len(t, three.ingester.accepted, 1)
	require.Equal(t, "watched", three.ingester.accepted[0].Node)
	require.Equal(t, "telemetry-lost", three.ingester.accepted[0].Rule)
	require.Contains(t, three.ingester.accepted[0].Reasons[1], "it was removed")
	require.Contains(t, three.ingester.accepted[0].Reasons[2], health.NodeRegistryConfigMap)
	require.NotContains(t, kept(), "deleted", "a deleted node is removed")

	// A person removes the node from the registry, and no report follows.
	require.NoError(t, health.ConfigMapNodeRegistry{KubeClient: kube, Namespace: namespace}.UpdateNodes(t.Context(), nil,
		[]string{"watched"}))
	four := replica()
	four.now = four.now.Add(6 * time.Minute)
	four.CheckOnce(t.Context())
	require.Empty(t, four.ingester.accepted)
}
