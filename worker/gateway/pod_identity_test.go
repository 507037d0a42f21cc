package gateway_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"stanch/sensors"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/workflows/incident"
)

// fakeAPIServer serves the objects of a test, by path.
type fakeAPIServer struct {
	mu           sync.Mutex
	objects      map[string]any
	failStatus   atomic.Int32 // status of every response; 0 serves normally
	requestCount atomic.Int32
	url          string
}

func newFakeAPIServer(t *testing.T) *fakeAPIServer {
	t.Helper()
	c := &fakeAPIServer{objects: map[string]any{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// addObject adds an object below a path such as "/apis/apps/v1/namespaces/shop/deployments".
func (c *fakeAPIServer) addObject(below, name string, object any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objects[path.Join(below, name)] = object
}

// ServeHTTP handles a get, and a list of pods.
func (c *fakeAPIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.requestCount.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if code := int(c.failStatus.Load()); code != 0 {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status:   metav1.StatusFailure, Code: int32(code),
		})
		return
	}
	if object, ok := c.objects[r.URL.Path]; ok {
		_ = json.NewEncoder(w).Encode(object)
		return
	}
	if r.URL.Path == "/api/v1/pods" {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		for _, o := range c.objects {
			if pod, ok := o.(corev1.Pod); ok && r.URL.Query().Get("fieldSelector") == "spec.nodeName="+pod.Spec.NodeName {
				list.Items = append(list.Items, pod)
			}
		}
		_ = json.NewEncoder(w).Encode(list)
		return
	}
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: 404,
	})
}

// newOwnerReference returns a reference to a controller; its UID is derived from its name.
func newOwnerReference(apiVersion, kind, name string) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{
		APIVersion: apiVersion, Kind: kind, Name: name, UID: types.UID("uid-" + name),
		Controller: &yes,
	}
}

// addOwner adds an owner, which may have an owner itself.
func (c *fakeAPIServer) addOwner(below, apiVersion, kind, name string, owners ...metav1.OwnerReference) {
	namespace, _, _ := strings.Cut(strings.SplitAfter(below, "/namespaces/")[1], "/")
	c.addObject(below, name, metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{Kind: kind, APIVersion: apiVersion}, ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name, UID: types.UID("uid-" + name), OwnerReferences: owners,
		},
	})
}

func (c *fakeAPIServer) addPod(namespace, name, uid, node string, owners ...metav1.OwnerReference) {
	c.addObject("/api/v1/namespaces/"+namespace+"/pods", name, corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name, UID: types.UID(uid), OwnerReferences: owners,
		},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "app", ContainerID: "containerd://" +
			strings.Repeat(strings.ReplaceAll(uid, "-", "")+"0", 8)}}},
	})
}

func (c *fakeAPIServer) newIngester(t *testing.T) *gateway.Ingester {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: c.url, QPS: 1000, Burst: 1000})
	require.NoError(t, err)
	return &gateway.Ingester{Kube: client, Config: config.Default(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
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
	c := newFakeAPIServer(t)
	c.addPod("shop", "victim-0", "uid-victim", "good-node")
	for name, pod := range map[string]string{
		"own name": "victim-0", "no name": "", "two dots": "..", "a path": "a/b", "an escaped path": "x%2fy",
		"a query": "x?y", "capital letters": "Victim-0", "another pod's name": "other",
	} {
		t.Run(name, func(t *testing.T) {
			d := newNodeDetection("evil-node", "shop", pod, "uid-victim")
			err := c.newIngester(t).Check(t.Context(), &d, "evil-node")
			require.Error(t, err)
			require.False(t, d.TargetConfirmed)
			var later *gateway.TemporaryError
			require.NotErrorAs(t, err, &later)
		})
	}
	for _, namespace := range []string{"", "..", "shop/pods", "Shop", strings.Repeat("a", 64)} {
		d := newNodeDetection("evil-node", namespace, "victim-0", "uid-victim")
		require.Error(t, c.newIngester(t).Check(t.Context(), &d, "evil-node"), "namespace %q", namespace)
	}
	d := newNodeDetection("evil/node", "shop", "victim-0", "uid-victim")
	require.Error(t, c.newIngester(t).Check(t.Context(), &d, "evil/node"))
}

func TestPodUIDWithAnotherNameIsRefused(t *testing.T) {
	c := newFakeAPIServer(t)
	c.addPod("evil", "own", "uid-own", "evil-node")
	c.addPod("shop", "own", "uid-shop", "evil-node")
	i := c.newIngester(t)
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
	c := newFakeAPIServer(t)
	c.addPod("shop", "web-0", "uid-web", "node-1")
	check := func(i *gateway.Ingester) (sensors.Detection, error) {
		d := newNodeDetection("node-1", "shop", "web-0", "uid-web")
		return d, i.Check(t.Context(), &d, "node-1")
	}
	var later *gateway.TemporaryError
	for _, code := range []int32{401, 403, 429} {
		c.failStatus.Store(code)
		_, err := check(c.newIngester(t))
		require.ErrorAs(t, err, &later, "the node retries after %d, and its data is not used", code)
	}
	for _, code := range []int32{400, 404, 422} {
		c.failStatus.Store(code)
		_, err := check(c.newIngester(t))
		require.Error(t, err)
		require.NotErrorAs(t, err, &later, "%d is a final response", code)
	}
	for _, code := range []int32{500, 502, 503} {
		c.failStatus.Store(code)
		d, err := check(c.newIngester(t))
		require.NoError(t, err, "a cluster that returns %d must not stop detection", code)
		require.False(t, d.TargetConfirmed)
	}
	gone := c.newIngester(t)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"})
	require.NoError(t, err)
	gone.Kube = client
	d, err := check(gone)
	require.NoError(t, err, "nobody listens")
	require.False(t, d.TargetConfirmed)
}

func TestUnconfirmedDetectionStaysOutOfOtherNodesIncident(t *testing.T) {
	c := newFakeAPIServer(t)
	c.addPod("shop", "victim-0", "uid-victim", "good-node")
	i := c.newIngester(t)
	c.failStatus.Store(503)
	forged := newNodeDetection("evil-node", "shop", "victim-0", "uid-victim")
	require.NoError(t, i.Check(t.Context(), &forged, "evil-node"), "the API server is unavailable")
	c.failStatus.Store(0)
	genuine := newNodeDetection("good-node", "shop", "victim-0", "uid-victim")
	require.NoError(t, i.Check(t.Context(), &genuine, "good-node"))
	require.True(t, genuine.TargetConfirmed)
	require.NotEqual(t, i.GroupingKey(genuine), i.GroupingKey(forged))
	require.Equal(t, "local/shop/Pod/victim-0", i.GroupingKey(genuine))
	c.failStatus.Store(503)
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
	c := newFakeAPIServer(t)
	apps, batch, argo := "/apis/apps/v1/namespaces/shop/", "/apis/batch/v1/namespaces/shop/",
		"/apis/argoproj.io/v1alpha1/namespaces/shop/"
	c.addOwner(apps+"replicasets", "apps/v1", "ReplicaSet", long+"-5f7c9d8b64", newOwnerReference("apps/v1", "Deployment",
		long))
	c.addOwner(apps+"deployments", "apps/v1", "Deployment", long)
	c.addOwner(apps+"replicasets", "apps/v1", "ReplicaSet", "web-7d6b5f4c9", newOwnerReference("argoproj.io/v1alpha1",
		"Rollout", "web"))
	c.addObject("/apis/argoproj.io", "v1alpha1",
		metav1.APIResourceList{APIResources: []metav1.APIResource{{Name: "rollouts", Kind: "Rollout", Namespaced: true}}})
	c.addOwner(argo+"rollouts", "argoproj.io/v1alpha1", "Rollout", "web", newOwnerReference("argoproj.io/v1alpha1",
		"Application", "storefront"))
	for _, job := range []string{"report-29318400", "report-29318405"} {
		c.addOwner(batch+"jobs", "batch/v1", "Job", job, newOwnerReference("batch/v1", "CronJob", "report"))
	}
	c.addOwner(batch+"cronjobs", "batch/v1", "CronJob", "report")
	c.addPod("shop", long+"-5f7c9dq2x7k", "uid-1", "node-1", newOwnerReference("apps/v1", "ReplicaSet",
		long+"-5f7c9d8b64"))
	c.addPod("shop", long+"-5f7c9dm9fzb", "uid-2", "node-2", newOwnerReference("apps/v1", "ReplicaSet",
		long+"-5f7c9d8b64"))
	c.addPod("shop", "web-7d6b5f4c9-b4k9z", "uid-3", "node-1", newOwnerReference("apps/v1", "ReplicaSet", "web-7d6b5f4c9"))
	c.addPod("shop", "web-7d6b5f4c9-h2wxm", "uid-4", "node-1", newOwnerReference("apps/v1", "ReplicaSet", "web-7d6b5f4c9"))
	c.addPod("shop", "report-29318400-gq7xd", "uid-5", "node-1", newOwnerReference("batch/v1", "Job", "report-29318400"))
	c.addPod("shop", "report-29318405-z5vbn", "uid-6", "node-1", newOwnerReference("batch/v1", "Job", "report-29318405"))
	i := c.newIngester(t)
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
	c := newFakeAPIServer(t)
	c.addOwner("/apis/apps/v1/namespaces/shop/statefulsets", "apps/v1", "StatefulSet", "db")
	c.addPod("shop", "db-0", "1111-2222-3333", "node-a", newOwnerReference("apps/v1", "StatefulSet", "db"))
	c.addPod("kube-system", "other", "4444-5555-6666", "node-a")
	i := c.newIngester(t)
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
	c := newFakeAPIServer(t)
	hash := "7d1f0c2ab34e5d6f7a8b9c0d1e2f3a4b"
	c.addObject("/api/v1/namespaces/kube-system/pods", "etcd-node-a", corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Spec: corev1.PodSpec{NodeName: "node-a", HostNetwork: true},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "kube-system", Name: "etcd-node-a", UID: "uid-mirror",
			OwnerReferences: []metav1.OwnerReference{newOwnerReference("v1", "Node", "node-a")},
			Annotations:     map[string]string{"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
		},
	})
	i := c.newIngester(t)
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
