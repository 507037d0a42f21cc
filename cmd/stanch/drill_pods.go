package main

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"stanch/activities/kube"
	"stanch/worker/config"
)

// deploymentReplicas is the number of pods of the Deployment: the victim and its sibling.
const deploymentReplicas = 2

// The ports of the peer. Only the attack connects to ports that rules match.
const (
	heartbeatPort    = "8080"
	minerPoolPort    = "3333"
	reverseShellPort = "4443"
	probePort        = 8081
)

// peerScript listens with busybox alone. Its nc accepts one connection each, so several listen in turn. The lines
// that they receive are the log of the pod. It sends a reverse shell its commands.
const peerScript = `
receive() { while :; do nc -l -p $1 </dev/null 2>/dev/null || sleep 0.3; done; }
receive 8080 & receive 8080 & receive 8080 & receive 8080 & receive 8080 & receive 8080 &
receive 3333 &
while :; do echo 'while echo beat $POD; do sleep 0.1; done' | nc -l -p 4443; done`

// victimScript answers probes and sends to the peer, as a normal service does.
const victimScript = `
httpd -p 8081 -h /tmp
while :; do while echo beat $POD; do sleep 0.1; done | nc $PEER 8080; sleep 0.1; done`

func (s *clusterEnvironment) resourceName(of string) string { return of + "-" + s.suffix }

func (s *clusterEnvironment) labels(app string) map[string]string {
	return map[string]string{"app": s.resourceName(app), drillLabel: s.suffix, kube.ManagedByLabel: kube.ManagedBy}
}

func (s *clusterEnvironment) podSpec(script string, env ...corev1.EnvVar) corev1.PodSpec {
	now, no := int64(0), false
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: &now, AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
		Containers: []corev1.Container{{
			Name: "main", Image: s.image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", script},
			Env: append(env, corev1.EnvVar{
				Name:      "POD",
				ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}},
			}),
		}},
	}
}

func (s *clusterEnvironment) startPeer(ctx context.Context) error {
	pods := s.client.CoreV1().Pods(config.DrillNamespace)
	peer := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: s.resourceName("peer"), Labels: s.labels("peer")},
		Spec:       s.podSpec(peerScript),
	}
	err := retryUntil(ctx, 20*time.Second, func() error { // a new namespace has no service account at first
		_, err := pods.Create(ctx, peer, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return retryUntil(ctx, time.Minute, func() error {
		now, err := pods.Get(ctx, peer.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s.peer = now.Status.PodIP; s.peer == "" || !isPodReady(now) {
			return podNotReadyError(now)
		}
		return nil
	})
}

func (s *clusterEnvironment) startDeployment(ctx context.Context) error {
	replicas := int32(deploymentReplicas)
	spec := s.podSpec(victimScript, corev1.EnvVar{Name: "PEER", Value: s.peer})
	spec.AutomountServiceAccountToken = &s.mountToken
	probe := &corev1.Probe{
		PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 3,
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(probePort)}},
	}
	// The file that the probe requests must exist.
	spec.Containers[0].Command[2] = "echo ok >/tmp/index.html" + spec.Containers[0].Command[2]
	spec.Containers[0].LivenessProbe, spec.Containers[0].ReadinessProbe = probe, probe
	_, err := s.client.AppsV1().Deployments(config.DrillNamespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: s.resourceName("victim"), Labels: s.labels("victim")},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": s.resourceName("victim")}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: s.labels("victim")}, Spec: spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return retryUntil(ctx, time.Minute, func() error {
		list, err := s.client.CoreV1().Pods(config.DrillNamespace).List(ctx,
			metav1.ListOptions{LabelSelector: "app=" + s.resourceName("victim")})
		if err != nil {
			return err
		}
		if len(list.Items) != deploymentReplicas {
			return fmt.Errorf("%d of %d pods exist", len(list.Items), deploymentReplicas)
		}
		for i := range list.Items {
			if !isPodReady(&list.Items[i]) {
				return podNotReadyError(&list.Items[i])
			}
		}
		s.victim = &list.Items[0]
		s.siblingPod.Store(&list.Items[1].Name)
		return nil
	})
}

// podNotReadyError returns an error with the reason, if the kubelet or the scheduler reports one.
func podNotReadyError(pod *corev1.Pod) error {
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			return fmt.Errorf("pod %s is waiting: %s: %s; check --image", pod.Name, w.Reason, w.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			return fmt.Errorf("pod %s: %s", pod.Name, c.Message)
		}
	}
	return fmt.Errorf("pod %s is not ready yet", pod.Name)
}
