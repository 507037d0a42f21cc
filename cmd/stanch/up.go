package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/durablefile"
	"stanch/sensors/duration"
	"stanch/sensors/probe"
	"stanch/worker"
	"stanch/worker/api"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/datadir"
	"stanch/worker/embeddedtemporal"
	"stanch/worker/metrics"
	"stanch/worker/tracing"
	"stanch/workflows"
	"stanch/workflows/lease"
)

// upOptions holds the flags of `stanch up`.
type upOptions struct {
	detectionAddress string
	nodeAddress      string
	kubeconfig       string
	nodeName         string
	criSocket        string
	lockDir          string
	verifyInterval   time.Duration
	noSensor         bool
	uiAddress        string
	crashPoint       string
	ruleDirs         []string
	metricsAddress   string
	socketGroup      string
}

func upCommand(g *globalFlags) *cobra.Command {
	o := upOptions{}
	c := &cobra.Command{
		Use: "up", Short: "Run everything on this machine, in one process", Args: validateArgs(cobra.NoArgs),
		Long: `Run Temporal, the gateway, the worker and the sensor of this machine in one process, to try
Stanch or to protect a single host. It uses the kubeconfig's cluster if there is one;
otherwise it protects the containers on this host. Use stanch worker for an installation in
a cluster.`,
		Example: `  stanch up
  stanch up --config stanch.yaml --listen 127.0.0.1:7480
  stanch up --config stanch.yaml --socket-group stanch   # members of this group can use the command line`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runUp(cmd.Context(), g, o, cmd.ErrOrStderr()) },
	}
	f := c.Flags()
	f.StringVar(&o.detectionAddress, "listen", "",
		"the `ADDRESS` where other sensors, such as Falco, post detections, using a token from the configuration")
	f.StringVar(&o.nodeAddress, "listen-nodes", "127.0.0.1:0",
		"the `ADDRESS` that sensors of other nodes connect to, with a certificate from stanch cert")
	f.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"),
		"the kubeconfig `FILE` of the cluster; \"none\" for no cluster")
	f.StringVar(&o.nodeName, "node", "", "the `NAME` of this node (default: the host name)")
	f.StringVar(&o.criSocket, "cri", "", "the CRI `SOCKET` of the container runtime (default: the common paths)")
	f.StringArrayVar(&o.ruleDirs, "rules", nil,
		"a `DIR` with rule packs, in addition to the shipped ones and those of the configuration")
	f.StringVar(&o.lockDir, "lock-dir", "", "the `DIR` where the egress lock is pinned")
	f.Var(duration.NewFlag(&o.verifyInterval, 0), "verify-every",
		"how often a lease verifies its containment (default 30s)")
	f.BoolVar(&o.noSensor, "no-sensor", false,
		"do not watch this machine; use it if stanch-sensor or another Stanch instance already does")
	f.StringVar(&o.socketGroup, "socket-group", "",
		"the Unix `GROUP` whose members can connect to the local socket, in addition to root; people are still "+
			"identified by uid (default: socket_group of the configuration)")
	f.StringVar(&o.uiAddress, "ui", "127.0.0.1:0", "the `ADDRESS` of Temporal's web UI, read-only; \"\" for none")
	f.StringVar(&o.metricsAddress, "metrics", "",
		"the `ADDRESS` of /metrics for Prometheus and of /healthz; \"\" for none")
	f.StringVar(&o.crashPoint, "crash-at", os.Getenv("STANCH_CRASH_AT"), "kill this process at a named point (for tests)")
	_ = f.MarkHidden("crash-at")
	return c
}

// upRun is one run of `stanch up`: its parts, in the order of their start.
type upRun struct {
	*globalFlags
	upOptions
	out     io.Writer
	log     *slog.Logger
	config  *config.Config
	group   string // whose members may connect to the local socket
	phases  *phaseTimes
	closers []func() error

	cluster         kubernetes.Interface
	clusterName, ui string
	sensor          *localSensor // nil without a sensor
	pki, innerPKI   *authority.PKI
	authority       *authority.Authority
	server          *embeddedtemporal.Server
	worker          *worker.Worker
	sensorDone      <-chan error
}

func runUp(ctx context.Context, g *globalFlags, o upOptions, out io.Writer) (err error) {
	u := &upRun{
		globalFlags: g, upOptions: o, out: out,
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	defer func() {
		for i := len(u.closers) - 1; i >= 0; i-- {
			err = errors.Join(err, u.closers[i]())
		}
	}()
	for _, step := range []func(context.Context) error{
		u.openData, u.loadSensor, u.openKeys, u.startTemporal, u.startWorker, u.serve,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	u.printStartupInfo()
	return u.wait(ctx)
}

func (u *upRun) onClose(f func() error) { u.closers = append(u.closers, f) }

// openData checks the configuration, and locks the data directory.
func (u *upRun) openData(context.Context) (err error) {
	if u.config, err = u.loadConfig(); err != nil {
		return err
	}
	identifyBuild()
	u.group = cmp.Or(u.socketGroup, u.config.SocketGroup)
	if _, err := api.LookUpSocketGroup(u.group); err != nil {
		return err
	}
	unlock, err := datadir.Lock(u.dataDir)
	if err != nil {
		return err
	}
	u.onClose(func() error { unlock(); return nil })
	if u.noSensor {
		return nil
	}
	return probe.CheckNotInUse(u.lockDir)
}

// loadSensor starts to load the sensor, which takes as long as Temporal's start.
func (u *upRun) loadSensor(ctx context.Context) (err error) {
	u.phases = newPhaseTimes()
	if u.cluster, u.clusterName, err = connectCluster(u.kubeconfig); err != nil {
		return err
	}
	if !u.noSensor {
		u.sensor = newLocalSensor(u)
		u.sensor.load(ctx, u.cluster)
		u.onClose(func() error { u.sensor.stop(); return nil })
	}
	return nil
}

func (u *upRun) openKeys(context.Context) (err error) {
	if u.pki, err = authority.OpenOrCreatePKI(filepath.Join(u.dataDir, "pki")); err != nil {
		return err
	}
	// Temporal has a separate certificate authority: certificates of nodes are not valid for it.
	if u.innerPKI, err = authority.OpenOrCreatePKI(filepath.Join(u.dataDir, "pki", "temporal")); err != nil {
		return err
	}
	u.authority, err = authority.OpenOrCreate(filepath.Join(u.dataDir, "keys"))
	u.phases.end("keys")
	return err
}

func (u *upRun) startTemporal(ctx context.Context) (err error) {
	u.server, err = embeddedtemporal.Start(ctx, embeddedtemporal.Options{
		DataDir: filepath.Join(u.dataDir, "temporal"),
		PKI:     u.innerPKI,
		Log:     u.log,
		SearchAttributes: map[string]enumspb.IndexedValueType{
			workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		},
	})
	if err != nil {
		return err
	}
	u.onClose(u.server.Stop)
	u.phases.end("temporal")
	// Tools on this machine read the address; they authenticate with the certificate next to it.
	if err := durablefile.WriteRecomputable(filepath.Join(u.dataDir, "temporal", "address"),
		[]byte(u.server.Address+"\n"), 0o600); err != nil {
		return fmt.Errorf("write Temporal's address: %w", err)
	}
	return nil
}

// startWorker connects to Temporal, and starts everything that uses it.
func (u *upRun) startWorker(ctx context.Context) error {
	options, err := worker.SecureClientOptions(client.Options{
		HostPort: u.server.Address, Namespace: embeddedtemporal.Namespace, Logger: temporalLogger{u.log},
		ConnectionOptions: client.ConnectionOptions{TLS: u.server.TLS},
	}, filepath.Join(u.dataDir, "keys"))
	if err != nil {
		return err
	}
	counts := metrics.NewTemporalMetrics()
	traces, err := tracing.Open(ctx, version, u.log)
	if err != nil {
		return err
	}
	u.onClose(func() error { traces.Close(); return nil })
	temporal, err := client.DialContext(ctx, traces.WithTracing(counts.WithMetrics(options)))
	if err != nil {
		return fmt.Errorf("connect to Temporal: %w", err)
	}
	u.onClose(func() error { temporal.Close(); return nil })
	u.worker, err = startWorker(ctx, worker.Options{
		Config: u.config, ConfigFile: u.configFile, DataDir: u.dataDir, TemporalClient: temporal,
		DataConverter: options.DataConverter, KubeClient: u.cluster, Authority: u.authority, PKI: u.pki,
		LeaseTiming: lease.Timing{VerifyInterval: u.verifyInterval, Route: workflows.ActivityRoute{LocalOnly: true}},
		NodeListen:  u.nodeAddress, NodeHosts: []string{"localhost", "127.0.0.1"}, SourceListen: u.detectionAddress,
		SocketPath: u.socketPath(), SocketGroup: u.group, Log: u.log, Failpoint: newCrashFailpoint(u.crashPoint),
		Version: version, Tracer: traces.Tracer(), Persist: u.server.Persist,
	})
	if err != nil {
		return err
	}
	u.onClose(func() error { u.worker.Close(); return nil })
	stopMetrics, err := serveHealth(u.metricsAddress, temporal,
		leaseSource{u.worker.Queries.CountLeasesInForce, u.server.Address + "/" + embeddedtemporal.Namespace},
		u.worker.MetricsHandler(version, counts))
	if err != nil {
		return err
	}
	u.onClose(func() error { stopMetrics(); return nil })
	u.phases.end("worker")
	return nil
}

// serve connects the sensor, and starts Temporal's web UI, without which everything else works.
func (u *upRun) serve(ctx context.Context) error {
	u.sensorDone = u.sensor.serve(u.pki, u.authority, u.worker.NodeAddr)
	var err error
	if u.ui, err = startTemporalUI(ctx, u.uiAddress, u.server, u.innerPKI,
		filepath.Join(u.dataDir, "temporal", "tls")); err != nil {
		u.log.Warn("start Temporal's web UI", "error", err)
	}
	u.phases.end("ui")
	u.log.Info("started", u.phases.attributes()...)
	return nil
}

// wait waits for the end of ctx.
func (u *upRun) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		fmt.Fprintln(u.out, "stopping; leases stay active and continue after the next start")
		return nil
	case err := <-u.sensorDone:
		if errors.Is(err, probe.ErrInUse) {
			return err // another sensor started: two on one machine would report and contain everything twice
		}
		if err != nil {
			u.log.Error("the sensor on this machine stopped; the other components continue", "error", err)
		}
		<-ctx.Done()
		return nil
	}
}

// printStartupInfo prints the addresses and the next commands to run.
func (u *upRun) printStartupInfo() {
	lines := []string{
		"Stanch is up.",
		fmt.Sprintf("  phase      %d (1 observe, 2 contain, 3 disrupt with approval)", u.config.Phase),
		"  cluster    " + u.clusterName,
		"  data       " + u.dataDir,
		"  nodes      " + u.worker.NodeAddr,
	}
	if u.worker.SourceAddr != "" {
		lines = append(lines, "  detections http://"+u.worker.SourceAddr+"/v1/falco")
	}
	if u.ui != "" {
		lines = append(lines, "  history    http://"+u.ui+" (read-only)")
	}
	if note := socketAccessNote(u.config, u.group); note != "" {
		lines = append(lines, "  socket     "+note)
	}
	next := "stanch drill"
	if u.noSensor { // a drill needs a sensor
		next = "stanch status"
	}
	lines = append(lines, "Next: "+next+" --data "+u.dataDir, "      stanch incidents --data "+u.dataDir)
	fmt.Fprintln(u.out, strings.Join(lines, "\n"))
}

// socketAccessNote says who can connect to the local socket: the group, or which configured people cannot. It returns
// "" if everybody in the configuration can.
func socketAccessNote(cfg *config.Config, group string) string {
	if group != "" {
		return "members of the group " + group + " can connect"
	}
	var out []string
	for _, p := range cfg.People {
		if p.UID != nil && *p.UID != 0 && int(*p.UID) != os.Getuid() {
			out = append(out, p.Name)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "only root can connect; " + strings.Join(out,
		", ") + " cannot. Use --socket-group GROUP, or socket_group in stanch.yaml"
}
