package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/manifests"
)

// manifestsOptions are the flags of `stanch manifests`.
type manifestsOptions struct {
	manifests.Options
	iam, alerts              bool
	valuesOnly, actionsInUse bool
	audit                    string
}

func manifestsCommand(g *globalFlags) *cobra.Command {
	o := &manifestsOptions{}
	c := &cobra.Command{
		Use: "manifests", Short: "Print the manifests that install Stanch in a cluster",
		Args: validateArgs(cobra.NoArgs),
		Long: `Print the Kubernetes YAML that installs the worker and the sensors with the least privileges
that a phase needs: the permissions that its actions declare. In phase 1, the only thing
Stanch can write is the kill switch. Without --temporal, the YAML has a small Temporal, which is
not highly available. It has no secrets; comments at its top say how to create them. With --iam
print the AWS policy of the phase instead, for the identity that Stanch runs as.

With --values-only print the values for the Helm chart instead. They restrict the permissions
to the actions that the playbooks in use can run: those of the library and of the directories
in --config. --actions-in-use restricts the printed manifests in the same way. Print again
after each change of a playbook; ` + "`stanch doctor`" + ` compares the permissions with the playbooks.`,
		Example: `  stanch manifests --phase 1 --temporal temporal.temporal.svc:7233 | kubectl apply -f -
  stanch manifests --phase 3 --config stanch.yaml --temporal temporal.example:7233 --temporal-tls > stanch-install.yaml
  stanch manifests --values-only --config stanch.yaml > stanch-values.yaml
  stanch manifests --phase 2 --iam > stanch-policy.json
  stanch manifests --alerts > stanch-alerts.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.print(cmd, g) },
	}
	f := c.Flags()
	f.IntVar(&o.Phase, "phase", 1, "the phase of the installation: 1 observe, 2 contain, 3 disrupt with approval "+
		"(default: the phase in --config)")
	f.BoolVar(&o.valuesOnly, "values-only", false, "print only the values for the Helm chart, as YAML")
	f.BoolVar(&o.actionsInUse, "actions-in-use", false,
		"permit only the actions that the playbooks in use can run, instead of all actions of the phase")
	f.BoolVar(&o.iam, "iam", false, "print only the IAM policy of the phase, as JSON")
	f.BoolVar(&o.alerts, "alerts", false, "print only Prometheus alert rules for the metrics of the worker")
	f.StringVar(&o.audit, "audit", "",
		"print only instructions for sending the API server's audit log to this `URL`: the --listen address as "+
			"the API server reaches it, https://HOST:PORT")
	f.StringVar(&o.Namespace, "namespace", "stanch-system", "the `NAMESPACE` to install in")
	f.StringVar(&o.Image, "image", manifests.ChartRegistry+"/stanch:"+version, "the `IMAGE` of the worker")
	f.StringVar(&o.SensorImage, "sensor-image", manifests.ChartRegistry+"/stanch-sensor:"+version,
		"the `IMAGE` of the sensor")
	f.StringVar(&o.TemporalAddress, "temporal", "",
		"the `HOST:PORT` of Temporal's frontend, as seen from pods (default: the small Temporal of the chart)")
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
func (o *manifestsOptions) print(cmd *cobra.Command, g *globalFlags) error {
	raw, err := o.render(cmd, g)
	if err != nil {
		return err
	}
	_, err = cmd.OutOrStdout().Write(raw)
	return err
}

// render returns what the flags select.
func (o *manifestsOptions) render(cmd *cobra.Command, g *globalFlags) ([]byte, error) {
	switch {
	case o.audit != "":
		if !strings.HasPrefix(o.audit, "https://") {
			return nil, usageError{fmt.Errorf("invalid --audit %q; use https://HOST:PORT, since an API server "+
				"sends its token only over TLS", o.audit)}
		}
		return []byte(manifests.AuditInstructions(strings.TrimSuffix(o.audit, "/") + "/v1/" +
			config.SourceKindKubernetesAudit)), nil
	case o.alerts:
		return manifests.AlertRules()
	case o.iam:
		raw, err := manifests.WriteIAMPolicy(actions.Catalog(), o.Phase)
		return raw, asUsageError(err)
	}
	if err := o.setConfig(cmd, g); err != nil {
		return nil, err
	}
	o.Version = version
	write := manifests.WriteYAML
	if o.valuesOnly {
		write = manifests.WriteValues
	}
	raw, err := write(o.Options)
	return raw, asUsageError(err)
}

// asUsageError returns err as an error of the flags.
func asUsageError(err error) error {
	if err != nil {
		return usageError{err}
	}
	return nil
}
