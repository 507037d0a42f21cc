package cluster

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/playbooks"
	"stanch/testenv/kube"
	"stanch/worker/api"
	"stanch/worker/manifests"
)

// A pod runs a program that is not in its image: the shipped playbook isolates the pod, requests approval, and restarts
// it.
func TestApprovedRestartRemovesDroppedProgram(t *testing.T) {
	in := install(t, kube.Shared(t), 3, `phase: 3
idle_timeout: 5m
scopes:
  - { name: hosts, namespaces: [""], phase: 1 }
  - { name: all, namespaces: ["*"], phase: 3, confidence: 0.65 }
people:
  - { name: ann, kubernetes: "system:serviceaccount:NAMESPACE:ann", groups: [responders] }
`)
	ns := in.NewNamespace(t)
	three := int32(3) // one of them is within the budget's share
	template := kube.NewPod("web", kube.AttackImage, "sleep", "600")
	if _, err := in.Client().AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ready := func() (names []string, first *corev1.Pod) {
		kube.Eventually(t, 60*time.Second, "three ready pods", func() error {
			pods, err := in.Client().CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			names, first = nil, nil
			for i := range pods.Items {
				if p := &pods.Items[i]; kube.IsPodReady(p) && p.DeletionTimestamp == nil {
					names, first = append(names, p.Name), p
				}
			}
			if len(names) != 3 {
				return fmt.Errorf("%d are ready", len(names))
			}
			return nil
		})
		return names, first
	}
	before, pod := ready()
	if _, err := in.Exec(t.Context(), ns, pod.Name, "main", "sh", "-c",
		"cp /bin/busybox /tmp/sleep && /tmp/sleep 1"); err != nil {
		t.Fatal(err)
	}
	in.waitForIncident(t, pod, "an open question", func(i playbooks.Incident) error {
		raw, err := in.tryStanch(t.Context(), "incidents", i.ID, "--data", in.data)
		if err == nil && !strings.Contains(string(raw), "restart the pod from its image") {
			err = fmt.Errorf("nothing is asked: %s", raw)
		}
		return err
	})
	held := in.waitForIncident(t, pod, "the lease", requireIsolated)
	in.runStanch(t, "approve", held.ID, "--server", fmt.Sprintf("%s:%d", in.NodeIP, manifests.APIPort),
		"--token-file", in.createPersonToken(t, "ann", api.TokenAudience), "--server-ca", filepath.Join(in.dir, "secrets",
			"pki", "ca.crt"))
	in.waitForIncident(t, pod, "the restart", func(i playbooks.Incident) error {
		for _, run := range i.Playbooks {
			for _, s := range run.Steps {
				if s.Action == "pod.restart" && s.Outcome == playbooks.OutcomeChanged {
					return nil
				} else if s.Action == "pod.restart" {
					return fmt.Errorf("pod.restart %s: %s", s.Outcome, s.Reason)
				}
			}
		}
		return errors.New("pod.restart has not come yet")
	})
	after, _ := ready()
	if slices.Contains(after, pod.Name) {
		t.Error("the pod is still there")
	}
	for _, name := range before {
		if name != pod.Name && !slices.Contains(after, name) {
			t.Errorf("its sibling %s is gone too", name)
		}
	}
}
