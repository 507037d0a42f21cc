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
		{},
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

// Reasons that several objects share.
const (
	digestsPinImages = "a restart during an incident must not need the registry; digests pin the image"
	readOnlyFiles    = "/tmp has a size limit; the root file system is read-only"
	noSlowJobs       = "no CPU limit: throttling would only make a short job longer"
)

// acceptedJobScores are the findings of kube-score that every job has.
func acceptedJobScores() map[string]string {
	return map[string]string{
		"container-resources":                           noSlowJobs,
		"container-image-pull-policy":                   digestsPinImages,
		"container-ephemeral-storage-request-and-limit": readOnlyFiles,
	}
}

// acceptedScores returns findings of kube-score by object and check, with the reason to accept them.
func acceptedScores() map[string]map[string]string {
	return map[string]map[string]string{
		"Deployment/stanch-worker": {
			"container-resources":                           "no CPU limit: throttling would delay a containment",
			"container-image-pull-policy":                   digestsPinImages,
			"container-ephemeral-storage-request-and-limit": readOnlyFiles,
			"deployment-has-host-podantiaffinity":           "topologySpreadConstraints spread replicas over nodes",
			"deployment-strategy":                           "two pods must not use the volume of a single replica",
			"deployment-replicas":                           "more than one requires a ReadWriteMany volume",
		},
		"StatefulSet/stanch-temporal": {
			"container-resources":                           "no CPU limit: throttling would delay a containment",
			"container-image-pull-policy":                   digestsPinImages,
			"container-ephemeral-storage-request-and-limit": readOnlyFiles,
			"pod-probes-identical":                          "a Temporal that does not respond for two minutes is restarted",
			"statefulset-has-servicename":                   "one pod needs no DNS name of its own",
		},
		"DaemonSet/stanch-sensor": {
			"container-resources":                           "no CPU limit: throttling would lose events",
			"container-image-pull-policy":                   digestsPinImages,
			"container-ephemeral-storage-request-and-limit": "the root file system is read-only",
			"container-security-context-user-group-id":      "loads programs into the kernel of the node",
			"pod-networkpolicy":                             "no NetworkPolicy selects pods in the network of their node",
		},
		"DaemonSet/stanch-cleanup": {
			"container-resources":                           noSlowJobs,
			"container-image-pull-policy":                   digestsPinImages,
			"container-ephemeral-storage-request-and-limit": "the root file system is read-only",
			"container-security-context-user-group-id":      "removes programs from the kernel of the node",
		},
		"Job/stanch-bootstrap":       acceptedJobScores(),
		"Job/stanch-check-uninstall": acceptedJobScores(),
		"Job/stanch-check-reduce":    acceptedJobScores(),
		"Job/stanch-cleanup":         acceptedJobScores(),
	}
}

// scoredObject is what the test reads of kube-score's output.
type scoredObject struct {
	Type struct {
		Kind string `json:"kind"`
	} `json:"type_meta"`
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
	found, accepted := map[string]bool{}, acceptedScores()
	for _, values := range []map[string]any{
		{"phase": 3},
		{
			"phase": 3, "temporal": map[string]any{"address": "temporal:7233"}, "worker": map[string]any{"replicas": 3},
			"playbooks": map[string]any{"mine.yaml": "playbook: mine"}, "rules": map[string]any{"shop.yaml": "rules: []"},
			"uninstall": map[string]any{"keepData": false},
		},
	} {
		for _, object := range runKubeScore(t, values) {
			name := object.Type.Kind + "/" + object.Meta.Name
			for _, c := range object.Checks {
				if c.Skipped || c.Grade >= fullGrade {
					continue
				}
				found[name+" "+c.Check.ID] = true
				if accepted[name][c.Check.ID] == "" {
					t.Errorf("%s: %s: grade %d, %v", name, c.Check.ID, c.Grade, c.Comments)
				}
			}
		}
	}
	for object, checks := range accepted {
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
