package kube

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// NewNamespace creates a namespace for one test, with its default service account, and deletes it afterwards without
// waiting.
func (c *Cluster) NewNamespace(t testing.TB) string {
	t.Helper()
	ctx := t.Context()
	name := "t-" + strings.ToLower(rand.Text()[:8])
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}},
		metav1.CreateOptions{}); err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // the lab may be stopped already
		defer cancel()
		now := int64(0)
		_ = c.client.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
			metav1.ListOptions{})
		_ = c.client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	})
	Eventually(t, 20*time.Second, "the namespace's default service account", func() error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return name
}

// ConfigWithRules creates a service account in the namespace with exactly the given cluster-wide rules, and returns a
// client configuration with its token. It proves that a list of permissions suffices.
func (c *Cluster) ConfigWithRules(t testing.TB, namespace, name string, rules ...rbacv1.PolicyRule) *rest.Config {
	t.Helper()
	ctx := t.Context()
	full := namespace + "-" + name
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := c.client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		t.Fatalf("make the service account %s: %v", name, err)
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: full}, Rules: rules}
	if _, err := c.client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		t.Fatalf("make the role %s: %v", full, err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: full},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: full},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}},
	}
	if _, err := c.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		t.Fatalf("bind the role %s: %v", full, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.client.RbacV1().ClusterRoleBindings().Delete(ctx, full, metav1.DeleteOptions{})
		_ = c.client.RbacV1().ClusterRoles().Delete(ctx, full, metav1.DeleteOptions{})
	})
	config, err := c.TokenConfig(ctx, namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	// The authorizer learns of the binding through a watch.
	as, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if len(rules) > 0 {
		Eventually(t, 10*time.Second, "the binding to be in force",
			func() error { return checkPermission(ctx, as, rules[len(rules)-1]) })
	}
	return config
}

// TokenConfig returns a client configuration with a fresh token of a service account.
func (c *Cluster) TokenConfig(ctx context.Context, namespace, name string) (*rest.Config, error) {
	token, err := issueToken(ctx, c.client, namespace, name)
	if err != nil {
		return nil, err
	}
	config := c.Config()
	config.BearerToken = token
	return config, nil
}

// Eventually polls until f succeeds; after the given time the test fails with the last error.
func Eventually(t testing.TB, within time.Duration, what string, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", within, what, err)
		}
	}
}

// NewPod returns a pod with one container named "main" that stops immediately on SIGTERM.
func NewPod(name, image string, command ...string) *corev1.Pod {
	now := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &now,
			Containers:                    []corev1.Container{{Name: "main", Image: image, Command: command}},
		},
	}
}

// RunPod creates a pod, waits until it is ready, and returns it.
func (c *Cluster) RunPod(t testing.TB, namespace string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	if _, err := c.client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create the pod %s: %v", pod.Name, err)
	}
	var now *corev1.Pod
	Eventually(t, 60*time.Second, "the pod "+pod.Name+" to be ready", func() (err error) {
		if now, err = c.client.CoreV1().Pods(namespace).Get(t.Context(), pod.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !IsPodReady(now) {
			return fmt.Errorf("phase %s %v", now.Status.Phase, now.Status.ContainerStatuses)
		}
		return nil
	})
	return now
}

// IsPodReady reports whether the pod's Ready condition is true.
func IsPodReady(pod *corev1.Pod) bool {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}
