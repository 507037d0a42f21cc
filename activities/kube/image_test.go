package kube_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/activities"
	"stanch/activities/kube"
	"stanch/playbooks"
	lab "stanch/testenv/kube"
)

const reportsDefinition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"vulnerabilityreports.aquasecurity.github.io"},"spec":{"group":"aquasecurity.github.io","scope":"Namespaced","names":{"plural":"vulnerabilityreports","singular":"vulnerabilityreport","kind":"VulnerabilityReport"},"versions":[{"name":"v1alpha1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

func TestImageFacts(t *testing.T) {
	c := lab.Shared(t)
	ns, ctx, one := c.NewNamespace(t), t.Context(), int32(1)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{
				Labels:      map[string]string{"app": "web"},
				Annotations: map[string]string{"kyverno.io/verify-images": fmt.Sprintf(`{%q:"pass"}`, lab.BusyboxImage)},
			},
			Spec: lab.NewPod("x", lab.BusyboxImage, "/bin/sleep", "3600").Spec,
		},
	}}
	_, err := c.Client().AppsV1().Deployments(ns).Create(ctx, d, metav1.CreateOptions{})
	require.NoError(t, err)
	var pod corev1.Pod
	lab.Eventually(t, 60*time.Second, "the pod", func() error {
		list, err := c.Client().CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err == nil && (len(list.Items) != 1 || !lab.IsPodReady(&list.Items[0])) {
			return fmt.Errorf("%d pods", len(list.Items))
		}
		if err == nil {
			pod = list.Items[0]
		}
		return err
	})
	// The client has exactly the permissions that the spec declares.
	client, err := kube.NewClient(c.ConfigWithRules(t, ns, "image", toRules(actionSpec(t, "image").PlanPermissions)...))
	require.NoError(t, err)
	var action activities.Observer
	for _, a := range kube.Actions(client) {
		if a.Spec().Name == "image" {
			action = a.(activities.Observer)
		}
	}
	observe := func() activities.ImageFacts {
		out, err := action.Observe(ctx, activities.Request{Target: playbooks.Target{
			Kind: playbooks.TargetPod, Namespace: ns,
			Name: pod.Name, UID: string(pod.UID),
		}})
		require.NoError(t, err)
		return out.Outputs.(activities.ImageFacts)
	}
	facts := observe()
	require.Contains(t, facts.Image, "stanch.lab/busybox")
	require.Contains(t, facts.Digest, "sha256:")
	require.Equal(t, ns+"/Deployment/web", facts.FirstWorkload)
	require.NotEmpty(t, facts.RolledOutBy)
	require.WithinDuration(t, time.Now(), facts.RolledOutAt, 2*time.Minute)
	require.False(t, facts.FirstSeen.After(pod.CreationTimestamp.Time))
	require.Equal(t, activities.Signature{State: "verified", Source: "annotation kyverno.io/verify-images"},
		facts.Signature)
	require.False(t, facts.Vulnerabilities.ReportFound)
	require.Contains(t, facts.Missing, "vulnerabilities: the cluster has no Trivy operator")

	raw := c.Client().Discovery().RESTClient()
	require.NoError(
		t,
		raw.Post().
			AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").
			Body([]byte(reportsDefinition)).
			Do(ctx).
			Error(),
	)
	t.Cleanup(func() {
		_ = raw.Delete().
			AbsPath("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/vulnerabilityreports.aquasecurity.github.io").
			Do(context.Background()).
			Error()
	})
	lab.Eventually(t, 20*time.Second, "a report", func() error {
		return raw.Post().AbsPath("/apis/aquasecurity.github.io/v1alpha1/namespaces", ns,
			"vulnerabilityreports").Body([]byte(fmt.Sprintf(
			`{"apiVersion":"aquasecurity.github.io/v1alpha1","kind":"VulnerabilityReport","metadata":{"name":"web-x"},"report":{"artifact":{"digest":%q},"vulnerabilities":[{"severity":"CRITICAL","fixedVersion":"2"},{"severity":"HIGH"},{"severity":"LOW","fixedVersion":"3"}]}}`,
			facts.Digest,
		))).Do(ctx).Error()
	})
	require.Equal(t, activities.Vulnerabilities{
		ReportFound: true, Critical: 1, High: 1, Fixable: 1,
		Report: ns + "/web-x",
	}, observe().Vulnerabilities)
}
