package kube_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"stanch/activities/kube"
	"stanch/playbooks"
)

// fakeAPIServer serves these objects, by path; a number is the status of an error response.
type fakeAPIServer map[string]any

func (o fakeAPIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	code, found := http.StatusNotFound, o[r.URL.Path]
	if all, ok := o["*"]; ok {
		found = all
	}
	switch found := found.(type) {
	case int:
		code = found
	case nil:
	default:
		_ = json.NewEncoder(w).Encode(found)
		return
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code),
	})
}

func newObjectMeta(name string, owners ...string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name)}
	yes := true
	for _, owner := range owners {
		parts := strings.Split(owner, " ") // apiVersion, kind, name
		m.OwnerReferences = append(m.OwnerReferences, metav1.OwnerReference{
			APIVersion: parts[0], Kind: parts[1],
			Name: parts[2], UID: types.UID("uid-" + parts[2]), Controller: &yes,
		})
	}
	return m
}

func TestOwnersAreResolvedToTheRoot(t *testing.T) {
	partial := func(m metav1.ObjectMeta) metav1.PartialObjectMetadata {
		return metav1.PartialObjectMetadata{ObjectMeta: m}
	}
	base := "/apis/example.com/v1/namespaces/shop/apps/"
	kinds := metav1.APIResourceList{APIResources: []metav1.APIResource{{
		Name: "apps/status", Kind: "App",
		Namespaced: true,
	}, {Name: "apps", Kind: "App", Namespaced: true}}}
	chain := fakeAPIServer{
		"/apis/example.com/v1":                         kinds,
		"/apis/apps/v1/namespaces/shop/replicasets/rs": partial(newObjectMeta("rs", "example.com/v1 App a0")),
	}
	for i, name := range []string{"a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8"} {
		chain[base+name] = partial(newObjectMeta(name, "example.com/v1 App a"+string(rune('1'+i))))
	}
	for name, c := range map[string]struct {
		pod        metav1.ObjectMeta
		objects    fakeAPIServer
		root       string
		incomplete string
	}{
		"a bare pod": {newObjectMeta("p"), fakeAPIServer{}, "shop/Pod/p", ""},
		"a custom root": {
			newObjectMeta("p", "apps/v1 ReplicaSet rs"),
			fakeAPIServer{
				"/apis/example.com/v1":                         kinds,
				"/apis/apps/v1/namespaces/shop/replicasets/rs": partial(newObjectMeta("rs", "example.com/v1 App a")),
				base + "a": partial(newObjectMeta("a")),
			},
			"shop/App/a", "",
		},
		"a kind of that name elsewhere": {
			newObjectMeta("p", "example.com/v1 App a"),
			fakeAPIServer{
				"/apis/example.com/v1": kinds, base + "a": partial(newObjectMeta("a", "other.io/v1 Deployment d")),
				"/apis/apps/v1/namespaces/shop/deployments/d": partial(newObjectMeta("d")),
			},
			"shop/Deployment/d",
			"list the kinds of other.io/v1",
		},
		"one that may not be read": {
			newObjectMeta("p", "example.com/v1 App a"),
			fakeAPIServer{"/apis/example.com/v1": kinds, base + "a": 403},
			"shop/App/a", "the owner of App shop/a is unknown",
		},
		"one that is gone": {
			newObjectMeta("p", "apps/v1 ReplicaSet rs"),
			fakeAPIServer{},
			"shop/ReplicaSet/rs",
			"is gone",
		},
		"another of its name": {
			newObjectMeta("p", "example.com/v1 App a"),
			fakeAPIServer{"/apis/example.com/v1": kinds, base + "a": partial(metav1.ObjectMeta{Name: "a", UID: "other"})},
			"shop/App/a", "another UID",
		},
		"a cycle": {
			newObjectMeta("p", "example.com/v1 App a"),
			fakeAPIServer{
				"/apis/example.com/v1": kinds, base + "a": partial(newObjectMeta("a", "example.com/v1 App b")),
				base + "b": partial(newObjectMeta("b", "example.com/v1 App a")),
			},
			"shop/App/b", "a cycle",
		},
		"a chain without end": {
			newObjectMeta("p", "apps/v1 ReplicaSet rs"), chain, "shop/App/a6",
			"longer than 8",
		},
		"a static pod": {newObjectMeta("p", "v1 Node node-a"), fakeAPIServer{}, "shop/Pod/p", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.objects["/api/v1/namespaces/shop/pods/p"] = corev1.Pod{ObjectMeta: c.pod, Spec: corev1.PodSpec{NodeName: "node-a"}}
			facts := (&kube.TargetResolver{Client: newFakeClient(t, c.objects)}).ResolveTarget(t.Context(),
				playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "p", UID: "uid-p"})
			if facts.UnresolvedReason != "" || facts.Workload().String() != c.root || !strings.Contains(facts.IncompleteReason,
				c.incomplete) || (facts.IncompleteReason == "") != (c.incomplete == "") {
				t.Errorf("%+v; want %s, incomplete %q", facts, c.root, c.incomplete)
			}
		})
	}
}

func newFakeClient(t *testing.T, o fakeAPIServer) kubernetes.Interface {
	t.Helper()
	server := httptest.NewServer(o)
	t.Cleanup(server.Close)
	c, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: 1000, Burst: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestResolvedTargetIsCachedOnlyDuringOutage(t *testing.T) {
	now := time.Now()
	o := fakeAPIServer{"/api/v1/namespaces/shop/pods/p": corev1.Pod{
		ObjectMeta: newObjectMeta("p"),
		Spec:       corev1.PodSpec{NodeName: "node-a"},
	}}
	r := &kube.TargetResolver{Client: newFakeClient(t, o), Now: func() time.Time { return now }}
	target := playbooks.Target{Kind: playbooks.TargetPod, Namespace: "shop", Name: "p", UID: "uid-p", Node: "node-a"}
	resolved := func(when string, want bool) {
		t.Helper()
		if facts := r.ResolveTarget(t.Context(), target); (facts.UnresolvedReason == "") != want {
			t.Errorf("%s: %+v, want resolved %t", when, facts, want)
		}
	}
	o["*"] = 503
	resolved("an outage before the first answer", false)
	delete(o, "*")
	resolved("an answer", true)
	o["*"] = 503
	resolved("an outage after an answer", true)
	target.Name = "q"
	resolved("the same UID under another name", false)
	target.Name = "p"
	now = now.Add(6 * time.Minute)
	resolved("a long outage", false)
	delete(o, "*")
	resolved("an answer again", true)
	o["*"] = 403
	resolved("a refusal is an answer", false)
	o["*"] = 503
	resolved("an outage after a refusal", false)
}
