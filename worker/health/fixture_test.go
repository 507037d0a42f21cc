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
	"sync/atomic"
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
	"stanch/sensors/attestation"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/testenv/temporal"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/health"
	"stanch/worker/ingest"
	"stanch/worker/nodeserver"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// incidentWorkflow is an incident that only stores what it receives.
func incidentWorkflow(ctx workflow.Context, _ incident.Input) error {
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
		if err := runStormSensor(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// gatewayFixture is a gateway for nodes with its monitor, on a real Temporal, over real mutual TLS.
type gatewayFixture struct {
	*health.Monitor
	nodeServer *nodeserver.Server
	ingester   *ingest.Ingester
	pki        *authority.PKI
	server     *temporal.Server
	address    string
	grpc       *grpc.Server
	stop       func()
	clock      atomic.Int64 // how far the monitor's clock is ahead, in nanoseconds
}

// clockStart is how far the monitor's clock is behind at first: detections must not be from the future.
const clockStart = -3 * time.Hour

// now returns the time by the monitor's clock.
func (e *gatewayFixture) now() time.Time { return time.Now().Add(time.Duration(e.clock.Load())) }

// advance moves the monitor's clock forward.
func (e *gatewayFixture) advance(by time.Duration) { e.clock.Add(int64(by)) }

// advanceUntil moves the monitor's clock forward in steps, until done.
func (e *gatewayFixture) advanceUntil(t *testing.T, step time.Duration, done func() bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		if done() {
			return true
		}
		e.advance(step)
		return false
	}, 30*time.Second, 20*time.Millisecond)
	require.Negative(t, e.clock.Load(), "the monitor's clock is in the future")
}

// waitUntilGone waits until a node is not connected.
func (e *gatewayFixture) waitUntilGone(t *testing.T, name string) {
	t.Helper()
	require.Eventually(t, func() bool { return e.nodeServer.ConnectedNodes()[name] == nil }, 20*time.Second,
		5*time.Millisecond)
}

type gatewayFixtureOptions struct {
	timing         health.Timing
	limits         config.NodeLimits
	kube           kubernetes.Interface
	cluster        health.ClusterNodes
	pki            *authority.PKI
	authority      *authority.Authority
	address        string
	file           string
	pollNodeQueues bool // poll nodes' queues as the worker does
	name           string
}

func newGatewayFixture(t *testing.T, server *temporal.Server, o gatewayFixtureOptions) *gatewayFixture {
	t.Helper()
	var err error
	if o.pki == nil {
		o.pki, err = authority.OpenOrCreatePKI(t.TempDir())
		require.NoError(t, err)
	}
	if o.authority == nil {
		o.authority, err = authority.OpenOrCreate(t.TempDir())
		require.NoError(t, err)
	}
	quiet := slog.New(slog.DiscardHandler)
	e := &gatewayFixture{pki: o.pki, server: server}
	e.clock.Store(int64(clockStart))
	e.ingester = &ingest.Ingester{
		Temporal: server, Authority: o.authority, Config: config.Default(), Kube: o.kube,
		Log: quiet, IncidentWorkflow: "Story",
	}
	if o.timing.CheckInterval == 0 {
		o.timing.CheckInterval = 20 * time.Millisecond
	}
	e.Monitor = health.NewMonitor(health.Options{
		Ingester: e.ingester, ClusterNodes: o.cluster, ReplicaChecker: health.TaskQueuePollers{
			Temporal:    server,
			OwnIdentity: o.name,
		}, CertificateAuthority: o.pki, Timing: o.timing, Log: quiet, StateFile: o.file,
		Now: e.now,
	})
	e.nodeServer = &nodeserver.Server{
		Keyring: o.authority.Keyring(), Ingester: e.ingester, Log: quiet, NodeLimits: o.limits, Monitor: e.Monitor,
		StartedAt: time.Now(),
		ServeNode: func(node string) (func(), error) { return func() {}, nil },
		SignCSR: func(_ context.Context, node string, csr []byte) ([]byte, error) {
			return o.pki.SignCSR(authority.RoleNode, node, csr)
		},
	}
	if o.pollNodeQueues {
		e.nodeServer.ServeNode = func(node string) (func(), error) { return pollNodeQueue(server, node, o.name) }
	}
	serving, err := o.pki.RenewingTLSConfig(authority.RoleGateway, "gateway", gatewayrpc.ServerName)
	require.NoError(t, err)
	if o.address == "" {
		o.address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", o.address)
	require.NoError(t, err)
	e.address = l.Addr().String()
	e.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(serving)), grpc.MaxRecvMsgSize(gatewayrpc.MaxMessageBytes+4096))
	gatewaypb.RegisterGatewayServer(e.grpc, e.nodeServer)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.grpc.Serve(l) })
	wg.Go(func() { e.Run(ctx) })
	e.stop = sync.OnceFunc(func() { e.grpc.Stop(); cancel(); wg.Wait() })
	t.Cleanup(e.stop)
	return e
}

// fakeSensor is a node's end of the stream, without a kernel.
type fakeSensor struct {
	*gatewayrpc.Client
	spool           *gatewayrpc.Spool
	shutDown        func() // a regular shutdown
	breakConnection func() // its connection breaks without a message
}

type fakeSensorOptions struct {
	name                   string
	now                    func() time.Time
	status                 func() any
	certificateHalfExpired bool // half of its certificate's lifetime is over
	log                    io.Writer
	healthInterval         time.Duration // health report interval; 0 means 30 ms
}

type noopHandler struct{}

func (noopHandler) Handle(context.Context, gatewayrpc.CommandKind, []byte, attestation.Keyring) (any,
	[]gatewayrpc.Attachment, error,
) {
	return nil, nil, gatewayrpc.ErrRefused
}

func (e *gatewayFixture) connectSensor(t *testing.T, o fakeSensorOptions) *fakeSensor {
	t.Helper()
	base, err := e.pki.MutualTLSConfig(authority.RoleNode, o.name)
	require.NoError(t, err)
	identity, err := gatewayrpc.NewNodeCertificate(base, filepath.Join(t.TempDir(), "node.pem"))
	require.NoError(t, err)
	spool, err := gatewayrpc.OpenSpool(t.TempDir(), gatewayrpc.SpoolLimits{})
	require.NoError(t, err)
	if o.status == nil {
		o.status = func() any { return agent.StatusReport{Health: agent.Health{Node: o.name}} }
	}
	if o.certificateHalfExpired {
		o.now = func() time.Time { return time.Now().Add(50 * 24 * time.Hour) }
	}
	if o.log == nil {
		o.log = io.Discard
	}
	if o.healthInterval == 0 {
		o.healthInterval = 30 * time.Millisecond
	}
	proxy := newProxy(t, e.address)
	s := &fakeSensor{spool: spool, Client: &gatewayrpc.Client{
		Address: proxy.address, Node: o.name, Version: "test", BootID: "boot", Spool: spool, Handler: noopHandler{},
		NodeCertificate: identity,
		StatusFunc:      o.status, HealthInterval: o.healthInterval, Log: slog.New(slog.NewTextHandler(o.log, nil)),
		Now: o.now,
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	s.shutDown = sync.OnceFunc(func() { cancel(); <-done })
	s.breakConnection = sync.OnceFunc(func() { proxy.cutConnections(); s.shutDown() })
	t.Cleanup(s.shutDown)
	return s
}

// waitUntilConnected waits until a node is connected and has sent a health report.
func (e *gatewayFixture) waitUntilConnected(t *testing.T, name string) map[string]json.RawMessage {
	t.Helper()
	var said map[string]json.RawMessage
	require.Eventually(t, func() bool {
		raw, ok := e.nodeServer.ConnectedNodes()[name]
		return ok && json.Unmarshal(raw, &said) == nil && len(said) > 1
	}, 20*time.Second, 5*time.Millisecond)
	return said
}

// incidentDetections returns the detections that the incident of a subject has received; none if there is no incident.
func incidentDetections(t *testing.T, c client.Client, key string) []sensors.Detection {
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

// findDetection returns a rule's first detection in the incident of a subject; nil if there is none.
func findDetection(t *testing.T, c client.Client, key, rule string) *sensors.Detection {
	t.Helper()
	for _, d := range incidentDetections(t, c, key) {
		if d.Rule == rule {
			return &d
		}
	}
	return nil
}

// waitForDetection waits until the incident of a subject has a detection of a rule, and returns it.
func waitForDetection(t *testing.T, c client.Client, key, rule string) sensors.Detection {
	t.Helper()
	var found *sensors.Detection
	require.Eventually(t, func() bool {
		found = findDetection(t, c, key, rule)
		return found != nil
	}, 30*time.Second, 20*time.Millisecond, "no %s on %s", rule, key)
	return *found
}

// waitUntilLost moves the monitor's clock forward until a node that is not connected is reported as lost.
func (e *gatewayFixture) waitUntilLost(t *testing.T, node string) sensors.Detection {
	t.Helper()
	var found *sensors.Detection
	e.advanceUntil(t, lostAfter, func() bool {
		found = findDetection(t, e.server, "Node/"+node, "telemetry-lost")
		return found != nil
	})
	return *found
}

// networkProxy is the network between a sensor and its gateway.
type networkProxy struct {
	address  string
	listener net.Listener
	mu       sync.Mutex
	conns    []net.Conn
	refusing bool
}

func newProxy(t *testing.T, to string) *networkProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &networkProxy{address: l.Addr().String(), listener: l}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			p.mu.Lock()
			if err != nil || p.refusing {
				_ = near.Close()
				p.mu.Unlock()
				continue
			}
			p.conns = append(p.conns, near, far)
			p.mu.Unlock()
			go copyAndClose(near, far)
			go copyAndClose(far, near)
		}
	}()
	t.Cleanup(p.cutConnections)
	return p
}

func copyAndClose(to, from net.Conn) {
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

// cutConnections breaks every connection, and accepts no new one.
func (p *networkProxy) cutConnections() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = true
	_ = p.listener.Close()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
}
