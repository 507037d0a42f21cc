// Command stanch runs Stanch and is its command line: it shows incidents, answers approval questions, contains
// targets, and checks and tests playbooks and rules.
//
// Exit codes: 0 done, 1 the answer is no or an error, 2 wrong use.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	sdkworker "go.temporal.io/sdk/worker"
	_ "golang.org/x/crypto/x509roots/fallback" // the image has no certificate authorities of a system

	"stanch/sensors/agent"
	"stanch/sensors/diagnostic"
	"stanch/sensors/snapshot"
	"stanch/worker/config"
)

// version is the version of this build, set with -ldflags; "dev" otherwise.
var version = "dev"

func main() {
	// A drill runs this program again, inside of its container, as the harmless attacker.
	if len(os.Args) > 1 && os.Args[1] == drillAttackCommand {
		os.Exit(runDrillAttack(os.Args[2:]))
	}
	if kind, address, ok := strings.Cut(os.Getenv(drillAttackEnv), " "); ok {
		os.Exit(runDrillAttack([]string{kind, address}))
	}
	if len(os.Args) == 3 && os.Args[1] == agent.ThawCommand {
		if err := snapshot.RunThawer(os.Args[2]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errReported) {
		fmt.Fprintln(os.Stderr, "stanch:", err)
	}
	os.Exit(exitCode(err))
}

// identifyBuild gives Temporal's SDK the identity of this program. Otherwise, it would compute a checksum of the entire
// executable before its first worker starts.
func identifyBuild() { sdkworker.SetBinaryChecksum("stanch " + version) }

// errReported ends a command with exit code 1 and no error message: its output already says that the answer is no.
var errReported = errors.New("no")

// usageError is an error in how a command was called. Its exit code is 2.
type usageError struct{ error }

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usageError{}):
		return 2
	}
	return 1
}

// globalFlags holds the flags that every command accepts.
type globalFlags struct {
	dataDir      string
	configFile   string
	remoteServer remoteServer
	// clusterNamespace is the namespace of an installation that is reached through its worker's pod; "" for none.
	clusterNamespace string
}

func rootCommand() *cobra.Command {
	g := &globalFlags{}
	root := &cobra.Command{
		Use: "stanch", Short: "Detect and contain attacks on containers",
		Long: `Stanch detects attacks on containers in the kernel, contains them with leases that expire
automatically, and records every decision in a verifiable audit trail.

Start with:
  stanch up       run everything on this machine, in one process
  stanch drill    run a safe, real attack and check the response end to end`,
		Example: `  stanch up
  stanch drill
  stanch incidents`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&g.dataDir, "data", defaultDataDir(),
		"the data `DIR`: keys, evidence, and the database of the embedded Temporal")
	root.PersistentFlags().StringVar(&g.configFile, "config", "",
		"the configuration `FILE`, stanch.yaml (default: phase 1; only the user running Stanch can approve)")
	root.PersistentFlags().StringVar(&g.remoteServer.address, "server", os.Getenv("STANCH_SERVER"),
		"connect to the Stanch instance in a cluster at `HOST:PORT` instead of the one on this machine")
	root.PersistentFlags().StringVar(&g.clusterNamespace, "cluster", os.Getenv("STANCH_CLUSTER"),
		"connect to the Stanch installation in this `NAMESPACE` of the cluster of $KUBECONFIG, through its worker's pod, "+
			"as kubectl exec does")
	root.PersistentFlags().StringVar(&g.remoteServer.tokenFile, "token-file", os.Getenv("STANCH_TOKEN_FILE"),
		"with --server: a `FILE` with a Kubernetes token for the audience stanch")
	root.PersistentFlags().StringVar(&g.remoteServer.caFile, "server-ca", os.Getenv("STANCH_SERVER_CA"),
		"with --server: the `FILE` with its CA certificate, pki/ca.crt")
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "respond", Title: "Respond to incidents:"},
		&cobra.Group{ID: "develop", Title: "Develop playbooks and rules:"})
	for group, commands := range map[string][]*cobra.Command{
		"run": {
			upCommand(g), workerCommand(g), forwardCommand(), drillCommand(g), doctorCommand(g),
			manifestsCommand(g), certCommand(g), installationCommand(), temporalCommand(g), connectCommand(g),
		},
		"respond": {
			statusCommand(g), incidentsCommand(g), approvalCommand(g, true), approvalCommand(g, false),
			assignCommand(g),
			resolveCommand(g), containCommand(g), runCommand(g), leasesCommand(g), releaseCommand(g), extendCommand(g),
			pauseCommand(g), resumeCommand(g), auditCommand(g), evidenceCommand(g), recordCommand(g),
		},
		"develop": {
			validateCommand(g), testCommand(), explainCommand(), playbooksCommand(g), simulateCommand(g),
			actionsCommand(), schemaCommand(), rulesCommand(g),
		},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.AddCommand(expressionsHelpTopic())
	requireSubcommand(root)
	return root
}

// requireSubcommand makes a command that has only subcommands print its help when it is called alone, and return a
// usage error with a suggestion when the subcommand is unknown.
func requireSubcommand(c *cobra.Command) {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := fmt.Sprintf("see `%s --help`", c.CommandPath())
		if similar := c.SuggestionsFor(args[0]); len(similar) > 0 {
			hint = fmt.Sprintf("did you mean `%s %s`?", c.CommandPath(), similar[0])
		}
		return usageError{fmt.Errorf("unknown command `%s %s`; %s", c.CommandPath(), args[0], hint)}
	}
	c.SuggestionsMinimumDistance = 2
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// defaultDataDir returns the data directory of a system-wide Stanch for root, and one in the home directory for other
// users.
func defaultDataDir() string {
	if os.Getuid() == 0 {
		return "/var/lib/stanch"
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "share", "stanch")
	}
	return "stanch-data"
}

// socketPath returns the path of the local API's Unix socket.
func (g *globalFlags) socketPath() string { return filepath.Join(g.dataDir, "stanch.sock") }

// loadConfig reads the file of --config and prints its problems to standard error. Without --config it returns the
// defaults.
func (g *globalFlags) loadConfig() (*config.Config, error) {
	if g.configFile == "" {
		return config.Default(), nil
	}
	c, problems, err := config.Load(g.configFile)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(g.configFile)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	printProblems(problems, raw)
	if problems.HasErrors() {
		return nil, fmt.Errorf("load %s: invalid configuration, %s", g.configFile,
			formatCount(len(problems), "problem", "problems"))
	}
	return c, nil
}

func printProblems(problems diagnostic.Diagnostics, source []byte) {
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, p.Render(source))
	}
}

// addOutputFlag adds -o with the formats text and json.
func addOutputFlag(c *cobra.Command, out *string) { addFormatFlag(c, out, "text", "json") }

// validateArgs makes the errors of an argument check usage errors that name the help.
func validateArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("invalid arguments: %w; see `%s --help`", err, c.CommandPath())}
		}
		return nil
	}
}
