package installation

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// WaitForNodes waits until every pod of a DaemonSet is ready: the pods clean their node first. The error names the
// nodes that are not clean.
func WaitForNodes(ctx context.Context, client kubernetes.Interface, namespace, daemonSet string) error {
	var failure error // of the last attempt; that of the context would hide it
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		failure = checkNodes(ctx, client, namespace, daemonSet)
		return struct{}{}, failure
	}, backoff.WithBackOff(backoff.NewConstantBackOff(500*time.Millisecond)), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return fmt.Errorf("wait until the nodes are clean: %w; run `stanch-sensor cleanup` there yourself", failure)
	}
	return nil
}

func checkNodes(ctx context.Context, client kubernetes.Interface, namespace, daemonSet string) error {
	set, err := client.AppsV1().DaemonSets(namespace).Get(ctx, daemonSet, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read the DaemonSet %s/%s: %w", namespace, daemonSet, err)
	}
	s := set.Status
	if s.ObservedGeneration >= set.Generation && s.NumberReady == s.DesiredNumberScheduled {
		return nil
	}
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(set.Spec.Selector),
	})
	if err != nil {
		return fmt.Errorf("list the pods of %s/%s: %w", namespace, daemonSet, err)
	}
	var waiting []string
	for i := range pods.Items {
		if p := &pods.Items[i]; !isReady(p) {
			waiting = append(waiting, p.Spec.NodeName)
		}
	}
	return fmt.Errorf("%d of %d nodes are clean; not yet: %s", s.NumberReady, s.DesiredNumberScheduled,
		strings.Join(waiting, ", "))
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
