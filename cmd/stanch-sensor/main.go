// Command stanch-sensor is the node agent. It watches containers through eBPF, reports detections to the gateway, and
// applies containments that the authority signed. It links no Temporal client and no Kubernetes client.
//
// Exit codes: 0 done, 1 an error, 2 wrong use.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spf13/cobra"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/containermeta"
	"stanch/sensors/durablefile"
	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	"stanch/sensors/snapshot"
)

// version is the version of this build, set with -ldflags; "dev" otherwise.
var version = "dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == agent.SnapshotCommand {
		if err := snapshot.ServeHelper(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "stanch-sensor:", err)
			os.Exit(1)
		}
		os.Exit(0) // without waiting for a read that may never end
	}
	if len(os.Args) == 3 && os.Args[1] == agent.ThawCommand {
		if err := snapshot.RunThawer(os.Args[2]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "stanch-sensor:", err)
		os.Exit(exitCode(err))
	}
}

// usageError is an error in how a command was called. Its exit code is 2.
type usageError struct{ error }

func exitCode(err error) int {
	if errors.As(err, &usageError{}) {
		return 2
	}
	return 1
}

func rootCommand() *cobra.Command {
	setup := agent.Config{
		SnapshotProgram: []string{"/proc/self/exe", agent.SnapshotCommand},
		ThawProgram:     []string{"/proc/self/exe", agent.ThawCommand},
	}
	var gatewayAddr, certs, output string
	var enroll gatewayrpc.Enrollment
	var events bool
	root := &cobra.Command{
		Use: "stanch-sensor", Short: "Watch and contain the containers on this node",
		Long: `Watch the containers of this node through eBPF, report detections to the gateway, and
execute containment commands that the authority signed. Run it on every node of an
installation that uses stanch worker; stanch up has its own sensor. It connects to the
gateway, and opens no port.`,
		Example: `  stanch-sensor --gateway stanch.example:7443 --certs /etc/stanch/node
  stanch-sensor watch -o json
  stanch-sensor cleanup`,
		SilenceUsage: true, SilenceErrors: true, Version: version, Args: validateArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if gatewayAddr == "" || (certs == "") == (enroll.GatewayURL == "") {
				return usageError{errors.New("--gateway and either --certs or --enroll are required; to watch " +
					"without a gateway run `stanch-sensor watch`")}
			}
			return serveGateway(cmd.Context(), setup, gatewayAddr, certs, enroll)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&setup.Node, "node", os.Getenv("NODE_NAME"),
		"the `NAME` of this node (default: $NODE_NAME, else the host name)")
	f.StringVar(&setup.CRISocket, "cri", "", "the CRI `SOCKET` of the container runtime (default: the common paths)")
	f.StringVar(&setup.KubeletPath, "kubelet", "",
		"the `PATH` of the kubelet binary, if it has a nonstandard name; contained pods still answer its probes")
	f.StringArrayVar(&setup.RuleDirs, "rules", nil, "a `DIR` with rule packs, in addition to the shipped ones")
	f.StringVar(&setup.EgressLockDir, "lock-dir", "",
		"the `DIR` where the egress lock is pinned (default "+probe.DefaultEgressLockDir+")")
	root.Flags().StringVar(&gatewayAddr, "gateway", "", "the `HOST:PORT` of the gateway (required)")
	root.Flags().StringVar(&certs, "certs", "",
		"the `DIR` with node.crt, node.key, ca.crt and authority.json, as stanch cert node writes them")
	f.StringVar(&setup.StateDir, "state", "/var/lib/stanch-sensor",
		"the `DIR` of the detection spool, the baselines and the list of frozen cgroups; watch stores nothing "+
			"unless it is set")
	f.Var(duration.NewFlag(&setup.LearningPeriod, 24*time.Hour), "learning-period",
		"how long an image is observed before new behavior counts as unusual")
	root.Flags().StringVar(&enroll.GatewayURL, "enroll", "",
		"the `URL` to get the first certificate from, with the token of this pod: https://HOST:PORT of the "+
			"gateway's --listen-api")
	root.Flags().StringVar(&enroll.TokenFile, "enroll-token", "/var/run/secrets/stanch/token",
		"the `FILE` with the token of this pod, for the audience stanch-gateway")
	root.Flags().StringVar(&enroll.CAFile, "enroll-ca", "/etc/stanch/ca/ca.crt",
		"the `FILE` with the CA certificate of the installation")

	watch := &cobra.Command{
		Use: "watch", Short: "Print detections from this node", Args: validateArgs(cobra.NoArgs),
		Long: `Print the detections of this node, one per line, without a gateway, to try the sensor or
your rules. With --events print every event instead: record them with -o json for stanch
rules test --events.`,
		Example: "  stanch-sensor watch\n  stanch-sensor watch --events -o json | head",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("invalid --output %q; use text or json", output)}
			}
			if !cmd.Flags().Changed("state") {
				setup.StateDir = "" // watching stores nothing by default
			}
			return printNodeEvents(cmd.Context(), cmd.OutOrStdout(), setup, events, output == "json")
		},
	}
	watch.Flags().BoolVar(&events, "events", false, "print every event instead of detections")
	watch.Flags().StringVarP(&output, "output", "o", "text", "the output `FORMAT`: text or json")
	root.AddCommand(watch, cleanupCommand(&setup), stayCommand(), baselineCommand(&setup))
	return root
}

// validateArgs makes the errors of an argument check usage errors that name the help.
func validateArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("invalid arguments: %w; see `%s --help`", err, c.CommandPath())}
		}
		return nil
	}
}

// openNodeCertificate returns the node's certificate and the pinned keys of the authority, from the directory certs
// or, if that is "", by enrolling with the gateway. Renewed certificates and later keys are stored in state. With an
// error that is gatewayrpc.ErrDamagedPinnedKeys the certificate is valid, and the node may watch but not execute
// commands.
func openNodeCertificate(ctx context.Context, state, certs string,
	enroll gatewayrpc.Enrollment,
) (*gatewayrpc.NodeCertificate, *gatewayrpc.PinnedKeys, error) {
	if err := durablefile.MakeDirectory(state, 0o700); err != nil {
		return nil, nil, fmt.Errorf("open the state directory: %w", err)
	}
	enroll.CertificatePath, enroll.PinnedKeysPath = filepath.Join(state, "node.pem"),
		filepath.Join(state, gatewayrpc.AuthorityKeysFile)
	if certs == "" {
		return enroll.OpenOrEnroll(ctx)
	}
	tlsConfig, err := gatewayrpc.LoadTLS(certs, "node")
	if err != nil {
		return nil, nil, err
	}
	pins, damaged := gatewayrpc.LoadPinnedKeys(certs, enroll.PinnedKeysPath)
	if damaged != nil && !errors.Is(damaged, gatewayrpc.ErrDamagedPinnedKeys) {
		return nil, nil, damaged
	}
	identity, err := gatewayrpc.NewNodeCertificate(tlsConfig, enroll.CertificatePath)
	return identity, pins, errors.Join(err, damaged)
}

// thawAllCgroups thaws every cgroup of this machine that Stanch froze.
func thawAllCgroups(ctx context.Context) error {
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return err
	}
	return snapshot.NewFreezer(root, slog.Default()).ThawAll(ctx)
}

// serveGateway runs the sensor, connected to the gateway at address, until ctx ends.
func serveGateway(ctx context.Context, setup agent.Config, address, certs string, enroll gatewayrpc.Enrollment) error {
	setup.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := agent.CheckCapabilities(setup.Log); err != nil {
		return err //nolint:wrapcheck // it says what was being done
	}
	if err := agent.EnterNodeCgroupNamespace(); err != nil {
		return err //nolint:wrapcheck // as above
	}
	node, pins, err := waitForNodeCertificate(ctx, setup, certs, enroll)
	switch {
	case err != nil && node == nil:
		return err
	case errors.Is(err, gatewayrpc.ErrDamagedPinnedKeys): // the node still watches and reports
		setup.Log.Error("could not read the pinned keys; every command is refused", "error", err)
	case err != nil:
		return err
	}
	if setup.Node == "" {
		setup.Node = node.NodeName()
	}
	a, closeAll, err := agent.NewFromConfig(setup)
	if err != nil {
		return err
	}
	defer closeAll()
	spool, err := gatewayrpc.OpenSpool(setup.StateDir, gatewayrpc.SpoolLimits{})
	if err != nil {
		return err
	}
	defer func() { _ = spool.Close() }()
	return a.Serve(ctx, &gatewayrpc.Client{
		Address: address, NodeCertificate: node, PinnedKeys: pins, Node: a.Node,
		Version: version, Log: setup.Log,
	}, spool)
}

// waitForNodeCertificate is openNodeCertificate, and tries again while the gateway cannot be reached: in a new
// installation it may start after the sensor. What the gateway refuses is an error at once, and so is a gateway with a
// foreign certificate. After ten minutes it gives up, so that a wrong address shows as a failing pod.
func waitForNodeCertificate(ctx context.Context, setup agent.Config, certs string, enroll gatewayrpc.Enrollment) (
	node *gatewayrpc.NodeCertificate, pins *gatewayrpc.PinnedKeys, err error,
) {
	_, waitErr := backoff.Retry(ctx, func() (struct{}, error) {
		node, pins, err = openNodeCertificate(ctx, setup.StateDir, certs, enroll)
		unreachable, untrusted := (*url.Error)(nil), (*tls.CertificateVerificationError)(nil)
		if !errors.As(err, &unreachable) || errors.As(err, &untrusted) {
			return struct{}{}, nil // the caller gets the result
		}
		return struct{}{}, err
	}, backoff.WithBackOff(&backoff.ExponentialBackOff{
		InitialInterval: 500 * time.Millisecond, Multiplier: 2, MaxInterval: 15 * time.Second, RandomizationFactor: 0.3,
	}), backoff.WithMaxElapsedTime(10*time.Minute), backoff.WithNotify(func(err error, again time.Duration) {
		setup.Log.Warn("the gateway is unavailable; this node is not watched yet", "error", err,
			"again_in", again.Round(100*time.Millisecond))
	}))
	if err == nil && waitErr != nil {
		err = waitErr
	}
	return node, pins, err
}

// printNodeEvents prints the detections of this node or, with events, every event, until ctx ends. It applies no
// containment.
func printNodeEvents(ctx context.Context, out io.Writer, setup agent.Config, events, asJSON bool) error {
	setup.DisableLock = true
	setup.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	a, closeAll, err := agent.NewFromConfig(setup)
	if err != nil {
		return err
	}
	defer closeAll()
	if a.Probe == nil {
		return errors.New("load the probes: not supported by this kernel; `stanch doctor` shows what is missing")
	}
	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	printEvent := func(v any, line string) {
		mu.Lock()
		defer mu.Unlock()
		if asJSON {
			_ = encoder.Encode(v)
		} else {
			_, _ = fmt.Fprintln(out, line)
		}
	}
	fmt.Fprintln(os.Stderr, "watching; press Ctrl-C to stop")
	var onEvent func(sensors.Event)
	if events {
		onEvent = func(e sensors.Event) {
			printEvent(e, fmt.Sprintf("%s %-7s %s pid=%d %q", e.Time.Format("15:04:05.000"), e.Kind, formatSubject(e),
				e.Process.PID, formatEvent(e)))
		}
	}
	return a.Watch(ctx, onEvent, func(d sensors.Detection) {
		if !events {
			printEvent(d, fmt.Sprintf("%s %-8s %s: %s in %s: %q", d.Time.Format("15:04:05.000"), d.Severity, d.Rule,
				d.Title, formatSubject(d.Event), formatEvent(d.Event)))
		}
	})
}

// formatSubject returns NAMESPACE/NAME of the pod of an event, or the beginning of the id of its container.
func formatSubject(e sensors.Event) string {
	c := e.Container
	if c.Pod.Name != "" {
		return c.Pod.Namespace + "/" + c.Pod.Name
	}
	return c.ID[:min(12, len(c.ID))]
}

// formatEvent describes what the process of an event did.
func formatEvent(e sensors.Event) string {
	switch e.Kind {
	case sensors.KindConnect:
		return fmt.Sprintf("%s -> %s port %d", e.Process.Exe, e.Network.Address, e.Network.Port)
	case sensors.KindFileOpen:
		return fmt.Sprintf("%s opened %s", e.Process.Exe, e.File.Path)
	default:
		return fmt.Sprint(e.Process.Exe, " ", e.Process.Args)
	}
}
