package manifests_test

import (
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"sigs.k8s.io/yaml"

	"stanch/worker/config"
	"stanch/worker/manifests"
)

// Numbers in YAML become floats on their way through Helm; the worker must still read the same configuration.
func TestNumbersSurviveTheChart(t *testing.T) {
	const text = "evidence: {max_total: 20000000000, min_free: 1000000}\nbudget: {per_hour: 1000000, max_fraction: 0.25}\n"
	want, problems := config.Parse("stanch.yaml", []byte(text))
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	read := func(text string) map[string]any { // as the command line of Helm does
		values, err := common.ReadValues([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return values
	}
	o := optionsForPhase(1)
	o.Config = text
	written, err := manifests.WriteValues(o)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range map[string]map[string]any{
		"values of a person": {"config": read(text), "temporal": map[string]any{"address": "temporal:7233"}},
		"written values":     read(string(written)),
	} {
		objects, _, err := manifests.RenderValues("dev", "stanch-system", values)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(objects, func(o string) bool { return strings.Contains(o, "\n  stanch.yaml: ") })
		var m struct{ Data map[string]string }
		if err := yaml.Unmarshal([]byte(objects[i]), &m); err != nil {
			t.Fatal(err)
		}
		got, problems := config.Parse("stanch.yaml", []byte(m.Data["stanch.yaml"]))
		if problems.HasErrors() || got.EvidenceLimits != want.EvidenceLimits || got.Budget != want.Budget {
			t.Errorf("%s: %v in\n%s", name, problems, m.Data["stanch.yaml"])
		}
	}
}
