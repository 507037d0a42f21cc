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
	"path/filepath"
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
	"stanch/workflows/chatmessage"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// Options are what a worker is made of.
type Options struct {
	Config         *config.Config
	DataDir        string // data: keys, evidence, the kill switch
	TemporalClient client.Client
	KubeClient     kubernetes.Interface // nil without a cluster
	Authority      *authority.Authority
	PKI            *authority.PKI
	Library        *Library
	LeaseTiming    lease.Timing
	OwnPodUIDs     []string // Stanch's own pods, by UID
	// Namespace is Stanch's own in the cluster; "" outside of one. There the sensor's pods are.
	Namespace string
	// HealthTiming says when telemetry is missing for too long.
	HealthTiming health.Timing
	// ConfigFile is where Config came from; "" is nowhere. Who may answer is read from it anew.
	ConfigFile string
	// APIListen is where the API listens for people with a Kubernetes token; "" does not listen.
	APIListen string
	// NodeListen is where nodes dial, with mutual TLS. NodeHosts are the names in the gateway's certificate.
	NodeListen string
	NodeHosts  []string
	// SourceListen is where foreign sensors post; "" does not listen.
	SourceListen string
	// SocketPath is the local API; "" does not listen. SocketGroup is the group whose members may connect beside root; "" is
	// the configuration's.
	SocketPath  string
	SocketGroup string
	// KillSwitch is the kill switch; nil means a file in Dir, which is this process's own.
	KillSwitch guards.KillSwitch
	// Version is this program's, for what is exported.
	Version string
	// DataConverter reads what Client's does: audits decrypt histories with it.
	DataConverter converter.DataConverter
	// EvidenceDir is where evidence is kept; "" means below Dir.
	EvidenceDir string
	Log         *slog.Logger
	// Tracer tells of accepted detections; nil tells nobody. What follows is told by what is in Client.
	Tracer trace.Tracer
	// Failpoint is called at named points, so that tests can kill the process there.
	Failpoint func(point string)
}

// Worker is everything that runs beside Temporal.
type Worker struct {
	Options
	NodeServer      *gateway.NodeServer
	Ingester        *gateway.Ingester
	HealthMonitor   *health.Monitor
	QueryService    *gateway.QueryService
	ApprovalService *gateway.ApprovalService
	Activities      *activities.Activities
	SourceServer    *gateway.SourceServer // nil without other sensors
	Exporters       *export.Exporters
	NodeAddr        string // where nodes dial, as it was bound
	SourceAddr      string
	APIAddr         string

	awsAccount     *aws.Account // nil without one
	replicaName    string       // of this replica, as Temporal shows who polls
	temporalWorker sdkworker.Worker
	slack          *gateway.SlackInteractions // nil without a configuration
	drills         *gateway.DrillRegistry
	ruleEvaluator  *gateway.RuleEvaluator // nil where nothing is judged here
	closers        []func()
}

// OpenAccount opens the AWS account of the configuration; nil if there is none.
func OpenAccount(ctx context.Context, c *config.Config) (*aws.Account, error) {
	if c.AWS == nil {
		return nil, nil //nolint:nilnil // no account is an answer
	}
	a := c.AWS
	return aws.Open(ctx, aws.Options{Region: a.Region, Endpoint: a.Endpoint, Profile: a.Profile, RoleARN: a.RoleARN, Cluster: a.Cluster, ProtectedRoles: c.ProtectedTargets.Roles})
}

// Start starts all parts. Close stops them.
func Start(ctx context.Context, o Options) (*Worker, error) {
	w := &Worker{Options: o}
	if err := w.startParts(ctx); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Worker) startParts(ctx context.Context) error {
	o := w.Options
	w.QueryService = &gateway.QueryService{Temporal: o.TemporalClient}
	w.NodeServer = &gateway.NodeServer{Keyring: o.Authority.Keyring(), KeySets: o.Authority.KeySetChain(), Log: o.Log, ServeNode: w.pollNodeTaskQueue}
	account, err := OpenAccount(ctx, o.Config)
	if err != nil {
		return err
	}
	w.awsAccount = account
	w.drills = &gateway.DrillRegistry{Kube: o.KubeClient}
	if account != nil {
		w.drills.RoleID = account.LookupRoleID
	}
	outside, err := OpenExternalServices(o.Config)
	if err != nil {
		return err
	}
	outside.Manifests, outside.ManifestHead, outside.Failpoint = lazyManifestReader{w}, w.manifestHead, o.Failpoint
	w.Activities = activities.NewActivities(AllActions(Deps{NodeClient: w.NodeServer, KubeClient: o.KubeClient, Account: account, Notifier: lazyNotifier{w}, ExternalServices: outside, Log: o.Log})...)
	w.Activities.Authority, w.Activities.Log, w.Activities.Failpoint, w.Activities.ClosureReader = o.Authority, o.Log, o.Failpoint, w.QueryService
	w.Activities.Evidence = &activities.EvidenceStore{Dir: cmp.Or(o.EvidenceDir, filepath.Join(o.DataDir, "evidence")), Authority: o.Authority, Quota: evidenceQuota(o.Config.EvidenceLimits)}
	killSwitch := o.KillSwitch
	if killSwitch == nil {
		killSwitch = &guards.FileKillSwitch{FilePath: filepath.Join(o.DataDir, "stopped"), Authority: o.Authority}
	}
	var grants guards.UsedGrants = &guards.FileUsedGrants{FilePath: filepath.Join(o.DataDir, "grants.json")}
	if o.KubeClient != nil && o.Namespace != "" {
		grants = &guards.SharedUsedGrants{KubeClient: o.KubeClient, Namespace: o.Namespace}
	}
	purse, stop, err := openBudgetClient(ctx, o.TemporalClient, o.Config.Cluster, o.Log)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, stop)
	chain := &guards.GuardChain{Config: o.Config, Keyring: o.Authority.Keyring(), KillSwitch: killSwitch, Budget: purse.budgetWindow, UsedGrants: grants, OwnPodUIDs: o.OwnPodUIDs, TargetResolver: &kube.TargetResolver{Client: o.KubeClient}}
	w.Activities.Guards, w.Activities.ScopeApprovers = chain, chain
	o.Library.Authority = o.Authority
	w.ApprovalService = &gateway.ApprovalService{
		QueryService: w.QueryService, Authority: o.Authority, Roster: config.NewRoster(o.Config, o.ConfigFile), ScopeApprovers: chain, KillSwitch: killSwitch, Evidence: w.Activities.Evidence, Log: o.Log,
		InstallationInfo: gateway.InstallationInfo{Version: o.Version, StartedAt: time.Now(), PlaybookNames: w.playbookNames, InvalidPlaybooks: w.invalidPlaybooks},
	}

	catalogue := w.Activities.Catalog()
	leases := &lease.Workflows{Catalog: catalogue}
	plays := &playbook.Workflows{Catalog: catalogue, Leases: leases}
	incidents := &incident.Workflows{Playbooks: plays}
	w.Ingester = &gateway.Ingester{Temporal: o.TemporalClient, Authority: o.Authority, Config: o.Config, Kube: o.KubeClient, LeaseTiming: o.LeaseTiming, Log: o.Log, IncidentWorkflow: incidents.Incident, Tracer: o.Tracer, Failpoint: o.Failpoint, DrillRegistry: w.drills, ChatEnabled: o.Config.Slack != nil}
	exports, err := export.Open(o.Config.Exports, o.Version, o.Log) //nolint:contextcheck // they go on until Close
	if err != nil {
		return err
	}
	w.Exporters = exports
	w.closers = append(w.closers, exports.Close)
	w.Ingester.OnAccepted = exports.Enqueue
	w.NodeServer.Ingester, w.NodeServer.NodeLimits = w.Ingester, o.Config.NodeLimits
	w.watchHealth(ctx)
	w.ApprovalService.ManualRequests = &gateway.ManualRequests{Ingester: w.Ingester, NodeServer: w.NodeServer, ProgramForRequest: o.Library.ProgramForRequest, Plan: w.Activities.Plan}
	if err := w.openSlack(); err != nil {
		return err
	}

	w.temporalWorker = sdkworker.New(o.TemporalClient, workflows.TaskQueue, sdkworker.Options{
		MaxConcurrentWorkflowTaskPollers: 4, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: 5 * time.Second,
	})
	w.temporalWorker.RegisterWorkflow(leases.Lease)
	w.temporalWorker.RegisterWorkflow(plays.Playbook)
	w.temporalWorker.RegisterWorkflow(incidents.Incident)
	w.temporalWorker.RegisterWorkflow(chatmessage.ChatMessage)
	w.temporalWorker.RegisterActivityWithOptions(w.Activities, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	w.temporalWorker.RegisterActivityWithOptions(o.Library.MatchPlaybooks, activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	w.temporalWorker.RegisterActivityWithOptions(o.Library.MatchManualRequest, activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
	// From here on nodes may connect and are missed: work that a crash left is under way at once, and before this line
	// time may have passed (reading the budget right after a crash takes seconds).
	w.NodeServer.StartedAt = time.Now()
	if err := w.listenNodes(); err != nil {
		return err
	}
	if err := w.temporalWorker.Start(); err != nil {
		return fmt.Errorf("start the Temporal worker: %w", err)
	}
	w.closers = append(w.closers, w.temporalWorker.Stop)
	if err := w.openRuleEvaluator(ctx); err != nil {
		return err
	}
	if err := w.listenSources(); err != nil {
		return err
	}
	if err := w.followCloudTrail(ctx); err != nil {
		return err
	}
	w.watchLibrary(ctx)
	w.runSlackSocketMode(ctx)
	w.undoOrphansPeriodically(ctx)
	w.archiveClosed(ctx)
	return errors.Join(w.listenAPI(), w.listenLocal())
}

func evidenceQuota(e config.EvidenceLimits) activities.Quota {
	return activities.Quota{MaxTotalBytes: int64(e.MaxTotalBytes), MaxIncidentBytes: int64(e.MaxBytesPerIncident), MinFreeBytes: int64(e.MinFreeBytes)}
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

// pollNodeTaskQueue polls a node's task queue while its stream is here.
func (w *Worker) pollNodeTaskQueue(name string) (func(), error) {
	nodeWorker := sdkworker.New(w.TemporalClient, workflows.NodeTaskQueue(name), sdkworker.Options{
		DisableWorkflowWorker: true, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: time.Second, Identity: w.replicaName,
	})
	nodeWorker.RegisterActivityWithOptions(w.Activities, activity.RegisterOptions{SkipInvalidStructFunctions: true})
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
	tlsConfig, err := w.PKI.RenewingTLSConfig(authority.RoleGateway, "gateway", append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", w.NodeListen) //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("listen for nodes: %w", err)
	}
	w.NodeAddr = l.Addr().String()
	l = connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: maxNodeConnections})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsConfig)), grpc.MaxRecvMsgSize(gatewayrpc.MaxMessageBytes+4096), grpc.MaxSendMsgSize(gatewayrpc.MaxMessageBytes+4096),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 5 * time.Second, MaxConnectionIdle: time.Minute}),
		// Who says nothing is not kept: neither without a handshake nor, above, without a stream.
		grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxConcurrentStreams(maxNodeStreams), grpc.MaxHeaderListSize(16<<10))
	gatewaypb.RegisterGatewayServer(server, w.NodeServer)
	go func() {
		if err := server.Serve(l); err != nil {
			w.Log.Error("the gateway for nodes ended", "error", err)
		}
	}()
	w.closers = append(w.closers, server.Stop)
	return nil
}

func (w *Worker) listenSources() error {
	if w.SourceListen == "" {
		return nil
	}
	foreign, err := gateway.NewSourceServer(w.Ingester, w.Config.Sources, w.Log)
	if err != nil {
		return err
	}
	foreign.HealthSink = w.HealthMonitor
	foreign.RuleEvaluator = w.ruleEvaluator
	l, err := net.Listen("tcp", w.SourceListen) //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("listen for foreign detections: %w", err)
	}
	w.SourceAddr = l.Addr().String()
	l = connlimit.NewLimitedListener(l, connlimit.Limits{})
	if w.PKI != nil {
		tlsConfig, err := w.PKI.MutualTLSConfig(authority.RoleGateway, "gateway", append(w.NodeHosts, gatewayrpc.ServerName)...)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		l = gateway.NewTLSMux(l, tlsConfig)
	}
	if w.slack != nil && w.slack.SigningSecret != "" {
		foreign.Slack = w.slack
	}
	w.SourceServer = foreign
	w.serveHTTPServer(foreign.HTTPServer(), l)
	return nil
}

func (w *Worker) listenLocal() error {
	if w.SocketPath == "" {
		return nil
	}
	group, err := gateway.LookUpSocketGroup(cmp.Or(w.SocketGroup, w.Config.SocketGroup))
	if err != nil {
		return err
	}
	l, err := gateway.ListenLocalSocket(w.SocketPath, group)
	if err != nil {
		return err
	}
	local := &gateway.LocalAPI{API: gateway.API{ApprovalService: w.ApprovalService, NodeServer: w.NodeServer, ExtraRoutes: w.readRoutes(gateway.AuditRoutes(w.newAuditor()))}, DrillRegistry: w.drills}
	w.serveHTTPServer(local.HTTPServer(), connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: 256, MaxPerPeer: 32}))
	return nil
}

// listenAPI lets people in a cluster answer with a Kubernetes token.
func (w *Worker) listenAPI() error {
	if w.APIListen == "" {
		return nil
	}
	if w.KubeClient == nil {
		return errors.New("listen for people: their tokens are reviewed by a cluster, and there is none")
	}
	tlsConfig, err := w.PKI.RenewingTLSConfig(authority.RoleGateway, "gateway", append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	tlsConfig.ClientAuth, tlsConfig.ClientCAs = tls.NoClientCert, nil // people show a token
	l, err := net.Listen("tcp", w.APIListen)                          //nolint:noctx // at once
	if err != nil {
		return fmt.Errorf("listen for people: %w", err)
	}
	w.APIAddr = l.Addr().String()
	l = tls.NewListener(connlimit.NewLimitedListener(l, connlimit.Limits{}), tlsConfig)
	remote := &gateway.ClusterAPI{API: gateway.API{ApprovalService: w.ApprovalService, NodeServer: w.NodeServer, ExtraRoutes: w.readRoutes(gateway.AuditRoutes(w.newAuditor()))}, Kube: w.KubeClient}
	if w.Namespace != "" && w.NodeServer.SignCSR != nil {
		remote.Enroller = &gateway.Enroller{Kube: w.KubeClient, Namespace: w.Namespace, ServiceAccount: sensorAccount, SignCSR: w.NodeServer.SignCSR, Log: w.Log, KeySet: w.Authority.KeySet()}
	}
	w.serveHTTPServer(remote.HTTPServer(), l)
	return nil
}

func (w *Worker) serveHTTPServer(server *http.Server, l net.Listener) {
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

// SecureClientOptions are what every client of Stanch's Temporal needs: its encryption, and nothing in the clear.
func SecureClientOptions(o client.Options, dir string) (client.Options, error) {
	c, err := OpenPayloadCodec(dir)
	if err != nil {
		return o, err
	}
	o.DataConverter = converter.DataConverter(c.DataConverter())
	o.FailureConverter = c.FailureConverter()
	return o, nil
}
