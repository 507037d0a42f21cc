package kubeaudit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"stanch/sensors"
	lab "stanch/testenv/kube"
)

// runBenignActivity is what a cluster does all day: nothing of it is high.
func (w *auditFixture) runBenignActivity(t *testing.T) {
	t.Helper()
	began := time.Now()
	ctx, c := t.Context(), w.Client()
	two := int32(2)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: appsv1.DeploymentSpec{
		Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "shop"}},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "shop"}},
			Spec:       lab.NewPod("x", lab.BusyboxImage, "/bin/sleep", "3600").Spec,
		},
	}}
	_, err := c.CoreV1().Secrets(w.namespace).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "db"}},
		metav1.CreateOptions{})
	require.NoError(t, err)
	d.Spec.Template.Spec.Volumes = []corev1.Volume{{
		Name:         "s",
		VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "db"}},
	}}
	_, err = c.AppsV1().Deployments(w.namespace).Create(ctx, d, metav1.CreateOptions{})
	require.NoError(t, err)
	ready := func() error {
		now, err := c.AppsV1().Deployments(w.namespace).Get(ctx, "shop", metav1.GetOptions{})
		if err == nil && (now.Status.ReadyReplicas != *now.Spec.Replicas ||
			now.Status.UpdatedReplicas != *now.Spec.Replicas) {
			err = fmt.Errorf("%d of %d are ready", now.Status.ReadyReplicas, *now.Spec.Replicas)
		}
		return err
	}
	lab.Eventually(t, 60*time.Second, "the deployment", ready)
	for _, patch := range []string{
		`{"spec":{"replicas":3}}`,
		`{"spec":{"template":{"metadata":{"annotations":{"restarted":"now"}}}}}`,
	} {
		_, err := c.AppsV1().Deployments(w.namespace).Patch(ctx, "shop", types.StrategicMergePatchType, []byte(patch),
			metav1.PatchOptions{})
		require.NoError(t, err)
		lab.Eventually(t, 60*time.Second, "the deployment", ready)
	}
	_, err = c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	_, err = c.CoreV1().Secrets(w.namespace).Get(ctx, "db", metav1.GetOptions{})
	require.NoError(t, err)
	require.NoError(t, c.AppsV1().Deployments(w.namespace).Delete(ctx, "shop", metav1.DeleteOptions{}))
	other := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "passing"}}
	_, err = c.CoreV1().Namespaces().Create(ctx, other, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, c.CoreV1().Namespaces().Delete(ctx, "passing", metav1.DeleteOptions{}))
	// What is done last is told last: when it is there, all before it was judged.
	_, err = c.CoreV1().Secrets(w.namespace).List(ctx, metav1.ListOptions{})
	require.NoError(t, err)
	w.waitForRule(t, "secrets-listed-by-user", began)
	for _, one := range w.detections.since(time.Time{}) {
		t.Logf("on an ordinary day: %s (%s): %s", one.Rule, one.Severity, one.Reasons[0])
		require.Less(t, one.Severity.Rank(), sensors.SeverityHigh.Rank(), "%s: %v", one.Rule, one.Reasons)
	}
}

func (w *auditFixture) attackActions(t *testing.T, p testClients) []attackAction {
	t.Helper()
	ns := w.namespace
	list := metav1.ListOptions{}
	role := func(name string, rule rbacv1.PolicyRule) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := p.clusterAdmin.RbacV1().ClusterRoles().Create(ctx,
				&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: ns + name}, Rules: []rbacv1.PolicyRule{rule}},
				metav1.CreateOptions{})
			return err
		}
	}
	impersonate := func(c rest.ImpersonationConfig) func(context.Context) error {
		return func(ctx context.Context) error {
			as := w.Config()
			as.Impersonate = c
			_, err := newClient(t, as).CoreV1().Pods(ns).List(ctx, list)
			return err
		}
	}
	hooks := p.clusterAdmin.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	return []attackAction{
		{expectedRules: []string{"secrets-listed-everywhere"}, run: func(ctx context.Context) error {
			_, err := p.privilegedAccount.CoreV1().Secrets("").List(ctx, list)
			return err
		}},
		{expectedRules: []string{"secrets-listed", "token-used-outside"}, run: func(ctx context.Context) error {
			_, err := p.podAccount.CoreV1().Secrets(ns).List(ctx, list)
			return err
		}},
		{expectedRules: []string{"secrets-listed-by-user"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.CoreV1().Secrets(ns).List(ctx, list)
			return err
		}},
		{expectedRules: []string{"secrets-bulk-read"}, run: func(ctx context.Context) error {
			for i := range 10 {
				name := fmt.Sprint("s", i)
				_, first := p.clusterAdmin.CoreV1().Secrets(ns).Create(ctx,
					&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
				_, second := p.privilegedAccount.CoreV1().Secrets(ns).Get(ctx, name, metav1.GetOptions{})
				if err := errors.Join(first, second); err != nil {
					return err
				}
			}
			return nil
		}},
		{expectedRules: []string{"secrets-denied"}, expectRefused: true, run: func(ctx context.Context) error {
			_, err := p.unprivilegedAccount.CoreV1().Secrets(ns).List(ctx, list)
			return err
		}},
		{expectedRules: []string{"requests-denied"}, expectRefused: true, run: func(ctx context.Context) (err error) {
			for i := range 15 {
				_, err = p.unprivilegedAccount.CoreV1().Pods(fmt.Sprint("other", i)).List(ctx, list)
			}
			return err
		}},
		{expectedRules: []string{"permissions-enumerated"}, run: func(ctx context.Context) error {
			_, err := p.unprivilegedAccount.AuthorizationV1().SelfSubjectRulesReviews().Create(ctx,
				&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: ns}},
				metav1.CreateOptions{})
			return err
		}},
		{expectedRules: []string{"token-requested"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "weak", &authenticationv1.TokenRequest{},
				metav1.CreateOptions{})
			return err
		}},
		{expectedRules: []string{"public-role-binding", "anonymous-allowed"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "open"}, RoleRef: rbacv1.RoleRef{
					APIGroup: rbacv1.GroupName,
					Kind:     "ClusterRole", Name: "view",
				},
				Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "system:anonymous"}},
			}, metav1.CreateOptions{})
			for err == nil { // the binding is in force a moment later
				if _, err = p.anonymous.CoreV1().Pods(ns).List(ctx, list); err == nil || ctx.Err() != nil {
					return err
				}
				err = nil
			}
			return err
		}},
		{expectedRules: []string{"pod-exec"}, run: func(ctx context.Context) error {
			_, err := w.Exec(ctx, ns, "plain",
				"main", "/bin/true")
			return err
		}},
		{expectedRules: []string{"pod-exec-by-account"}, run: func(ctx context.Context) error {
			return w.execWithToken(ctx,
				ns)
		}},
		{expectedRules: []string{"port-forward"}, run: w.portForward},
		{expectedRules: []string{"ephemeral-container"}, run: func(ctx context.Context) error {
			pod, err := p.clusterAdmin.CoreV1().Pods(ns).Get(ctx, "plain", metav1.GetOptions{})
			if err != nil {
				return err
			}
			pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{
				{
					EphemeralContainerCommon: corev1.EphemeralContainerCommon{
						Name:    "debug",
						Image:   lab.BusyboxImage,
						Command: []string{"/bin/true"},
					},
				},
			}
			_, err = p.clusterAdmin.CoreV1().Pods(ns).UpdateEphemeralContainers(ctx, "plain", pod, metav1.UpdateOptions{})
			return err
		}},
		{expectedRules: []string{"node-proxy"}, run: func(ctx context.Context) error {
			return p.clusterAdmin.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + w.NodeName +
				"/proxy/pods").Do(ctx).Error()
		}},
		// by an account of kube-system, in which nearly all is daily work
		{expectedRules: []string{"node-proxy"}, run: func(ctx context.Context) error {
			const system = "kube-system"
			_, err := p.clusterAdmin.CoreV1().ServiceAccounts(system).Create(ctx,
				&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "agent"}}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			_, err = p.clusterAdmin.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "agent"}, RoleRef: rbacv1.RoleRef{
					APIGroup: rbacv1.GroupName,
					Kind:     "ClusterRole", Name: "cluster-admin",
				},
				Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: system, Name: "agent"}},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			as, err := w.TokenConfig(ctx, system, "agent")
			if err != nil {
				return err
			}
			agent, err := kubernetes.NewForConfig(as)
			if err != nil {
				return err
			}
			return agent.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + w.NodeName + "/proxy/pods").Do(ctx).Error()
		}},
		{expectedRules: []string{"events-deleted"}, run: func(ctx context.Context) error {
			return p.clusterAdmin.CoreV1().Events(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, list)
		}},
		{expectedRules: []string{"cluster-admin-bound"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: ns + "-own"}, RoleRef: rbacv1.RoleRef{
					APIGroup: rbacv1.GroupName,
					Kind:     "ClusterRole", Name: "cluster-admin",
				},
				Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "mallory"}},
			}, metav1.CreateOptions{})
			return err
		}},
		{
			expectedRules: []string{"role-escalates-privileges"},
			run: role("-escalate", rbacv1.PolicyRule{
				APIGroups: []string{""}, Resources: []string{"users"},
				Verbs: []string{"impersonate"},
			}),
		},
		{expectedRules: []string{"role-wildcard"}, run: role("-star", allPermissions)},
		{expectedRules: []string{"role-pod-exec"}, run: role("-exec", rbacv1.PolicyRule{
			APIGroups: []string{""},
			Resources: []string{"pods/exec"}, Verbs: []string{"create"},
		})},
		{expectedRules: []string{"system-role-changed"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.RbacV1().ClusterRoles().Patch(ctx, "system:basic-user", types.MergePatchType,
				[]byte(`{"metadata":{"labels":{"changed":"true"}}}`), metav1.PatchOptions{})
			return err
		}},
		{
			expectedRules: []string{"admin-impersonation", "impersonation"},
			run:           impersonate(rest.ImpersonationConfig{UserName: "root", Groups: []string{"system:masters"}}),
		},
		{expectedRules: []string{
			"privileged-pod", "host-mount", "host-pid", "host-ipc", "host-network",
			"capabilities-requested",
		}, run: func(ctx context.Context) error {
			pod, yes := lab.NewPod("strong", lab.BusyboxImage, "/bin/true"), true
			pod.Spec.HostPID, pod.Spec.HostIPC, pod.Spec.HostNetwork = true, true, true
			pod.Spec.Volumes = []corev1.Volume{{
				Name:         "host",
				VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}},
			}}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
				Privileged:   &yes,
				Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}},
			}
			pod.Spec.NodeSelector = map[string]string{"none": "such"} // it is asked for and never runs
			_, err := p.clusterAdmin.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{})
			return err
		}},
		{expectedRules: []string{"request-truncated"}, run: func(ctx context.Context) error {
			pod, yes := lab.NewPod("large", lab.BusyboxImage, "/bin/true"), true
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
			pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "FILLS", Value: strings.Repeat("x", 700<<10)}}
			pod.Spec.NodeSelector = map[string]string{"none": "such"}
			_, err := p.clusterAdmin.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{})
			return err
		}},
		{expectedRules: []string{"privileged-pod"}, run: func(ctx context.Context) error {
			pod, yes := lab.NewPod("annotated", lab.BusyboxImage, "/bin/true"), true
			pod.Annotations = map[string]string{"example.com/fills": strings.Repeat("x", 250<<10)}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
			pod.Spec.NodeSelector = map[string]string{"none": "such"}
			_, err := p.clusterAdmin.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{})
			return err
		}},
		{
			expectedRules: []string{"cluster-namespace-changed", "cluster-config-changed"},
			run: func(ctx context.Context) error {
				_, err := p.clusterAdmin.CoreV1().ConfigMaps("kube-system").Create(ctx,
					&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "coredns-custom"}}, metav1.CreateOptions{})
				return errors.Join(err, p.clusterAdmin.CoreV1().ConfigMaps("kube-system").Delete(ctx, "coredns-custom",
					metav1.DeleteOptions{}))
			},
		},
		{
			expectedRules: []string{"admission-webhook-external", "admission-weakened", "admission-removed"},
			run: func(ctx context.Context) error {
				url, ignore, none := "https://203.0.113.7/", admissionv1.Ignore, admissionv1.SideEffectClassNone
				_, err := hooks.Create(ctx, &admissionv1.ValidatingWebhookConfiguration{
					ObjectMeta: metav1.ObjectMeta{Name: ns},
					Webhooks: []admissionv1.ValidatingWebhook{{
						Name: "x.example.com", ClientConfig: admissionv1.WebhookClientConfig{URL: &url}, FailurePolicy: &ignore,
						SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
						Rules: []admissionv1.RuleWithOperations{{
							Operations: []admissionv1.OperationType{admissionv1.Create},
							Rule: admissionv1.Rule{
								APIGroups: []string{"none.example.com"}, APIVersions: []string{"v1"},
								Resources: []string{"things"},
							},
						}},
					}},
				}, metav1.CreateOptions{})
				return errors.Join(err, hooks.Delete(ctx, ns, metav1.DeleteOptions{}))
			},
		},
		{expectedRules: []string{"pod-security-lowered"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.CoreV1().Namespaces().Patch(ctx, ns, types.MergePatchType,
				[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"privileged"}}}`), metav1.PatchOptions{})
			return err
		}},
		// by a JSON patch, which names the label in a path
		{expectedRules: []string{"pod-security-lowered"}, run: func(ctx context.Context) error {
			_, err := p.clusterAdmin.CoreV1().Namespaces().Patch(ctx, ns, types.JSONPatchType,
				[]byte(`[{"op":"remove","path":"/metadata/labels/pod-security.kubernetes.io~1enforce"}]`), metav1.PatchOptions{})
			return err
		}},
		// by sending all of it without the label
		{expectedRules: []string{"pod-security-lowered"}, run: func(ctx context.Context) error {
			at, err := p.clusterAdmin.CoreV1().Namespaces().Patch(ctx, ns, types.MergePatchType,
				[]byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"baseline"}}}`), metav1.PatchOptions{})
			if err != nil {
				return err
			}
			delete(at.Labels, "pod-security.kubernetes.io/enforce")
			_, err = p.clusterAdmin.CoreV1().Namespaces().Update(ctx, at, metav1.UpdateOptions{})
			return err
		}},
		{expectedRules: []string{"certificate-approved"}, run: func(ctx context.Context) error {
			return approveCSR(ctx,
				p.clusterAdmin, ns)
		}},
	}
}
