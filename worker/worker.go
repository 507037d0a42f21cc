// Package worker is the wiring: it puts the gateway, the guards, the actions and the workflows together around one
// Temporal client, and takes them apart again.
//
// It refuses to hold logic of its own: what is decided is decided in guards, what is done is done in activities.
package worker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdkworker "go.temporal.io/sdk/worker"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/activities/kube"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/gatewayrpc/gatewaypb"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/connlimit"
	"stanch/worker/export"
	"stanch/worker/gateway"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/workflows"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
	"stanch/workflows/chatmessage"
)

// Options are what a worker is made of.
type Options struct {
	Config    *config.Config
	Dir       string // data: keys, evidence, the kill switch
	Client    client.Client
	Kube      kubernetes.Interface // nil without a cluster
	Authority *authority.Authority
	PKI       *authority.PKI
	Library   *Library
	Timing    lease.Timing
	Self      []string // Stanch's own pods, by UID
	// Namespace is Stanch's own in the cluster; "" outside of one. There the sensor's pods are.
	Namespace string
	// Watch says when telemetry is missing for too long.
	Watch health.Timing
	// ConfigFile is where Config came from; "" is nowhere. Who may answer is read from it anew.
	ConfigFile string
	// APIListen is where the API listens for people with a Kubernetes token; "" does not listen.
	APIListen string
	// NodeListen is where nodes dial, with mutual TLS. NodeHosts are the names in the gateway's certificate.
	NodeListen string
	NodeHosts  []string
	// Listen is where foreign sensors post; "" does not listen.
	Listen string
	// Socket is the local API; "" does not listen. SocketGroup is the group whose members may connect beside root; "" is
	// the configuration's.
	Socket      string
	SocketGroup string
	// Switch is the kill switch; nil means a file in Dir, which is this process's own.
	Switch guards.Lever
	// Version is this program's, for what is exported.
	Version string
	// Converter reads what Client's does: audits decrypt histories with it.
	Converter converter.DataConverter
	// Evidence is where evidence is kept; "" means below Dir.
	Evidence string
	Log      *slog.Logger
	// Tracer tells of accepted detections; nil tells nobody. What follows is told by what is in Client.
	Tracer trace.Tracer
	// At is called at named points, so that tests can kill the process there.
	At func(point string)
}

// Worker is everything that runs beside Temporal.
type Worker struct {
	Options
	Hub      *gateway.Hub
	Intake   *gateway.Intake
	Monitor  *health.Monitor
	Reader   *gateway.Reader
	Decider  *gateway.Decider
	Set      *activities.Activities
	Foreign  *gateway.Foreign // nil without other sensors
	Exports  *export.Exports
	NodeAddr string // where nodes dial, as it was bound
	HTTPAddr string
	APIAddr  string

	account *aws.Account // nil without one
	name    string       // of this replica, as Temporal shows who polls
	main    sdkworker.Worker
	slack   *gateway.Slack // nil without a configuration
	drills  *gateway.Drills
	judge   *gateway.Judge // nil where nothing is judged here
	closers []func()
}

// OpenAccount opens the AWS account of the configuration; nil if there is none.
func OpenAccount(ctx context.Context, c *config.Config) (*aws.Account, error) {
	if c.AWS == nil {
		return nil, nil //nolint:nilnil // no account is an answer
	}
	a := c.AWS
	return aws.Open(ctx, aws.Options{Region: a.Region, Endpoint: a.Endpoint, Profile: a.Profile, RoleARN: a.RoleARN, Cluster: a.Cluster, ProtectedRoles: c.Protected.Roles})
}

// Start starts all parts. Close stops them.
func Start(ctx context.Context, o Options) (*Worker, error) {
	w := &Worker{Options: o}
	if err := w.start(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Worker) start(ctx context.Context) error {
	o := w.Options
	w.Reader = &gateway.Reader{Temporal: o.Client}
	w.Hub = &gateway.Hub{Keys: o.Authority.Keys(), KeySets: o.Authority.Chain(), Log: o.Log, Serve: w.serveNode}
	account, err := OpenAccount(ctx, o.Config)
	if err != nil {
		return err
	}
	w.account = account
	w.drills = &gateway.Drills{Kube: o.Kube}
	if account != nil {
		w.drills.RoleID = account.LookupRoleID
	}
	outside, err := OpenOutside(o.Config)
	if err != nil {
		return err
	}
	outside.Records, outside.Head, outside.At = records{w}, w.head, o.At
	w.Set = activities.NewActivities(Actions(Parts{Nodes: w.Hub, Kube: o.Kube, Account: account, Desk: desk{w}, Outside: outside, Log: o.Log})...)
	w.Set.Authority, w.Set.Log, w.Set.Failpoint, w.Set.ClosureReader = o.Authority, o.Log, o.At, w.Reader
	w.Set.Evidence = &activities.EvidenceStore{Dir: cmp.Or(o.Evidence, filepath.Join(o.Dir, "evidence")), Authority: o.Authority, Quota: quotaOf(o.Config.Evidence)}
	killSwitch := o.Switch
	if killSwitch == nil {
		killSwitch = &guards.FileSwitch{Path: filepath.Join(o.Dir, "stopped"), Authority: o.Authority}
	}
	var grants guards.Grants = &guards.FileGrants{Path: filepath.Join(o.Dir, "grants.json")}
	if o.Kube != nil && o.Namespace != "" {
		grants = &guards.SharedGrants{Client: o.Kube, Namespace: o.Namespace}
	}
	purse, stop, err := openPurse(ctx, o.Client, o.Config.Cluster, o.Log)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, stop)
	chain := &guards.Chain{Config: o.Config, Keys: o.Authority.Keys(), Switch: killSwitch, Budget: purse.window, Grants: grants, Self: o.Self, Targets: &kube.TargetResolver{Client: o.Kube}}
	w.Set.Guards, w.Set.ScopeApprovers = chain, chain
	o.Library.Authority = o.Authority
	w.Decider = &gateway.Decider{
		Reader: w.Reader, Authority: o.Authority, Roster: config.NewRoster(o.Config, o.ConfigFile), Scopes: chain, Switch: killSwitch, Evidence: w.Set.Evidence, Log: o.Log,
		About: gateway.About{Version: o.Version, Started: time.Now(), Playbooks: w.playbookNames, Invalid: w.invalidPlaybooks},
	}

	catalogue := w.Set.Catalog()
	leases := &lease.Workflows{Catalog: catalogue}
	plays := &playbook.Workflows{Catalog: catalogue, Leases: leases}
	incidents := &incident.Workflows{Playbooks: plays}
	w.Intake = &gateway.Intake{Temporal: o.Client, Authority: o.Authority, Config: o.Config, Kube: o.Kube, Timing: o.Timing, Log: o.Log, Incident: incidents.Incident, Tracer: o.Tracer, At: o.At, Drills: w.drills, Thread: o.Config.Slack != nil}
	exports, err := export.Open(o.Config.Exports, o.Version, o.Log) //nolint:contextcheck // they go on until Close
	if err != nil {
		return err
	}
	w.Exports = exports
	w.closers = append(w.closers, exports.Close)
	w.Intake.Exported = exports.Detection
	w.Hub.Intake, w.Hub.Limits = w.Intake, o.Config.Nodes
	w.watchHealth(ctx)
	w.Decider.Requests = &gateway.Requests{Intake: w.Intake, Hub: w.Hub, ProgramOf: o.Library.ProgramOf, Plan: w.Set.Plan}
	if err := w.openSlack(); err != nil {
		return err
	}

	w.main = sdkworker.New(o.Client, workflows.TaskQueue, sdkworker.Options{
		MaxConcurrentWorkflowTaskPollers: 4, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: 5 * time.Second,
	})
	w.main.RegisterWorkflow(leases.Lease)
	w.main.RegisterWorkflow(plays.Playbook)
	w.main.RegisterWorkflow(incidents.Incident)
	w.main.RegisterWorkflow(chatmessage.Thread)
	w.main.RegisterActivityWithOptions(w.Set, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	w.main.RegisterActivityWithOptions(o.Library.Match, activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	w.main.RegisterActivityWithOptions(o.Library.Requested, activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
	// From here on nodes may connect and are missed: work that a crash left is under way at once, and before this line
	// time may have passed (reading the budget right after a crash takes seconds).
	w.Hub.Started = time.Now()
	if err := w.listenNodes(); err != nil {
		return err
	}
	if err := w.main.Start(); err != nil {
		return fmt.Errorf("start the Temporal worker: %w", err)
	}
	w.closers = append(w.closers, w.main.Stop)
	if err := w.openJudge(ctx); err != nil {
		return err
	}
	if err := w.listenForeign(); err != nil {
		return err
	}
	if err := w.followCloudTrail(ctx); err != nil {
		return err
	}
	w.followLibrary(ctx)
	w.runSlack(ctx)
	w.sweep(ctx)
	w.archiveClosed(ctx)
	return errors.Join(w.listenAPI(), w.listenLocal())
}

func quotaOf(e config.Evidence) activities.Quota {
	return activities.Quota{MaxTotalBytes: int64(e.MaxTotal), MaxIncidentBytes: int64(e.MaxPerIncident), MinFreeBytes: int64(e.MinFree)}
}

// playbookNames are the names of the playbooks in use.
func (w *Worker) playbookNames() []string {
	var out []string
	if w.Library != nil {
		for _, p := range w.Library.Programs() {
			out = append(out, p.Name)
		}
	}
	return out
}

// serveNode polls a node's task queue while its stream is here.
func (w *Worker) serveNode(name string) (func(), error) {
	nodeWorker := sdkworker.New(w.Client, workflows.NodeTaskQueue(name), sdkworker.Options{
		DisableWorkflowWorker: true, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: time.Second, Identity: w.name,
	})
	nodeWorker.RegisterActivityWithOptions(w.Set, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	if err := nodeWorker.Start(); err != nil {
		return nil, fmt.Errorf("serve node %s: %w", name, err)
	}
	return nodeWorker.Stop, nil
}

// Bounds of the nodes' port. A node has one connection with one stream, and a second one while it dials again.
const (
	maxNodeConnections = 8192
	maxNodeStreams     = 4
	handshakeTimeout   = 5 * time.Second
)

func (w *Worker) listenNodes() error {
	if w.NodeListen == "" {
		return nil
	}
	tlsConfig, err := w.PKI.Serving(authority.RoleGateway, "gateway", append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", w.NodeListen) //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("listen for nodes: %w", err)
	}
	w.NodeAddr = l.Addr().String()
	l = connlimit.New(l, connlimit.Limits{Total: maxNodeConnections})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsConfig)), grpc.MaxRecvMsgSize(gatewayrpc.MaxMessageBytes+4096), grpc.MaxSendMsgSize(gatewayrpc.MaxMessageBytes+4096),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, MaxConnectionIdle: time.Minute}),
		// Who says nothing is not kept: neither without a handshake nor, above, without a stream.
		grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxConcurrentStreams(maxNodeStreams), grpc.MaxHeaderListSize(16<<10))
	gatewaypb.RegisterGatewayServer(server, w.Hub)
	go func() {
		if err := server.Serve(l); err != nil {
			w.Log.Error("the gateway for nodes ended", "error", err)
		}
	}()
	w.closers = append(w.closers, server.Stop)
	return nil
}

func (w *Worker) listenForeign() error {
	if w.Listen == "" {
		return nil
	}
	foreign, err := gateway.NewForeign(w.Intake, w.Config.Foreign, w.Log)
	if err != nil {
		return err
	}
	foreign.Health = w.Monitor
	foreign.Judge = w.judge
	l, err := net.Listen("tcp", w.Listen) //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("listen for foreign detections: %w", err)
	}
	w.HTTPAddr = l.Addr().String()
	l = connlimit.New(l, connlimit.Limits{})
	if w.PKI != nil {
		tlsConfig, err := w.PKI.TLS(authority.RoleGateway, "gateway", append(w.NodeHosts, gatewayrpc.ServerName)...)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		l = gateway.Either(l, tlsConfig)
	}
	if w.slack != nil && w.slack.Secret != "" {
		foreign.Slack = w.slack
	}
	w.Foreign = foreign
	w.serve(foreign.Server(), l)
	return nil
}

func (w *Worker) listenLocal() error {
	if w.Socket == "" {
		return nil
	}
	group, err := gateway.LookupGroup(cmp.Or(w.SocketGroup, w.Config.SocketGroup))
	if err != nil {
		return err
	}
	l, err := gateway.Listen(w.Socket, group)
	if err != nil {
		return err
	}
	local := &gateway.Local{API: gateway.API{Decider: w.Decider, Hub: w.Hub, More: w.reads(gateway.AuditRoutes(w.auditor()))}, Drills: w.drills}
	w.serve(local.Server(), connlimit.New(l, connlimit.Limits{Total: 256, PerPeer: 32}))
	return nil
}

// listenAPI lets people in a cluster answer with a Kubernetes token.
func (w *Worker) listenAPI() error {
	if w.APIListen == "" {
		return nil
	}
	if w.Kube == nil {
		return errors.New("listen for people: their tokens are reviewed by a cluster, and there is none")
	}
	tlsConfig, err := w.PKI.Serving(authority.RoleGateway, "gateway", append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	tlsConfig.ClientAuth, tlsConfig.ClientCAs = tls.NoClientCert, nil // people show a token
	l, err := net.Listen("tcp", w.APIListen)                          //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("listen for people: %w", err)
	}
	w.APIAddr = l.Addr().String()
	l = tls.NewListener(connlimit.New(l, connlimit.Limits{}), tlsConfig)
	remote := &gateway.Remote{API: gateway.API{Decider: w.Decider, Hub: w.Hub, More: w.reads(gateway.AuditRoutes(w.auditor()))}, Kube: w.Kube}
	if w.Namespace != "" && w.Hub.Sign != nil {
		remote.Enrol = &gateway.Enrol{Kube: w.Kube, Namespace: w.Namespace, Account: sensorAccount, Sign: w.Hub.Sign, Log: w.Log, KeySet: w.Authority.KeySet()}
	}
	w.serve(remote.Server(), l)
	return nil
}

func (w *Worker) serve(server *http.Server, l net.Listener) {
	go func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			w.Log.Error("a server ended", "address", l.Addr().String(), "error", err)
		}
	}()
	w.closers = append(w.closers, func() { _ = server.Close() })
}

// Close stops all parts, the last started first.
func (w *Worker) Close() {
	for i := len(w.closers) - 1; i >= 0; i-- {
		w.closers[i]()
	}
	w.closers = nil
}

// DialOptions are what every client of Stanch's Temporal needs: its encryption, and nothing in the clear.
func DialOptions(o client.Options, dir string) (client.Options, error) {
	c, err := PayloadCodec(dir)
	if err != nil {
		return o, err
	}
	o.DataConverter = converter.DataConverter(c.Converter())
	o.FailureConverter = c.Failures()
	return o, nil
}

// LockDir makes sure that one process alone uses a data directory.
func LockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := flock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another Stanch runs on %s; stop it, or give this one its own --data", dir)
	}
	var once sync.Once
	return func() { once.Do(func() { _ = f.Close() }) }, nil
}
