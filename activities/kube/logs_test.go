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
	client := p.restrictedClient(t, "stanch", actionSpec(t, "pod.logs").PlanPermissions)
	pod := lab.NewPod("talker", lab.BusyboxImage, "sh", "-c", `
		if [ -e /state/lived ]; then for i in $(seq 100); do echo "life two, line $i"; done; exec sleep 600; fi
		touch /state/lived; echo "life one"; exit 3`)
	pod.Spec.Volumes = []corev1.Volume{{Name: "state"}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "state", MountPath: "/state"}}
	ref := podRef(p.RunPod(t, p.namespace, pod))
	var logs *kube.Logs
	lab.Eventually(t, 30*time.Second, "the second life's lines", func() error {
		got, err := kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: ref, TailLines: 3})
		requireNoError(t, err)
		if logs = got; !strings.HasSuffix(string(got.Content), "line 100\n") {
			return fmt.Errorf("%q", got.Content)
		}
		return nil
	})
	if n := strings.Count(string(logs.Content), "\n"); n != 3 || logs.Container != "main" {
		t.Errorf("%d lines of %s, want 3 of main", n, logs.Container)
	}
	logs, err := kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: ref, PreviousInstance: true})
	requireNoError(t, err)
	if !strings.Contains(string(logs.Content), "life one") {
		t.Errorf("the life before: %q", logs.Content)
	}
	logs, err = kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: ref, LimitBytes: 100})
	requireNoError(t, err)
	if len(logs.Content) != 100 || !logs.Truncated {
		t.Errorf("%d bytes, truncated %v", len(logs.Content), logs.Truncated)
	}
	_, quiet := p.runSleeperPod(t, "quiet")
	logs, err = kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: quiet, PreviousInstance: true})
	requireNoError(t, err)
	if logs.AbsentReason == "" {
		t.Errorf("no previous life, and nothing said: %+v", logs)
	}
	gone := quiet
	gone.UID = "another"
	_, err = kube.PodLogs(t.Context(), client, kube.LogsRequest{Pod: gone})
	wantGone(t, err)
}
