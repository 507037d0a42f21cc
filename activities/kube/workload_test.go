package kube_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/activities/kube"
	"stanch/deploy/image"
	"stanch/playbooks"
	lab "stanch/testenv/kube"
)

func TestWorkload(t *testing.T) {
	p := newFixture(t)
	client := p.restrictedClient(t, "stanch", actionSpec(t, "workload").PlanPermissions)
	for name, scenario := range map[string]func(*testing.T, fixture, kubernetes.Interface){
		"a deployment after a rollout":         testWorkloadAfterRollout,
		"jobs belong to their cron job":        testWorkloadOfCronJob,
		"a daemon set and its revisions":       testWorkloadOfDaemonSet,
		"what the service account may do":      testWorkloadPermissions,
		"without rights the result is partial": testWorkloadPartialWithoutPermissions,
		"lists are bounded and say how many":   testWorkloadListsAreBounded,
		"a pod of nobody":                      testWorkloadOfBarePod,
	} {
		t.Run(name, func(t *testing.T) { scenario(t, p, client) })
	}
}

func getWorkloadInfo(t *testing.T, client kubernetes.Interface, pod *corev1.Pod,
	o kube.WorkloadOptions,
) *kube.WorkloadInfo {
	t.Helper()
	info, err := kube.GetWorkloadInfo(t.Context(), client, podRef(pod), o)
	requireNoError(t, err)
	return info
}

// findRunningPod returns a running pod by its label.
func (p fixture) findRunningPod(t *testing.T, app string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	lab.Eventually(t, 60*time.Second, "a pod of "+app, func() error {
		pods, err := p.Client().CoreV1().Pods(p.namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if lab.IsPodReady(&pods.Items[i]) && pods.Items[i].DeletionTimestamp == nil {
				pod = &pods.Items[i]
				return nil
			}
		}
		return fmt.Errorf("none of %d is ready", len(pods.Items))
	})
	return pod
}

func testWorkloadAfterRollout(t *testing.T, p fixture, client kubernetes.Interface) {
	p.runSleeperPod(t, "stranger") // another image on the same node
	d := p.createDeployment(t, "shop", 2)
	if _, err := p.ImportImage(t.Context(), lab.ImageSpec{
		Name: "stanch.lab/shop:2", WithBusybox: true, Files: map[string]image.File{"/two": {Data: []byte("two")}},
	}); err != nil {
		t.Fatal(err)
	}
	p.patchDeployment(
		t,
		"shop",
		`{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"stanch.lab/shop:2","command":["sleep","600"]}]}}}}`,
	)
	p.waitForReplicas(t, "shop", 2)
	var pod *corev1.Pod
	lab.Eventually(t, 30*time.Second, "a pod of the new revision", func() error {
		if pod = p.findRunningPod(t, "shop"); pod.Spec.Containers[0].Image != "stanch.lab/shop:2" {
			return fmt.Errorf("image %s", pod.Spec.Containers[0].Image)
		}
		return nil
	})
	info := getWorkloadInfo(t, client, pod, kube.WorkloadOptions{})
	if len(info.Missing) > 0 {
		t.Errorf("missing with all rights: %+v", info.Missing)
	}
	if info.Owner.Kind != "Deployment" || info.Owner.UID != string(d.UID) || *info.Owner.DesiredReplicas != 2 ||
		*info.Owner.ReadyReplicas != 2 {
		t.Errorf("owner %+v", info.Owner)
	}
	if len(info.OwnerChain) != 2 || info.OwnerChain[0].Kind != "ReplicaSet" {
		t.Errorf("chain %+v", info.OwnerChain)
	}
	r := info.Rollouts
	digest := info.Pod.Containers[0].ImageDigest
	if r.Total != 2 || !r.Items[0].IsCurrent || r.Items[1].IsCurrent || !slices.Equal(r.Items[0].ImageDigests,
		[]string{digest}) ||
		!slices.Equal(r.Items[1].Images, []string{lab.BusyboxImage}) {
		t.Errorf("rollouts %+v", r)
	}
	if c := info.RecentChanges.Items; len(c) == 0 || !strings.Contains(c[0].Description,
		"revision 2 of Deployment shop runs [stanch.lab/shop:2], previously ["+lab.BusyboxImage+"]") ||
		c[0].ChangedBy != "kube-controller-manager" {
		t.Errorf("changes %+v", c)
	}
	if s := info.SameDigestPods; s.Total != 1 || s.Items[0].Owner.Kind != "ReplicaSet" || s.Items[0].Name == pod.Name {
		t.Errorf("same digest %+v", s)
	}
	if info.SameNodePods.Total < 1 || info.Node.UID == "" || info.Node.Name != p.NodeName {
		t.Errorf("node %+v, others there %d", info.Node, info.SameNodePods.Total)
	}
	if info.ServiceAccount.Name != "default" || !info.ServiceAccount.TokenMounted {
		t.Errorf("account %+v", info.ServiceAccount)
	}
}

func testWorkloadOfCronJob(t *testing.T, p fixture, client kubernetes.Interface) {
	pod := lab.NewPod("nightly", lab.BusyboxImage, "sleep", "600")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	template := batchv1.JobSpec{Template: corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels},
		Spec:       pod.Spec,
	}}
	cron, err := p.Client().BatchV1().CronJobs(p.namespace).Create(t.Context(), &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "nightly"},
		Spec:       batchv1.CronJobSpec{Schedule: "0 0 1 1 *", JobTemplate: batchv1.JobTemplateSpec{Spec: template}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// `kubectl create job --from` sets an owner reference to the cron job too.
	if _, err := p.Client().BatchV1().Jobs(p.namespace).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: "nightly-1",
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cron,
				batchv1.SchemeGroupVersion.WithKind("CronJob"))},
		}, Spec: template,
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	info := getWorkloadInfo(t, client, p.findRunningPod(t, "nightly"), kube.WorkloadOptions{})
	if info.Owner.Kind != "CronJob" || info.Owner.Name != "nightly" || len(info.OwnerChain) != 2 ||
		info.Owner.DesiredReplicas != nil {
		t.Errorf("owner %+v, chain %+v", info.Owner, info.OwnerChain)
	}
}

func testWorkloadOfDaemonSet(t *testing.T, p fixture, client kubernetes.Interface) {
	pod := lab.NewPod("agent", lab.BusyboxImage, "sleep", "600")
	ds := newDaemonSet(pod)
	if _, err := p.Client().AppsV1().DaemonSets(p.namespace).Create(t.Context(), ds, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	info := getWorkloadInfo(t, client, p.findRunningPod(t, "agent"), kube.WorkloadOptions{})
	if info.Owner.Kind != "DaemonSet" || *info.Owner.DesiredReplicas != 1 || info.Rollouts.Total != 1 {
		t.Fatalf("owner %+v, rollouts %+v", info.Owner, info.Rollouts)
	}
	if r := info.Rollouts.Items[0]; !slices.Equal(r.Images, []string{lab.BusyboxImage}) || len(r.ImageDigests) != 1 {
		t.Errorf("rollout %+v", r)
	}
}

func testWorkloadPermissions(t *testing.T, p fixture, client kubernetes.Interface) {
	p.namespace = p.NewNamespace(t) // permissions here apply to a complete namespace
	p.ConfigWithRules(t, p.namespace, "clerk", rbacv1.PolicyRule{
		APIGroups: []string{""},
		Resources: []string{"configmaps"}, Verbs: []string{"get"},
	},
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "list"}})
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "handy"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: []string{"create"}},
			{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}},
		},
	}
	if _, err := p.Client().RbacV1().Roles(p.namespace).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Client().RbacV1().RoleBindings(p.namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "handy"}, RoleRef: rbacv1.RoleRef{
			APIGroup: rbacv1.GroupName, Kind: "Role",
			Name: "handy",
		},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:serviceaccounts:" +
			p.namespace}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := lab.NewPod("clerk", lab.BusyboxImage, "sleep", "600")
	pod.Spec.ServiceAccountName = "clerk"
	info := getWorkloadInfo(t, client, p.RunPod(t, p.namespace, pod), kube.WorkloadOptions{})
	for _, want := range []string{
		"read secrets in every namespace (ClusterRole " + p.namespace + "-clerk by ClusterRoleBinding " + p.namespace +
			"-clerk)",
		"run commands in other pods in namespace " + p.namespace + " (Role " + p.namespace + "/handy by RoleBinding " +
			p.namespace + "/handy)",
		"do anything in namespace " + p.namespace + " (Role " + p.namespace + "/handy by RoleBinding " + p.namespace +
			"/handy)",
	} {
		if !slices.Contains(info.ServiceAccount.RiskyPermissions, want) {
			t.Errorf("dangerous rights %q\nlack %q", info.ServiceAccount.RiskyPermissions, want)
		}
	}
	if len(info.ServiceAccount.RiskyPermissions) != 3 || info.ServiceAccount.GrantedRules.Total != 4 {
		t.Errorf("dangerous %q, grants %+v", info.ServiceAccount.RiskyPermissions, info.ServiceAccount.GrantedRules)
	}
	var rights []string
	for _, c := range info.RecentChanges.Items {
		if c.Kind == "rights" {
			rights = append(rights, c.Description)
		}
	}
	if len(rights) != 4 || !slices.Contains(rights, "RoleBinding "+p.namespace+"/handy was created") {
		t.Errorf("changed rights %q", rights)
	}
	// One month later, none of this is recent.
	info = getWorkloadInfo(t, client, p.findRunningPod(t, "clerk"),
		kube.WorkloadOptions{Now: time.Now().Add(30 * 24 * time.Hour)})
	if info.RecentChanges.Total != 0 {
		t.Errorf("old changes are told as recent: %+v", info.RecentChanges)
	}
}

func testWorkloadPartialWithoutPermissions(t *testing.T, p fixture, _ kubernetes.Interface) {
	p.createDeployment(t, "partial", 1)
	poor := p.restrictedClient(t, "poor", []playbooks.KubernetesPermission{{
		Groups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"},
	}})
	info := getWorkloadInfo(t, poor, p.findRunningPod(t, "partial"), kube.WorkloadOptions{})
	var parts []string
	for _, m := range info.Missing {
		parts = append(parts, m.Part)
		if !strings.Contains(m.Reason, "cannot") {
			t.Errorf("%s: the detail %q does not say what is lacking", m.Part, m.Reason)
		}
	}
	if !slices.Equal(parts, []string{"owner", "other pods", "service account", "rights", "node"}) {
		t.Errorf("missing %q", parts)
	}
	if info.Owner.Kind != "ReplicaSet" || info.Pod.Containers[0].ImageDigest == "" {
		t.Errorf("what the pod itself tells: %+v", info)
	}
}

func testWorkloadListsAreBounded(t *testing.T, p fixture, client kubernetes.Interface) {
	p.createDeployment(t, "many", 4)
	info := getWorkloadInfo(t, client, p.findRunningPod(t, "many"), kube.WorkloadOptions{MaxListItems: 2})
	if len(info.SameDigestPods.Items) != 2 || info.SameDigestPods.Total < 3 || len(info.SameNodePods.Items) != 2 ||
		info.SameNodePods.Total < 3 {
		t.Errorf("same digest %d of %d, same node %d of %d", len(info.SameDigestPods.Items), info.SameDigestPods.Total,
			len(info.SameNodePods.Items), info.SameNodePods.Total)
	}
	if content, err := json.Marshal(info); err != nil || len(content) > 20_000 {
		t.Errorf("%d bytes of JSON, %v", len(content), err)
	}
}

func testWorkloadOfBarePod(t *testing.T, p fixture, client kubernetes.Interface) {
	pod, ref := p.runSleeperPod(t, "bare")
	info := getWorkloadInfo(t, client, pod, kube.WorkloadOptions{})
	if info.Owner.Kind != "Pod" || info.Owner.Name != "bare" || len(info.OwnerChain) != 0 {
		t.Errorf("owner %+v", info.Owner)
	}
	ref.UID = "another"
	_, err := kube.GetWorkloadInfo(t.Context(), client, ref, kube.WorkloadOptions{})
	wantGone(t, err)
}
