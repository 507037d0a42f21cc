package manifests_test

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"stanch/worker/manifests"
)

const testDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// writeValues returns the values for options, without the header.
func writeValues(t *testing.T, o manifests.Options) string {
	t.Helper()
	raw, err := manifests.WriteValues(o)
	if err != nil {
		t.Fatal(err)
	}
	header, body, _ := strings.Cut(string(raw), "phase:")
	if !strings.Contains(header, "# Values of the Stanch chart, written by stanch manifests --values-only") {
		t.Errorf("no header says what wrote the values: %q", header)
	}
	return "phase:" + body
}

func TestValuesAreOnlyThoseThatDifferFromDefaults(t *testing.T) {
	for name, c := range map[string]struct {
		options manifests.Options
		want    string
	}{
		"defaults": {
			manifests.Options{
				Phase: 2, Image: "localhost/stanch:dev", SensorImage: "localhost/stanch-sensor:dev",
				Config: "phase: 2\ncluster: shop\n", Actions: []string{"log", "pod.isolate"}, Replicas: 1,
				CRISocket: "/run/containerd/containerd.sock", TemporalNamespace: "stanch",
			},
			"phase: 2\nactions:\n- log\n- pod.isolate\nconfig:\n  cluster: shop\n",
		},
		"other images": {
			manifests.Options{
				Phase: 1, Image: "r.example/x/stanch:3", SensorImage: "r.example/x/stanch-sensor@" + testDigest,
				Replicas: 2, TemporalAddress: "temporal:7233", TemporalTLS: true, LockDir: "/sys/fs/bpf/other",
			},
			"phase: 1\nactions: []\nconfig: {}\nimage:\n  registry: r.example/x\n  sensor:\n    digest: " + testDigest +
				"\n  worker:\n    tag: \"3\"\nsensor:\n  lockDir: /sys/fs/bpf/other\ntemporal:\n  address: temporal:7233\n" +
				"  tls:\n    enabled: true\nworker:\n  replicas: 2\n",
		},
		"two registries": {
			manifests.Options{Phase: 1, Image: "a.example/stanch:dev", SensorImage: "b.example/stanch-sensor:dev"},
			"phase: 1\nactions: []\nconfig: {}\nimage:\n  registry: \"\"\n  sensor:\n    repository: " +
				"b.example/stanch-sensor\n  worker:\n    repository: a.example/stanch\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := writeValues(t, c.options); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// Helm with the written values must install what `stanch manifests` prints.
func TestValuesRenderLikeManifests(t *testing.T) {
	o := optionsForPhase(3)
	o.Replicas, o.TemporalTLS, o.Actions, o.Config = 3, true, []string{"pod.isolate"}, "cluster: shop\n"
	raw, err := manifests.WriteValues(o)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(raw, &values); err != nil {
		t.Fatal(err)
	}
	want, err := manifests.WriteYAML(o)
	if err != nil {
		t.Fatal(err)
	}
	objects, _, err := manifests.RenderValues("dev", "stanch-system", values)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if !strings.Contains(string(want), object) {
			t.Errorf("the manifests lack\n%s", object)
		}
	}
}
