package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	kubeactions "stanch/activities/kube"
	"stanch/playbooks"
	"stanch/testenv/kube"
)

func TestPhaseOneProposesAndWritesNothing(t *testing.T) {
	in := install(t, kube.Shared(t), 1, "")
	ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
	pod := in.RunPod(t, ns, minerPod("observed", p))
	in.waitForIncident(t, pod, "the proposal", func(i playbooks.Incident) error {
		s, err := isolationStep(i)
		if err == nil && s.Outcome != playbooks.OutcomeProposed {
			err = fmt.Errorf("pod.isolate %s: %s", s.Outcome, s.Reason)
		}
		if err == nil && len(i.Evidence) == 0 {
			err = errors.New("there is no evidence yet")
		}
		return err
	})
	if p.requireSilent(time.Second) == nil {
		t.Error("the pod's network is held")
	}
	now, err := in.Client().CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if now.Labels[kubeactions.IsolateLabel] != "" {
		t.Error("the pod is labeled")
	}
	policies, err := in.Client().NetworkingV1().NetworkPolicies(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(policies.Items) > 0 {
		t.Errorf("%d policies (%v)", len(policies.Items), err)
	}
}

// The attack starts during a ten-second outage of the API server: nothing crashes, and the pod is isolated in the end.
func TestPodIsIsolatedDespiteAPIServerOutage(t *testing.T) {
	lab := kube.StartForTest(t, kube.Options{}) // a shared one is not ours to stop
	in := install(t, lab, 3, podsOnlyConfig)
	ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
	pod := minerPod("meanwhile", p)
	pod.Spec.Containers[0].Command[2] = "/attack beacon tcp-new " + p.address +
		" >/dev/null & sleep 4; exec /attack mine " + p.address
	pod = in.RunPod(t, ns, pod)

	api := findAPIServer(t, lab)
	if err := api.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	back := time.AfterFunc(10*time.Second, func() { _ = api.Signal(syscall.SIGCONT) })
	defer back.Stop()
	defer func() { _ = api.Signal(syscall.SIGCONT) }()
	stopped := time.Now()
	in.waitForIncident(t, pod, "the incident", func(playbooks.Incident) error { return nil })
	t.Logf("the incident was there %s after the API server went", time.Since(stopped).Round(time.Millisecond))
	i := in.waitForIncident(t, pod, "the lease", requireIsolated)
	for _, l := range i.Leases {
		t.Logf("%s %s, in force %s after the API server went: %s", l.Action, l.Outcome,
			l.AppliedAt.Sub(stopped).Round(time.Millisecond), l.Reason)
	}
	if err := p.requireSilent(time.Second); err != nil {
		t.Error(err)
	}
	pods, err := in.Client().CoreV1().Pods(in.namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range pods.Items {
		if n := x.Status.ContainerStatuses[0].RestartCount; n > 0 {
			t.Errorf("%s restarted %d times", x.Name, n)
		}
	}
	in.runStanch(t, "release", "--all", "--data", in.data)
}

// findAPIServer finds the process of the lab's API server.
func findAPIServer(t *testing.T, lab *kube.Cluster) *os.Process {
	t.Helper()
	raw, err := os.ReadFile(lab.StateFile())
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Parts []struct {
			PID  int    `json:"pid"`
			Name string `json:"name"`
		} `json:"parts"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		t.Fatal(err)
	}
	for _, part := range state.Parts {
		if part.Name == "kube-apiserver" {
			p, err := os.FindProcess(part.PID)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	t.Fatal("the lab has no API server")
	return nil
}
