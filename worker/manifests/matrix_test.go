package manifests_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"stanch/worker/config"
	"stanch/worker/manifests"
)

// valueChoices are the values that installations differ in: one of each list is in every case of the matrix. Values
// that nothing else depends on share a list, so that the matrix stays small.
var valueChoices = [][]string{
	{
		"phase: 1",
		"{phase: 2, uninstall: {keepData: false}}",
		"{phase: 3, uninstall: {checkLeases: false, cleanNodes: false}, bootstrap: {enabled: false}}",
	},
	{
		"temporal: {}",
		"temporal: {bundled: {dataPath: /srv/temporal}}",
		"temporal: {address: 'eu.api.temporal.io:7233', namespace: shop.acct, apiKey: {enabled: true}}",
		"temporal: {address: '[2001:db8::1]:7233', namespace: shop, tls: {enabled: true, serverName: temporal.internal}}",
	},
	{"worker: {replicas: 1}", "worker: {replicas: 3}", "worker: {hostNetwork: true, dataPath: /srv/stanch}"},
	{
		"networkPolicy: {enabled: true}",
		`{
  networkPolicy: {enabled: false}, admissionPolicy: {enabled: false},
  monitoring: {podAnnotations: false, prometheusRule: true, dashboard: true}
}`,
	},
	{
		"config: {}",
		`
config:
  cluster: shop
  people: [{name: ann, groups: [oncall], slack: U0AAAA}]
  scopes: [{name: all, namespaces: ["*"], phase: 1, approvers: {groups: [oncall], quorum: 1, timeout: 10m}}]
  slack: {channel: C0AAAA, bot_token_file: /etc/stanch/slack/bot, app_token_file: /etc/stanch/slack/app}
  sources: [{name: falco, kind: falco, token_file: /etc/stanch/integrations/falco}]
playbooks: {mine.yaml: "playbook: mine\n"}
rules: {shop.yaml: "rules: []\n"}
actions: [pod.isolate, process.snapshot]
image: {registry: r.example/x, pullSecrets: [{name: r}], worker: {digest: ` + testDigest + `}}
`,
	},
}

// matrix returns every combination of the choices, by a short name.
func matrix(t *testing.T) map[string]map[string]any {
	t.Helper()
	cases := map[string]map[string]any{"": {}}
	for _, choices := range valueChoices {
		next := map[string]map[string]any{}
		for name, values := range cases {
			for i, text := range choices {
				choice := map[string]any{}
				if err := yaml.Unmarshal([]byte(text), &choice); err != nil {
					t.Fatal(err)
				}
				merged := maps.Clone(values)
				maps.Copy(merged, choice)
				next[name+fmt.Sprint(i)] = merged
			}
		}
		cases = next
	}
	return cases
}

// foreignKinds are objects that the typed clients of Kubernetes do not know.
var foreignKinds = []string{"PrometheusRule"}

// strictDecoder decodes documents into typed objects; unknown and duplicate fields are errors. It decodes equal
// documents once.
type strictDecoder struct{ decoded map[string]runtime.Object }

func (d strictDecoder) decode(t *testing.T, documents []string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for _, document := range documents {
		if object := d.decoded[document]; object != nil {
			out = append(out, object)
			continue
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if slices.Contains(foreignKinds, kind.Kind) {
			continue
		}
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		d.decoded[document] = object
		out = append(out, object)
	}
	return out
}

// Whatever the values are, the objects are valid, and refer only to objects that exist.
func TestChartRendersWithEveryCombination(t *testing.T) {
	cases := matrix(t)
	if len(cases) < 100 {
		t.Fatalf("the matrix has only %d cases", len(cases))
	}
	decoder := strictDecoder{map[string]runtime.Object{}}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		documents, hooks, err := manifests.RenderValues("1.2.3", "security", cases[name])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		requireConsistent(t, name, decoder.decode(t, slices.Concat(documents, hooks)))
	}
}

// isClusterWide reports whether an object is in no namespace.
func isClusterWide(object runtime.Object) bool {
	switch object.(type) {
	case *rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding, *admissionv1.ValidatingAdmissionPolicy,
		*admissionv1.ValidatingAdmissionPolicyBinding:
		return true
	}
	return false
}

// requireConsistent fails if objects are named twice, or do not fit each other.
func requireConsistent(t *testing.T, name string, objects []runtime.Object) {
	t.Helper()
	seen := map[string]bool{}
	for _, o := range objects {
		meta := o.(metav1.Object)
		id := fmt.Sprintf("%T %s/%s", o, meta.GetNamespace(), meta.GetName())
		if seen[id] {
			t.Errorf("%s: %s exists twice", name, id)
		}
		seen[id] = true
		if meta.GetLabels()["app.kubernetes.io/part-of"] != "stanch" {
			t.Errorf("%s: %s lacks the label of Stanch", name, id)
		}
		if want := map[bool]string{true: "", false: "security"}[isClusterWide(o)]; meta.GetNamespace() != want {
			t.Errorf("%s: %s is not in the namespace %q", name, id, want)
		}
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *appsv1.Deployment:
			requireConsistentPod(t, name, o.Spec.Selector, o.Spec.Template, seen)
		case *appsv1.DaemonSet:
			requireConsistentPod(t, name, o.Spec.Selector, o.Spec.Template, seen)
		case *appsv1.StatefulSet:
			requireConsistentPod(t, name, o.Spec.Selector, o.Spec.Template, seen)
		case *batchv1.Job:
			requireConsistentPod(t, name, &metav1.LabelSelector{}, o.Spec.Template, seen)
		case *corev1.ConfigMap:
			requireValidConfig(t, name, o)
		case *networkingv1.NetworkPolicy:
			requireReachableTemporal(t, name, o)
		}
	}
}

// userObjects are what a person, or the job stanch-bootstrap, creates before the installation.
var userObjects = []string{
	"stanch-keys", "stanch-pki", "stanch-temporal", "stanch-temporal-server", "stanch-slack", "stanch-integrations",
	"stanch-ca",
}

func requireConsistentPod(t *testing.T, name string, selector *metav1.LabelSelector, pod corev1.PodTemplateSpec,
	seen map[string]bool,
) {
	t.Helper()
	for k, v := range selector.MatchLabels {
		if pod.Labels[k] != v {
			t.Errorf("%s: the selector %s=%s does not match the pod", name, k, v)
		}
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
		if m := v.ConfigMap; m != nil && !seen["*v1.ConfigMap security/"+m.Name] && !slices.Contains(userObjects, m.Name) {
			t.Errorf("%s: the volume %s uses the missing ConfigMap %s", name, v.Name, m.Name)
		}
		if s := v.Secret; s != nil && !slices.Contains(userObjects, s.SecretName) {
			t.Errorf("%s: the volume %s uses the unknown secret %s", name, v.Name, s.SecretName)
		}
		if c := v.PersistentVolumeClaim; c != nil && !seen["*v1.PersistentVolumeClaim security/"+c.ClaimName] {
			t.Errorf("%s: the volume %s uses the missing claim %s", name, v.Name, c.ClaimName)
		}
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		mounted := map[string]bool{}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] || mounted[m.MountPath] {
				t.Errorf("%s: the mount of %s at %s has no volume, or is not the only one", name, m.Name, m.MountPath)
			}
			mounted[m.MountPath] = true
		}
	}
	if !seen["*v1.ServiceAccount security/"+pod.Spec.ServiceAccountName] {
		t.Errorf("%s: the service account %s does not exist", name, pod.Spec.ServiceAccountName)
	}
}

// requireValidConfig fails if the worker would refuse its configuration.
func requireValidConfig(t *testing.T, name string, m *corev1.ConfigMap) {
	t.Helper()
	text, ok := m.Data["stanch.yaml"]
	if !ok {
		return
	}
	if _, problems := config.Parse("stanch.yaml", []byte(text)); problems.HasErrors() {
		t.Errorf("%s: the worker refuses %v:\n%s", name, problems, text)
	}
}

// requireReachableTemporal fails if the worker's policy does not let it connect to its Temporal.
func requireReachableTemporal(t *testing.T, name string, p *networkingv1.NetworkPolicy) {
	t.Helper()
	if p.Name != "stanch-worker" {
		return
	}
	for _, rule := range p.Spec.Egress {
		for _, port := range rule.Ports {
			if port.Port.IntValue() == 7233 {
				return
			}
		}
	}
	t.Errorf("%s: the policy does not let the worker connect to Temporal: %v", name, p.Spec.Egress)
}
