// Package worker connects the gateway, the guards, the actions and the workflows with one Temporal client, and shuts
// them down.
//
// It contains no decisions of its own: guards decide, and activities act.
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
	"stanch/worker/actions"
	"stanch/worker/api"
	"stanch/worker/auditevents"
	"stanch/worker/authority"
	"stanch/worker/budgetclient"
	"stanch/worker/codec"
	"stanch/worker/config"
	"stanch/worker/connlimit"
	"stanch/worker/decisions"
	"stanch/worker/drills"
	"stanch/worker/export"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/ingest"
	"stanch/worker/nodeserver"
	"stanch/worker/playbookstore"
	"stanch/worker/queries"
	"stanch/worker/slackendpoint"
	"stanch/worker/sourceserver"
	"stanch/workflows"
	"stanch/workflows/chatmessage"
	"stanch/workflows/incident"
	"stanch/workflows/lease"
	"stanch/workflows/playbook"
)

// Options configures a worker.
type Options struct {
	Config         *config.Config
	DataDir        string // data directory: keys, evidence, kill switch
	TemporalClient client.Client
	KubeClient     kubernetes.Interface // nil without a cluster
	Authority      *authority.Authority
	PKI            *authority.PKI
	Library        *playbookstore.Store
	LeaseTiming    lease.Timing
	OwnPodUIDs     []string // UIDs of Stanch's own pods
	// Namespace is Stanch's own namespace, which also has the sensor's pods; "" outside a cluster.
	Namespace string
	// HealthTiming contains the time limits of missing telemetry.
	HealthTiming health.Timing
	// ConfigFile is the file of Config; "" if there is none. The people in it are read again at each request.
	ConfigFile string
	// APIListen is the address of the API for people with a Kubernetes token; "" disables it.
	APIListen string
	// NodeListen is the address for nodes, with mutual TLS. NodeHosts are the names in the gateway's certificate.
	NodeListen string
	NodeHosts  []string
	// SourceListen is the address for external sensors; "" disables it.
	SourceListen string
	// SocketPath is the path of the local API's socket; "" disables it. Members of SocketGroup may connect in addition
	// to root; "" means the configuration's group.
	SocketPath  string
	SocketGroup string
	// KillSwitch is the kill switch; nil means a file in DataDir, for this process only.
	KillSwitch guards.KillSwitch
	// Version is this program's version, for exports.
	Version string
	// DataConverter is that of Client's options: audits decrypt histories with it.
	DataConverter converter.DataConverter
	// EvidenceDir is the evidence store's directory; "" means a subdirectory of DataDir.
	EvidenceDir string
	Log         *slog.Logger
	// Tracer traces accepted detections; nil disables that. Client's options contain the tracing of the workflows.
	Tracer trace.Tracer
	// Failpoint is called at named points, so that tests can kill the process there. Nil does nothing.
	Failpoint func(point string)
}

// Worker is a running installation without Temporal itself.
type Worker struct {
	Options
	NodeServer    *nodeserver.Server
	Ingester      *ingest.Ingester
	HealthMonitor *health.Monitor
	Queries       *queries.Service
	Decisions     *decisions.Service
	Activities    *activities.Activities
	SourceServer  *sourceserver.Server // nil without external sources
	Exporters     *export.Exporters
	NodeAddr      string // address for nodes, as it was bound
	SourceAddr    string
	APIAddr       string

	awsAccount     *aws.Account // nil without an account
	replicaName    string       // identity of this replica's polls in Temporal
	temporalWorker sdkworker.Worker
	slack          *slackendpoint.Endpoint // nil without a configuration
	drills         *drills.Registry
	ruleEvaluator  *auditevents.RuleEvaluator // nil if no events need rules
	closers        []func()
}

// OpenAccount opens the configured AWS account; nil if there is none.
func OpenAccount(ctx context.Context, c *config.Config) (*aws.Account, error) {
	if c.AWS == nil {
		return nil, nil //nolint:nilnil // nil means no account
	}
	a := c.AWS
	return aws.Open(ctx, aws.Options{
		Region: a.Region, Endpoint: a.Endpoint, Profile: a.Profile, RoleARN: a.RoleARN,
		Cluster: a.Cluster, ProtectedRoles: c.ProtectedTargets.Roles,
	})
}

// Start starts all components. Close stops them.
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
	w.Queries = &queries.Service{Temporal: o.TemporalClient}
	w.NodeServer = &nodeserver.Server{
		Keyring: o.Authority.Keyring(), KeySets: o.Authority.KeySetChain(), Log: o.Log,
		ServeNode: w.pollNodeTaskQueue,
	}
	account, err := OpenAccount(ctx, o.Config)
	if err != nil {
		return err
	}
	w.awsAccount = account
	w.drills = &drills.Registry{Kube: o.KubeClient}
	if account != nil {
		w.drills.RoleID = account.LookupRoleID
	}
	outside, err := actions.OpenExternalServices(o.Config)
	if err != nil {
		return err
	}
	outside.Manifests, outside.ManifestHead, outside.Failpoint = lazyManifestReader{w}, w.manifestHead, o.Failpoint
	w.Activities = activities.NewActivities(actions.All(actions.Deps{
		NodeClient: w.NodeServer, KubeClient: o.KubeClient,
		Account: account, Notifier: lazyNotifier{w}, ExternalServices: outside, Log: o.Log,
	})...)
	w.Activities.Authority, w.Activities.Log, w.Activities.Failpoint, w.Activities.ClosureReader = o.Authority, o.Log,
		o.Failpoint, w.Queries
	w.Activities.Evidence = &activities.EvidenceStore{
		Dir:       cmp.Or(o.EvidenceDir, filepath.Join(o.DataDir, "evidence")),
		Authority: o.Authority, Quota: evidenceQuota(o.Config.EvidenceLimits),
	}
	killSwitch := o.KillSwitch
	if killSwitch == nil {
		killSwitch = &guards.FileKillSwitch{FilePath: filepath.Join(o.DataDir, "stopped"), Authority: o.Authority}
	}
	var grants guards.UsedGrants = &guards.FileUsedGrants{FilePath: filepath.Join(o.DataDir, "grants.json")}
	if o.KubeClient != nil && o.Namespace != "" {
		grants = &guards.SharedUsedGrants{KubeClient: o.KubeClient, Namespace: o.Namespace}
	}
	budgets, stop, err := budgetclient.Open(ctx, o.TemporalClient, o.Config.Cluster, o.Log)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, stop)
	chain := &guards.GuardChain{
		Config: o.Config, Keyring: o.Authority.Keyring(), KillSwitch: killSwitch,
		Budget: budgets.BudgetWindow, UsedGrants: grants, OwnPodUIDs: o.OwnPodUIDs,
		TargetResolver: &kube.TargetResolver{Client: o.KubeClient},
	}
	w.Activities.Guards, w.Activities.ScopeApprovers = chain, chain
	o.Library.Authority = o.Authority
	w.Decisions = &decisions.Service{
		Queries: w.Queries, Authority: o.Authority, Roster: config.NewRoster(o.Config, o.ConfigFile),
		ScopeApprovers: chain, KillSwitch: killSwitch, Evidence: w.Activities.Evidence, Log: o.Log,
	}

	catalog := w.Activities.Catalog()
	leases := &lease.Workflows{Catalog: catalog}
	plays := &playbook.Workflows{Catalog: catalog, Leases: leases}
	incidents := &incident.Workflows{Playbooks: plays}
	w.Ingester = &ingest.Ingester{
		Temporal: o.TemporalClient, Authority: o.Authority, Config: o.Config,
		Kube: o.KubeClient, LeaseTiming: o.LeaseTiming, Log: o.Log, IncidentWorkflow: incidents.Incident, Tracer: o.Tracer,
		Failpoint: o.Failpoint, DrillRegistry: w.drills, ChatEnabled: o.Config.Slack != nil,
	}
	exports, err := export.Open(o.Config.Exports, o.Version, o.Log) //nolint:contextcheck // they run until Close
	if err != nil {
		return err
	}
	w.Exporters = exports
	w.closers = append(w.closers, exports.Close)
	w.Ingester.OnAccepted = exports.Enqueue
	w.NodeServer.Ingester, w.NodeServer.NodeLimits = w.Ingester, o.Config.NodeLimits
	w.watchHealth(ctx)
	w.Decisions.ManualRequests = &decisions.ManualRequests{
		Ingester: w.Ingester, NodeServer: w.NodeServer,
		ProgramForRequest: o.Library.ProgramForRequest, Plan: w.Activities.Plan,
	}
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
	w.temporalWorker.RegisterActivityWithOptions(o.Library.MatchPlaybooks,
		activity.RegisterOptions{Name: incident.MatchPlaybooksActivity})
	w.temporalWorker.RegisterActivityWithOptions(o.Library.MatchManualRequest,
		activity.RegisterOptions{Name: incident.MatchManualRequestActivity})
	// From here on, nodes can connect and be missed. Work that a crash left starts at once, and the steps above may
	// take seconds (reading the budget right after a crash).
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
	return activities.Quota{
		MaxTotalBytes: int64(e.MaxTotalBytes), MaxIncidentBytes: int64(e.MaxBytesPerIncident),
		MinFreeBytes: int64(e.MinFreeBytes),
	}
}

// installationInfo describes this installation.
func (w *Worker) installationInfo() api.InstallationInfo {
	return api.InstallationInfo{
		Version: w.Version, StartedAt: w.NodeServer.StartedAt, PlaybookNames: w.playbookNames,
		InvalidPlaybooks: w.Library.InvalidPlaybooks,
	}
}

// playbookNames returns the names of the playbooks in use.
func (w *Worker) playbookNames() []string {
	var out []string
	if w.Library != nil {
		for _, p := range w.Library.Programs() {
			out = append(out, p.Name)
		}
	}
	return out
}

// pollNodeTaskQueue polls a node's task queue while its stream is connected here.
func (w *Worker) pollNodeTaskQueue(name string) (func(), error) {
	nodeWorker := sdkworker.New(w.TemporalClient, workflows.NodeTaskQueue(name), sdkworker.Options{
		DisableWorkflowWorker: true, MaxConcurrentActivityTaskPollers: 4, WorkerStopTimeout: time.Second,
		Identity: w.replicaName,
	})
	nodeWorker.RegisterActivityWithOptions(w.Activities, activity.RegisterOptions{SkipInvalidStructFunctions: true})
	if err := nodeWorker.Start(); err != nil {
		return nil, fmt.Errorf("serve node %s: %w", name, err)
	}
	return nodeWorker.Stop, nil
}

// Limits of the nodes' port. A node has one connection with one stream, and a second one while it reconnects.
const (
	maxNodeConnections = 8192
	maxNodeStreams     = 4
	handshakeTimeout   = 5 * time.Second
)

func (w *Worker) listenNodes() error {
	if w.NodeListen == "" {
		return nil
	}
	tlsConfig, err := w.PKI.RenewingTLSConfig(authority.RoleGateway, "gateway",
		append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", w.NodeListen) //nolint:noctx // returns at once
	if err != nil {
		return fmt.Errorf("listen for nodes: %w", err)
	}
	w.NodeAddr = l.Addr().String()
	l = connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: maxNodeConnections})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.MaxRecvMsgSize(gatewayrpc.MaxMessageBytes+4096), grpc.MaxSendMsgSize(gatewayrpc.MaxMessageBytes+4096),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 20 * time.Second, Timeout: 5 * time.Second,
			MaxConnectionIdle: time.Minute,
		}),
		// Connections without a handshake or, see above, without a stream are closed.
		grpc.ConnectionTimeout(handshakeTimeout), grpc.MaxConcurrentStreams(maxNodeStreams), grpc.MaxHeaderListSize(16<<10))
	gatewaypb.RegisterGatewayServer(server, w.NodeServer)
	go func() {
		if err := server.Serve(l); err != nil {
			w.Log.Error("the node gateway stopped", "error", err)
		}
	}()
	w.closers = append(w.closers, server.Stop)
	return nil
}

func (w *Worker) listenSources() error {
	if w.SourceListen == "" {
		return nil
	}
	foreign, err := sourceserver.New(w.Ingester, w.Config.Sources, w.Log)
	if err != nil {
		return err
	}
	foreign.HealthSink = w.HealthMonitor
	if w.ruleEvaluator != nil {
		foreign.AuditEvents = &auditevents.ClusterEvents{RuleEvaluator: w.ruleEvaluator, Ingester: w.Ingester, Log: w.Log}
	}
	l, err := net.Listen("tcp", w.SourceListen) //nolint:noctx // returns at once
	if err != nil {
		return fmt.Errorf("listen for detections from other sources: %w", err)
	}
	w.SourceAddr = l.Addr().String()
	l = connlimit.NewLimitedListener(l, connlimit.Limits{})
	if w.PKI != nil {
		tlsConfig, err := w.PKI.MutualTLSConfig(authority.RoleGateway, "gateway",
			append(w.NodeHosts, gatewayrpc.ServerName)...)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		l = sourceserver.NewTLSMux(l, tlsConfig)
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
	group, err := api.LookUpSocketGroup(cmp.Or(w.SocketGroup, w.Config.SocketGroup))
	if err != nil {
		return err
	}
	l, err := api.ListenLocalSocket(w.SocketPath, group)
	if err != nil {
		return err
	}
	local := &api.Local{API: api.API{
		Service: w.Decisions, NodeServer: w.NodeServer, InstallationInfo: w.installationInfo(),
		ExtraRoutes: w.readRoutes(api.AuditRoutes(w.newAuditor())),
	}, DrillRegistry: w.drills}
	w.serveHTTPServer(local.HTTPServer(), connlimit.NewLimitedListener(l, connlimit.Limits{MaxTotal: 256, MaxPerPeer: 32}))
	return nil
}

// listenAPI starts the API for people in a cluster, who authenticate with a Kubernetes token.
func (w *Worker) listenAPI() error {
	if w.APIListen == "" {
		return nil
	}
	if w.KubeClient == nil {
		return errors.New("listen for API requests: their tokens cannot be reviewed without a cluster")
	}
	tlsConfig, err := w.PKI.RenewingTLSConfig(authority.RoleGateway, "gateway",
		append(w.NodeHosts, gatewayrpc.ServerName)...)
	if err != nil {
		return err
	}
	tlsConfig.ClientAuth, tlsConfig.ClientCAs = tls.NoClientCert, nil // people authenticate with a token
	l, err := net.Listen("tcp", w.APIListen)                          //nolint:noctx // returns at once
	if err != nil {
		return fmt.Errorf("listen for API requests: %w", err)
	}
	w.APIAddr = l.Addr().String()
	l = tls.NewListener(connlimit.NewLimitedListener(l, connlimit.Limits{}), tlsConfig)
	remote := &api.Cluster{API: api.API{
		Service: w.Decisions, NodeServer: w.NodeServer, InstallationInfo: w.installationInfo(),
		ExtraRoutes: w.readRoutes(api.AuditRoutes(w.newAuditor())),
	}, Kube: w.KubeClient}
	if w.Namespace != "" && w.NodeServer.SignCSR != nil {
		remote.Enroller = &nodeserver.Enroller{
			Kube: w.KubeClient, Namespace: w.Namespace, ServiceAccount: sensorAccount,
			SignCSR: w.NodeServer.SignCSR, Log: w.Log, KeySet: w.Authority.KeySet(),
		}
	}
	w.serveHTTPServer(remote.HTTPServer(), l)
	return nil
}

func (w *Worker) serveHTTPServer(server *http.Server, l net.Listener) {
	go func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			w.Log.Error("a server stopped", "address", l.Addr().String(), "error", err)
		}
	}()
	w.closers = append(w.closers, func() { _ = server.Close() })
}

// Close stops all components, in the reverse order of their start.
func (w *Worker) Close() {
	for i := len(w.closers) - 1; i >= 0; i-- {
		w.closers[i]()
	}
	w.closers = nil
}

// SecureClientOptions returns the client options that every client of Stanch's Temporal needs: they encrypt payloads
// and failures.
func SecureClientOptions(o client.Options, dir string) (client.Options, error) {
	c, err := codec.Open(dir)
	if err != nil {
		return o, err
	}
	o.DataConverter = converter.DataConverter(c.DataConverter())
	o.FailureConverter = c.FailureConverter()
	return o, nil
}
