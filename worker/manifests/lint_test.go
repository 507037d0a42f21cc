package manifests_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"

	"stanch/worker/manifests"
)

var chartDir = filepath.Join("..", "..", "deploy", "chart")

// acceptedLint are messages of `helm lint` with the reason to accept them.
var acceptedLint = map[string]string{
	"icon is recommended": "the chart is in no catalog that shows icons",
}

func TestHelmLintFindsNothing(t *testing.T) {
	for _, values := range []map[string]any{
		{"temporal": map[string]any{"address": "temporal:7233"}},
		{
			"phase": 3, "temporal": map[string]any{"address": "temporal:7233"},
			"worker": map[string]any{"replicas": 3}, "monitoring": map[string]any{"prometheusRule": true, "dashboard": true},
		},
	} {
		for _, m := range lint.RunAll(chartDir, values, "stanch-system").Messages {
			if acceptedLint[m.Err.Error()] == "" {
				t.Errorf("%s: %v", m.Path, m.Err)
			}
		}
	}
}

// everyPod stands for all objects with pods in acceptedScores.
const everyPod = "every pod"

// acceptedScores are findings of kube-score by object and check, with the reason to accept them.
var acceptedScores = map[string]map[string]string{
	everyPod: {
		"container-resources":                           "no CPU limit: throttling delays containments",
		"container-image-pull-policy":                   "a restart must not need the registry; digests pin the image",
		"container-ephemeral-storage-request-and-limit": "what is not a volume is read-only, and /tmp has a size limit",
	},
	"stanch-worker": {
		"deployment-has-host-podantiaffinity": "topologySpreadConstraints spread replicas over nodes",
		"deployment-strategy":                 "two pods must not use the volume of a single replica",
		"deployment-replicas":                 "more than one requires a ReadWriteMany volume",
	},
	"stanch-sensor": {
		"container-security-context-user-group-id": "loads programs into the kernel of the node",
		"pod-networkpolicy":                        "no NetworkPolicy selects pods in the network of their node",
	},
	"stanch-temporal": {
		"statefulset-has-servicename": "clients connect to the Service; nobody needs the name of the only pod",
		"pod-probes-identical":        "a server that gives no answer for two minutes is restarted",
	},
	"stanch-bootstrap":       {"pod-networkpolicy": "runs for seconds, and listens nowhere"},
	"stanch-check-reduce":    {"pod-networkpolicy": "runs for seconds, and listens nowhere"},
	"stanch-check-uninstall": {"pod-networkpolicy": "runs for seconds, and listens nowhere"},
	"stanch-cleanup": {
		"container-security-context-user-group-id": "removes programs from the kernel of the node",
		"pod-networkpolicy":                        "runs for seconds, and listens nowhere",
	},
}

// scoredObject is what the test reads of kube-score's output.
type scoredObject struct {
	Meta struct {
		Name string `json:"name"`
	} `json:"object_meta"`
	Checks []struct {
		Check struct {
			ID string `json:"id"`
		} `json:"check"`
		Grade    int  `json:"grade"`
		Skipped  bool `json:"skipped"`
		Comments []struct {
			Path    string `json:"path"`
			Summary string `json:"summary"`
		} `json:"comments"`
	} `json:"checks"`
}

// fullGrade is kube-score's grade of an object without a finding.
const fullGrade = 10

// kube-score is built from a module of its own, because it needs older Kubernetes libraries.
func TestKubeScoreFindsOnlyWhatIsAccepted(t *testing.T) {
	found := map[string]bool{}
	for _, values := range []map[string]any{
		{"phase": 3},
		{
			"phase": 3, "temporal": map[string]any{"address": "temporal:7233"}, "worker": map[string]any{"replicas": 3},
			"playbooks": map[string]any{"mine.yaml": "playbook: mine"}, "rules": map[string]any{"shop.yaml": "rules: []"},
		},
	} {
		for _, object := range runKubeScore(t, values) {
			for _, c := range object.Checks {
				if c.Skipped || c.Grade >= fullGrade {
					continue
				}
				name := object.Meta.Name
				if acceptedScores[everyPod][c.Check.ID] != "" {
					name = everyPod
				}
				found[name+" "+c.Check.ID] = true
				if acceptedScores[name][c.Check.ID] == "" {
					t.Errorf("%s: %s: grade %d, %v", object.Meta.Name, c.Check.ID, c.Grade, c.Comments)
				}
			}
		}
	}
	for object, checks := range acceptedScores {
		for check := range checks {
			if !found[object+" "+check] {
				t.Errorf("%s: %s is no longer found; remove it from acceptedScores", object, check)
			}
		}
	}
}

// runKubeScore returns kube-score's grades of the objects that the chart creates with these values.
func runKubeScore(t *testing.T, values map[string]any) []scoredObject {
	t.Helper()
	objects, hooks, err := manifests.RenderValues("1.2.3", "stanch-system", values)
	if err != nil {
		t.Fatal(err)
	}
	module := filepath.Join("..", "..", "tools", "chart", "go.mod")
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile="+module, "kube-score", "score",
		"--kubernetes-version", "v1.29", "--output-format", "json", "-")
	cmd.Stdin = strings.NewReader(strings.Join(slices.Concat(objects, hooks), "\n---\n"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) { // it exits with 1 if it finds anything
		t.Fatal(err)
	}
	var out []scoredObject
	if err := json.Unmarshal(raw, &out); err != nil || len(out) < 3 {
		t.Fatalf("read the output of kube-score with %d objects: %v; %s", len(out), err, stderr.String())
	}
	return out
}
