package kube_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"stanch/activities/kube"
	lab "stanch/testenv/kube"
)

func TestPodLogs(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", kube.LogsPermissions().PlanRules)
	pod := lab.NewPod("talker", lab.BusyboxImage, "sh", "-c", `
		if [ -e /state/lived ]; then for i in $(seq 100); do echo "life two, line $i"; done; exec sleep 600; fi
		touch /state/lived; echo "life one"; exit 3`)
	pod.Spec.Volumes = []corev1.Volume{{Name: "state"}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "state", MountPath: "/state"}}
	ref := podRef(p.RunPod(t, p.namespace, pod))
	var logs *kube.Logs
	lab.Eventually(t, 30*time.Second, "the second life's lines", func() error {
		got, refusal, err := kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: ref, TailLines: 3})
		requireNoRefusal(t, refusal, err)
		if logs = got; !strings.HasSuffix(string(got.Content), "line 100\n") {
			return fmt.Errorf("%q", got.Content)
		}
		return nil
	})
	if n := strings.Count(string(logs.Content), "\n"); n != 3 || logs.Container != "main" {
		t.Errorf("%d lines of %s, want 3 of main", n, logs.Container)
	}
	logs, refusal, err := kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: ref, PreviousInstance: true})
	requireNoRefusal(t, refusal, err)
	if !strings.Contains(string(logs.Content), "life one") {
		t.Errorf("the life before: %q", logs.Content)
	}
	logs, refusal, err = kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: ref, LimitBytes: 100})
	requireNoRefusal(t, refusal, err)
	if len(logs.Content) != 100 || !logs.Truncated {
		t.Errorf("%d bytes, truncated %v", len(logs.Content), logs.Truncated)
	}
	_, quiet := p.runSleeperPod(t, "quiet")
	logs, refusal, err = kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: quiet, PreviousInstance: true})
	requireNoRefusal(t, refusal, err)
	if logs.AbsentReason == "" {
		t.Errorf("no previous life, and nothing said: %+v", logs)
	}
	gone := quiet
	gone.UID = "another"
	_, refusal, err = kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: gone})
	wantRefusal(t, kube.ReasonNotFound, refusal, err)
}

func TestPodManifest(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", kube.ManifestPermissions().PlanRules)
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
	m, refusal, err := kube.PodManifest(t.Context(), client, ref)
	requireNoRefusal(t, refusal, err)
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
