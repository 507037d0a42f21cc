package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/duration"
	"stanch/worker"
	"stanch/worker/actions"
	"stanch/worker/authority"
	"stanch/worker/codec"
	"stanch/worker/config"
	"stanch/worker/datadir"
	"stanch/worker/drills"
	"stanch/worker/guards"
	"stanch/worker/metrics"
	"stanch/worker/playbookstore"
	"stanch/worker/tracing"
	"stanch/workflows/lease"
)

// workerOptions holds the flags of `stanch worker`.
type workerOptions struct {
	temporalAddress, namespace                               string
	tlsCert, tlsKey, tlsCA, tlsServer, tlsDir                string
	apiKeyFile                                               string
	temporalWait                                             time.Duration
	keysDir, pkiDir                                          string
	nodeAddress, detectionAddress, healthAddress, apiAddress string
	kubeconfig                                               string
	ownNamespace, ownUID                                     string
	evidenceStore                                            string
	verifyInterval                                           time.Duration
	drillPhase                                               int
}

func workerCommand(g *globalFlags) *cobra.Command {
	o := workerOptions{}
	c := &cobra.Command{
		Use:   "worker",
		Short: "Run the gateway and the worker with your own Temporal",
		Args:  validateArgs(cobra.NoArgs),
		Long: `Run the gateway and the worker with your own Temporal, for an installation in a cluster.
Several workers can run: their shared state is in Temporal, and the kill switch is in the
cluster. Nodes run stanch-sensor, which connects to the gateway. ` + "`stanch manifests`" + ` prints the
YAML that installs all of these components, and ` + "`stanch cert authority`" + ` creates the keys.`,
		Example: `  stanch worker --temporal temporal.example:7233 --namespace stanch --keys /etc/stanch/keys --pki /etc/stanch/pki`,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runWorker(cmd.Context(), g, o, cmd.ErrOrStderr()) },
	}
	f := c.Flags()
	f.StringVar(&o.temporalAddress, "temporal", "", "the `HOST:PORT` of Temporal's frontend (required)")
	f.StringVar(&o.namespace, "namespace", "stanch", "the `NAMESPACE` in Temporal")
	f.Var(duration.NewFlag(&o.temporalWait, 0), "temporal-wait",
		"how long to wait at the start for a Temporal that does not respond yet")
	f.StringVar(&o.tlsDir, "tls", "",
		"a `DIR` with tls.crt, tls.key and ca.crt for Temporal, such as a mounted Kubernetes secret")
	f.StringVar(&o.tlsCert, "tls-cert", "", "the `FILE` with the client certificate for Temporal")
	f.StringVar(&o.tlsKey, "tls-key", "", "the `FILE` with the key of the client certificate for Temporal")
	f.StringVar(&o.tlsCA, "tls-ca", "", "the `FILE` with the CA certificate of Temporal (default: the system's CAs)")
	f.StringVar(&o.tlsServer, "tls-server-name", "",
		"the `NAME` in Temporal's certificate (default: the host of --temporal)")
	f.StringVar(&o.apiKeyFile, "api-key", "",
		"a `FILE` with an API key for Temporal Cloud, which is read again for each request; the connection uses TLS")
	f.StringVar(&o.keysDir, "keys", "", "the `DIR` with authority.seed and codec.key (default: DATA/keys)")
	f.StringVar(&o.pkiDir, "pki", "", "the `DIR` with ca.crt and ca.key (default: DATA/pki)")
	f.StringVar(&o.nodeAddress, "listen-nodes", ":7443",
		"the `ADDRESS` that sensors connect to, with a certificate from stanch cert")
	f.StringVar(&o.detectionAddress, "listen", "",
		"the `ADDRESS` where other sensors, such as Falco, post detections, using a token from the configuration")
	f.StringVar(&o.apiAddress, "listen-api", "",
		"the `ADDRESS` of the API for people with a Kubernetes token (stanch --server)")
	f.StringVar(&o.healthAddress, "health", "",
		"the `ADDRESS` of /healthz, which fails while Temporal is unreachable, and of /metrics for Prometheus; "+
			"\"\" for none")
	f.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"),
		"the kubeconfig `FILE` of the cluster (default: the cluster that the worker runs in); \"none\" for no cluster")
	f.StringVar(&o.ownNamespace, "own-namespace", os.Getenv("POD_NAMESPACE"),
		"the `NAMESPACE` that Stanch runs in; it is protected from containment, and stores the kill switch")
	f.StringVar(&o.ownUID, "own-uid", os.Getenv("POD_UID"),
		"the `UID` of the worker's own pod, which is never contained")
	f.StringVar(&o.evidenceStore, "evidence", "", "the `DIR` where evidence is stored (default: DATA/evidence)")
	f.IntVar(&o.drillPhase, "drill-phase", 3,
		"the phase of drills, whose targets are their own: that of the permissions in the cluster")
	f.Var(duration.NewFlag(&o.verifyInterval, 0), "verify-every",
		"how often a lease verifies its containment (default 30s)")
	return c
}

// setDefaultPaths sets the default directories of the keys, and returns an error if a key is missing.
func (o *workerOptions) setDefaultPaths(data string) error {
	if o.keysDir == "" {
		o.keysDir = filepath.Join(data, "keys")
	}
	if o.pkiDir == "" {
		o.pkiDir = filepath.Join(data, "pki")
	}
	// Keys are not created here: replicas with different keys would not trust each other.
	for _, file := range []string{
		filepath.Join(o.keysDir, "authority.seed"), filepath.Join(o.keysDir, "codec.key"),
		filepath.Join(o.pkiDir, "ca.crt"), filepath.Join(o.pkiDir, "ca.key"),
	} {
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("read the keys of the installation: %w; create them once for all replicas with "+
				"`stanch cert authority --out DIR`", err)
		}
	}
	return nil
}

// fileExists reports whether path exists and can be read by this user.
func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// runWorker runs the gateway and the worker until ctx ends.
func runWorker(ctx context.Context, g *globalFlags, o workerOptions, out io.Writer) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg, err := o.prepare(g)
	if err != nil {
		return err
	}
	unlock, err := datadir.Lock(g.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	pki, err := authority.OpenOrCreatePKI(o.pkiDir)
	if err != nil {
		return err
	}
	auth, err := authority.OpenOrCreate(o.keysDir)
	if err != nil {
		return err
	}
	counts := metrics.NewTemporalMetrics()
	traces, err := tracing.Open(ctx, version, log)
	if err != nil {
		return err
	}
	defer traces.Close()
	temporal, err := o.dialTemporal(ctx, log,
		func(c client.Options) client.Options { return traces.WithTracing(counts.WithMetrics(c)) })
	if err != nil {
		return err
	}
	defer temporal.Close()
	cluster, clusterName, err := connectCluster(o.kubeconfig)
	if err != nil {
		return err
	}
	options, err := o.workerOptions(g, cfg, cluster)
	if err != nil {
		return err
	}
	options.TemporalClient, options.Authority, options.PKI, options.Log, options.Tracer = temporal, auth, pki, log,
		traces.Tracer()
	options.KillSwitch = o.protectOwnNamespace(cfg, cluster, auth)
	w, err := startWorker(ctx, options)
	if err != nil {
		return err
	}
	defer w.Close()
	stopHealth, err := serveHealth(o.healthAddress, temporal,
		leaseSource{w.Queries.CountLeasesInForce, o.temporalAddress + "/" + o.namespace}, w.MetricsHandler(version, counts))
	if err != nil {
		return err
	}
	defer stopHealth()
	fmt.Fprintf(out, "the worker is running: cluster %s, Temporal %s, nodes connect to %s\n", clusterName,
		o.temporalAddress, w.NodeAddr)
	<-ctx.Done()
	fmt.Fprintln(out, "stopping; leases stay active and continue after the next start")
	return nil
}

// prepare checks the flags, and loads the configuration.
func (o *workerOptions) prepare(g *globalFlags) (*config.Config, error) {
	if o.temporalAddress == "" {
		return nil, usageError{errors.New("missing --temporal; use --temporal HOST:PORT, or `stanch up` with an " +
			"embedded Temporal")}
	}
	if o.drillPhase < 1 || o.drillPhase > drills.MaxPhase {
		return nil, usageError{fmt.Errorf("invalid --drill-phase %d; use 1, 2 or 3", o.drillPhase)}
	}
	cfg, err := g.loadConfig()
	if err != nil {
		return nil, err
	}
	identifyBuild()
	return cfg, o.setDefaultPaths(g.dataDir)
}

// workerOptions returns the options of a worker that come from flags and the configuration.
func (o *workerOptions) workerOptions(g *globalFlags, cfg *config.Config, cluster kubernetes.Interface) (worker.Options,
	error,
) {
	c, err := codec.Open(o.keysDir)
	if err != nil {
		return worker.Options{}, err
	}
	options := worker.Options{
		DataConverter: c.DataConverter(), Config: cfg, ConfigFile: g.configFile, DataDir: g.dataDir,
		KubeClient: cluster, DrillPhase: o.drillPhase, LeaseTiming: lease.Timing{VerifyInterval: o.verifyInterval},
		NodeListen: o.nodeAddress, SourceListen: o.detectionAddress, SocketPath: g.socketPath(),
		EvidenceDir: o.evidenceStore, APIListen: o.apiAddress, Version: version, Namespace: o.ownNamespace,
	}
	if o.ownUID != "" {
		options.OwnPodUIDs = []string{o.ownUID}
	}
	return options, nil
}

// startWorker loads the playbooks, logs their problems, and starts the worker.
func startWorker(ctx context.Context, o worker.Options) (*worker.Worker, error) {
	library, problems, err := playbookstore.Open(o.Config, actions.Catalog())
	if err != nil {
		return nil, err
	}
	playbookstore.LogPlaybookProblems(o.Log, problems, false)
	o.Library = library
	return worker.Start(ctx, o)
}

// protectOwnNamespace protects Stanch's own namespace from containment, and returns the kill switch that is stored
// there; nil outside of a cluster.
func (o *workerOptions) protectOwnNamespace(cfg *config.Config, cluster kubernetes.Interface,
	auth *authority.Authority,
) guards.KillSwitch {
	if o.ownNamespace == "" {
		return nil
	}
	if !slices.Contains(cfg.ProtectedTargets.Namespaces, o.ownNamespace) {
		cfg.ProtectedTargets.Namespaces = append(cfg.ProtectedTargets.Namespaces, o.ownNamespace)
	}
	if cluster == nil {
		return nil
	}
	return &guards.SharedKillSwitch{KubeClient: cluster, Namespace: o.ownNamespace, Authority: auth}
}
