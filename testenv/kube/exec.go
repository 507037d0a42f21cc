package kube

import (
	"bytes"
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Exec runs a command in a pod's container and returns its standard output followed by its standard error.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container string, command ...string) (string, error) {
	return c.exec(ctx, false, namespace, pod, container, command)
}

// ExecTerminal is Exec on a terminal, as `kubectl exec -t` does.
func (c *Cluster) ExecTerminal(ctx context.Context, namespace, pod, container string, command ...string) (string,
	error,
) {
	return c.exec(ctx, true, namespace, pod, container, command)
}

func (c *Cluster) exec(ctx context.Context, terminal bool, namespace, pod, container string, command []string) (string,
	error,
) {
	request := c.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: command, Stdout: true, Stderr: !terminal, TTY: terminal,
		}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.config, "GET", request.URL().String())
	if err != nil {
		return "", fmt.Errorf("exec in %s/%s: %w", namespace, pod, err)
	}
	var stdout, stderr bytes.Buffer // one buffer each, because they are written concurrently
	options := remotecommand.StreamOptions{Stdout: &stdout, Tty: terminal}
	if !terminal {
		options.Stderr = &stderr
	}
	if err := executor.StreamWithContext(ctx, options); err != nil {
		return stdout.String(), fmt.Errorf("exec %q in %s/%s: %w: %s", command, namespace, pod, err, stderr.String())
	}
	return stdout.String() + stderr.String(), nil
}

// Logs returns the current logs of a pod's container.
func (c *Cluster) Logs(ctx context.Context, namespace, pod, container string) (string, error) {
	stream, err := c.client.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container}).Stream(ctx)
	if err != nil {
		return "", fmt.Errorf("read the logs of %s/%s: %w", namespace, pod, err)
	}
	defer stream.Close()
	content, err := io.ReadAll(stream)
	return string(content), err
}
