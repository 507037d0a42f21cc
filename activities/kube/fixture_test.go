package kube_test

import (
	"os"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities/kube"
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

// restrictedClient returns a client with exactly these permissions: a call that needs another one fails the test.
func (p fixture) restrictedClient(t *testing.T, name string, rules []rbacv1.PolicyRule) kubernetes.Interface {
	t.Helper()
	client, err := kube.NewClient(p.ConfigWithRules(t, p.namespace, name, rules...))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// runSleeperPod runs a pod that only sleeps.
func (p fixture) runSleeperPod(t *testing.T, name string) (*corev1.Pod, kube.PodRef) {
	t.Helper()
	pod := p.RunPod(t, p.namespace, lab.NewPod(name, lab.BusyboxImage, "sleep", "600"))
	return pod, kube.PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
}

func newLease(t *testing.T, expires time.Time) kube.Lease {
	return kube.Lease{
		ID: "lab/" + t.Name() + "/network", IncidentID: "INC-01TEST",
		ExpiresAt: expires.Truncate(time.Second),
	}
}

func oneHourFromNow() time.Time { return time.Now().Add(time.Hour) }

// requireNoRefusal fails the test on an error or a refusal.
func requireNoRefusal(t *testing.T, refusal *kube.Refusal, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if refusal != nil {
		t.Fatalf("refused: %s", refusal)
	}
}

func wantRefusal(t *testing.T, want kube.RefusalReason, refusal *kube.Refusal, err error) {
	t.Helper()
	if err != nil || refusal == nil || refusal.Reason != want {
		t.Errorf("refusal %v, error %v; want the reason %s", refusal, err, want)
	}
}

func wantInForce(t *testing.T, v *kube.Verification, refusal *kube.Refusal, err error) {
	t.Helper()
	requireNoRefusal(t, refusal, err)
	if !v.InForce {
		t.Errorf("does not hold: %v", v.Differences)
	}
}

// wantDrift requires differences of exactly these objects and fields, each given by the start of "object: field".
func wantDrift(t *testing.T, drift *kube.Drift, err error, want ...string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if drift == nil {
		t.Fatalf("no drift, want %v", want)
	}
	if len(drift.Differences) != len(want) {
		t.Fatalf("drift %v, want %v", drift.Differences, want)
	}
	for i, d := range drift.Differences {
		if !strings.HasPrefix(d.String(), want[i]) {
			t.Errorf("difference %q, want %q…", d, want[i])
		}
		if d.ChangedBy == "" {
			t.Errorf("difference %q does not say by whom", d)
		}
	}
}

func wantUndone(t *testing.T, drift *kube.Drift, err error) {
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
