// Command stanch-sensor is the node agent: it watches containers through eBPF, reports detections to the gateway, and
// holds what the gateway's authority permits it to hold. It links no Temporal and no Kubernetes client.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/containermeta"
	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
	"stanch/sensors/snapshot"
)

// version is set by the build.
var version = "dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == agent.SnapshotCommand {
		if err := snapshot.ServeHelper(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "stanch-sensor:", err)
			os.Exit(1)
		}
		os.Exit(0) // at once: a read may never end
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

type usageError struct{ error }

func exitCode(err error) int {
	if errors.As(err, &usageError{}) {
		return 2
	}
	return 1
}

func rootCommand() *cobra.Command {
	setup := agent.Config{SnapshotProgram: []string{"/proc/self/exe", agent.SnapshotCommand}, ThawProgram: []string{"/proc/self/exe", agent.ThawCommand}}
	var gatewayAddr, certs, output string
	var enroll gatewayrpc.Enrollment
	var events bool
	root := &cobra.Command{
		Use: "stanch-sensor", Short: "Watch the containers of this node and hold what Stanch contains",
		Long: `Watch the containers of this node through eBPF, report detections to the gateway,
and obey commands that carry the authority's proof. It dials out and opens no port.`,
		Example: `  stanch-sensor --gateway stanch.example:7443 --certs /etc/stanch/node
  stanch-sensor watch -o json
  stanch-sensor cleanup`,
		SilenceUsage: true, SilenceErrors: true, Version: version, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if gatewayAddr == "" || (certs == "") == (enroll.GatewayURL == "") {
				return usageError{errors.New("give --gateway ADDR and either --certs DIR or --enroll URL, or run `stanch-sensor watch`")}
			}
			return serveGateway(cmd.Context(), setup, gatewayAddr, certs, enroll)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&setup.Node, "node", os.Getenv("NODE_NAME"), "this node's name (default: the host's, or $NODE_NAME)")
	f.StringVar(&setup.CRISocket, "cri", "", "the container runtime's CRI socket (default: the usual ones)")
	f.StringVar(&setup.KubeletPath, "kubelet", "", "the path of this node's kubelet, where its program has an unusual name: a locked pod answers its probes")
	f.StringArrayVar(&setup.RuleDirs, "rules", nil, "a `DIR` with rule packs beside the shipped ones")
	f.StringVar(&setup.EgressLockDir, "lock-dir", "", "where the egress lock is pinned (default "+probe.DefaultEgressLockDir+")")
	root.Flags().StringVar(&gatewayAddr, "gateway", "", "the gateway's address, host:port")
	root.Flags().StringVar(&certs, "certs", "", "the `DIR` with node.crt, node.key, ca.crt and authority.json, as stanch cert node writes it")
	f.StringVar(&setup.StateDir, "state", "/var/lib/stanch-sensor", "the `DIR` where the spool, the baselines and the freezer's list are kept; watch keeps nothing unless it is given")
	f.Var(duration.NewFlag(&setup.LearningPeriod, 24*time.Hour), "learning-period", "how long an image is watched before anything that it does is unusual")
	root.Flags().StringVar(&enroll.GatewayURL, "enroll", "", "get the first certificate here, with the token of this pod: https://HOST:PORT of the gateway's door for people")
	root.Flags().StringVar(&enroll.TokenFile, "enroll-token", "/var/run/secrets/stanch/token", "the file with the token, made for the audience stanch-gateway")
	root.Flags().StringVar(&enroll.CAFile, "enroll-ca", "/etc/stanch/ca/ca.crt", "the file with the installation's certificate authority")

	watch := &cobra.Command{
		Use: "watch", Short: "Print detections, an object a line; needs nothing else running", Args: cobra.NoArgs,
		Example: "  stanch-sensor watch\n  stanch-sensor watch --events -o json | head",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("-o is text or json, not %q", output)}
			}
			if !cmd.Flags().Changed("state") {
				setup.StateDir = "" // whoever only looks leaves nothing behind
			}
			return printNodeEvents(cmd.Context(), cmd.OutOrStdout(), setup, events, output == "json")
		},
	}
	watch.Flags().BoolVar(&events, "events", false, "print every event, not only detections")
	watch.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cleanup := &cobra.Command{
		Use: "cleanup", Short: "Remove every egress lock, freeze, program and pin from this node", Args: cobra.NoArgs,
		Example: "  stanch-sensor cleanup",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(probe.Cleanup(setup.EgressLockDir), thawAllCgroups(cmd.Context())); err != nil {
				return fmt.Errorf("cleanup: %w", err)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "cleaned up: no egress lock and no freeze is left on this node")
			return err
		},
	}
	root.AddCommand(watch, cleanup, baselineCommand(&setup))
	return root
}

// openNodeCertificate gives the node's certificate: from a folder, or from the gateway. What is renewed is kept beside the spool.
func openNodeCertificate(ctx context.Context, state, certs string, enroll gatewayrpc.Enrollment) (*gatewayrpc.NodeCertificate, *gatewayrpc.PinnedKeys, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, nil, fmt.Errorf("open the state directory: %w", err)
	}
	enroll.CertificatePath, enroll.PinnedKeysPath = filepath.Join(state, "node.pem"), filepath.Join(state, gatewayrpc.AuthorityKeysFile)
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

// thawAllCgroups ends every freeze of Stanch's on this machine.
func thawAllCgroups(ctx context.Context) error {
	root, err := containermeta.FindCgroupRoot()
	if err != nil {
		return err
	}
	return snapshot.NewFreezer(root, slog.Default()).ThawAll(ctx)
}

func serveGateway(ctx context.Context, setup agent.Config, address, certs string, enroll gatewayrpc.Enrollment) error {
	setup.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	node, pins, err := openNodeCertificate(ctx, setup.StateDir, certs, enroll)
	switch {
	case err != nil && node == nil:
		return err
	case errors.Is(err, gatewayrpc.ErrDamagedPinnedKeys): // who cannot obey still watches
		setup.Log.Error("every command is refused", "error", err)
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
	return a.Serve(ctx, &gatewayrpc.Client{Address: address, NodeCertificate: node, PinnedKeys: pins, Node: a.Node, Version: version, Log: setup.Log}, spool)
}

func printNodeEvents(ctx context.Context, out io.Writer, setup agent.Config, events, asJSON bool) error {
	setup.DisableLock = true
	setup.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	a, closeAll, err := agent.NewFromConfig(setup)
	if err != nil {
		return err
	}
	defer closeAll()
	if a.Probe == nil {
		return errors.New("this kernel cannot be watched; `stanch doctor` says what it lacks")
	}
	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	say := func(v any, line string) {
		mu.Lock()
		defer mu.Unlock()
		if asJSON {
			_ = encoder.Encode(v)
		} else {
			_, _ = fmt.Fprintln(out, line)
		}
	}
	fmt.Fprintln(os.Stderr, "watching; end with Ctrl-C")
	var onEvent func(sensors.Event)
	if events {
		onEvent = func(e sensors.Event) {
			say(e, fmt.Sprintf("%s %-7s %s pid=%d %q", e.Time.Format("15:04:05.000"), e.Kind, formatSubject(e), e.Process.PID, formatEvent(e)))
		}
	}
	return a.Watch(ctx, onEvent, func(d sensors.Detection) {
		if !events {
			say(d, fmt.Sprintf("%s %-8s %s: %s in %s: %q", d.Time.Format("15:04:05.000"), d.Severity, d.Rule, d.Title, formatSubject(d.Event), formatEvent(d.Event)))
		}
	})
}

func formatSubject(e sensors.Event) string {
	c := e.Container
	if c.Pod.Name != "" {
		return c.Pod.Namespace + "/" + c.Pod.Name
	}
	return c.ID[:min(12, len(c.ID))]
}

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
