package cluster

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	networkingclient "k8s.io/client-go/kubernetes/typed/networking/v1"

	kubeactions "stanch/activities/kube"
	"stanch/testenv/kube"
	"stanch/worker/manifests"
)

// testWorkerWrites uses the worker's token as a thief would: RBAC permits to patch pods, nodes and workloads, and the
// API server's rules leave only what the actions change.
func testWorkerWrites(t *testing.T, in *installation) {
	w := newWorkerThief(t, in)
	for what, err := range map[string]error{
		"run another image in a pod":  w.patchPod(t, `{"spec":{"containers":[{"name":"main","image":"evil:1"}]}}`),
		"add a pod to a Service":      w.patchPod(t, `{"metadata":{"labels":{"app":"bank"}}}`),
		"remove a label":              w.patchPod(t, `{"metadata":{"labels":{"app":null}}}`),
		"add a foreign annotation":    w.patchPod(t, `{"metadata":{"annotations":{"evil.example/stanch.dev":"x"}}}`),
		"keep a pod from its end":     w.patchPod(t, `{"metadata":{"finalizers":["stanch.dev/x"]}}`),
		"taint a node":                w.patchNode(t, `{"spec":{"taints":[{"key":"x","effect":"NoExecute"}]}}`),
		"label a node":                w.patchNode(t, `{"metadata":{"labels":{"pool":"secure"}}}`),
		"change a workload":           w.patchDeployment(t, `{"spec":{"template":{"spec":{"hostPID":true}}}}`),
		"create a policy of its own":  w.createPolicy(t, nil),
		"delete a policy of the user": w.policies.Delete(t.Context(), w.policy.Name, metav1.DeleteOptions{}),
		"take over a policy":          w.takeOverPolicy(t),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("the worker's token can %s: %v", what, err)
		}
	}
	const lease = `"annotations":{"network.stanch.dev/lease":`
	for what, err := range map[string]error{
		"mark a pod":      w.patchPod(t, `{"metadata":{"labels":{"stanch.dev/isolate":"x"},`+lease+`"x"}}}`),
		"unmark a pod":    w.patchPod(t, `{"metadata":{"labels":{"stanch.dev/isolate":null},`+lease+`null}}}`),
		"cordon a node":   w.patchNode(t, `{"metadata":{"labels":{"stanch.dev/cordon":"x"}},"spec":{"unschedulable":true}}`),
		"mark a workload": w.patchDeployment(t, `{"metadata":{"annotations":{"replicas.stanch.dev/lease":"x"}}}`),
		"isolate a pod":   w.createPolicy(t, ownPolicyLabels()),
	} {
		if err != nil {
			t.Errorf("the worker cannot %s: %v", what, err)
		}
	}
}

// workerThief has the worker's token, and a namespace with a pod, a workload and a policy of a user.
type workerThief struct {
	kubernetes.Interface

	pod      *corev1.Pod
	policy   *networkingv1.NetworkPolicy
	policies networkingclient.NetworkPolicyInterface
	node     string
}

func newWorkerThief(t *testing.T, in *installation) *workerThief {
	t.Helper()
	ns, none := in.NewNamespace(t), int32(0)
	template := kube.NewPod("web", kube.BusyboxImage, "sleep", "600")
	if _, err := in.Client().AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &none, Selector: &metav1.LabelSelector{MatchLabels: template.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	policy, err := in.Client().NetworkingV1().NetworkPolicies(ns).Create(t.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "users"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Egress"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := in.TokenConfig(t.Context(), in.namespace, manifests.WorkerName)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &workerThief{
		Interface: client, pod: in.RunPod(t, ns, kube.NewPod("target", kube.BusyboxImage, "sleep", "600")),
		policy: policy, policies: client.NetworkingV1().NetworkPolicies(ns), node: in.NodeName,
	}
}

func (w *workerThief) patchPod(t *testing.T, patch string) error {
	t.Helper()
	_, err := w.CoreV1().Pods(w.pod.Namespace).Patch(t.Context(), w.pod.Name, types.StrategicMergePatchType,
		[]byte(patch), metav1.PatchOptions{})
	return err
}

func (w *workerThief) patchNode(t *testing.T, patch string) error {
	t.Helper()
	_, err := w.CoreV1().Nodes().Patch(t.Context(), w.node, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

func (w *workerThief) patchDeployment(t *testing.T, patch string) error {
	t.Helper()
	_, err := w.AppsV1().Deployments(w.pod.Namespace).Patch(t.Context(), "web", types.StrategicMergePatchType,
		[]byte(patch), metav1.PatchOptions{})
	return err
}

func ownPolicyLabels() map[string]string {
	return map[string]string{kubeactions.ManagedByLabel: kubeactions.ManagedBy, kubeactions.IsolateLabel: "x"}
}

func (w *workerThief) createPolicy(t *testing.T, labels map[string]string) error {
	t.Helper()
	_, err := w.policies.Create(t.Context(), &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "made", Labels: labels}, Spec: w.policy.Spec,
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

func (w *workerThief) takeOverPolicy(t *testing.T) error {
	t.Helper()
	changed := w.policy.DeepCopy()
	changed.Labels = ownPolicyLabels()
	_, err := w.policies.Update(t.Context(), changed, metav1.UpdateOptions{})
	return err
}
