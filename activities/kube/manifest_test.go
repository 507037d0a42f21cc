package kube_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestPodManifest(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", actionSpec(t, "pod.manifest").PlanPermissions)
	pod := lab.NewPod("keeper", lab.BusyboxImage, "sh", "-c", "exec sleep 600", "--password", "hunter2-a",
		"--api-key=hunter2-b", "postgres://u:hunter2-c@db/x")
	pod.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: `{"env":"hunter2-d"}`, "team": "shop"}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: "DB_PASSWORD", Value: "hunter2-e"},
		{Name: "DATABASE", Value: "mysql://shop:hunter2-f@db"},
		{Name: "LOG_LEVEL", Value: "debug"},
		{Name: "AUTHOR", Value: "someone"},
	}
	ref := podRef(p.RunPod(t, p.namespace, pod))
	m, err := kube.PodManifest(t.Context(), client, ref)
	requireNoError(t, err)
	text := string(m.YAML)
	if strings.Contains(text, "hunter2") || strings.Contains(text, "managedFields") {
		t.Errorf("secrets or managed fields in:\n%s", text)
	}
	for _, want := range []string{
		"kind: Pod", "name: DB_PASSWORD", "value: debug", "value: someone", "team: shop",
		"nodeName: ", "imageID: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if len(m.RedactedFields) != 6 {
		t.Errorf("redacted %q", m.RedactedFields)
	}
}
