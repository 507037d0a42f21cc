// Package manifests writes the Kubernetes objects that install Stanch: the worker, the sensor on every node, and
// exactly the permissions that a phase needs, from the actions' specs.
//
// It grants no permission that no spec declares, contains no secrets (it names them and says how to create them), and
// gives the sensor no credential of the cluster: a compromised node must not be able to write elsewhere. The token with
// which a sensor enrolls is valid for the gateway only; the API server does not accept it.
package manifests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"stanch/playbooks"
	"stanch/worker/guards"
	"stanch/worker/health"
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
	// SlackSecret contains Slack's tokens, if Slack is configured. It is mounted at SlackDir, which stanch.yaml refers
	// to.
	SlackSecret = "stanch-slack"
	SlackDir    = "/etc/stanch/slack"
	// NotificationSecret contains the credentials of webhooks, mail and tickets, if configured. It is mounted at
	// NotificationDir.
	NotificationSecret = "stanch-integrations"
	NotificationDir    = "/etc/stanch/integrations"
	// GatewayPort is where nodes dial, APIPort where people answer with a Kubernetes token.
	GatewayPort = 7443
	APIPort     = 7444
	healthPort  = 7481
)

// Options configures the installation. Phase, Image, SensorImage and TemporalAddress are required.
type Options struct {
	Phase           int
	Namespace       string // "" means stanch-system
	Image           string
	SensorImage     string
	TemporalAddress string // host:port, as pods reach it
	// TemporalNamespace is the Temporal namespace; "" means stanch.
	TemporalNamespace string
	// TemporalTLS mounts the secret stanch-temporal. TemporalServerName is the name in Temporal's certificate, if it
	// differs from the host.
	TemporalTLS        bool
	TemporalServerName string
	Config             string // the text of stanch.yaml; "" means the defaults with this phase
	Replicas           int32  // of the worker; 0 means 1
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
	set(&o.GatewayAddress, fmt.Sprintf("%s.%s.svc:%d", GatewayService, o.Namespace, GatewayPort))
	set(&o.Config, fmt.Sprintf("phase: %d\n", o.Phase))
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
	case o.TemporalAddress == "":
		return fmt.Errorf("missing Temporal address; set the address at which pods reach Temporal")
	case o.DataPath != "" && o.Replicas > 1:
		return fmt.Errorf("run %d workers: they cannot share a directory on one node; use one worker", o.Replicas)
	}
	return nil
}

// Objects returns all objects in the order in which they must be created.
func Objects(catalog playbooks.Catalog, o Options) ([]runtime.Object, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	out := []runtime.Object{
		&corev1.Namespace{TypeMeta: typeMeta("v1", "Namespace"), ObjectMeta: metav1.ObjectMeta{
			Name: o.Namespace,
			Labels: map[string]string{
				"pod-security.kubernetes.io/enforce": "privileged", // the sensor loads programs into the kernel
			},
		}},
		newServiceAccount(o, WorkerName), newServiceAccount(o, SensorName),
	}
	out = append(out, o.rbacObjects(catalog)...)
	out = append(out,
		&corev1.ConfigMap{TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: o.objectMeta(guards.KillSwitchConfigMap)},
		&corev1.ConfigMap{TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: o.objectMeta(health.NodeRegistryConfigMap)},
		&corev1.ConfigMap{TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: o.objectMeta(guards.UsedGrantsConfigMap)},
		&corev1.ConfigMap{
			TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: o.objectMeta(ConfigMapName),
			Data: map[string]string{"stanch.yaml": o.Config},
		},
		o.gatewayService(),
	)
	if o.DataPath == "" {
		out = append(out, o.evidenceClaim())
	}
	return append(out, o.workerDeployment(), o.sensorDaemonSet()), nil
}

func (o Options) rbacObjects(catalog playbooks.Catalog) []runtime.Object {
	clusterName := WorkerName
	if o.Namespace != "stanch-system" {
		clusterName = o.Namespace + "-" + WorkerName // two installations must not share a role
	}
	subject := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: WorkerName, Namespace: o.Namespace}}
	clusterWide := metav1.ObjectMeta{Name: clusterName, Labels: partLabels("")}
	out := []runtime.Object{
		&rbacv1.ClusterRole{
			TypeMeta: typeMeta("rbac.authorization.k8s.io/v1", "ClusterRole"), ObjectMeta: clusterWide,
			Rules: ClusterRules(catalog, o.Phase),
		},
		&rbacv1.ClusterRoleBinding{
			TypeMeta: typeMeta("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"), ObjectMeta: clusterWide, Subjects: subject,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterName},
		},
	}
	// Permission to change these objects by name, in Stanch's own namespace, but not to create or delete any.
	for _, name := range []string{guards.KillSwitchConfigMap, health.NodeRegistryConfigMap, guards.UsedGrantsConfigMap} {
		out = append(out,
			&rbacv1.Role{
				TypeMeta: typeMeta("rbac.authorization.k8s.io/v1", "Role"), ObjectMeta: o.objectMeta(name),
				Rules: []rbacv1.PolicyRule{
					{
						APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{name},
						Verbs: []string{"get", "patch"},
					},
				},
			},
			&rbacv1.RoleBinding{
				TypeMeta: typeMeta("rbac.authorization.k8s.io/v1", "RoleBinding"), ObjectMeta: o.objectMeta(name),
				Subjects: subject,
				RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			})
	}
	return out
}

func typeMeta(version, name string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: version, Kind: name}
}

// partLabels returns the labels of an installed object; app is the component's name.
func partLabels(app string) map[string]string {
	out := map[string]string{"app.kubernetes.io/part-of": "stanch"}
	if app != "" {
		out["app.kubernetes.io/name"] = app
	}
	return out
}

func (o Options) objectMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: o.Namespace, Name: name, Labels: partLabels("")}
}

func newServiceAccount(o Options, name string) runtime.Object {
	no := false // pods that need the token mount it explicitly
	return &corev1.ServiceAccount{
		TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: o.objectMeta(name),
		AutomountServiceAccountToken: &no,
	}
}

// WriteYAML returns the objects as one YAML stream, with the steps to do before as a comment.
func WriteYAML(catalog playbooks.Catalog, o Options) ([]byte, error) {
	objects, err := Objects(catalog, o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString(installNotes(o.withDefaults()))
	for _, object := range objects {
		raw, err := json.Marshal(object)
		if err != nil {
			return nil, fmt.Errorf("write a manifest: %w", err)
		}
		var tree map[string]any
		if err := json.Unmarshal(raw, &tree); err != nil {
			return nil, fmt.Errorf("write a manifest: %w", err)
		}
		delete(tree, "status")
		pruneEmpty(tree)
		text, err := yaml.Marshal(tree)
		if err != nil {
			return nil, fmt.Errorf("write a manifest: %w", err)
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}

// pruneEmpty removes the empty fields that Go's types write. An empty object can have a meaning (emptyDir), so only
// known ones are removed.
func pruneEmpty(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"creationTimestamp", "resources", "strategy", "updateStrategy"} {
			if inner, ok := v[key]; ok {
				if m, isMap := inner.(map[string]any); inner == nil || isMap && len(m) == 0 {
					delete(v, key)
				}
			}
		}
		for _, inner := range v {
			pruneEmpty(inner)
		}
	case []any:
		for _, inner := range v {
			pruneEmpty(inner)
		}
	}
}

func installNotes(o Options) string {
	lines := []string{
		fmt.Sprintf("Stanch in phase %d: %s.", o.Phase, []string{
			"it observes, and can write only its own kill switch",
			"it runs reversible containments", "it runs containments, and disruptive actions with approval",
		}[o.Phase-1]),
		"Before you raise or lower the phase, apply the manifests of the new one. Before you lower it, run",
		"`stanch release --all`; otherwise, active leases can no longer be undone.",
		"",
		"Create the secrets once, in a safe place:",
		"  stanch cert authority --out secrets",
		fmt.Sprintf("  kubectl create namespace %s", o.Namespace),
		fmt.Sprintf("  kubectl -n %s create secret generic %s --from-file=secrets/keys", o.Namespace, KeysSecret),
		fmt.Sprintf("  kubectl -n %s create secret generic %s --from-file=secrets/pki", o.Namespace, PKISecret),
	}
	if o.TemporalTLS {
		lines = append(
			lines,
			fmt.Sprintf(
				"  kubectl -n %s create secret generic %s --from-file=tls.crt=CERT --from-file=tls.key=KEY --from-file=ca.crt=CA",
				o.Namespace,
				TemporalSecret,
			),
		)
	}
	lines = append(lines, "If stanch.yaml has `slack:`, create the tokens that it expects in "+SlackDir+":",
		fmt.Sprintf("  kubectl -n %s create secret generic %s --from-file=bot=… --from-file=app=…", o.Namespace, SlackSecret),
		"If it has `webhooks:`, `email:` or `ticket:`, create their keys, password and token in "+NotificationDir+":",
		fmt.Sprintf("  kubectl -n %s create secret generic %s --from-file=…", o.Namespace, NotificationSecret))
	if o.NodeCertDir != "" {
		lines = append(lines, "Create a certificate for every node, and store it in "+o.NodeCertDir+" on that node only:",
			"  stanch cert node NODE --pki secrets/pki --out NODE")
	} else {
		lines = append(lines, "Sensors verify the gateway with the authority's certificate, which is public, and get their "+
			"own with their pods' tokens:",
			fmt.Sprintf("  kubectl -n %s create configmap %s --from-file=secrets/pki/ca.crt", o.Namespace, CAConfigMap))
	}
	return "# " + strings.ReplaceAll(strings.Join(lines, "\n# "), "# \n", "#\n") + "\n"
}
