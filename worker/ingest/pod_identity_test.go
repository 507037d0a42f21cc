package ingest_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"stanch/sensors"
	"stanch/testenv/podapi"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/workflows/incident"
)

// newIngester returns an ingester that looks up pods at a server.
func newIngester(t *testing.T, server *podapi.Server) *ingest.Ingester {
	t.Helper()
	return &ingest.Ingester{
		Kube: server.Client(t), Config: config.Default(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// newNodeDetection returns a detection as a node sends it.
func newNodeDetection(node, namespace, name, uid string) sensors.Detection {
	d := sensors.Detection{
		ID: "1", Rule: "r", Title: "t", Severity: sensors.SeverityHigh, Confidence: 1,
		Objective: sensors.ObjectiveCryptoMining, Time: time.Now(), Node: node,
	}
	d.Event.Container = sensors.Container{
		ID: "c", Pod: sensors.Pod{Namespace: namespace, Name: name, UID: uid},
		Workload: sensors.Workload{Kind: "Pod", Name: "a-forged"},
	}
	return d
}

func TestNodeCannotReportPodOfAnotherNode(t *testing.T) {
	c := podapi.Start(t)
	c.AddPod("shop", "victim-0", "uid-victim", "good-node")
	for name, pod := range map[string]string{
		"own name": "victim-0", "no name": "", "two dots": "..", "a path": "a/b", "an escaped path": "x%2fy",
		"a query": "x?y", "capital letters": "Victim-0", "another pod's name": "other",
	} {
		t.Run(name, func(t *testing.T) {
			d := newNodeDetection("evil-node", "shop", pod, "uid-victim")
			err := newIngester(t, c).Check(t.Context(), &d, "evil-node")
			require.Error(t, err)
			require.False(t, d.TargetConfirmed)
			var later *ingest.TemporaryError
			require.NotErrorAs(t, err, &later)
		})
	}
	for _, namespace := range []string{"", "..", "shop/pods", "Shop", strings.Repeat("a", 64)} {
		d := newNodeDetection("evil-node", namespace, "victim-0", "uid-victim")
		require.Error(t, newIngester(t, c).Check(t.Context(), &d, "evil-node"), "namespace %q", namespace)
	}
	d := newNodeDetection("evil/node", "shop", "victim-0", "uid-victim")
	require.Error(t, newIngester(t, c).Check(t.Context(), &d, "evil/node"))
}

func TestPodUIDWithAnotherNameIsRefused(t *testing.T) {
	c := podapi.Start(t)
	c.AddPod("evil", "own", "uid-own", "evil-node")
	c.AddPod("shop", "own", "uid-shop", "evil-node")
	i := newIngester(t, c)
	for range 2 { // the second time from the cache
		d := newNodeDetection("evil-node", "evil", "own", "uid-own")
		require.NoError(t, i.Check(t.Context(), &d, "evil-node"))
		require.True(t, d.TargetConfirmed)
		for _, other := range []sensors.Detection{
			newNodeDetection("evil-node", "stanch-drill", "own", "uid-own"), newNodeDetection("evil-node", "shop", "own",
				"uid-own"), newNodeDetection("evil-node", "evil", "own2", "uid-own"), newNodeDetection("evil-node", "evil", "own",
				"uid-2"), newNodeDetection("good-node", "evil", "own", "uid-own"),
		} {
			require.Error(t, i.Check(t.Context(), &other, other.Node), "%+v", other.Event.Container.Pod)
		}
	}
}

func TestOnlyAPIServerOutageIsTemporary(t *testing.T) {
	c := podapi.Start(t)
	c.AddPod("shop", "web-0", "uid-web", "node-1")
	check := func(i *ingest.Ingester) (sensors.Detection, error) {
		d := newNodeDetection("node-1", "shop", "web-0", "uid-web")
		return d, i.Check(t.Context(), &d, "node-1")
	}
	var later *ingest.TemporaryError
	for _, code := range []int32{401, 403, 429} {
		c.FailStatus.Store(code)
		_, err := check(newIngester(t, c))
		require.ErrorAs(t, err, &later, "the node retries after %d, and its data is not used", code)
	}
	for _, code := range []int32{400, 404, 422} {
		c.FailStatus.Store(code)
		_, err := check(newIngester(t, c))
		require.Error(t, err)
		require.NotErrorAs(t, err, &later, "%d is a final response", code)
	}
	for _, code := range []int32{500, 502, 503} {
		c.FailStatus.Store(code)
		d, err := check(newIngester(t, c))
		require.NoError(t, err, "a cluster that returns %d must not stop detection", code)
		require.False(t, d.TargetConfirmed)
	}
	gone := newIngester(t, c)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"})
	require.NoError(t, err)
	gone.Kube = client
	d, err := check(gone)
	require.NoError(t, err, "nobody listens")
	require.False(t, d.TargetConfirmed)
}

func TestUnconfirmedDetectionStaysOutOfOtherNodesIncident(t *testing.T) {
	c := podapi.Start(t)
	c.AddPod("shop", "victim-0", "uid-victim", "good-node")
	i := newIngester(t, c)
	c.FailStatus.Store(503)
	forged := newNodeDetection("evil-node", "shop", "victim-0", "uid-victim")
	require.NoError(t, i.Check(t.Context(), &forged, "evil-node"), "the API server is unavailable")
	c.FailStatus.Store(0)
	genuine := newNodeDetection("good-node", "shop", "victim-0", "uid-victim")
	require.NoError(t, i.Check(t.Context(), &genuine, "good-node"))
	require.True(t, genuine.TargetConfirmed)
	require.NotEqual(t, i.GroupingKey(genuine), i.GroupingKey(forged))
	require.Equal(t, "local/shop/Pod/victim-0", i.GroupingKey(genuine))
	c.FailStatus.Store(503)
	again := newNodeDetection("good-node", "shop", "victim-0", "uid-victim")
	require.NoError(t, i.Check(t.Context(), &again, "good-node"))
	require.Equal(t, i.GroupingKey(genuine), i.GroupingKey(again), "a recent confirmation counts during an outage")
	forged = newNodeDetection("evil-node", "shop", "victim-0", "uid-victim")
	require.ErrorContains(t, i.Check(t.Context(), &forged, "evil-node"), "does not run on node evil-node")
	host := func(node string) sensors.Detection {
		d := newNodeDetection(node, "", "", "")
		d.Event.Container = sensors.Container{ID: "0123456789abcdef"}
		return d
	}
	require.NotEqual(t, i.GroupingKey(host("good-node")), i.GroupingKey(host("evil-node")),
		"a node reports container ids unverified")
}

func TestPodsOfWorkloadShareIncident(t *testing.T) {
	// so long that its pods' names lack the end of the hash and the dash
	const long = "customer-notification-delivery-scheduler-production"
	c := podapi.Start(t)
	apps, batch, argo := "/apis/apps/v1/namespaces/shop/", "/apis/batch/v1/namespaces/shop/",
		"/apis/argoproj.io/v1alpha1/namespaces/shop/"
	c.AddOwner(apps+"replicasets", "apps/v1", "ReplicaSet", long+"-5f7c9d8b64", podapi.OwnerReference("apps/v1",
		"Deployment",
		long))
	c.AddOwner(apps+"deployments", "apps/v1", "Deployment", long)
	c.AddOwner(apps+"replicasets", "apps/v1", "ReplicaSet", "web-7d6b5f4c9", podapi.OwnerReference("argoproj.io/v1alpha1",
		"Rollout", "web"))
	c.AddObject("/apis/argoproj.io", "v1alpha1",
		metav1.APIResourceList{APIResources: []metav1.APIResource{{Name: "rollouts", Kind: "Rollout", Namespaced: true}}})
	c.AddOwner(argo+"rollouts", "argoproj.io/v1alpha1", "Rollout", "web", podapi.OwnerReference("argoproj.io/v1alpha1",
		"Application", "storefront"))
	for _, job := range []string{"report-29318400", "report-29318405"} {
		c.AddOwner(batch+"jobs", "batch/v1", "Job", job, podapi.OwnerReference("batch/v1", "CronJob", "report"))
	}
	c.AddOwner(batch+"cronjobs", "batch/v1", "CronJob", "report")
	c.AddPod("shop", long+"-5f7c9dq2x7k", "uid-1", "node-1", podapi.OwnerReference("apps/v1", "ReplicaSet",
		long+"-5f7c9d8b64"))
	c.AddPod("shop", long+"-5f7c9dm9fzb", "uid-2", "node-2", podapi.OwnerReference("apps/v1", "ReplicaSet",
		long+"-5f7c9d8b64"))
	c.AddPod("shop", "web-7d6b5f4c9-b4k9z", "uid-3", "node-1", podapi.OwnerReference("apps/v1", "ReplicaSet",
		"web-7d6b5f4c9"))
	c.AddPod("shop", "web-7d6b5f4c9-h2wxm", "uid-4", "node-1", podapi.OwnerReference("apps/v1", "ReplicaSet",
		"web-7d6b5f4c9"))
	c.AddPod("shop", "report-29318400-gq7xd", "uid-5", "node-1", podapi.OwnerReference("batch/v1", "Job",
		"report-29318400"))
	c.AddPod("shop", "report-29318405-z5vbn", "uid-6", "node-1", podapi.OwnerReference("batch/v1", "Job",
		"report-29318405"))
	i := newIngester(t, c)
	keys := map[string][]string{}
	for _, pod := range []struct{ name, uid, node string }{
		{long + "-5f7c9dq2x7k", "uid-1", "node-1"},
		{long + "-5f7c9dm9fzb", "uid-2", "node-2"},
		{"web-7d6b5f4c9-b4k9z", "uid-3", "node-1"},
		{"web-7d6b5f4c9-h2wxm", "uid-4", "node-1"},
		{"report-29318400-gq7xd", "uid-5", "node-1"},
		{"report-29318405-z5vbn", "uid-6", "node-1"},
	} {
		for _, from := range []string{pod.node, ""} { // its node, and another sensor
			d := newNodeDetection(pod.node, "shop", pod.name, pod.uid)
			require.NoError(t, i.Check(t.Context(), &d, from))
			require.True(t, d.TargetConfirmed)
			keys[i.GroupingKey(d)] = append(keys[i.GroupingKey(d)], pod.name)
		}
	}
	require.Len(t, keys, 3)
	require.Len(t, keys["local/shop/Deployment/"+long], 4)
	require.Len(t, keys["local/shop/Application/storefront"], 4,
		"custom owners count up to the root, also where the root itself cannot be read")
	require.Len(t, keys["local/shop/CronJob/report"], 4)
}

func TestContainerIDAloneResolvesPod(t *testing.T) {
	c := podapi.Start(t)
	c.AddOwner("/apis/apps/v1/namespaces/shop/statefulsets", "apps/v1", "StatefulSet", "db")
	c.AddPod("shop", "db-0", "1111-2222-3333", "node-a", podapi.OwnerReference("apps/v1", "StatefulSet", "db"))
	c.AddPod("kube-system", "other", "4444-5555-6666", "node-a")
	i := newIngester(t, c)
	for _, id := range []string{"111122223333", "1111222233330111122223333011112"} { // as Falco and Tetragon shorten it
		d := newNodeDetection("node-a", "", "", "")
		d.Event.Container = sensors.Container{ID: id}
		require.NoError(t, i.Check(t.Context(), &d, ""))
		require.Equal(t, "local/shop/StatefulSet/db", i.GroupingKey(d))
		require.Equal(t, "pod:1111-2222-3333", incident.TargetOfDetection(d).ID())
		require.Len(t, d.Event.Container.ID, 104, "the complete id")
	}
	d := newNodeDetection("node-b", "", "", "")
	d.Event.Container = sensors.Container{ID: "111122223333"}
	require.NoError(t, i.Check(t.Context(), &d, ""), "the same id on another node is another container")
	require.False(t, d.TargetConfirmed)
	require.Equal(t, "local/Container/111122223333@node-b", i.GroupingKey(d))
}

func TestStaticPodIsIdentifiedByManifestHash(t *testing.T) {
	c := podapi.Start(t)
	hash := "7d1f0c2ab34e5d6f7a8b9c0d1e2f3a4b"
	c.AddObject("/api/v1/namespaces/kube-system/pods", "etcd-node-a", corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Spec: corev1.PodSpec{NodeName: "node-a", HostNetwork: true},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "kube-system", Name: "etcd-node-a", UID: "uid-mirror",
			OwnerReferences: []metav1.OwnerReference{podapi.OwnerReference("v1", "Node", "node-a")},
			Annotations:     map[string]string{"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
		},
	})
	i := newIngester(t, c)
	for _, from := range []string{"", "node-a"} {
		for range 2 {
			d := newNodeDetection("node-a", "kube-system", "etcd-node-a", hash)
			require.NoError(t, i.Check(t.Context(), &d, from))
			require.Equal(t, "local/kube-system/Pod/etcd-node-a", i.GroupingKey(d), "the node is not its workload")
			require.Equal(t, "uid-mirror", d.Event.Container.Pod.UID)
			require.True(t, d.Event.Container.Pod.HostNetwork)
		}
		d := newNodeDetection("node-a", "kube-system", "etcd-node-a", "another")
		require.ErrorContains(t, i.Check(t.Context(), &d, from), "now has the UID uid-mirror")
	}
}
