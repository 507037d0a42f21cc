package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker"
	"stanch/worker/config"
	"stanch/worker/manifests"
)

func manifestsCommand(g *globalFlags) *cobra.Command {
	o := manifests.Options{}
	var iam bool
	var alerts bool
	var audit string
	c := &cobra.Command{
		Use: "manifests", Short: "Print what installs Stanch in a cluster, with the least rights of a phase", Args: validateArgs(cobra.NoArgs),
		Long: `Print the YAML that installs worker and sensor in a cluster. Its rights are the sum
of what the actions declare for the phase: in phase 1 nothing can be written but
the kill switch. It holds no secret; its head says how to make them. With --iam it
prints the AWS policy of the phase instead, for the identity that Stanch works as.`,
		Example: `  stanch manifests --phase 1 --temporal temporal.temporal.svc:7233 | kubectl apply -f -
  stanch manifests --phase 3 --config stanch.yaml --temporal temporal.example:7233 --temporal-tls > stanch-install.yaml
  stanch manifests --phase 2 --iam > stanch-policy.json
  stanch manifests --alerts > stanch-alerts.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if audit != "" {
				if !strings.HasPrefix(audit, "https://") {
					return usageError{fmt.Errorf("--audit %s: an API server shows its token only to https://; --listen speaks it", audit)}
				}
				_, err := fmt.Fprint(cmd.OutOrStdout(), manifests.AuditInstructions(strings.TrimSuffix(audit, "/")+"/v1/"+config.SourceKindKubernetesAudit))
				return err
			}
			if alerts {
				_, err := fmt.Fprint(cmd.OutOrStdout(), manifests.AlertRules)
				return err
			}
			if iam {
				out, err := manifests.WriteIAMPolicy(worker.ActionCatalog(), o.Phase)
				if err != nil {
					return usageError{err}
				}
				_, err = cmd.OutOrStdout().Write(out)
				return err
			}
			if g.configFile != "" {
				cfg, err := g.loadConfig()
				if err != nil {
					return err
				}
				if cfg.Phase > o.Phase {
					return fmt.Errorf("%s is for phase %d, which the rights of phase %d do not permit; print them with --phase %d", g.configFile, cfg.Phase, o.Phase, cfg.Phase)
				}
				raw, err := os.ReadFile(g.configFile)
				if err != nil {
					return fmt.Errorf("read the config: %w", err)
				}
				o.Config = string(raw)
			}
			out, err := manifests.WriteYAML(worker.ActionCatalog(), o)
			if err != nil {
				return usageError{err}
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	f := c.Flags()
	f.IntVar(&o.Phase, "phase", 1, "1 observes, 2 contains, 3 disrupts behind approval: the rights follow")
	f.BoolVar(&iam, "iam", false, "print the IAM policy of the phase, as JSON, and nothing else")
	f.BoolVar(&alerts, "alerts", false, "print alert rules for Prometheus over the worker's /metrics, and nothing else")
	f.StringVar(&audit, "audit", "", "print what switches the API server's audit log on, and nothing else; the address of --listen as the API server reaches it, https://HOST:PORT")
	f.StringVar(&o.Namespace, "namespace", "stanch-system", "the namespace to install in")
	f.StringVar(&o.Image, "image", "stanch:"+version, "the worker's image")
	f.StringVar(&o.SensorImage, "sensor-image", "stanch-sensor:"+version, "the sensor's image")
	f.StringVar(&o.TemporalAddress, "temporal", "", "Temporal's frontend as pods reach it, host:port (required)")
	f.StringVar(&o.TemporalNamespace, "temporal-namespace", "stanch", "the Temporal namespace")
	f.BoolVar(&o.TemporalTLS, "temporal-tls", false, "reach Temporal with the certificate of the secret "+manifests.TemporalSecret)
	f.StringVar(&o.TemporalServerName, "temporal-server-name", "", "the name in Temporal's certificate (default: the host of --temporal)")
	f.Int32Var(&o.Replicas, "replicas", 1, "how many workers; more than one need a volume for evidence that many can write")
	f.StringVar(&o.GatewayAddress, "gateway", "", "where sensors dial, host:port (default: the Service)")
	f.BoolVar(&o.HostNetwork, "host-network", false, "put the worker into its node's network, for a Temporal that is reached only there")
	f.StringVar(&o.DataPath, "data-path", "", "keep the worker's data in this folder of its node, instead of a claim")
	f.StringVar(&o.CRISocket, "cri", "/run/containerd/containerd.sock", "the container runtime's CRI socket on the nodes")
	f.StringVar(&o.NodeCertDir, "node-cert", "", "a `DIR` on each node with a certificate of stanch cert node (default: each sensor gets one from the gateway, with its pod's token)")
	f.StringVar(&o.LockDir, "lock-dir", "", "where the egress lock is pinned")
	return c
}
