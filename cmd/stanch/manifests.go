package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/manifests"
)

// manifestsOptions are the flags of `stanch manifests`.
type manifestsOptions struct {
	manifests.Options
	iam, alerts bool
	audit       string
}

func manifestsCommand(g *globalFlags) *cobra.Command {
	o := &manifestsOptions{}
	c := &cobra.Command{
		Use: "manifests", Short: "Print the manifests that install Stanch in a cluster",
		Args: validateArgs(cobra.NoArgs),
		Long: `Print the Kubernetes YAML that installs the worker and the sensors with the least privileges
that a phase needs: the permissions that its actions declare. In phase 1, the only thing
Stanch can write is the kill switch. The YAML has no secrets; comments at its top say how to
create them. With --iam print the AWS policy of the phase instead, for the identity that
Stanch runs as.`,
		Example: `  stanch manifests --phase 1 --temporal temporal.temporal.svc:7233 | kubectl apply -f -
  stanch manifests --phase 3 --config stanch.yaml --temporal temporal.example:7233 --temporal-tls > stanch-install.yaml
  stanch manifests --phase 2 --iam > stanch-policy.json
  stanch manifests --alerts > stanch-alerts.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.print(cmd.OutOrStdout(), g) },
	}
	f := c.Flags()
	f.IntVar(&o.Phase, "phase", 1, "the phase that the permissions are for: 1 observe, 2 contain, 3 disrupt with "+
		"approval")
	f.BoolVar(&o.iam, "iam", false, "print only the IAM policy of the phase, as JSON")
	f.BoolVar(&o.alerts, "alerts", false, "print only Prometheus alert rules for the metrics of the worker")
	f.StringVar(&o.audit, "audit", "",
		"print only instructions for sending the API server's audit log to this `URL`: the --listen address as "+
			"the API server reaches it, https://HOST:PORT")
	f.StringVar(&o.Namespace, "namespace", "stanch-system", "the `NAMESPACE` to install in")
	f.StringVar(&o.Image, "image", "stanch:"+version, "the `IMAGE` of the worker")
	f.StringVar(&o.SensorImage, "sensor-image", "stanch-sensor:"+version, "the `IMAGE` of the sensor")
	f.StringVar(&o.TemporalAddress, "temporal", "",
		"the `HOST:PORT` of Temporal's frontend, as seen from pods (required to install)")
	f.StringVar(&o.TemporalNamespace, "temporal-namespace", "stanch", "the `NAMESPACE` in Temporal")
	f.BoolVar(&o.TemporalTLS, "temporal-tls", false,
		"connect to Temporal with the certificate in the secret "+manifests.TemporalSecret)
	f.StringVar(&o.TemporalServerName, "temporal-server-name", "",
		"the `NAME` in Temporal's certificate (default: the host of --temporal)")
	f.Int32Var(&o.Replicas, "replicas", 1,
		"the number of workers; more than one requires a ReadWriteMany volume for evidence")
	f.StringVar(&o.GatewayAddress, "gateway", "", "the `HOST:PORT` that sensors connect to (default: the Service)")
	f.BoolVar(&o.HostNetwork, "host-network", false,
		"run the worker in the network of its node, for a Temporal server that is reachable only from there")
	f.StringVar(&o.DataPath, "data-path", "",
		"store the data of the worker in this `DIR` of its node, instead of a volume claim")
	f.StringVar(&o.CRISocket, "cri", "/run/containerd/containerd.sock",
		"the CRI `SOCKET` of the container runtime on the nodes")
	f.StringVar(&o.NodeCertDir, "node-cert", "",
		"a `DIR` on each node with a certificate from stanch cert node (default: sensors enroll with the "+
			"gateway, using their pod's token)")
	f.StringVar(&o.LockDir, "lock-dir", "", "the `DIR` where the egress lock is pinned")
	return c
}

// print prints what the flags select.
func (o *manifestsOptions) print(out io.Writer, g *globalFlags) error {
	if o.audit != "" {
		if !strings.HasPrefix(o.audit, "https://") {
			return usageError{fmt.Errorf("invalid --audit %q; use https://HOST:PORT, since an API server "+
				"sends its token only over TLS", o.audit)}
		}
		_, err := fmt.Fprint(out, manifests.AuditInstructions(strings.TrimSuffix(o.audit, "/")+"/v1/"+
			config.SourceKindKubernetesAudit))
		return err
	}
	if o.alerts {
		raw, err := manifests.AlertRules()
		if err != nil {
			return err
		}
		_, err = out.Write(raw)
		return err
	}
	if o.iam {
		raw, err := manifests.WriteIAMPolicy(actions.Catalog(), o.Phase)
		if err != nil {
			return usageError{err}
		}
		_, err = out.Write(raw)
		return err
	}
	if g.configFile != "" {
		cfg, err := g.loadConfig()
		if err != nil {
			return err
		}
		if cfg.Phase > o.Phase {
			return fmt.Errorf("print the manifests: %s sets phase %d, which exceeds --phase %[3]d; use --phase %[2]d",
				g.configFile, cfg.Phase, o.Phase)
		}
		raw, err := os.ReadFile(g.configFile)
		if err != nil {
			return fmt.Errorf("read the configuration: %w", err)
		}
		o.Config = string(raw)
	}
	o.Version = version
	raw, err := manifests.WriteYAML(o.Options)
	if err != nil {
		return usageError{err}
	}
	_, err = out.Write(raw)
	return err
}
