package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spf13/cobra"

	"stanch/sensors/agent"
	"stanch/sensors/duration"
	"stanch/sensors/gatewayrpc"
	"stanch/sensors/probe"
)

// cleanupOptions are the flags of `stanch-sensor cleanup`.
type cleanupOptions struct {
	wait        time.Duration
	removeState bool
}

// cleanupCommand returns `stanch-sensor cleanup`.
func cleanupCommand(setup *agent.Config) *cobra.Command {
	o := &cleanupOptions{}
	c := &cobra.Command{
		Use: "cleanup", Short: "Remove all containments from this node", Args: validateArgs(cobra.NoArgs),
		Long: `Remove every egress lock, freeze, eBPF program and pin of Stanch from this node, after you stop
and uninstall the sensor. While a sensor is running, cleanup is refused; with --wait it waits
until the sensor has ended. With --remove-state also delete the node's certificate, baselines
and spooled detections.`,
		Example: "  stanch-sensor cleanup\n  stanch-sensor cleanup --wait 1m --remove-state",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), setup)
		},
	}
	c.Flags().Var(duration.NewFlag(&o.wait, 0), "wait", "how long to wait until a running sensor has ended")
	c.Flags().BoolVar(&o.removeState, "remove-state", false, "also delete the directory of --state")
	return c
}

// stayCommand returns `stanch-sensor stay`, which the pods that have cleaned their node run until they are deleted.
func stayCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stay", Short: "Do nothing until a signal", Args: validateArgs(cobra.NoArgs), Hidden: true,
		Long: `Do nothing until the process receives a signal. Pods of the Helm chart that have cleaned their
node run it until Helm deletes them.`,
		Example: "  stanch-sensor stay",
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

func (o *cleanupOptions) run(ctx context.Context, out io.Writer, setup *agent.Config) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := probe.Cleanup(setup.EgressLockDir)
		if err != nil && (o.wait == 0 || !errors.Is(err, probe.ErrInUse)) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err //nolint:wrapcheck // it says what failed
	}, backoff.WithBackOff(backoff.NewConstantBackOff(200*time.Millisecond)), backoff.WithMaxElapsedTime(o.wait))
	if err != nil {
		return err // a sensor that runs keeps its freezes and its state
	}
	if err := thawAllCgroups(ctx); err != nil {
		return err
	}
	if o.removeState {
		if err := removeState(setup.StateDir); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(out, "removed all egress locks and freezes from this node")
	return err
}

// removeState deletes the state directory. It refuses a directory that has other content than a sensor's.
func removeState(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove the state: %w", err)
	case len(entries) > 0 && !slices.ContainsFunc(entries, isStateFile):
		return fmt.Errorf("remove the state: %s has no state of a sensor; set --state to the sensor's directory", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	return nil
}

// isStateFile reports whether a directory entry is one that every sensor's state directory has.
func isStateFile(e fs.DirEntry) bool {
	return slices.Contains([]string{"node.pem", gatewayrpc.AuthorityKeysFile, "detections.spool", "released.json"},
		e.Name())
}
