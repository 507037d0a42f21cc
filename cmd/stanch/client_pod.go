package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"stanch/worker/manifests"
)

// podTransport reaches the API through the worker's pod: it executes `stanch connect` there, which connects to the
// local socket. The API server decides who may execute in the pod; to Stanch, that person is the one who runs it.
type podTransport struct {
	namespace string
	transport *http.Transport
}

func newPodTransport(namespace string) *podTransport {
	p := &podTransport{namespace: namespace}
	p.transport = &http.Transport{
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, DialContext: p.dial,
	}
	return p
}

// dial starts `stanch connect` in a worker's pod and returns its input and output as a connection.
func (p *podTransport) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	cfg, err := clusterConfig("")
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	pod, err := p.findWorker(ctx, client)
	if err != nil {
		return nil, err
	}
	request := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: "worker", Command: []string{"/stanch", "connect", "--data", "/var/lib/stanch"},
			Stdin: true, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	executor, err := newExecutor(cfg, request.URL())
	if err != nil {
		return nil, fmt.Errorf("execute in the pod %s: %w", pod, err)
	}
	c := newPipeConn()
	// The connection outlives the request that dials it.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.onClose = cancel
	go func() {
		var said strings.Builder
		err := executor.StreamWithContext(streamCtx, remotecommand.StreamOptions{
			Stdin: c.toPod, Stdout: c.fromPodWriter, Stderr: &said,
		})
		if err != nil && said.Len() > 0 {
			err = errors.New(strings.TrimPrefix(strings.TrimSpace(said.String()), "stanch: "))
		}
		if err == nil {
			err = io.EOF
		}
		_ = c.fromPodWriter.CloseWithError(err)
		_ = c.toPod.CloseWithError(err)
	}()
	return c, nil
}

// newExecutor executes over a WebSocket and, where the API server or a proxy has none, over SPDY.
func newExecutor(cfg *rest.Config, address *url.URL) (remotecommand.Executor, error) {
	spdy, err := remotecommand.NewSPDYExecutor(cfg, http.MethodPost, address)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	socket, err := remotecommand.NewWebSocketExecutor(cfg, http.MethodGet, address.String())
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller adds context
	}
	//nolint:wrapcheck // the caller adds context
	return remotecommand.NewFallbackExecutor(socket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// findWorker returns the name of a worker's pod that is ready.
func (p *podTransport) findWorker(ctx context.Context, client kubernetes.Interface) (string, error) {
	pods, err := client.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=" + manifests.WorkerName,
	})
	if err != nil {
		return "", fmt.Errorf("find the worker: %w", err)
	}
	for i := range pods.Items {
		for _, c := range pods.Items[i].Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && pods.Items[i].DeletionTimestamp == nil {
				return pods.Items[i].Name, nil
			}
		}
	}
	if len(pods.Items) == 0 {
		return "", errors.New("there is no worker; --cluster names the namespace of the installation")
	}
	return "", fmt.Errorf("no worker is ready; `kubectl -n %s describe pods` says why", p.namespace)
}

// pipeConn is a connection over the streams of a command in a pod. It has no deadlines: the HTTP client's time limit
// closes it.
type pipeConn struct {
	toPod         *io.PipeReader
	toPodWriter   *io.PipeWriter
	fromPod       *io.PipeReader
	fromPodWriter *io.PipeWriter
	onClose       func()
	closeOnce     sync.Once
}

func newPipeConn() *pipeConn {
	c := &pipeConn{}
	c.toPod, c.toPodWriter = io.Pipe()
	c.fromPod, c.fromPodWriter = io.Pipe()
	return c
}

func (c *pipeConn) Read(b []byte) (int, error)  { return c.fromPod.Read(b) }
func (c *pipeConn) Write(b []byte) (int, error) { return c.toPodWriter.Write(b) }

func (c *pipeConn) Close() error {
	c.closeOnce.Do(func() {
		_ = c.toPodWriter.Close()
		_ = c.fromPod.Close()
		c.onClose()
	})
	return nil
}

// podAddr is the address of both ends.
type podAddr struct{}

func (podAddr) Network() string { return "pod" }
func (podAddr) String() string  { return "the worker's pod" }

func (*pipeConn) LocalAddr() net.Addr              { return podAddr{} }
func (*pipeConn) RemoteAddr() net.Addr             { return podAddr{} }
func (*pipeConn) SetDeadline(time.Time) error      { return nil }
func (*pipeConn) SetReadDeadline(time.Time) error  { return nil }
func (*pipeConn) SetWriteDeadline(time.Time) error { return nil }

// connectCommand returns the command that --cluster executes in the worker's pod.
func connectCommand(g *globalFlags) *cobra.Command {
	return &cobra.Command{
		Use: "connect", Short: "Connect standard input and output to the local socket", Hidden: true,
		Args: validateArgs(cobra.NoArgs),
		Long: `Connect standard input and output to the local socket of Stanch. The flag --cluster executes this
command in the worker's pod.`,
		Example: "  stanch connect --data /var/lib/stanch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := (&net.Dialer{}).DialContext(cmd.Context(), "unix", g.socketPath())
			if err != nil {
				return (&apiClient{socketPath: g.socketPath()}).explainConnectError(err)
			}
			defer func() { _ = conn.Close() }()
			go func() {
				_, _ = io.Copy(conn, cmd.InOrStdin())
				_ = conn.Close() // the other end has gone
			}()
			_, err = io.Copy(cmd.OutOrStdout(), conn)
			if errors.Is(err, net.ErrClosed) {
				err = nil
			}
			return err
		},
	}
}
