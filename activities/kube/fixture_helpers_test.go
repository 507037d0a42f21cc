package kube_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func podRef(pod *corev1.Pod) kube.PodRef {
	return kube.PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
}

// findIsolationOrphans returns the orphans of this test's namespace, because the cluster may be shared.
func (p fixture) findIsolationOrphans(t *testing.T, client kubernetes.Interface, now time.Time) []activities.Orphan {
	t.Helper()
	all, err := kube.FindOrphanedIsolations(t.Context(), client, now)
	if err != nil {
		t.Fatal(err)
	}
	var here []activities.Orphan
	for _, o := range all {
		if strings.Contains(o.ObjectName, p.namespace+"/") && strings.Contains(o.Lease.ID, t.Name()) {
			here = append(here, o)
		}
	}
	return here
}

func (p fixture) patchPolicy(t *testing.T, name, body string) {
	t.Helper()
	if _, err := p.Client().NetworkingV1().NetworkPolicies(p.namespace).Patch(t.Context(), name, types.MergePatchType,
		[]byte(body), metav1.PatchOptions{FieldManager: "someone"}); err != nil {
		t.Fatal(err)
	}
}

func (p fixture) patchPod(t *testing.T, name, body string) {
	t.Helper()
	if _, err := p.Client().CoreV1().Pods(p.namespace).Patch(t.Context(), name, types.MergePatchType, []byte(body),
		metav1.PatchOptions{FieldManager: "someone"}); err != nil {
		t.Fatal(err)
	}
}

func (p fixture) deletePod(t *testing.T, name string) {
	t.Helper()
	now := int64(0)
	api := p.Client().CoreV1().Pods(p.namespace)
	if err := api.Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 20*time.Second, "the pod to go", func() error {
		_, err := api.Get(t.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = apierrors.NewTimeoutError("still there", 0)
		}
		return err
	})
}

// replacePod replaces a pod with another one of the same name.
func (p fixture) replacePod(t *testing.T, name string) {
	t.Helper()
	p.deletePod(t, name)
	p.runSleeperPod(t, name)
}
