package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"stanch/deploy/chart"
	"stanch/deploy/image"
	"stanch/sensors/containermeta"
	"stanch/sensors/probe"
	"stanch/testenv/kube"
	"stanch/testenv/prereq"
	"stanch/worker/manifests"
)

const noderightsImage = "stanch.lab/noderights:1"

// rightsLab measures what a sensor can do in a pod with the rights of the chart's sensor, or fewer.
type rightsLab struct {
	*kube.Cluster

	namespace, lockDir string
	victim             *corev1.Pod
	spec               corev1.PodSpec // of the chart's sensor
}

func newRightsLab(t *testing.T) *rightsLab {
	t.Helper()
	prereq.RequireRoot(t)
	lab := &rightsLab{Cluster: kube.Shared(t)}
	mountSharedBPF(t)
	program := filepath.Join(t.TempDir(), "noderights")
	if err := kube.BuildStatic(t.Context(), "stanch/testenv/noderights", program); err != nil {
		t.Fatal(err)
	}
	_, err := lab.ImportImage(t.Context(), kube.ImageSpec{
		Name: noderightsImage, Files: map[string]image.File{"/noderights": {HostPath: program}},
		Entrypoint: []string{"/noderights"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.ImportAttack(t.Context()); err != nil {
		t.Fatal(err)
	}
	lab.namespace = lab.NewNamespace(t)
	lab.lockDir = "/sys/fs/bpf/" + lab.namespace
	t.Cleanup(func() { _ = os.RemoveAll(lab.lockDir) })
	lab.spec = lab.chartSensor(t)
	lab.victim = lab.runVictim(t)
	return lab
}

// chartSensor returns the pod that the chart runs on each node.
func (lab *rightsLab) chartSensor(t *testing.T) corev1.PodSpec {
	t.Helper()
	raw, err := manifests.WriteYAML(manifests.Options{
		Phase: 3, Image: "stanch:1", SensorImage: noderightsImage, TemporalAddress: "a:1", CRISocket: lab.CRISocket,
		LockDir: lab.lockDir, NodeCertDir: lab.Dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096); ; {
		var daemonSet appsv1.DaemonSet
		if err := decoder.Decode(&daemonSet); errors.Is(err, io.EOF) {
			t.Fatal("the manifests have no DaemonSet")
		} else if err != nil {
			t.Fatal(err)
		}
		if daemonSet.Kind == "DaemonSet" {
			return daemonSet.Spec.Template.Spec
		}
	}
}

// runVictim runs a pod that needs every right to be described completely: a process of another user runs a program that
// only it can read and that is not in the image, and another one has more capabilities than the sensor.
func (lab *rightsLab) runVictim(t *testing.T) *corev1.Pod {
	t.Helper()
	user, yes := int64(1000), true
	pod := kube.NewPod("victim", kube.AttackImage, "sh", "-c",
		"umask 077; cp /bin/busybox /tmp/sleep; exec /tmp/sleep 3600")
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
		Name: "root", Image: kube.AttackImage, Command: []string{"sleep", "3600"},
		SecurityContext: &corev1.SecurityContext{Privileged: &yes},
	})
	return lab.RunPod(t, lab.namespace, pod)
}

// measure runs the sensor's functions in a pod with these rights, and returns what failed and why.
func (lab *rightsLab) measure(t *testing.T, change func(*corev1.PodSpec)) map[string]string {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "measured-"}, Spec: *lab.spec.DeepCopy()}
	none := int64(0)
	pod.Spec.RestartPolicy, pod.Spec.TerminationGracePeriodSeconds = corev1.RestartPolicyNever, &none
	pod.Spec.ServiceAccountName, pod.Spec.PriorityClassName = "", ""
	sensor := &pod.Spec.Containers[0]
	sensor.Args = []string{"--pod=" + string(lab.victim.UID), "--cri=" + lab.CRISocket, "--lock-dir=/run/stanch/lock"}
	// A state of its own: this machine may have a sensor's.
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == "state" {
			pod.Spec.Volumes[i].VolumeSource = corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
		}
	}
	change(&pod.Spec)
	lab.removeCgroups(t)
	pods := lab.Client().CoreV1().Pods(lab.namespace)
	pod, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		lab.removeCgroups(t)
		_ = pods.Delete(context.WithoutCancel(t.Context()), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &none})
		if err := probe.Cleanup(lab.lockDir); err != nil {
			t.Error(err)
		}
	}()
	kube.Eventually(t, 60*time.Second, "the measurement", func() error {
		now, err := pods.Get(t.Context(), pod.Name, metav1.GetOptions{})
		if err == nil && now.Status.Phase != corev1.PodSucceeded && now.Status.Phase != corev1.PodFailed {
			err = fmt.Errorf("%s %+v", now.Status.Phase, now.Status.ContainerStatuses)
		}
		return err
	})
	logs, err := lab.Logs(t.Context(), lab.namespace, pod.Name, sensor.Name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(logs) {
		found := map[string]string{}
		if json.Unmarshal([]byte(line), &found) == nil {
			return found
		}
	}
	t.Fatalf("nothing was measured: %s", logs)
	return nil
}

// removeCgroups removes the cgroups that every sensor creates, which an earlier one may have left.
func (lab *rightsLab) removeCgroups(t *testing.T) {
	t.Helper()
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stanch-thawer", "stanch-heartbeat"} {
		_ = os.Remove(filepath.Join(root, name)) // it is empty, or does not exist
	}
}

// removable returns every right of the sensor's pod, with the change that removes it alone.
func (lab *rightsLab) removable(t *testing.T) map[string]func(*corev1.PodSpec) {
	t.Helper()
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]func(*corev1.PodSpec){
		"hostPID":     func(s *corev1.PodSpec) { s.HostPID = false },
		"hostNetwork": func(s *corev1.PodSpec) { s.HostNetwork = false },
		"root":        func(s *corev1.PodSpec) { user := int64(65532); s.Containers[0].SecurityContext.RunAsUser = &user },
	}
	for _, capability := range lab.spec.Containers[0].SecurityContext.Capabilities.Add {
		out["capability "+string(capability)] = func(s *corev1.PodSpec) {
			all := s.Containers[0].SecurityContext.Capabilities
			all.Add = slices.DeleteFunc(all.Add, func(c corev1.Capability) bool { return c == capability })
		}
	}
	for i, mount := range lab.spec.Containers[0].VolumeMounts {
		if mount.Name == "certificate" {
			continue
		}
		out["mount "+mount.Name] = func(s *corev1.PodSpec) {
			all := &s.Containers[0].VolumeMounts
			*all = slices.DeleteFunc(*all, func(m corev1.VolumeMount) bool { return m.Name == mount.Name })
		}
		if !mount.ReadOnly {
			out["write to "+mount.Name] = func(s *corev1.PodSpec) {
				s.Containers[0].VolumeMounts[i].ReadOnly = true
				if mount.Name == "cgroup" && root != mount.MountPath { // next to cgroup v1, v2 is a mount of its own
					addReadOnlyMount(s, root)
				}
			}
		}
	}
	return out
}

func addReadOnlyMount(s *corev1.PodSpec, path string) {
	s.Volumes = append(s.Volumes, corev1.Volume{
		Name: "read-only", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}},
	})
	s.Containers[0].VolumeMounts = append(s.Containers[0].VolumeMounts,
		corev1.VolumeMount{Name: "read-only", MountPath: path, ReadOnly: true})
}

// TestSensorRightsAreNeeded measures the table of docs/permissions.md: with the rights of the chart's sensor everything
// works, and without any one of them the functions fail that files/reasons.yaml names.
func TestSensorRightsAreNeeded(t *testing.T) {
	lab := newRightsLab(t)
	if failed := lab.measure(t, func(*corev1.PodSpec) {}); len(failed) > 0 {
		t.Errorf("with the chart's rights, these fail: %v", failed)
	}
	reasons := loadMeasuredReasons(t)
	for right, remove := range lab.removable(t) {
		t.Run("without "+right, func(t *testing.T) {
			failed := lab.measure(t, remove)
			t.Logf("%s", strings.ReplaceAll(fmt.Sprint(failed), "\n", "; "))
			want, known := reasons[right]
			if !known && !strings.HasPrefix(right, "write to ") {
				t.Errorf("files/reasons.yaml has no measurement of it")
			}
			if !known && len(failed) == 0 {
				t.Errorf("everything works without it: take it away")
			}
			for _, function := range want {
				if failed[function] == "" {
					t.Errorf("%q works without it", function)
				}
			}
		})
	}
}

// loadMeasuredReasons returns which functions fail without a right, by the change that removes it.
func loadMeasuredReasons(t *testing.T) map[string][]string {
	t.Helper()
	raw, err := chart.Files.ReadFile("files/reasons.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file []struct {
		Rights []struct {
			Removes  string   `json:"removes"`
			Measured []string `json:"measured"`
		} `json:"rights"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, entry := range file {
		for _, r := range entry.Rights {
			if r.Removes != "" {
				out[r.Removes] = r.Measured
			}
		}
	}
	return out
}
