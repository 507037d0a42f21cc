// Package podapi is an API server of a test's few pods and their owners, over real HTTP. It checks no rights and knows
// no watches; tests that need those use the lab's Kubernetes.
package podapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Server serves the objects of a test, by path.
type Server struct {
	mu           sync.Mutex
	objects      map[string]any
	FailStatus   atomic.Int32 // status of every response; 0 serves normally
	RequestCount atomic.Int32
	url          string
}

// Start starts a server for a test.
func Start(t *testing.T) *Server {
	t.Helper()
	c := &Server{objects: map[string]any{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// AddObject adds an object below a path such as "/apis/apps/v1/namespaces/shop/deployments".
func (c *Server) AddObject(below, name string, object any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objects[path.Join(below, name)] = object
}

// ServeHTTP handles a get, and a list of pods.
func (c *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.RequestCount.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if code := int(c.FailStatus.Load()); code != 0 {
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

// OwnerReference returns a reference to a controller; its UID is derived from its name.
func OwnerReference(apiVersion, kind, name string) metav1.OwnerReference {
	yes := true
	return metav1.OwnerReference{
		APIVersion: apiVersion, Kind: kind, Name: name, UID: types.UID("uid-" + name),
		Controller: &yes,
	}
}

// AddOwner adds an owner, which may have an owner itself.
func (c *Server) AddOwner(below, apiVersion, kind, name string, owners ...metav1.OwnerReference) {
	namespace, _, _ := strings.Cut(strings.SplitAfter(below, "/namespaces/")[1], "/")
	c.AddObject(below, name, metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{Kind: kind, APIVersion: apiVersion}, ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name, UID: types.UID("uid-" + name), OwnerReferences: owners,
		},
	})
}

// AddPod adds a pod with one container, whose id is derived from the pod's UID.
func (c *Server) AddPod(namespace, name, uid, node string, owners ...metav1.OwnerReference) {
	c.AddObject("/api/v1/namespaces/"+namespace+"/pods", name, corev1.Pod{
		TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name, UID: types.UID(uid), OwnerReferences: owners,
		},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "app", ContainerID: "containerd://" +
			strings.Repeat(strings.ReplaceAll(uid, "-", "")+"0", 8)}}},
	})
}

// Client returns a client of the server.
func (c *Server) Client(t *testing.T) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: c.url, QPS: 1000, Burst: 1000})
	require.NoError(t, err)
	return client
}
