// Package worker connects the gateway, the guards, the actions and the workflows with one Temporal client, and shuts
// them down.
//
// It contains no decisions of its own: guards decide, and activities act.
package worker

import (
	"cmp"
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdkworker "go.temporal.io/sdk/worker"
	"k8s.io/client-go/kubernetes"

	"stanch/activities"
	"stanch/activities/aws"
	"stanch/activities/kube"
	"stanch/worker/actions"
	"stanch/worker/api"
	"stanch/worker/auditevents"
	"stanch/worker/authority"
	"stanch/worker/budgetclient"
	"stanch/worker/codec"
	"stanch/worker/config"
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
	"stanch/workflows/lease"
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
	DrillPhase     int      // the phase of drills; 0 means 3
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
	// Persist makes durable what Temporal has acknowledged; nil means that its acknowledgment survives a power loss.
	Persist func() error
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
	actions        []activities.Action
	replicaName    string // identity of this replica's polls in Temporal
	workflows      workflowTypes
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

// startParts starts the components, each after those that it uses.
func (w *Worker) startParts(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		w.openActivities,    // and the external services that they use
		w.openGuards,        // reads the budget, which may take seconds right after a crash
		w.openDecisions,     // people's decisions
		w.openIngest,        // detections, and their exports
		w.openRequests,      // people's requests, and Slack
		w.startNodeServer,   // from here on, nodes can connect
		w.startWorkflows,    // work that a crash left starts at once
		w.openRuleEvaluator, // rules for events that no node sees
		w.listenSources,
		w.followCloudTrail,
		w.startBackgroundWork,
		w.listenAPI,
		w.listenLocal,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *Worker) openActivities(ctx context.Context) error {
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
	w.drills = &drills.Registry{Kube: o.KubeClient, Phase: o.DrillPhase}
	if account != nil {
		w.drills.RoleID = account.LookupRoleID
	}
	outside, err := actions.OpenExternalServices(o.Config)
	if err != nil {
		return err
	}
	outside.Manifests, outside.ManifestHead, outside.Failpoint = lazyManifestReader{w}, w.manifestHead, o.Failpoint
	w.actions = actions.All(actions.Deps{
		NodeClient: w.NodeServer, KubeClient: o.KubeClient,
		Account: account, Notifier: lazyNotifier{w}, ExternalServices: outside, Log: o.Log,
	})
	w.Activities = activities.NewActivities(w.actions...)
	w.Activities.Authority, w.Activities.Log, w.Activities.Failpoint, w.Activities.ClosureReader = o.Authority, o.Log,
		o.Failpoint, w.Queries
	w.Activities.Evidence = &activities.EvidenceStore{
		Dir:       cmp.Or(o.EvidenceDir, filepath.Join(o.DataDir, "evidence")),
		Authority: o.Authority, Quota: evidenceQuota(o.Config.EvidenceLimits),
	}
	return nil
}

func (w *Worker) openGuards(ctx context.Context) error {
	o := w.Options
	if w.KillSwitch == nil {
		w.KillSwitch = &guards.FileKillSwitch{FilePath: filepath.Join(o.DataDir, "stopped"), Authority: o.Authority}
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
		Config: o.Config, Keyring: o.Authority.Keyring(), KillSwitch: w.KillSwitch,
		Budget: budgets.BudgetWindow, UsedGrants: grants, OwnPodUIDs: o.OwnPodUIDs, DrillPhase: o.DrillPhase,
		TargetResolver: &kube.TargetResolver{Client: o.KubeClient},
	}
	w.Activities.Guards, w.Activities.ScopeApprovers = chain, chain
	return nil
}

func (w *Worker) openDecisions(context.Context) error {
	w.Library.Authority = w.Authority
	w.Decisions = &decisions.Service{
		Queries: w.Queries, Authority: w.Authority, Roster: config.NewRoster(w.Config, w.ConfigFile),
		ScopeApprovers: w.Activities.ScopeApprovers, KillSwitch: w.KillSwitch, Evidence: w.Activities.Evidence, Log: w.Log,
		Persist: w.Persist,
	}
	return nil
}

func (w *Worker) openIngest(ctx context.Context) error {
	o := w.Options
	exports, err := export.Open(o.Config.Exports, o.Version, o.Log) //nolint:contextcheck // they run until Close
	if err != nil {
		return err
	}
	w.Exporters = exports
	w.closers = append(w.closers, exports.Close)
	w.workflows = newWorkflowTypes(w.Activities.Catalog())
	w.Ingester = &ingest.Ingester{
		Temporal: o.TemporalClient, Authority: o.Authority, Config: o.Config, Kube: o.KubeClient,
		LeaseTiming: o.LeaseTiming, Log: o.Log, IncidentWorkflow: w.workflows.incidents.Incident, Tracer: o.Tracer,
		Failpoint: o.Failpoint, Persist: o.Persist, DrillRegistry: w.drills,
		ChatEnabled: o.Config.Slack != nil, OnAccepted: exports.Enqueue,
	}
	w.NodeServer.Ingester, w.NodeServer.NodeLimits = w.Ingester, o.Config.NodeLimits
	w.watchHealth(ctx)
	return nil
}

func (w *Worker) openRequests(context.Context) error {
	w.Decisions.ManualRequests = &decisions.ManualRequests{
		Ingester: w.Ingester, NodeServer: w.NodeServer,
		ProgramForRequest: w.Library.ProgramForRequest, Plan: w.Activities.Plan,
	}
	return w.openSlack()
}

func (w *Worker) startNodeServer(context.Context) error {
	w.NodeServer.StartedAt = time.Now() // from here on, nodes can be missed
	return w.listenNodes()
}

func (w *Worker) startBackgroundWork(ctx context.Context) error {
	w.watchLibrary(ctx)
	w.runSlackSocketMode(ctx)
	w.sweepOrphans(ctx)
	w.archiveClosed(ctx)
	return nil
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
