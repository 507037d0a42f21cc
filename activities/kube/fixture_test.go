package kube_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/activities/node"
	"stanch/playbooks"
	lab "stanch/testenv/kube"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTestMain(m)) }

// fixture is a namespace of a real cluster for one test.
type fixture struct {
	*lab.Cluster
	namespace string
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	c := lab.Shared(t)
	return fixture{Cluster: c, namespace: c.NewNamespace(t)}
}

// restrictedClient returns a client with exactly these permissions of a spec: a call that needs another one fails the
// test.
func (p fixture) restrictedClient(t *testing.T, name string,
	permissions ...[]playbooks.KubernetesPermission,
) kubernetes.Interface {
	t.Helper()
	client, err := kube.NewClient(p.ConfigWithRules(t, p.namespace, name, toRules(permissions...)...))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func toRules(permissions ...[]playbooks.KubernetesPermission) []rbacv1.PolicyRule {
	var out []rbacv1.PolicyRule
	for _, p := range slices.Concat(permissions...) {
		out = append(out, rbacv1.PolicyRule{APIGroups: p.Groups, Resources: p.Resources, Verbs: p.Verbs})
	}
	return out
}

// actionSpec returns the spec of an action of this package or of pod.isolate.
func actionSpec(t *testing.T, name string) playbooks.ActionSpec {
	t.Helper()
	for _, a := range append(kube.Actions(nil), &node.IsolateAction{}) {
		if a.Spec().Name == name {
			return a.Spec()
		}
	}
	t.Fatalf("unknown action %s", name)
	return playbooks.ActionSpec{}
}

// runSleeperPod runs a pod that only sleeps.
func (p fixture) runSleeperPod(t *testing.T, name string) (*corev1.Pod, kube.PodRef) {
	t.Helper()
	pod := p.RunPod(t, p.namespace, lab.NewPod(name, lab.BusyboxImage, "sleep", "600"))
	return pod, kube.PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
}

func newLeaseStamp(t *testing.T, expires time.Time) activities.LeaseStamp {
	return activities.LeaseStamp{
		ID: "lab/" + t.Name() + "/network", IncidentID: "INC-01TEST", ExpiresAt: expires.Truncate(time.Second),
	}
}

func oneHourFromNow() time.Time { return time.Now().Add(time.Hour) }

func requireNoError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantRefusal requires a refusal whose reason contains a text.
func wantRefusal(t *testing.T, want string, err error) {
	t.Helper()
	if refusal, ok := activities.AsRefusal(err); !ok || !strings.Contains(refusal.Reason, want) {
		t.Errorf("error %v; want a refusal with %q", err, want)
	}
}

// wantGone requires a refusal because the target is gone.
func wantGone(t *testing.T, err error) {
	t.Helper()
	wantRefusal(t, "is gone", err)
	if !errors.Is(err, activities.ErrTargetGone) {
		t.Errorf("%v does not wrap ErrTargetGone", err)
	}
}

func wantNoDifference(t *testing.T, differences []kube.Difference, err error) {
	t.Helper()
	requireNoError(t, err)
	if len(differences) > 0 {
		t.Errorf("does not hold: %v", differences)
	}
}

// wantDrift requires differences of exactly these objects and fields, each given by the start of "object: field".
func wantDrift(t *testing.T, drift *activities.Drift, err error, want ...string) {
	t.Helper()
	requireNoError(t, err)
	if drift == nil {
		t.Fatalf("no drift, want %v", want)
	}
	differences := strings.Split(drift.Detail, "; ")
	if len(differences) != len(want) {
		t.Fatalf("drift %q, want %v", differences, want)
	}
	for i, d := range differences {
		if !strings.HasPrefix(d, want[i]) {
			t.Errorf("difference %q, want %q…", d, want[i])
		}
		if !strings.Contains(d, "(last written by ") {
			t.Errorf("difference %q does not say by whom", d)
		}
	}
}

func wantUndone(t *testing.T, drift *activities.Drift, err error) {
	t.Helper()
	if err != nil || drift != nil {
		t.Fatalf("undo: drift %v, error %v", drift, err)
	}
}

func newDaemonSet(pod *corev1.Pod) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}
}
