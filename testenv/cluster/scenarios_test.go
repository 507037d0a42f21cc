package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	kubeactions "stanch/activities/kube"
	"stanch/playbooks"
	"stanch/testenv/kube"
)

// connectionCounter counts the connections that arrive from pods.
type connectionCounter struct {
	address     string
	connections atomic.Uint64
}

func (in *installation) newConnectionCounter(t *testing.T) *connectionCounter {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(in.NodeIP, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	p := &connectionCounter{address: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.connections.Add(1)
			_ = c.Close()
		}
	}()
	return p
}

// requireSilent tells whether nothing arrives for so long; what was on its way gets a moment first.
func (p *connectionCounter) requireSilent(d time.Duration) error {
	time.Sleep(300 * time.Millisecond)
	before := p.connections.Load()
	time.Sleep(d) // silence is only seen by waiting
	if n := p.connections.Load() - before; n > 0 {
		return fmt.Errorf("%d connections arrived in %s", n, d)
	}
	return nil
}

// minerPod is a pod that becomes a miner, and opens a new connection to the peer all the time.
func minerPod(name string, p *connectionCounter) *corev1.Pod {
	pod := kube.NewPod(name, kube.AttackImage, "sh", "-c", "/attack beacon tcp-new "+p.address+
		" >/dev/null & exec /attack mine "+p.address)
	no := false
	pod.Spec.AutomountServiceAccountToken = &no
	return pod
}

// waitForIncident waits until the newest incident about a pod is as wanted.
func (in *installation) waitForIncident(t *testing.T, pod *corev1.Pod, what string,
	ok func(playbooks.Incident) error,
) playbooks.Incident {
	t.Helper()
	var found playbooks.Incident
	kube.Eventually(t, 45*time.Second, what, func() error {
		raw, err := in.tryStanch(t.Context(), in.reach("incidents", "-o", "json")...)
		if err != nil {
			return err
		}
		var list []playbooks.Incident
		if err := json.Unmarshal(raw, &list); err != nil {
			return err
		}
		for _, i := range list {
			if slices.ContainsFunc(i.Targets, func(x playbooks.Target) bool { return x.UID == string(pod.UID) }) {
				found = i
				return ok(i)
			}
		}
		return fmt.Errorf("none of %d incidents is about pod %s", len(list), pod.Name)
	})
	return found
}

// requireIsolated wants the pod's network held and observed to be.
func requireIsolated(i playbooks.Incident) error {
	for _, l := range i.Leases {
		if l.Facet == string(playbooks.FacetNetwork) && l.State == "held" && l.Verified {
			return nil
		}
	}
	return fmt.Errorf("leases %+v", i.Leases)
}

func isolationStep(i playbooks.Incident) (playbooks.StepReport, error) {
	for _, run := range i.Playbooks {
		for _, s := range run.Steps {
			if s.Action == "pod.isolate" {
				return s, nil
			}
		}
	}
	return playbooks.StepReport{}, errors.New("pod.isolate has not come yet")
}

func requireRefused(word string) func(playbooks.Incident) error {
	return func(i playbooks.Incident) error {
		s, err := isolationStep(i)
		if err == nil && (s.Outcome != playbooks.OutcomeRefused || !strings.Contains(s.Reason, word)) {
			err = fmt.Errorf("pod.isolate %s: %s", s.Outcome, s.Reason)
		}
		return err
	}
}

func testScenarios(t *testing.T, in *installation) {
	t.Run("a pod on the host network is refused, and the node stays connected", func(t *testing.T) {
		ns, p, other := in.NewNamespace(t), in.newConnectionCounter(t), in.newConnectionCounter(t)
		neighbor, pod := kube.NewPod("neighbor", kube.AttackImage, "/attack", "beacon", "tcp-new", other.address),
			minerPod("host", p)
		neighbor.Spec.HostNetwork, pod.Spec.HostNetwork = true, true
		in.RunPod(t, ns, neighbor)
		pod = in.RunPod(t, ns, pod)
		in.waitForIncident(t, pod, "the refusal", requireRefused("host network"))
		if other.requireSilent(time.Second) == nil {
			t.Error("the node's network is cut")
		}
		in.runStanch(t, "release", "--all", "--data", in.data) // the playbook froze the pod instead
	})

	t.Run("a pod that is gone before its containment is refused as gone", func(t *testing.T) {
		ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
		pod, now := in.RunPod(t, ns, kube.NewPod("gone", kube.AttackImage, "/attack", "wait")), int64(0)
		in.runStanch(t, "pause", "--data", in.data) // nothing is contained while the pod goes away
		defer in.runStanch(t, "resume", "--data", in.data)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = in.Exec(ctx, ns, pod.Name, "main", "/attack", "mine", p.address) }()
		in.waitForIncident(t, pod, "the incident", func(playbooks.Incident) error { return nil })
		if err := in.Client().CoreV1().Pods(ns).Delete(t.Context(), pod.Name,
			metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		in.waitForIncident(t, pod, "an answer, and no lease", func(i playbooks.Incident) error {
			s, err := isolationStep(i)
			if err == nil && (s.Outcome != playbooks.OutcomeRefused || len(i.Leases) > 0 && requireIsolated(i) == nil) {
				err = fmt.Errorf("pod.isolate %s: %s", s.Outcome, s.Reason)
			}
			return err
		})
	})

	t.Run("what restarts in a locked pod and what joins it stays locked", func(t *testing.T) {
		ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
		pod := in.RunPod(t, ns, minerPod("restarts", p))
		in.waitForIncident(t, pod, "the lease", requireIsolated)
		if err := p.requireSilent(time.Second); err != nil {
			t.Fatalf("locked: %v", err)
		}
		// The container's end may take the command with it, which is then killed (137): the restart is what counts.
		if _, err := in.Exec(t.Context(), ns, pod.Name, "main", "kill", "1"); err != nil && !strings.Contains(err.Error(),
			"exit code 137") {
			t.Fatal(err)
		}
		kube.Eventually(t, 30*time.Second, "the container's restart", func() error {
			now, err := in.Client().CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
			if err == nil && (now.Status.ContainerStatuses[0].RestartCount == 0 || !kube.IsPodReady(now)) {
				err = fmt.Errorf("%+v", now.Status.ContainerStatuses[0])
			}
			return err
		})
		if err := p.requireSilent(time.Second); err != nil {
			t.Errorf("restarted: %v", err)
		}
		now, err := in.Client().CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		now.Spec.EphemeralContainers = append(now.Spec.EphemeralContainers,
			corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
				Name: "joins", Image: kube.AttackImage, Command: []string{"/attack", "beacon", "tcp-new", p.address},
			}})
		if _, err := in.Client().CoreV1().Pods(ns).UpdateEphemeralContainers(t.Context(), pod.Name, now,
			metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		kube.Eventually(t, 30*time.Second, "the joining container to run", func() error {
			now, err := in.Client().CoreV1().Pods(ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
			if err == nil && (len(now.Status.EphemeralContainerStatuses) == 0 ||
				now.Status.EphemeralContainerStatuses[0].State.Running == nil) {
				err = fmt.Errorf("%+v", now.Status.EphemeralContainerStatuses)
			}
			return err
		})
		if err := p.requireSilent(time.Second); err != nil {
			t.Errorf("joined: %v", err)
		}
		in.runStanch(t, "release", "--all", "--data", in.data)
		kube.Eventually(t, 60*time.Second, "the network to be back", func() error {
			if p.requireSilent(200*time.Millisecond) == nil {
				return errors.New("silence")
			}
			return nil
		})
	})

	t.Run("a user's policy that allows what ours denies is named", func(t *testing.T) {
		ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
		_, err := in.Client().NetworkingV1().NetworkPolicies(ns).Create(t.Context(), &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: "let-everything-out"},
			Spec: networkingv1.NetworkPolicySpec{
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
				Egress:      []networkingv1.NetworkPolicyEgressRule{{}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod := in.RunPod(t, ns, minerPod("defeated", p))
		i := in.waitForIncident(t, pod, "the lease", requireIsolated)
		if raw, _ := json.Marshal(i); !strings.Contains(string(raw), "let-everything-out") {
			t.Errorf("the policy is not named: leases %+v", i.Leases)
		}
		if err := p.requireSilent(time.Second); err != nil {
			t.Errorf("the node's lock holds all the same: %v", err)
		}
		in.runStanch(t, "release", "--all", "--data", in.data)
	})

	t.Run("what another writer removes is reapplied and reported", func(t *testing.T) {
		ns, p := in.NewNamespace(t), in.newConnectionCounter(t)
		pod := in.RunPod(t, ns, minerPod("fought", p))
		in.waitForIncident(t, pod, "the lease", requireIsolated)
		for round := range 3 {
			in.removeAndWaitForRepair(t, ns, pod.Name, round)
		}
		in.waitForIncident(t, pod, "the lease to say that another writer reverts it", func(i playbooks.Incident) error {
			for _, l := range i.Leases {
				if strings.Contains(l.Reason, "keeps reverting it") {
					return nil
				}
			}
			return fmt.Errorf("leases %+v", i.Leases)
		})
		in.runStanch(t, "release", "--all", "--data", in.data)
	})
}

// removeAndWaitForRepair removes the policy, or the pod's label, and waits until it is back.
func (in *installation) removeAndWaitForRepair(t *testing.T, ns, pod string, round int) {
	t.Helper()
	policies := in.Client().NetworkingV1().NetworkPolicies(ns)
	ours := metav1.ListOptions{LabelSelector: kubeactions.ManagedByLabel + "=" + kubeactions.ManagedBy}
	var err error
	if round == 1 {
		_, err = in.Client().CoreV1().Pods(ns).Patch(t.Context(), pod, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"`+kubeactions.IsolateLabel+`":null}}}`), metav1.PatchOptions{})
	} else {
		err = policies.DeleteCollection(t.Context(), metav1.DeleteOptions{}, ours)
	}
	if err != nil {
		t.Fatal(err)
	}
	kube.Eventually(t, 20*time.Second, fmt.Sprintf("the isolation to be put back (round %d)", round), func() error {
		list, err := policies.List(t.Context(), ours)
		if err != nil {
			return err
		}
		now, err := in.Client().CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
		if err == nil && (len(list.Items) != 1 || now.Labels[kubeactions.IsolateLabel] == "") {
			err = fmt.Errorf("%d policies, the label is %q", len(list.Items), now.Labels[kubeactions.IsolateLabel])
		}
		return err
	})
}
