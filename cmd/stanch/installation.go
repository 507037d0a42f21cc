package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"stanch/sensors/duration"
	"stanch/worker/installation"
)

// installationOptions are the flags of `stanch installation`.
type installationOptions struct {
	namespace, kubeconfig string
	temporal              bool
	workerURL             string
	permitted             []string
	newTemporal           string
	daemonSet             string
	deleteData, existing  bool
	timeout               time.Duration
}

func installationCommand() *cobra.Command {
	o := &installationOptions{}
	c := &cobra.Command{
		Use: "installation", Short: "Prepare and check an installation in a cluster, as the chart does",
		Long: `Prepare and check an installation in a cluster. Jobs of the Helm chart run these commands;
run them yourself if you install with stanch manifests.`,
		Example: "  stanch installation create-secrets --namespace stanch-system\n" +
			"  stanch installation check-leases --worker http://127.0.0.1:7481",
	}
	f := c.PersistentFlags()
	f.StringVar(&o.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "the `NAMESPACE` of the installation")
	f.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"),
		"the kubeconfig `FILE` of the cluster (default: the cluster that the command runs in)")
	f.Var(duration.NewFlag(&o.timeout, 2*time.Minute), "timeout", "give up after this long")
	c.AddCommand(o.createSecretsCommand(), o.deleteDataCommand(), o.checkLeasesCommand(), o.waitNodesCommand())
	return c
}

func (o *installationOptions) createSecretsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "create-secrets", Short: "Create the installation's keys and certificates, once",
		Args: validateArgs(cobra.NoArgs),
		Long: `Create the secrets stanch-keys and stanch-pki and the config map stanch-ca unless they exist, and
with --temporal also the certificates of the chart's Temporal. Nothing that exists is
overwritten. Whoever can read secrets in the namespace can read the keys: to keep them
elsewhere, create the secrets yourself with stanch cert authority.`,
		Example: "  stanch installation create-secrets --namespace stanch-system --temporal",
		RunE: o.inCluster(func(ctx context.Context, cmd *cobra.Command, client kubernetes.Interface) error {
			s := installation.Secrets{
				KubeClient: client, Namespace: o.namespace, Temporal: o.temporal, ExistingKeys: o.existing,
			}
			created, err := s.Create(ctx)
			if err != nil {
				return err
			}
			said := "every secret exists"
			if len(created) > 0 {
				said = "created " + strings.Join(created, ", ")
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
			return err
		}),
	}
	c.Flags().BoolVar(&o.existing, "existing-keys", false,
		"report missing keys instead of creating them, for an installation that has used its keys")
	c.Flags().BoolVar(&o.temporal, "temporal", false, "also create the certificates of the chart's Temporal")
	return c
}

func (o *installationOptions) deleteDataCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete-data", Short: "Delete the keys, the evidence and the histories of an installation",
		Args: validateArgs(cobra.NoArgs),
		Long: `Delete what an uninstallation keeps: the secrets and the config map that create-secrets creates,
the volume claims of the evidence and of the chart's Temporal, used grants, and the pause.
While a sensor is installed, it is refused.`,
		Example: "  stanch installation delete-data --namespace stanch-system",
		RunE: o.inCluster(func(ctx context.Context, _ *cobra.Command, client kubernetes.Interface) error {
			return installation.Secrets{KubeClient: client, Namespace: o.namespace}.Delete(ctx)
		}),
	}
}

func (o *installationOptions) checkLeasesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "check-leases", Short: "Check that no lease is in force that a change would leave without an undo",
		Args: validateArgs(cobra.NoArgs),
		Long: `Ask a worker at its health address which leases are in force. Exit code 0 means that each of
them has one of the --permitted actions, or that no lease is in force. The command reads
only; to end leases, people run stanch release.`,
		Example: "  stanch installation check-leases --worker http://stanch-gateway.stanch-system.svc:7481 --permitted pod.isolate",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.workerURL == "" {
				return usageError{errors.New("missing --worker; name the health address of a worker")}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return installation.LeaseCheck{
				WorkerURL: o.workerURL, Permitted: o.permitted, Temporal: o.newTemporal,
			}.Run(ctx)
		},
	}
	c.Flags().StringVar(&o.workerURL, "worker", "", "the `URL` of a worker's health address (required)")
	c.Flags().StringVar(&o.newTemporal, "temporal", "",
		"the `ADDRESS` of Temporal after the change, with its namespace (temporal:7233/stanch): leases do not move to another one")
	c.Flags().StringSliceVar(&o.permitted, "permitted", nil, "the `ACTIONS` that can still be undone after the change")
	return c
}

func (o *installationOptions) waitNodesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "wait-nodes", Short: "Wait until every node is clean", Args: validateArgs(cobra.NoArgs),
		Long: `Wait until every pod of the DaemonSet that cleans the nodes is ready. The error names the
nodes that are not clean. With --delete-data then delete what delete-data does.`,
		Example: "  stanch installation wait-nodes --namespace stanch-system --daemonset stanch-cleanup",
		RunE: o.inCluster(func(ctx context.Context, _ *cobra.Command, client kubernetes.Interface) error {
			if err := installation.WaitForNodes(ctx, client, o.namespace, o.daemonSet); err != nil || !o.deleteData {
				return err
			}
			return installation.Secrets{KubeClient: client, Namespace: o.namespace}.Delete(ctx)
		}),
	}
	c.Flags().BoolVar(&o.deleteData, "delete-data", false, "then delete the keys, the evidence and the histories")
	c.Flags().StringVar(&o.daemonSet, "daemonset", "stanch-cleanup", "the `NAME` of the DaemonSet")
	return c
}

// inCluster returns a command's function that runs with a client of the cluster, until the timeout.
func (o *installationOptions) inCluster(
	run func(context.Context, *cobra.Command, kubernetes.Interface) error,
) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if o.namespace == "" {
			return usageError{errors.New("missing --namespace; name the namespace of the installation")}
		}
		client, _, err := connectCluster(o.kubeconfig)
		if err != nil {
			return err
		}
		if client == nil {
			return usageError{errors.New("no cluster; set --kubeconfig")}
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
		defer cancel()
		return run(ctx, cmd, client)
	}
}
