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

// runUp runs until ctx ends or a component cannot start.
func runUp(ctx context.Context, g *globalFlags, o upOptions, out io.Writer) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	cfg, err := g.loadConfig()
	if err != nil {
		return err
	}
	identifyBuild()
	group := cmp.Or(o.socketGroup, cfg.SocketGroup)
	if _, err := api.LookUpSocketGroup(group); err != nil {
		return err
	}
	unlock, err := datadir.Lock(g.dataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if !o.noSensor {
		if err := probe.CheckNotInUse(o.lockDir); err != nil {
			return err
		}
	}
	phases := newPhaseTimes()
	cluster, clusterName, err := connectCluster(o.kubeconfig)
	if err != nil {
		return err
	}
	var sensor *localSensor
	if !o.noSensor {
		sensor = loadSensor(ctx, g, cfg, o, cluster, log)
		defer sensor.stop()
	}
	pki, err := authority.OpenOrCreatePKI(filepath.Join(g.dataDir, "pki"))
	if err != nil {
		return err
	}
	// Temporal has a separate certificate authority: certificates of nodes are not valid for it.
	inner, err := authority.OpenOrCreatePKI(filepath.Join(g.dataDir, "pki", "temporal"))
	if err != nil {
		return err
	}
	auth, err := authority.OpenOrCreate(filepath.Join(g.dataDir, "keys"))
	if err != nil {
		return err
	}
	phases.end("keys")
	server, err := embeddedtemporal.Start(ctx, embeddedtemporal.Options{
		DataDir: filepath.Join(g.dataDir, "temporal"),
		PKI:     inner,
		Log:     log,
		SearchAttributes: map[string]enumspb.IndexedValueType{
			workflows.IncidentSearchAttribute: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	phases.end("temporal")
	// Tools on this machine read the address; they authenticate with the certificate next to it.
	if err := durablefile.WriteRecomputable(filepath.Join(g.dataDir, "temporal", "address"),
		[]byte(server.Address+"\n"), 0o600); err != nil {
		return fmt.Errorf("write Temporal's address: %w", err)
	}
	options, err := worker.SecureClientOptions(client.Options{
		HostPort: server.Address, Namespace: embeddedtemporal.Namespace, Logger: temporalLogger{log},
		ConnectionOptions: client.ConnectionOptions{TLS: server.TLS},
	}, filepath.Join(g.dataDir, "keys"))
	if err != nil {
		return err
	}
	counts := metrics.NewTemporalMetrics()
	traces, err := tracing.Open(ctx, version, log)
	if err != nil {
		return err
	}
	defer traces.Close()
	temporal, err := client.DialContext(ctx, traces.WithTracing(counts.WithMetrics(options)))
	if err != nil {
		return fmt.Errorf("connect to Temporal: %w", err)
	}
	defer temporal.Close()
	w, err := startWorker(ctx, worker.Options{
		Config: cfg, ConfigFile: g.configFile, DataDir: g.dataDir, TemporalClient: temporal,
		DataConverter: options.DataConverter, KubeClient: cluster, Authority: auth, PKI: pki,
		LeaseTiming: lease.Timing{VerifyInterval: o.verifyInterval, Route: workflows.ActivityRoute{LocalOnly: true}},
		NodeListen:  o.nodeAddress, NodeHosts: []string{"localhost", "127.0.0.1"}, SourceListen: o.detectionAddress,
		SocketPath: g.socketPath(), SocketGroup: group, Log: log, Failpoint: newCrashFailpoint(o.crashPoint),
		Version: version, Tracer: traces.Tracer(),
	})
	if err != nil {
		return err
	}
	defer w.Close()
	stopMetrics, err := serveHealth(o.metricsAddress, temporal, w.MetricsHandler(version, counts))
	if err != nil {
		return err
	}
	defer stopMetrics()
	phases.end("worker")
	sensorDone := sensor.serve(pki, auth, w.NodeAddr)
	ui, err := startTemporalUI(ctx, o.uiAddress, server, inner, filepath.Join(g.dataDir, "temporal", "tls"))
	if err != nil {
		log.Warn("start Temporal's web UI", "error", err)
	}
	phases.end("ui")
	log.Info("started", phases.attributes()...)
	printStartupInfo(out, g, cfg, w, clusterName, ui, group, !o.noSensor)
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "stopping; leases stay active and continue after the next start")
		return nil
	case err := <-sensorDone:
		if errors.Is(err, probe.ErrInUse) {
			return err // another sensor started: two on one machine would report and contain everything twice
		}
		if err != nil {
			log.Error("the sensor on this machine stopped; the other components continue", "error", err)
		}
		<-ctx.Done()
		return nil
	}
}

// printStartupInfo prints the addresses and the next commands to run.
func printStartupInfo(out io.Writer, g *globalFlags, cfg *config.Config, w *worker.Worker, cluster, ui, group string,
	sensor bool,
) {
	lines := []string{
		"Stanch is up.",
		fmt.Sprintf("  phase      %d (1 observe, 2 contain, 3 disrupt with approval)", cfg.Phase),
		"  cluster    " + cluster,
		"  data       " + g.dataDir,
		"  nodes      " + w.NodeAddr,
	}
	if w.SourceAddr != "" {
		lines = append(lines, "  detections http://"+w.SourceAddr+"/v1/falco")
	}
	if ui != "" {
		lines = append(lines, "  history    http://"+ui+" (read-only)")
	}
	if note := socketAccessNote(cfg, group); note != "" {
		lines = append(lines, "  socket     "+note)
	}
	next := "stanch drill"
	if !sensor { // a drill needs a sensor
		next = "stanch status"
	}
	lines = append(lines, "Next: "+next+" --data "+g.dataDir, "      stanch incidents --data "+g.dataDir)
	fmt.Fprintln(out, strings.Join(lines, "\n"))
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
