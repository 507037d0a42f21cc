package manifests_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/invopop/jsonschema"
	"sigs.k8s.io/yaml"

	"stanch/worker/actions"
	"stanch/worker/config"
	"stanch/worker/manifests"
)

var schemaFile = filepath.Join("..", "..", "deploy", "chart", "values.schema.json")

// The parts of the schema that the code defines: stanch.yaml and the names of actions.
func TestSchemaOfChartIsGenerated(t *testing.T) {
	raw, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	want := replaceJSON(t, raw, []string{"properties", "actions", "items", "enum"},
		slices.Sorted(maps.Keys(actions.Catalog())))
	want = replaceJSON(t, want, []string{"$defs"}, configDefinitions(t))
	if *updateGolden {
		if err := os.WriteFile(schemaFile, want, 0o600); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(raw, want) {
		t.Errorf("%s is outdated: run `go test ./worker/manifests -update` twice, and look at the diff", schemaFile)
	}
}

// configDefinitions returns the definitions of `stanch schema config`, with a `phase` that refers to the chart's.
func configDefinitions(t *testing.T) jsonschema.Definitions {
	t.Helper()
	definitions := (&jsonschema.Reflector{RequiredFromJSONSchemaTags: true}).Reflect(config.Config{}).Definitions
	root := definitions["Config"]
	root.Description = "stanch.yaml without its phase."
	phase, ok := root.Properties.Get("phase")
	if !ok {
		t.Fatal("stanch.yaml has no phase")
	}
	// The chart's template refuses it with a sentence, which a schema cannot say.
	*phase = jsonschema.Schema{Description: "Not allowed here; set the value `phase` of the chart."}
	return definitions
}

// replaceJSON replaces the value at a path of keys, and keeps the rest of the document as it is.
func replaceJSON(t *testing.T, document []byte, path []string, value any) []byte {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(document))
	for depth, key := range path {
		if _, err := decoder.Token(); err != nil {
			t.Fatal(err)
		}
		for {
			name, err := decoder.Token()
			if err != nil || name == json.Delim('}') {
				t.Fatalf("the schema has no %s: %v", strings.Join(path[:depth+1], "."), err)
			}
			if name == key {
				break
			}
			var other json.RawMessage
			if err := decoder.Decode(&other); err != nil {
				t.Fatal(err)
			}
		}
	}
	start := int(decoder.InputOffset())
	start += bytes.IndexByte(document[start:], ':') + 2
	var old json.RawMessage
	if err := decoder.Decode(&old); err != nil {
		t.Fatal(err)
	}
	replacement, err := json.MarshalIndent(value, strings.Repeat("  ", len(path)), "  ")
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(document[:start], replacement, document[start+len(old):])
}

// readSchema returns the hand-written part of the schema.
func readSchema(t *testing.T) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	schema := map[string]any{}
	if err := json.Unmarshal(raw, &schema); err != nil {
		t.Fatal(err)
	}
	delete(schema["properties"].(map[string]any), "config")
	return schema
}

func TestSchemaDescribesEveryDefaultValue(t *testing.T) {
	c, err := manifests.LoadChart("dev")
	if err != nil {
		t.Fatal(err)
	}
	defaults := maps.Clone(c.Values)
	delete(defaults, "config")
	compareWithSchema(t, "", defaults, readSchema(t))
}

// compareWithSchema reports values without a schema, and properties without a default, of maps with fixed keys.
func compareWithSchema(t *testing.T, path string, values map[string]any, schema map[string]any) {
	t.Helper()
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		return // keys are the user's
	}
	if closed, ok := schema["additionalProperties"].(bool); !ok || closed {
		t.Errorf("%s allows unknown values", path)
	}
	for name, value := range values {
		property, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("%s/%s has no schema", path, name)
			continue
		}
		if inner, ok := value.(map[string]any); ok {
			compareWithSchema(t, path+"/"+name, inner, property)
		}
	}
	for name, property := range properties {
		_, optional := property.(map[string]any)["patternProperties"]
		if _, ok := values[name]; !ok && !optional && name != "limits" && name != "requests" {
			t.Errorf("%s/%s has no default in values.yaml", path, name)
		}
	}
}

func TestSchemaDescribesEveryProperty(t *testing.T) {
	var walk func(path string, node any)
	walk = func(path string, node any) {
		object, ok := node.(map[string]any)
		if !ok {
			return
		}
		if text, _ := object["description"].(string); len(text) < 5 {
			t.Errorf("%s has no description", path)
		}
		for _, key := range []string{"properties", "patternProperties"} {
			inner, _ := object[key].(map[string]any)
			for name, property := range inner {
				walk(path+"/"+name, property)
			}
		}
		walk(path+"/*", object["additionalProperties"])
		walk(path+"[]", object["items"])
	}
	for name, property := range readSchema(t)["properties"].(map[string]any) {
		walk("/"+name, property)
	}
}

// badValues are values that the chart refuses, with what the error says.
var badValues = []struct{ values, want string }{
	{"phase: 4", "at '/phase': maximum: got 4, want 3"},
	{"phase: two", "at '/phase': got string, want integer"},
	{"phase: null", "missing property 'phase'"},
	{"replicas: 2", "additional properties 'replicas' not allowed"},
	{"actions: [pod.isolat]", "at '/actions/0': value must be one of"},
	{"actions: [log, log]", "at '/actions': items at 0 and 1 are equal"},
	{"config: {phase: 2}", "config.phase is not allowed; set the value `phase` instead"},
	{"config: {clustr: shop}", "at '/config': additional properties 'clustr' not allowed"},
	{"config: {idle_timeout: soon}", "at '/config/idle_timeout': 'soon' does not match pattern"},
	{"config: {scopes: [{name: a, phase: 4}]}", "at '/config/scopes/0/phase': maximum: got 4, want 3"},
	{"config: {sources: [{name: a, token_file: t, kind: snort}]}", "at '/config/sources/0/kind': value must be one of"},
	{"playbooks: {mine.yml: x}", "at '/playbooks': additional properties 'mine.yml' not allowed"},
	{"rules: {shop.yaml: [x]}", "at '/rules/shop.yaml': got array, want string"},
	{"image: {registry: r.example/}", "at '/image/registry': 'r.example/' does not match pattern"},
	{"image: {pullPolicy: Sometimes}", "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'"},
	{"image: {pullSecrets: [r]}", "at '/image/pullSecrets/0': got string, want object"},
	{"image: {pullSecrets: [{}]}", "at '/image/pullSecrets/0': missing property 'name'"},
	{"image: {worker: {tag: 'a b'}}", "at '/image/worker/tag': 'a b' does not match pattern"},
	{"image: {worker: {tag: 1.0}}", "at '/image/worker/tag': got number, want string"},
	{"image: {sensor: {digest: sha256:12}}", "at '/image/sensor/digest': 'sha256:12' does not match pattern"},
	{"image: {worker: {repository: 'a:1'}}", "at '/image/worker/repository': 'a:1' does not match pattern"},
	{"temporal: {address: temporal}", "at '/temporal/address': 'temporal' does not match pattern"},
	{"temporal: {address: 'https://temporal:7233'}", "at '/temporal/address':"},
	{"temporal: {namespace: ''}", "at '/temporal/namespace': minLength: got 0, want 1"},
	{"temporal: {tls: true}", "at '/temporal/tls': got boolean, want object"},
	{"temporal: {address: '', namespace: shop}", "at '/temporal/namespace': value must be 'stanch'"},
	{"temporal: {address: '', apiKey: {enabled: true}}", "at '/temporal/apiKey/enabled': value must be false"},
	{"temporal: {bundled: {size: null}}", "at '/temporal/bundled': missing property 'size'"},
	{"uninstall: null", "missing property 'uninstall'"},
	{"uninstall: {keepDate: false}", "at '/uninstall': additional properties 'keepDate' not allowed"},
	{"worker: {replicas: 0}", "at '/worker/replicas': minimum: got 0, want 1"},
	{"worker: {replicas: null}", "at '/worker': missing property 'replicas'"},
	{"worker: {replicas: 2, dataPath: /srv}", "at '/worker/dataPath': value must be ''"},
	{"worker: {dataPath: srv}", "at '/worker/dataPath': 'srv' does not match pattern"},
	{"worker: {resources: {limits: {memory: lots}}}", "at '/worker/resources/limits/memory': 'lots' does not"},
	{"worker: {resources: {request: {cpu: 1}}}", "at '/worker/resources': additional properties 'request' not allowed"},
	{"worker: {evidence: {size: 10GB}}", "at '/worker/evidence/size': '10GB' does not match pattern"},
	{"worker: {extraArgs: [verify-every=1m]}", "at '/worker/extraArgs/0': 'verify-every=1m' does not match pattern"},
	{"worker: {nodeSelector: {a: 1}}", "at '/worker/nodeSelector/a': got number, want string"},
	{"worker: {tolerations: [{effect: Never}]}", "at '/worker/tolerations/0/effect': value must be one of"},
	{"sensor: {criSocket: containerd.sock}", "at '/sensor/criSocket': 'containerd.sock' does not match pattern"},
	{"sensor: {gatewayAddress: stanch.example}", "at '/sensor/gatewayAddress': 'stanch.example' does not match pattern"},
	{"sensor: {tolerations: [{seconds: 1}]}", "at '/sensor/tolerations/0': additional properties 'seconds' not allowed"},
	{"networkPolicy: {enabled: 'yes'}", "at '/networkPolicy/enabled': got string, want boolean"},
	{"networkPolicy: {egress: [{port: 25}]}", "at '/networkPolicy/egress/0': additional properties 'port' not allowed"},
	{"monitoring: {dashboards: true}", "at '/monitoring': additional properties 'dashboards' not allowed"},
}

func TestBadValuesAreRefusedByPath(t *testing.T) {
	for _, c := range badValues {
		t.Run(c.values, func(t *testing.T) {
			if err := renderText(c.values); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestGoodValuesAreAccepted(t *testing.T) {
	for _, values := range []string{
		"phase: 3",
		"config: {cluster: shop, idle_timeout: 1d12h, budget: {per_hour: 3}, evidence: {max_total: 20Gi}}",
		"image: {registry: '', worker: {repository: r.example:5000/x/stanch, digest: " + testDigest + "}}",
		"image: {registry: 'r.example:5000/x', pullSecrets: [{name: r}]}",
		"temporal: {address: '[::1]:7233'}", "temporal: {address: temporal.temporal.svc:7233}",
		"temporal: {address: '', bundled: {size: 1Gi, dataPath: /srv/temporal}}",
		"temporal: {address: 'eu.api.temporal.io:7233', namespace: shop.acct, apiKey: {enabled: true}}",
		"worker: {resources: {requests: {cpu: 1, memory: 0.5Gi, hugepages-2Mi: 2Mi}}}",
		"worker: {replicas: 3, tolerations: [{key: a, operator: Equal, value: b, effect: NoExecute, tolerationSeconds: 5}]}",
		"networkPolicy: {egress: [{ports: [{port: 25, protocol: TCP}], to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]}",
		"playbooks: {mine_2.v1.yaml: 'playbook: mine'}",
	} {
		if err := renderText(values); err != nil {
			t.Errorf("%s: %v", values, err)
		}
	}
}

// renderText renders the chart with values in YAML, on top of a Temporal.
func renderText(text string) error {
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		return fmt.Errorf("parse the values: %w", err)
	}
	temporal, ok := values["temporal"].(map[string]any)
	if !ok && values["temporal"] == nil {
		values["temporal"] = map[string]any{"address": "temporal:7233"}
	} else if ok && temporal["address"] == nil {
		temporal["address"] = "temporal:7233"
	}
	_, _, err := manifests.RenderValues("dev", "stanch-system", values)
	return err
}
