package health_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/workflow"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/sensors/attestation"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/gateway"
	"stanch/worker/health"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// story is an incident that only remembers what it was told.
func story(ctx workflow.Context, _ incident.Input) error {
	var all []sensors.Detection
	if err := workflow.SetQueryHandler(ctx, "all", func(from int) ([]sensors.Detection, error) {
		return all[min(from, len(all)):min(from+500, len(all))], nil
	}); err != nil {
		return err
	}
	for {
		var batch []incident.AttestedDetection
		workflow.GetSignalChannel(ctx, workflows.SignalDetections).Receive(ctx, &batch)
		for _, a := range batch {
			all = append(all, a.Detection)
		}
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("STANCH_TEST_SENSOR"); dir != "" {
		if err := storm(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// edge is a gateway for nodes with its monitor, on a real Temporal, over real mutual TLS.
type edge struct {
	*health.Monitor
	hub     *gateway.Hub
	intake  *gateway.Intake
	pki     *authority.PKI
	server  *temporal.Server
	address string
	grpc    *grpc.Server
	stop    func()
}

type edgeOptions struct {
	timing  health.Timing
	limits  config.Nodes
	kube    kubernetes.Interface
	cluster health.Cluster
	pki     *authority.PKI
	auth    *authority.Authority
	address string
	file    string
	polls   bool // serve nodes' queues as the worker does
	name    string
}

func open(t *testing.T, server *temporal.Server, o edgeOptions) *edge {
	t.Helper()
	var err error
	if o.pki == nil {
		o.pki, err = authority.OpenPKI(t.TempDir())
		require.NoError(t, err)
	}
	if o.auth == nil {
		o.auth, err = authority.Open(t.TempDir())
		require.NoError(t, err)
	}
	quiet := slog.New(slog.DiscardHandler)
	e := &edge{pki: o.pki, server: server}
	e.intake = &gateway.Intake{Temporal: server, Authority: o.auth, Config: config.Default(), Kube: o.kube, Log: quiet, Incident: "Story"}
	if o.timing.Look == 0 {
		o.timing.Look = 20 * time.Millisecond
	}
	e.Monitor = health.New(health.Options{
		Intake: e.intake, Cluster: o.cluster, Elsewhere: health.Pollers{Temporal: server, Self: o.name}, Authority: o.pki, Timing: o.timing, Log: quiet, File: o.file,
	})
	e.hub = &gateway.Hub{
		Keys: o.auth.Keys(), Intake: e.intake, Log: quiet, Limits: o.limits, Monitor: e.Monitor, Started: time.Now(),
		Serve: func(node string) (func(), error) { return func() {}, nil },
		Sign: func(_ context.Context, node string, csr []byte) ([]byte, error) {
			return o.pki.Sign(authority.RoleNode, node, csr)
		},
	}
	if o.polls {
		e.hub.Serve = func(node string) (func(), error) { return poll(server, node, o.name) }
	}
	serving, err := o.pki.Serving(authority.RoleGateway, "gateway", gatewayrpc.ServerName)
	require.NoError(t, err)
	if o.address == "" {
		o.address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", o.address)
	require.NoError(t, err)
	e.address = l.Addr().String()
	e.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(serving)), grpc.MaxRecvMsgSize(gatewayrpc.MaxMessageBytes+4096))
	gatewaypb.RegisterGatewayServer(e.grpc, e.hub)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.grpc.Serve(l) })
	wg.Go(func() { e.Run(ctx) })
	e.stop = sync.OnceFunc(func() { e.grpc.Stop(); cancel(); wg.Wait() })
	t.Cleanup(e.stop)
	return e
}

// sensor is a node's end of the link, without a kernel.
type sensor struct {
	*gatewayrpc.Client
	spool *gatewayrpc.Spool
	end   func() // as an administrator ends it
	kill  func() // its connection breaks, and it says nothing
}

type sensorOptions struct {
	name   string
	now    func() time.Time
	status func() any
	old    bool // its certificate is past half of its life
	log    io.Writer
	every  time.Duration // how often it tells how it is; 30 ms if not given
}

type handler struct{}

func (handler) Handle(context.Context, gatewayrpc.CommandKind, []byte, attestation.Keyring) (any, []gatewayrpc.Attachment, error) {
	return nil, nil, gatewayrpc.ErrRefused
}

func (e *edge) join(t *testing.T, o sensorOptions) *sensor {
	t.Helper()
	base, err := e.pki.TLS(authority.RoleNode, o.name)
	require.NoError(t, err)
	identity, err := gatewayrpc.NewNodeCertificate(base, filepath.Join(t.TempDir(), "node.pem"))
	require.NoError(t, err)
	spool, err := gatewayrpc.OpenSpool(t.TempDir(), gatewayrpc.SpoolLimits{})
	require.NoError(t, err)
	if o.status == nil {
		o.status = func() any { return agent.StatusReport{Health: agent.Health{Node: o.name}} }
	}
	if o.old {
		o.now = func() time.Time { return time.Now().Add(50 * 24 * time.Hour) }
	}
	if o.log == nil {
		o.log = io.Discard
	}
	if o.every == 0 {
		o.every = 30 * time.Millisecond
	}
	proxy := newProxy(t, e.address)
	s := &sensor{spool: spool, Client: &gatewayrpc.Client{
		Address: proxy.address, Node: o.name, Version: "test", BootID: "boot", Spool: spool, Handler: handler{}, NodeCertificate: identity,
		StatusFunc: o.status, HealthInterval: o.every, Log: slog.New(slog.NewTextHandler(o.log, nil)), Now: o.now,
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	s.end = sync.OnceFunc(func() { cancel(); <-done })
	s.kill = sync.OnceFunc(func() { proxy.cut(); s.end() })
	t.Cleanup(s.end)
	return s
}

// here waits until a node is connected and has spoken.
func (e *edge) here(t *testing.T, name string) map[string]json.RawMessage {
	t.Helper()
	var said map[string]json.RawMessage
	require.Eventually(t, func() bool {
		raw, ok := e.hub.Nodes()[name]
		return ok && json.Unmarshal(raw, &said) == nil && len(said) > 1
	}, 20*time.Second, 5*time.Millisecond)
	return said
}

// told are the detections that the incident of a subject knows; none if there is no incident.
func told(t *testing.T, c client.Client, key string) []sensors.Detection {
	t.Helper()
	var all []sensors.Detection
	for {
		v, err := c.QueryWorkflow(t.Context(), workflows.IncidentWorkflowID("local/"+key), "", "all", len(all))
		if err != nil {
			return nil
		}
		var page []sensors.Detection
		require.NoError(t, v.Get(&page))
		if all = append(all, page...); len(page) < 500 {
			return all
		}
	}
}

// becomes waits until the incident of a subject has a detection of a rule, and gives it.
func becomes(t *testing.T, c client.Client, key, rule string) sensors.Detection {
	t.Helper()
	var found sensors.Detection
	require.Eventually(t, func() bool {
		for _, d := range told(t, c, key) {
			if d.Rule == rule {
				found = d
				return true
			}
		}
		return false
	}, 30*time.Second, 20*time.Millisecond, "no %s on %s", rule, key)
	return found
}

// proxy is the network between a sensor and its gateway.
type proxy struct {
	address string
	l       net.Listener
	mu      sync.Mutex
	conns   []net.Conn
	dead    bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{address: l.Addr().String(), l: l}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			p.mu.Lock()
			if err != nil || p.dead {
				_ = near.Close()
				p.mu.Unlock()
				continue
			}
			p.conns = append(p.conns, near, far)
			p.mu.Unlock()
			go splice(near, far)
			go splice(far, near)
		}
	}()
	t.Cleanup(p.cut)
	return p
}

func splice(to, from net.Conn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// cut ends every connection without a word, and lets none begin.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	_ = p.l.Close()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}
