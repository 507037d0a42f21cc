package manifests_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"stanch/playbooks"
	"stanch/worker/manifests"
)

// rightReason is why an object has a right: an entry of files/reasons.yaml.
type rightReason struct {
	Right   string `json:"right"`
	Reason  string `json:"reason"`
	Without string `json:"without"`
	// Removes names the change by which testenv/cluster measures the right, and Measured what failed then.
	Removes    string    `json:"removes"`
	Measured   *[]string `json:"measured"`
	Unmeasured string    `json:"unmeasured"`
}

type objectReasons struct {
	Objects []string      `json:"objects"`
	Rights  []rightReason `json:"rights"`
}

// loadReasons returns the reasons for every right, in the order of the file, and by the right.
func loadReasons(t *testing.T) ([]objectReasons, map[objectRight]rightReason) {
	t.Helper()
	raw, err := manifests.ChartFile("files/reasons.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file []objectReasons
	if err := yaml.UnmarshalStrict(raw, &file); err != nil {
		t.Fatal(err)
	}
	reasons := map[objectRight]rightReason{}
	for _, entry := range file {
		for _, object := range entry.Objects {
			for _, r := range entry.Rights {
				key := objectRight{object, r.Right}
				if _, twice := reasons[key]; twice || r.Reason == "" || r.Without == "" {
					t.Errorf("%s: %q needs one reason, and what does not work without it", object, r.Right)
				}
				if r.Measured != nil && len(*r.Measured) == 0 && r.Unmeasured == "" {
					t.Errorf("%s: nothing fails without %q: take it away, or say why no test sees it", object, r.Right)
				}
				reasons[key] = r
			}
		}
	}
	return file, reasons
}

func toRules(p playbooks.KubernetesPermission) []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{APIGroups: p.Groups, Resources: p.Resources, Verbs: p.Verbs}}
}

// permissionReasons returns the reasons for the worker's permissions, which are generated from the actions.
func permissionReasons(t *testing.T) map[objectRight]rightReason {
	t.Helper()
	raw, err := manifests.ChartFile("files/permissions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var table manifests.PermissionsTable
	if err := yaml.UnmarshalStrict(raw, &table); err != nil {
		t.Fatal(err)
	}
	reasons := map[string][]string{}
	add := func(p playbooks.KubernetesPermission, reason string) {
		for _, right := range ruleRights(toRules(p)) {
			if !slices.Contains(reasons[right], reason) {
				reasons[right] = append(reasons[right], reason)
			}
		}
	}
	for _, p := range table.Gateway {
		add(p.KubernetesPermission, p.Reason)
	}
	for _, a := range table.Actions {
		purposes := map[string][]string{} // of each permission
		for _, purpose := range []string{"plan", "orphans", "apply"} {
			permissions := map[string][]playbooks.KubernetesPermission{"plan": a.Plan, "orphans": a.Orphans, "apply": a.Apply}
			for _, p := range permissions[purpose] {
				for _, right := range ruleRights(toRules(p)) {
					purposes[right] = append(purposes[right], purpose)
				}
			}
		}
		for right, all := range purposes {
			reasons[right] = append(reasons[right], fmt.Sprintf("`%s` (%s): %s.", a.Name, a.Class, strings.Join(all, ", ")))
		}
	}
	out := map[objectRight]rightReason{}
	for right, all := range reasons {
		out[objectRight{"ClusterRole/stanch-worker", right}] = rightReason{Reason: strings.Join(all, " ")}
	}
	return out
}

// valuesMatrix returns values that together turn on everything that the chart can install: each switch of values.yaml
// alone, with the chart's Temporal and with another one, and the values that are not switches.
func valuesMatrix(t *testing.T) map[string]map[string]any {
	t.Helper()
	raw, err := manifests.ChartFile("values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	if err := yaml.Unmarshal(raw, &defaults); err != nil {
		t.Fatal(err)
	}
	const own = " with temporal.address"
	matrix := map[string]map[string]any{"default": {}, "default" + own: {}}
	for path, on := range findSwitches("", defaults) {
		matrix[path+own] = nest(path, !on)
		if path != "temporal.apiKey.enabled" { // the chart's Temporal has none
			matrix[path] = nest(path, !on)
		}
	}
	for path, value := range map[string]any{
		"worker.replicas": 2, "worker.dataPath": "/<worker.dataPath>", "sensor.nodeCertDir": "/<sensor.nodeCertDir>",
		"temporal.bundled.dataPath": "/<temporal.bundled.dataPath>",
	} {
		matrix[path] = nest(path, value)
	}
	for name, values := range matrix {
		values["phase"] = 3
		if strings.HasSuffix(name, own) {
			merge(values, nest("temporal.address", "temporal.example:7233"))
		}
		for path, value := range map[string]any{
			"sensor.lockDir":   "/<directory of sensor.lockDir>/stanch",
			"sensor.criSocket": "/<directory of sensor.criSocket>/containerd.sock",
		} {
			merge(values, nest(path, value))
		}
	}
	return matrix
}

// findSwitches returns the values that are true or false, by their path.
func findSwitches(prefix string, values map[string]any) map[string]bool {
	out := map[string]bool{}
	for name, value := range values {
		switch value := value.(type) {
		case bool:
			out[prefix+name] = value
		case map[string]any:
			maps.Copy(out, findSwitches(prefix+name+".", value))
		}
	}
	return out
}

func nest(path string, value any) map[string]any {
	first, rest, ok := strings.Cut(path, ".")
	if ok {
		value = nest(rest, value)
	}
	return map[string]any{first: value}
}

func merge(into, from map[string]any) {
	for name, value := range from {
		if a, ok := into[name].(map[string]any); ok {
			if b, ok := value.(map[string]any); ok {
				merge(a, b)
				continue
			}
		}
		into[name] = value
	}
}

// rightsOf returns the rights in the chart with values.
func rightsOf(t *testing.T, values map[string]any) map[objectRight]bool {
	t.Helper()
	documents, err := manifests.RenderWithHooks(values)
	if err != nil {
		t.Fatal(err)
	}
	return rightsIn(t, documents)
}

func rightsIn(t *testing.T, documents []string) map[objectRight]bool {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	out := map[objectRight]bool{}
	for _, document := range documents {
		if strings.Contains(document, "\nkind: PrometheusRule\n") {
			continue // alerts, of a kind that is not Kubernetes' own
		}
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		for _, right := range listRights(t, object) {
			right.right = strings.ReplaceAll(right.right, "/<", "<") // the paths in valuesMatrix
			right.right = strings.ReplaceAll(right.right, "<directory of sensor.lockDir>/stanch", "<sensor.lockDir>")
			out[right] = true
		}
	}
	return out
}

func TestEveryRightHasAReason(t *testing.T) {
	file, reasons := loadReasons(t)
	permissions := permissionReasons(t)
	rendered := map[objectRight]bool{}
	for name, values := range valuesMatrix(t) {
		for right := range rightsOf(t, values) {
			missing := !rendered[right] && reasons[right].Reason == "" && permissions[right].Reason == ""
			if rendered[right] = true; missing {
				t.Errorf("with %s, %s has a right without a reason in files/reasons.yaml: %s", name, right.object, right.right)
			}
		}
	}
	for _, each := range []map[objectRight]rightReason{reasons, permissions} {
		for right := range each {
			if !rendered[right] {
				t.Errorf("a reason is for nothing: %s does not have the right %q", right.object, right.right)
			}
		}
	}
	checkPermissionsPage(t, file, permissions)
}

// The test of the reasons is only worth something if it finds a right of each kind.
func TestNewRightIsFound(t *testing.T) {
	documents, err := manifests.RenderWithHooks(valuesMatrix(t)["default"])
	if err != nil {
		t.Fatal(err)
	}
	before := rightsIn(t, documents)
	for change, want := range map[[2]string]objectRight{
		{"add: [SYS_ADMIN,", "add: [SYS_MODULE, SYS_ADMIN,"}: {"DaemonSet/stanch-sensor", "capability SYS_MODULE"},
		{"runAsUser: 0\n", "runAsUser: 0\n            privileged: true\n"}: {
			"DaemonSet/stanch-sensor", "privileged",
		},
		{"hostPID: true", "hostPID: true\n      hostIPC: true"}: {"DaemonSet/stanch-sensor", "hostIPC"},
		{"path: /sys/fs/cgroup", "path: /"}: {
			"DaemonSet/stanch-sensor", "writes hostPath / at /sys/fs/cgroup",
		},
		{"capabilities: { drop: [ALL] }", "capabilities: {}"}: {
			"Deployment/stanch-worker", "default capabilities",
		},
		{"port: 7444, targetPort: people }", "port: 7444, targetPort: people }\n    - { name: x, port: 1 }"}: {
			"Service/stanch-gateway", "port TCP 1 inside the cluster",
		},
		{"{ protocol: TCP, port: 6443 }", "{ protocol: TCP, port: 22 }"}: {
			"NetworkPolicy/stanch-worker", "egress TCP 22 to everywhere",
		},
		{"verbs: [get, patch]", "verbs: [get, patch, delete]"}: {
			"Role/stanch-used-grants", "delete configmaps stanch-used-grants",
		},
		{"automountServiceAccountToken: false\n      enable", "automountServiceAccountToken: true\n      enable"}: {
			"DaemonSet/stanch-sensor", "API token",
		},
	} {
		changed := slices.Clone(documents)
		for i := range changed {
			changed[i] = strings.Replace(changed[i], change[0], change[1], 1)
		}
		if slices.Equal(changed, documents) {
			t.Errorf("the chart has no %q", change[0])
		}
		if after := rightsIn(t, changed); before[want] || !after[want] {
			t.Errorf("%q instead of %q: %s is not found", change[1], change[0], want.right)
		}
	}
}

// generatedMark begins the generated part of docs/permissions.md.
const generatedMark = "<!-- Generated from deploy/chart/files: go test ./worker/manifests -update. -->\n"

// checkPermissionsPage compares the generated part of docs/permissions.md with the reasons.
func checkPermissionsPage(t *testing.T, file []objectReasons, permissions map[objectRight]rightReason) {
	t.Helper()
	page := filepath.Join("..", "..", "docs", "permissions.md")
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, old, ok := strings.Cut(string(raw), generatedMark)
	if !ok {
		t.Fatalf("%s has no %q", page, generatedMark)
	}
	generated := writeReasons(file, permissions)
	if *updateGolden {
		if err := os.WriteFile(page, []byte(head+generatedMark+generated), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if old != generated {
		t.Errorf("%s is outdated: run `go test ./worker/manifests -update`, and look at the diff", page)
	}
}

const clusterRoleHead = `
## ClusterRole/stanch-worker

The worker has the permissions of the gateway, and those of each action: to plan it, to find orphans (what a lost lease
left behind), and to apply, verify and undo it. The last exist only in a phase that permits the action's class:
observe from phase 1, contain from phase 2, disrupt in phase 3. With ` + "`actions`" + ` in the chart's values, the worker
has the permissions of these actions only.

| permission | reason, or the actions and what they need it for |
|---|---|
`

func writeReasons(file []objectReasons, permissions map[objectRight]rightReason) string {
	var out strings.Builder
	for _, entry := range file {
		fmt.Fprintf(&out, "\n## %s\n\n| right | reason | without it |\n|---|---|---|\n",
			strings.Join(entry.Objects, ", "))
		for _, r := range entry.Rights {
			without := strings.TrimSpace(r.Without)
			switch {
			case r.Unmeasured != "":
				without += " Not measured: " + r.Unmeasured
			case r.Measured != nil:
				without += " Measured: " + strings.Join(*r.Measured, ", ") + "."
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", r.Right, strings.TrimSpace(r.Reason), without)
		}
	}
	out.WriteString(clusterRoleHead)
	keys := slices.SortedFunc(maps.Keys(permissions), func(a, b objectRight) int {
		return strings.Compare(a.right, b.right)
	})
	for _, key := range keys {
		fmt.Fprintf(&out, "| `%s` | %s |\n", key.right, permissions[key].Reason)
	}
	return out.String()
}
