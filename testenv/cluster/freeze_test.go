package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/playbooks"
	"stanch/sensors/containermeta"
	"stanch/sensors/snapshot"
	"stanch/testenv/kube"
	"stanch/worker/manifests"
)

func TestFreezeEndsOnTimeAfterSensorAndWorkerAreDeleted(t *testing.T) {
	in := install(t, kube.Shared(t), 3, podsOnlyConfig)
	ns := in.NewNamespace(t)
	// A pod on the node's network cannot be isolated: the shipped playbooks freeze it instead, for a minute.
	victim := kube.NewPod("victim", kube.AttackImage, "sleep", "600")
	victim.Spec.HostNetwork = true
	pod := in.RunPod(t, ns, victim)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	go func() { // it returns late: what it runs is frozen
		_, _ = in.Exec(ctx, ns, pod.Name, "main", "sh", "-c", "cp /bin/busybox /tmp/debugfs && /tmp/debugfs; sleep 600")
	}()
	lease := in.waitForFreeze(t, pod)
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	hold, ok, err := snapshot.NewFreezer(root, slog.Default()).FreezeOfLease(lease.ID)
	if err != nil || !ok {
		t.Fatalf("no cgroup is frozen for lease %s: %v", lease.ID, err)
	}
	sensor := sensorPIDOfCgroup(t, hold.CgroupDir)
	t.Logf("sensor %d; %s to the end", sensor, time.Until(lease.ExpiresAt).Round(time.Millisecond))

	now := int64(0)
	for what, err := range map[string]error{
		"the sensor": in.Client().AppsV1().DaemonSets(in.namespace).Delete(t.Context(), manifests.SensorName,
			metav1.DeleteOptions{}),
		"the worker": in.Client().AppsV1().Deployments(in.namespace).Delete(t.Context(), manifests.WorkerName,
			metav1.DeleteOptions{}),
		"the pods": in.Client().CoreV1().Pods(in.namespace).DeleteCollection(t.Context(),
			metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}),
	} {
		if err != nil {
			t.Fatalf("delete %s: %v", what, err)
		}
	}
	kube.Eventually(t, 15*time.Second, "the pods and the sensor to be gone", func() error {
		pods, err := in.Client().CoreV1().Pods(in.namespace).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d pods are left", len(pods.Items))
		}
		if _, gone := os.Stat(fmt.Sprintf("/proc/%d", sensor)); err == nil && gone == nil {
			err = errors.New("the sensor's process is left")
		}
		return err
	})
	if state, err := snapshot.ReadFreezeState(hold.CgroupDir); err != nil || !state.Frozen ||
		!time.Now().Before(lease.ExpiresAt) {
		t.Fatalf("the freeze ended with the sensor, %s before its end: %+v, %v", time.Until(lease.ExpiresAt), state, err)
	}
	kube.Eventually(t, 90*time.Second, "the pod to thaw", func() error {
		if state, err := snapshot.ReadFreezeState(hold.CgroupDir); err != nil || state.Frozen || state.Requested {
			return fmt.Errorf("%+v, %w", state, err)
		}
		return nil
	})
	if late := time.Since(lease.ExpiresAt); late < -time.Second || late > 2*time.Second {
		t.Errorf("it thaws %s after its end", late)
	}
}

// waitForFreeze waits until a pod is frozen, whichever incident did it.
func (in *installation) waitForFreeze(t *testing.T, pod *corev1.Pod) (lease playbooks.LeaseReport) {
	t.Helper()
	kube.Eventually(t, 60*time.Second, "the freeze", func() error {
		raw, err := in.tryStanch(t.Context(), "incidents", "--data", in.data, "-o", "json")
		if err != nil {
			return err
		}
		var list []playbooks.Incident
		if err := json.Unmarshal(raw, &list); err != nil {
			return err
		}
		var seen []playbooks.LeaseReport
		for _, i := range list {
			for _, l := range i.Leases {
				if l.Action == "pod.freeze" && l.Target == "pod:"+string(pod.UID) && l.State == "held" && l.Verified {
					lease = l
					return nil
				}
			}
			seen = append(seen, i.Leases...)
		}
		return fmt.Errorf("%d incidents, leases %+v", len(list), seen)
	})
	return lease
}

// sensorPIDOfCgroup finds the sensor that froze a cgroup: it started the process that thaws.
func sensorPIDOfCgroup(t *testing.T, cgroup string) int {
	t.Helper()
	b := make([]byte, 1024)
	n, err := unix.Getxattr(cgroup, "trusted.stanch.freeze", b)
	if err != nil {
		t.Fatal(err)
	}
	var mark struct {
		PID int `json:"thawer_pid"`
	}
	if err := json.Unmarshal(b[:n], &mark); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"status", "cgroup"} {
		raw, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(mark.PID), name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "cgroup" {
			t.Logf("the thawer's cgroups: %s", strings.ReplaceAll(string(raw), "\n", " "))
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if strings.HasPrefix(line, "PPid:") {
				_, _ = fmt.Sscanf(line, "PPid: %d", &n)
			}
			if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
				t.Logf("thawer: %s", strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return n
}
