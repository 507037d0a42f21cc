// Command stanch is everything that people use: it runs Stanch, shows what it does, and answers it.
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

	"stanch/sensors/agent"
	"stanch/sensors/diagnostic"
	"stanch/sensors/snapshot"
	"stanch/worker/config"
)

// version is set by the build.
var version = "dev"

func main() {
	// The drill's harmless attacker is this program again, inside of the drill's container.
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

// errReported says that the answer is no and was printed already.
var errReported = errors.New("no")

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

// globalFlags are the flags that every command has.
type globalFlags struct {
	dataDir      string
	configFile   string
	remoteServer remoteServer
}

func rootCommand() *cobra.Command {
	g := &globalFlags{}
	root := &cobra.Command{
		Use: "stanch", Short: "Contain what goes wrong in containers: durably, reversibly, with proof",
		Long: `Stanch takes a detection from the kernel to a contained, documented incident.

Start with:
  stanch up                everything on this machine, in one process
  stanch drill             a harmless real attack, followed to its end`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&g.dataDir, "data", defaultDataDir(), "the data directory: keys, Temporal's file, evidence")
	root.PersistentFlags().StringVar(&g.configFile, "config", "", "the configuration, stanch.yaml (default: phase 1, nobody may approve but you)")
	root.PersistentFlags().StringVar(&g.remoteServer.address, "server", os.Getenv("STANCH_SERVER"), "answer a Stanch in a cluster at this HOST:PORT, instead of this machine's")
	root.PersistentFlags().StringVar(&g.remoteServer.tokenFile, "token-file", os.Getenv("STANCH_TOKEN_FILE"), "with --server: a file with a Kubernetes token for the audience stanch")
	root.PersistentFlags().StringVar(&g.remoteServer.caFile, "server-ca", os.Getenv("STANCH_SERVER_CA"), "with --server: the certificate authority, pki/ca.crt")
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run:"}, &cobra.Group{ID: "see", Title: "See and answer:"}, &cobra.Group{ID: "write", Title: "Write playbooks:"})
	for group, commands := range map[string][]*cobra.Command{
		"run":   {upCommand(g), workerCommand(g), forwardCommand(), drillCommand(g), doctorCommand(g), manifestsCommand(g), certCommand(g)},
		"see":   {statusCommand(g), incidentsCommand(g), containCommand(g), runCommand(g), auditCommand(g), recordCommand(g), leasesCommand(g), releaseCommand(g), extendCommand(g), approvalCommand(g, true), approvalCommand(g, false), assignCommand(g), resolveCommand(g), pauseCommand(g), resumeCommand(g), evidenceCommand(g)},
		"write": {validateCommand(g), testCommand(), explainCommand(), playbooksCommand(g), simulateCommand(g), actionsCommand(), schemaCommand(), rulesCommand(g)},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	root.AddCommand(expressionsHelpTopic())
	return root
}

func defaultDataDir() string {
	if os.Getuid() == 0 {
		return "/var/lib/stanch"
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "share", "stanch")
	}
	return "stanch-data"
}

// socketPath is the local API's.
func (g *globalFlags) socketPath() string { return filepath.Join(g.dataDir, "stanch.sock") }

// loadConfig reads the configuration, printing what is wrong with it.
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
		return nil, fmt.Errorf("read the config: %w", err)
	}
	printProblems(problems, raw)
	if problems.HasErrors() {
		return nil, fmt.Errorf("%s has %d problems", g.configFile, len(problems))
	}
	return c, nil
}

func printProblems(problems diagnostic.Diagnostics, source []byte) {
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, p.Render(source))
	}
}

// addOutputFlag adds -o.
func addOutputFlag(c *cobra.Command, out *string) {
	c.Flags().StringVarP(out, "output", "o", "text", "text or json")
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if *out != "text" && *out != "json" {
			return usageError{fmt.Errorf("-o is text or json, not %q", *out)}
		}
		return run(cmd, args)
	}
}

// validateArgs turns cobra's complaints about arguments into wrong use.
func validateArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if err := check(c, given); err != nil {
			return usageError{fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())}
		}
		return nil
	}
}
