// Package manifests renders the chart that installs Stanch: the worker, the sensor on every node, and exactly the
// permissions that a phase needs, from the actions' specs.
//
// It grants no permission that no spec declares, contains no secrets (it names them and says how to create them), and
// gives the sensor no credential of the cluster: a compromised node must not be able to write elsewhere. The token with
// which a sensor enrolls is valid for the gateway only; the API server does not accept it.
package manifests

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// The names of the installed objects, and of the required secrets.
const (
	WorkerName     = "stanch-worker"
	SensorName     = "stanch-sensor"
	GatewayService = "stanch-gateway"
	ConfigMapName  = "stanch-config"
	EvidenceClaim  = "stanch-evidence"
	KeysSecret     = "stanch-keys"
	PKISecret      = "stanch-pki"
	// CAConfigMap contains the authority's certificate without its key; sensors verify the gateway with it.
	CAConfigMap    = "stanch-ca"
	TemporalSecret = "stanch-temporal"
	// TemporalName is the name of the chart's own Temporal and its Service, TemporalServerSecret its certificate.
	TemporalName         = "stanch-temporal"
	TemporalServerSecret = "stanch-temporal-server"
	// SlackSecret contains Slack's tokens, if Slack is configured. It is mounted at SlackDir, which stanch.yaml refers
	// to.
	SlackSecret = "stanch-slack"
	SlackDir    = "/etc/stanch/slack"
	// NotificationSecret contains the credentials of webhooks, mail and tickets, if configured. It is mounted at
	// NotificationDir.
	NotificationSecret = "stanch-integrations"
	NotificationDir    = "/etc/stanch/integrations"
	// ChartRegistry is the registry in the chart's defaults: that of images that were imported on the nodes.
	ChartRegistry = "localhost"
	// GatewayPort is where nodes dial, APIPort where people answer with a Kubernetes token.
	GatewayPort = 7443
	APIPort     = 7444
	healthPort  = 7481
)

// Options configures the installation. Phase, Image and SensorImage are required.
type Options struct {
	Phase           int
	Namespace       string // "" means stanch-system
	Image           string
	SensorImage     string
	TemporalAddress string // host:port, as pods reach it; "" means the small Temporal of the chart
	// TemporalNamespace is the Temporal namespace; "" means stanch.
	TemporalNamespace string
	// TemporalTLS mounts the secret stanch-temporal. TemporalServerName is the name in Temporal's certificate, if it
	// differs from the host.
	TemporalTLS        bool
	TemporalServerName string
	Config             string // the text of stanch.yaml; "" means the defaults. Its phase is ignored
	// Playbooks and Rules are the texts of the user's files by name, instead of the directories in Config; nil leaves
	// the directories as they are.
	Playbooks, Rules map[string]string
	Replicas         int32 // of the worker; 0 means 1
	// GatewayAddress is the address for sensors; "" means the Service.
	GatewayAddress string
	// HostNetwork runs the worker in the node's network, for a Temporal that is reachable only there.
	HostNetwork bool
	// DataPath stores the worker's data in a directory of its node, instead of a volume claim for the evidence.
	DataPath  string
	CRISocket string // the container runtime's socket on nodes; "" means /run/containerd/containerd.sock
	// NodeCertDir is the directory on each node with a certificate from `stanch cert node`; with "", each sensor
	// enrolls at the gateway with its pod's token.
	NodeCertDir string
	LockDir     string // "" means the sensor's default
	// Actions are the actions that the worker gets permissions for; nil means all of the phase.
	Actions []string
	Version string // of this build
}

func (o Options) withDefaults() Options {
	set := func(s *string, otherwise string) {
		if *s == "" {
			*s = otherwise
		}
	}
	set(&o.Namespace, "stanch-system")
	set(&o.TemporalNamespace, "stanch")
	set(&o.CRISocket, "/run/containerd/containerd.sock")
	set(&o.Version, "dev")
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.Phase < 1 || o.Phase > 3:
		return fmt.Errorf("invalid phase %d; 1 observes, 2 contains, 3 disrupts with approval", o.Phase)
	case o.Image == "" || o.SensorImage == "":
		return fmt.Errorf("missing image; set the images of the worker and the sensor")
	case o.DataPath != "" && o.Replicas > 1:
		return fmt.Errorf("run %d workers: they cannot share a directory on one node; use one worker", o.Replicas)
	}
	return nil
}

// namespaceManifest is the namespace, which a chart does not contain: Helm creates it.
const namespaceManifest = `apiVersion: v1
kind: Namespace
metadata:
  name: %s
  labels:
    # The sensor loads programs into the kernel.
    pod-security.kubernetes.io/enforce: privileged
`

// values returns the chart's values.
func (o Options) values() (map[string]any, error) {
	cfg := map[string]any{}
	if err := yaml.Unmarshal([]byte(o.Config), &cfg); err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	delete(cfg, "phase") // the chart has one phase
	for name, files := range map[string]map[string]string{"playbooks": o.Playbooks, "rules": o.Rules} {
		if files != nil {
			delete(cfg, name)
		}
	}
	return map[string]any{
		"phase": o.Phase, "config": cfg, "actions": toAnySlice(o.Actions),
		"playbooks": toAnyMap(o.Playbooks), "rules": toAnyMap(o.Rules),
		"image": o.imageValues(),
		"temporal": map[string]any{
			"address": o.TemporalAddress, "namespace": o.TemporalNamespace,
			"tls": map[string]any{"enabled": o.TemporalTLS, "serverName": o.TemporalServerName},
		},
		"worker": map[string]any{"replicas": o.Replicas, "hostNetwork": o.HostNetwork, "dataPath": o.DataPath},
		"sensor": map[string]any{
			"criSocket": o.CRISocket, "gatewayAddress": o.GatewayAddress, "nodeCertDir": o.NodeCertDir, "lockDir": o.LockDir,
		},
	}, nil
}

func toAnySlice(texts []string) []any {
	out := make([]any, 0, len(texts))
	for _, t := range texts {
		out = append(out, t)
	}
	return out
}

func toAnyMap(texts map[string]string) map[string]any {
	out := map[string]any{}
	for name, text := range texts {
		out[name] = text
	}
	return out
}

// WriteYAML returns the objects as one YAML stream in the order in which they must be created, with the steps to do
// before as a comment.
func WriteYAML(o Options) ([]byte, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	values, err := o.values()
	if err != nil {
		return nil, err
	}
	// Without Helm nobody runs hooks: the notes say what to do instead.
	values["bootstrap"] = map[string]any{"enabled": false}
	values["uninstall"] = map[string]any{"checkLeases": false, "cleanNodes": false, "keepData": true}
	r, err := render(o.Version, o.Namespace, values)
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	for line := range strings.SplitSeq(r.notes, "\n") {
		out.WriteString(strings.TrimRight("# "+line, " ") + "\n")
	}
	fmt.Fprintf(&out, "---\n"+namespaceManifest, o.Namespace)
	for _, m := range r.manifests {
		out.WriteString("---\n" + m + "\n")
	}
	return []byte(out.String()), nil
}
