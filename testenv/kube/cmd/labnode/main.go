// Command labnode builds, starts and stops the lab: a real one-node Kubernetes on this machine.
//
// It configures nothing: stanch/testenv/kube defines the lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"stanch/testenv/kube"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "labnode:", err)
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "labnode", Short: "A real one-node Kubernetes for tests, without a registry",
		SilenceUsage: true, SilenceErrors: true,
	}
	var state string
	build := &cobra.Command{
		Use: "build", Short: "Build the node's binary, unless it is in the cache", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := kube.Build(cmd.Context(), os.Stderr)
			return err
		},
	}
	up := &cobra.Command{
		Use: "up", Short: "Build if needed, start a lab and leave it running", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return startLab(cmd.Context(), state) },
	}
	down := &cobra.Command{
		Use: "down", Short: "Stop the lab of --state; without it, sweep what killed labs left", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return stopLab(state) },
	}
	for _, c := range []*cobra.Command{up, down} {
		c.Flags().StringVar(&state, "state", "", "a file to keep the lab's state in; tests attach with "+kube.LabStateEnv+
			"=FILE")
	}
	root.AddCommand(build, up, down)
	return root
}

func startLab(ctx context.Context, state string) error {
	if lacking := kube.MissingPrograms(); len(lacking) > 0 {
		return fmt.Errorf("this machine lacks %v", lacking)
	}
	if _, err := kube.Build(ctx, os.Stderr); err != nil {
		return err
	}
	cluster, err := kube.Start(ctx, kube.Options{
		Detached: true,
		Logf:     func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	})
	if err != nil {
		return err
	}
	if state == "" {
		state = cluster.StateFile()
	} else if err := linkStateFile(cluster.StateFile(), state); err != nil {
		return errors.Join(err, cluster.Stop())
	}
	if _, err := cluster.ImportAttack(ctx); err != nil {
		return errors.Join(err, cluster.Stop())
	}
	fmt.Printf("export %s=%s KUBECONFIG=%s\n", kube.LabStateEnv, state, cluster.Kubeconfig)
	return nil
}

// linkStateFile makes FILE a link to the state file. It replaces only the link of an earlier lab.
func linkStateFile(target, file string) error {
	if _, err := os.Readlink(file); err == nil {
		if _, err := os.Stat(file); err == nil {
			return fmt.Errorf("%s belongs to a lab that runs; stop it with `labnode down --state %s`", file, file)
		}
		_ = os.Remove(file)
	}
	if err := os.Symlink(target, file); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}

func stopLab(state string) error {
	if state == "" {
		return kube.StopOrphanedLabs()
	}
	cluster, err := kube.Attach(state)
	if errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(state)
		return nil // already stopped
	}
	if err != nil {
		return err
	}
	if err := cluster.Stop(); err != nil {
		return err
	}
	_ = os.Remove(state)
	return nil
}
