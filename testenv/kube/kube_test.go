package kube_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	lab "stanch/testenv/kube"
)

// TestMain lets this binary be the process that starts a lab and is killed.
func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_CHILD") == "1" {
		c, err := lab.Start(context.Background(), lab.Options{})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("state:", c.StateFile())
		select {}
	}
	os.Exit(m.Run())
}

func TestLabRunsWorkloadsAndCleansUp(t *testing.T) {
	var state lab.State
	t.Run("lab", func(t *testing.T) {
		c := lab.StartForTest(t, lab.Options{})
		state = c.State
		if _, err := c.ImportAttack(t.Context()); err != nil {
			t.Fatal(err)
		}
		namespace := c.NewNamespace(t)
		t.Run("a deployment with probes", func(t *testing.T) { testDeploymentWithProbes(t, c, namespace) })
		t.Run("pods reach the API server", func(t *testing.T) { testPodsReachAPIServer(t, c, namespace) })
		t.Run("privileged pods see the node", func(t *testing.T) { testPrivilegedPods(t, c, namespace) })
		t.Run("rights are enforced", func(t *testing.T) { testRBACIsEnforced(t, c, namespace) })
		t.Run("a pod reports its image's digest", func(t *testing.T) {
			pod := c.RunPod(t, namespace, lab.NewPod("digest", lab.BusyboxImage, "sleep", "600"))
			if id := pod.Status.ContainerStatuses[0].ImageID; !strings.HasPrefix(id, "stanch.lab/busybox@sha256:") {
				t.Errorf("image id %q", id)
			}
		})
	})
	if state.ID == "" {
		return
	}
	requireNoLeftovers(t, state)
	// A sweep that was slow must not hit the lab that has the number now.
	next := lab.StartForTest(t, lab.Options{})
	if next.ID != state.ID {
		t.Logf("another lab took the number %s meanwhile", state.ID)
		return
	}
	if err := (&lab.Cluster{State: state}).Stop(); err != nil {
		t.Error(err)
	}
	if _, err := next.Client().CoreV1().Nodes().Get(t.Context(), next.NodeName, metav1.GetOptions{}); err != nil {
		t.Errorf("the next lab was hit: %v", err)
	}
	if _, err := net.InterfaceByName(next.Bridge); err != nil {
		t.Errorf("the next lab was hit: %v", err)
	}
}

func testDeploymentWithProbes(t *testing.T, c *lab.Cluster, namespace string) {
	ctx, two := t.Context(), int32(2)
	pod := lab.NewPod("shop", lab.AttackImage, "/attack", "serve", ":8080")
	probe := &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}},
		PeriodSeconds: 1, FailureThreshold: 3,
	}
	pod.Spec.Containers[0].LivenessProbe, pod.Spec.Containers[0].ReadinessProbe = probe, probe
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "shop"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
		},
	}
	deployment.Spec.Template.Spec.TerminationGracePeriodSeconds = nil
	if _, err := c.Client().AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 60*time.Second, "two ready replicas", func() error {
		d, err := c.Client().AppsV1().Deployments(namespace).Get(ctx, "shop", metav1.GetOptions{})
		if err == nil && d.Status.ReadyReplicas != 2 {
			err = fmt.Errorf("%d ready", d.Status.ReadyReplicas)
		}
		return err
	})
	pods, err := c.Client().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=shop"})
	if err != nil || len(pods.Items) != 2 {
		t.Fatalf("pods: %v, %v", pods, err)
	}
	name := pods.Items[0].Name
	if logs, err := c.Logs(ctx, namespace, name, "main"); err != nil || !strings.Contains(logs, "serving :8080") {
		t.Errorf("logs %q, %v", logs, err)
	}
	other := "http://" + pods.Items[1].Status.PodIP + ":8080/"
	if out, err := c.Exec(ctx, namespace, name, "main", "wget", "-qO-", other); err != nil || out != "ok\n" {
		t.Errorf("the sibling answers %q, %v", out, err)
	}
	testFailedProbeRestartsPod(t, c, namespace)
}

// testFailedProbeRestartsPod runs a pod whose probe fails and sees the kubelet restart it.
func testFailedProbeRestartsPod(t *testing.T, c *lab.Cluster, namespace string) {
	pod := lab.NewPod("unwell", lab.AttackImage, "/attack", "wait")
	pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}},
		PeriodSeconds: 1, FailureThreshold: 1,
	}
	c.RunPod(t, namespace, pod)
	lab.Eventually(t, 30*time.Second, "the kubelet to restart what fails its probe", func() error {
		now, err := c.Client().CoreV1().Pods(namespace).Get(t.Context(), "unwell", metav1.GetOptions{})
		if err == nil && now.Status.ContainerStatuses[0].RestartCount == 0 {
			err = fmt.Errorf("restarts: 0")
		}
		return err
	})
}

func testPodsReachAPIServer(t *testing.T, c *lab.Cluster, namespace string) {
	for _, host := range []bool{false, true} {
		pod := lab.NewPod(fmt.Sprintf("caller-%v", host), lab.AttackImage, "sh", "-c",
			"/attack token && exec /attack connect $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT")
		pod.Spec.HostNetwork = host
		c.RunPod(t, namespace, pod)
		lab.Eventually(t, 20*time.Second, "the pod to connect", func() error {
			logs, err := c.Logs(t.Context(), namespace, pod.Name, "main")
			if err == nil && (!strings.Contains(logs, "connected to 10.232.") ||
				!strings.Contains(logs, "bytes of /var/run/secrets")) {
				err = fmt.Errorf("logs %q", logs)
			}
			return err
		})
		callAPIServerAsPod(t, c, namespace, pod.Name)
	}
}

func testRBACIsEnforced(t *testing.T, c *lab.Cluster, namespace string) {
	config := c.ConfigWithRules(t, namespace, "reader", rbacv1.PolicyRule{
		APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"},
	})
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("what is granted: %v", err)
	}
	if _, err := client.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("what is not granted: %v", err)
	}
}

func TestLabOfKilledStarterIsRemoved(t *testing.T) {
	if lacking := lab.MissingPrograms(); len(lacking) > 0 {
		t.Skip("SKIPPED: told by the other test")
	}
	if _, err := lab.Binary(); err != nil {
		t.Skip("SKIPPED: told by the other test")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self, "-test.run=^$")
	child.Env = append(os.Environ(), "LAB_TEST_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	path, ok := strings.CutPrefix(strings.TrimSpace(line), "state: ")
	if !ok {
		t.Fatalf("the child said %q, %v", line, err)
	}
	c, err := lab.Attach(path)
	if err != nil {
		t.Fatal(err)
	}
	namespace := c.NewNamespace(t)
	c.RunPod(t, namespace, lab.NewPod("orphan", lab.BusyboxImage, "sleep", "600"))

	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if err := lab.StopOrphanedLabs(); err != nil {
		t.Fatal(err)
	}
	requireNoLeftovers(t, c.State)
}

// requireNoLeftovers looks for everything that a lab makes.
func requireNoLeftovers(t *testing.T, s lab.State) {
	t.Helper()
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory %s is left: %v", s.Dir, err)
	}
	if _, err := os.Stat(s.StateFile()); !os.IsNotExist(err) {
		t.Errorf("the state file is left: %v", err)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), s.Dir) {
		t.Error("mounts are left")
	}
	if _, err := net.InterfaceByName(s.Bridge); err == nil {
		t.Error("the bridge is left")
	}
	for _, pattern := range []string{"/sys/fs/cgroup" + s.CgroupRoot, "/sys/fs/cgroup/*" + s.CgroupRoot} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if args, _ := os.ReadFile(p); strings.Contains(string(args), s.Dir) {
			t.Errorf("a process is left: %s %q", p, args)
		}
	}
	for pattern, what := range map[string]string{
		"/var/lib/cni/results/" + s.NodeName + "-*": "results of CNI",
	} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("%s are left: %v", what, left)
		}
	}
	links, _ := filepath.Glob("/var/log/containers/*") // another lab's may be there
	for _, link := range links {
		if target, _ := os.Readlink(link); strings.HasPrefix(target, s.Dir) {
			t.Errorf("a link to a log is left: %s", link)
		}
	}
	if rules, err := exec.Command("/usr/sbin/iptables-save").Output(); err == nil && strings.Contains(string(rules),
		s.NodeName) {
		t.Error("iptables rules are left")
	}
}

// testPrivilegedPods: the node agent runs as such a pod, and sees the node.
func testPrivilegedPods(t *testing.T, c *lab.Cluster, namespace string) {
	pod := lab.NewPod("agent", lab.BusyboxImage, "sleep", "600")
	yes := true
	pod.Spec.HostPID, pod.Spec.HostNetwork = true, true
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	for name, path := range map[string]string{
		"bpf": "/sys/fs/bpf", "cgroup": "/sys/fs/cgroup",
		"runtime": filepath.Dir(c.CRISocket),
	} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: name, VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}},
		})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{
			Name:      name,
			MountPath: path,
		})
	}
	c.RunPod(t, namespace, pod)
	for _, check := range []string{
		"test -S " + c.CRISocket, "test -r /sys/kernel/btf/vmlinux", "mount | grep -q /sys/fs/cgroup",
		"test -d /proc/" + fmt.Sprint(os.Getpid()),
	} {
		if out, err := c.Exec(t.Context(), namespace, "agent", "main", "sh", "-c", check); err != nil {
			t.Errorf("%s: %v %s", check, err, out)
		}
	}
	found, err := filepath.Glob("/sys/fs/cgroup/*" + c.CgroupRoot + "/kubepods")
	pure, _ := filepath.Glob("/sys/fs/cgroup" + c.CgroupRoot + "/kubepods")
	if err != nil || len(found)+len(pure) == 0 {
		t.Errorf("no kubepods below %s: %v", c.CgroupRoot, err)
	}
}

// callAPIServerAsPod calls the API server with what lies in the pod, as an in-cluster client does.
func callAPIServerAsPod(t *testing.T, c *lab.Cluster, namespace, pod string) {
	read := func(command string) string {
		out, err := c.Exec(t.Context(), namespace, pod, "main", "sh", "-c", command)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	const dir = "/var/run/secrets/kubernetes.io/serviceaccount/"
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host:            "https://" + strings.TrimSpace(read("echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT")),
		BearerToken:     read("cat " + dir + "token"),
		TLSClientConfig: rest.TLSClientConfig{CAData: []byte(read("cat " + dir + "ca.crt"))},
	})
	if err != nil {
		t.Fatal(err)
	}
	who, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{},
		metav1.CreateOptions{})
	if err != nil || who.Status.UserInfo.Username != "system:serviceaccount:"+namespace+":default" {
		t.Errorf("the API server sees %v, %v", who, err)
	}
}
