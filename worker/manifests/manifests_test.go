package manifests_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"stanch/playbooks"
	"stanch/worker/actions"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/manifests"
	"stanch/worker/nodeserver"
)

var updateGolden = flag.Bool("update", false, "update the golden files")

func optionsForPhase(phase int) manifests.Options {
	return manifests.Options{
		Phase: phase, Image: "stanch:1", SensorImage: "stanch-sensor:1",
		TemporalAddress: "temporal.example:7233",
	}
}

// The chart's permissions are generated from the actions.
func TestPermissionsOfChartAreGenerated(t *testing.T) {
	file := filepath.Join("..", "..", "deploy", "chart", "files", "permissions.yaml")
	got, err := manifests.WritePermissions(actions.Catalog())
	if err != nil {
		t.Fatal(err)
	}
	if *updateGolden {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(got) != string(want) {
		t.Errorf("%s is outdated (%v): run `go test ./worker/manifests -update` twice, and look at the diff", file, err)
	}
}

// The objects of each phase are compared with a golden file, so that they change only on purpose.
func TestManifestsMatchGoldenFiles(t *testing.T) {
	cases := map[string]manifests.Options{
		"phase1": optionsForPhase(1), "phase2": optionsForPhase(2),
		"phase3": optionsForPhase(3),
	}
	all := optionsForPhase(3)
	all.Namespace, all.Replicas, all.TemporalTLS, all.TemporalServerName = "security", 3, true, "temporal.internal"
	all.Config, all.GatewayAddress, all.CRISocket, all.NodeCertDir, all.LockDir = "phase: 3\ncluster: shop\n",
		"stanch.example:7443", "/run/k3s/containerd/containerd.sock", "/srv/stanch", "/sys/fs/bpf/other"
	all.Playbooks = map[string]string{"mine.yaml": "playbook: mine\n# the end\n", "other.yaml": "playbook: other"}
	all.Rules = map[string]string{"shop.yaml": "rules: []\n"}
	cases["everything"] = all
	own := optionsForPhase(2)
	own.TemporalAddress = ""
	cases["own-temporal"] = own
	host := optionsForPhase(2)
	host.HostNetwork, host.DataPath = true, "/var/lib/stanch-worker"
	cases["host"] = host
	for name, o := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := manifests.WriteYAML(o)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".yaml")
			if *updateGolden {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("%s differs; look at it with `go test ./worker/manifests -update && git diff`", file)
			}
		})
	}
}

var readVerbs = []string{"get", "list", "watch"}

// renderObjects renders the manifests and decodes every object strictly: unknown fields are errors.
func renderObjects(t *testing.T, o manifests.Options) []runtime.Object {
	t.Helper()
	raw, err := manifests.WriteYAML(o)
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for document := range strings.SplitSeq(string(raw), "\n---\n") {
		if strings.HasPrefix(document, "#") && !strings.Contains(document, "\nkind: ") {
			continue // the steps before an installation
		}
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		out = append(out, object)
	}
	return out
}

// policyRules returns the rules of every role in a phase's objects, cluster-wide and of one namespace.
func policyRules(t *testing.T, phase int) []rbacv1.PolicyRule {
	t.Helper()
	objects := renderObjects(t, optionsForPhase(phase))
	var out []rbacv1.PolicyRule
	for _, o := range objects {
		switch o := o.(type) {
		case *rbacv1.ClusterRole:
			out = append(out, o.Rules...)
		case *rbacv1.Role:
			out = append(out, o.Rules...)
		}
	}
	if len(out) == 0 {
		t.Fatalf("the manifests of phase %d have no rules", phase)
	}
	return out
}

// listWritePermissions returns every write permission in the objects.
func listWritePermissions(t *testing.T, phase int) []string {
	t.Helper()
	var out []string
	for _, r := range policyRules(t, phase) {
		for _, verb := range r.Verbs {
			if !slices.Contains(readVerbs, verb) {
				out = append(out, fmt.Sprintf("%s %s %v", verb, strings.Join(r.Resources, ","), r.ResourceNames))
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestPhaseOneWritesOnlyOwnState(t *testing.T) {
	// A TokenReview is created to identify a token, and is not stored.
	if got, want := listWritePermissions(t, 1), []string{"create tokenreviews []", "patch configmaps [" +
		guards.KillSwitchConfigMap + "]", "patch configmaps [" + guards.UsedGrantsConfigMap + "]", "patch configmaps [" +
		health.NodeRegistryConfigMap + "]"}; !slices.Equal(got, want) {
		t.Errorf("phase 1 can %q, want only %q", got, want)
	}
}

func TestOnlyPhaseThreeCanScale(t *testing.T) {
	for phase, want := range map[int]bool{2: false, 3: true} {
		if got := strings.Contains(strings.Join(listWritePermissions(t, phase), "\n"), "deployments/scale"); got != want {
			t.Errorf("phase %d can scale: %t, want %t", phase, got, want)
		}
		if !strings.Contains(strings.Join(listWritePermissions(t, phase), "\n"), "create networkpolicies") {
			t.Errorf("phase %d cannot isolate", phase)
		}
	}
}

// findBroadWord returns the word of a rule that permits more than one kind of thing, reading secrets, running commands
// in pods, or extending one's own permissions; "" if there is none.
func findBroadWord(r rbacv1.PolicyRule) string {
	for _, word := range slices.Concat(r.APIGroups, r.Resources, r.Verbs, r.ResourceNames, r.NonResourceURLs) {
		if strings.Contains(word, "*") || slices.Contains([]string{
			"secrets", "serviceaccounts/token", "pods/exec", "pods/attach", "nodes/proxy", "escalate", "bind", "impersonate",
		}, word) {
			return word
		}
	}
	return ""
}

// No permission is a wildcard, none includes secrets, and nobody can extend their own.
func TestPermissionsAreNarrow(t *testing.T) {
	for phase := 1; phase <= 3; phase++ {
		for _, r := range policyRules(t, phase) {
			if word := findBroadWord(r); word != "" {
				t.Errorf("phase %d: %q in the rule %v is too broad", phase, word, r)
			}
		}
	}
}

func TestBroadPermissionIsFound(t *testing.T) {
	for want, rule := range map[string]rbacv1.PolicyRule{
		"*":           {APIGroups: []string{""}, Resources: []string{"*"}, Verbs: []string{"get"}},
		"secrets":     {APIGroups: []string{""}, Resources: []string{"pods", "secrets"}, Verbs: []string{"get"}},
		"impersonate": {APIGroups: []string{""}, Resources: []string{"users"}, Verbs: []string{"impersonate"}},
		"pods/exec":   {APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: []string{"create"}},
	} {
		if got := findBroadWord(rule); got != want {
			t.Errorf("found %q, want %q", got, want)
		}
	}
}

// The cluster-wide permissions are exactly those that the actions of a phase declare, and those of the gateway.
func TestPermissionsAreThoseOfActions(t *testing.T) {
	gateway := listPermissions(clusterRules(t, manifests.Options{
		Phase: 1, Image: "a", SensorImage: "b", TemporalAddress: "a:1", Actions: []string{"log"},
	}))
	for phase, classes := range map[int][]playbooks.Class{
		1: {playbooks.ClassObserve},
		2: {playbooks.ClassObserve, playbooks.ClassContain},
		3: {playbooks.ClassObserve, playbooks.ClassContain, playbooks.ClassDisrupt},
	} {
		want := maps.Clone(gateway)
		for _, spec := range actions.Catalog() {
			declared := slices.Concat(spec.PlanPermissions, spec.OrphanPermissions)
			if slices.Contains(classes, spec.Class) {
				declared = append(declared, spec.ApplyPermissions...)
			}
			for _, p := range declared {
				maps.Copy(want, listPermissions([]rbacv1.PolicyRule{
					{APIGroups: p.Groups, Resources: p.Resources, Verbs: p.Verbs},
				}))
			}
		}
		if got := listPermissions(clusterRules(t, optionsForPhase(phase))); !maps.Equal(got, want) {
			t.Errorf("phase %d has %v, want %v", phase, got, want)
		}
	}
	o := optionsForPhase(3)
	o.Actions = []string{"node.cordon"}
	got := listPermissions(clusterRules(t, o))
	if !got["patch nodes."] || got["update deployments/scale.apps"] || got["create networkpolicies.networking.k8s.io"] {
		t.Errorf("with node.cordon only, the worker can %v", got)
	}
	// A lease that was lost before the playbooks changed is still found.
	if !got["list deployments.apps"] || !got["list networkpolicies.networking.k8s.io"] {
		t.Errorf("with node.cordon only, the worker cannot search for orphans: %v", got)
	}
}

func clusterRules(t *testing.T, o manifests.Options) []rbacv1.PolicyRule {
	t.Helper()
	for _, object := range renderObjects(t, o) {
		if role, ok := object.(*rbacv1.ClusterRole); ok {
			return role.Rules
		}
	}
	t.Fatal("there is no ClusterRole")
	return nil
}

// listPermissions returns "VERB RESOURCE.GROUP" for everything that rules permit.
func listPermissions(rules []rbacv1.PolicyRule) map[string]bool {
	out := map[string]bool{}
	for _, r := range rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				for _, verb := range r.Verbs {
					out[verb+" "+resource+"."+group] = true
				}
			}
		}
	}
	return out
}

// A compromised node must not be able to act as Stanch in the cluster.
func TestSensorHasNoClusterCredentials(t *testing.T) {
	objects := renderObjects(t, optionsForPhase(3))
	found := map[string]bool{}
	for _, o := range objects {
		found[fmt.Sprintf("%T", o)] = true
		switch o := o.(type) {
		case *appsv1.DaemonSet:
			if mount := o.Spec.Template.Spec.AutomountServiceAccountToken; mount == nil || *mount {
				t.Error("the sensor's token is mounted")
			}
			for _, v := range o.Spec.Template.Spec.Volumes {
				if v.Secret != nil {
					t.Errorf("the sensor mounts the secret %s", v.Name)
				}
				if v.Projected == nil {
					continue
				}
				for _, source := range v.Projected.Sources {
					// The API server does not accept a token for the gateway.
					if token := source.ServiceAccountToken; token == nil || token.Audience != nodeserver.EnrollAudience {
						t.Errorf("the sensor mounts %s, which is not a token for the gateway only", v.Name)
					}
				}
			}
		case *rbacv1.ClusterRoleBinding:
			requireNoSensorSubject(t, o.Subjects)
		case *rbacv1.RoleBinding:
			requireNoSensorSubject(t, o.Subjects)
		case *corev1.Secret:
			t.Errorf("the manifests contain the secret %s", o.Name)
		}
	}
	for _, kind := range []string{"*v1.DaemonSet", "*v1.ClusterRoleBinding", "*v1.RoleBinding"} {
		if !found[kind] {
			t.Errorf("the manifests have no %s", kind)
		}
	}
}

func requireNoSensorSubject(t *testing.T, subjects []rbacv1.Subject) {
	t.Helper()
	for _, s := range subjects {
		if s.Name != manifests.WorkerName {
			t.Errorf("%s has permissions", s.Name)
		}
	}
}

func TestOptionsAreValidated(t *testing.T) {
	for want, o := range map[string]manifests.Options{
		"invalid phase 4": optionsForPhase(4),
		"missing image":   {Phase: 1, TemporalAddress: "a:1"},
		"at '/temporal/namespace': value must be 'stanch'": {
			Phase: 1, Image: "a", SensorImage: "b", TemporalNamespace: "shop",
		},
		"cannot share a directory on": {
			Phase: 1, Image: "a", SensorImage: "b", TemporalAddress: "a:1", Replicas: 2,
			DataPath: "/a",
		},
	} {
		if _, err := manifests.WriteYAML(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}
