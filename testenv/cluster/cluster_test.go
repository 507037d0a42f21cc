// Package cluster proves Stanch as it is installed: worker and sensor as pods in a real node, under the rights that
// `stanch manifests` prints and nothing more.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/testenv/kube"
	"stanch/worker/config"
	"stanch/worker/guards"
	"stanch/worker/manifests"
)

// podsOnlyConfig leaves the containers of this machine alone that are no pods: other tests' are among them.
const podsOnlyConfig = "phase: 3\nbudget: {per_hour: 1000}\nscopes:\n  - {name: hosts, namespaces: [\"\"], phase: 1}\n"

// programDir and imageDir are the directories of the programs and the images under test.
var programDir, imageDir string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 || len(kube.MissingPrograms()) > 0 {
		return m.Run() // every test says that it is skipped
	}
	dir, err := os.MkdirTemp("", "cluster-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		programDir, imageDir, err = buildPrograms(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return kube.RunTestMain(m)
}

// drillOutput is what `stanch drill -o json` promises.
type drillOutput struct {
	OK       bool   `json:"ok"`
	Incident string `json:"incident"`
	Checks   []struct {
		Name   string `json:"name"`
		OK     bool   `json:"ok"`
		Detail string `json:"detail"`
	} `json:"checks"`
	Latency  map[string]float64 `json:"latency_ms"`
	Evidence int                `json:"evidence"`
	Leases   []struct {
		Action   string `json:"action"`
		Outcome  string `json:"outcome"`
		Verified bool   `json:"verified"`
		Undone   bool   `json:"undone"`
	} `json:"leases"`
}

func TestInstallation(t *testing.T) {
	in := install(t, kube.Shared(t), 3, podsOnlyConfig)

	for name, actions := range map[string][]string{
		"cryptominer": {"pod.isolate", "workload.scale"}, "shell": {"pod.isolate"}, "reverse-shell": {"pod.isolate"},
		"credentials": {"pod.isolate"},
	} {
		t.Run("drill "+name, func(t *testing.T) { in.runDrill(t, name, actions) })
	}

	testScenarios(t, in)

	t.Run("the worker's rights are those of the manifests and no more", func(t *testing.T) {
		cfg, err := in.TokenConfig(t.Context(), in.namespace, manifests.WorkerName)
		if err != nil {
			t.Fatal(err)
		}
		as, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := as.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("it cannot list pods: %v", err)
		}
		_, secrets := as.CoreV1().Secrets(in.namespace).List(t.Context(), metav1.ListOptions{})
		_, other := as.CoreV1().ConfigMaps(in.namespace).Get(t.Context(), manifests.ConfigMapName, metav1.GetOptions{})
		for what, err := range map[string]error{
			"list secrets":     secrets,
			"delete pods":      as.CoreV1().Pods(in.namespace).Delete(t.Context(), "x", metav1.DeleteOptions{}),
			"read its config":  other,
			"delete workloads": as.AppsV1().Deployments(in.namespace).Delete(t.Context(), "x", metav1.DeleteOptions{}),
		} {
			if !apierrors.IsForbidden(err) {
				t.Errorf("it may %s: %v", what, err)
			}
		}
	})

	t.Run("the worker changes only what its actions change", func(t *testing.T) { testWorkerWrites(t, in) })

	t.Run("the kill switch is the cluster's", func(t *testing.T) {
		switches := in.Client().CoreV1().ConfigMaps(in.namespace)
		state := func() string {
			m, err := switches.Get(t.Context(), guards.KillSwitchConfigMap, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return m.Data["state"]
		}
		before := state()
		in.runStanch(t, "pause", "--data", in.data)
		stopped := state()
		if stopped == before {
			t.Error("stopped, and the cluster does not know")
		}
		in.runStanch(t, "resume", "--data", in.data)
		if state() == stopped {
			t.Error("resumed, and the cluster does not know")
		}
	})
}

// runDrill runs one drill from the host against the pods' Stanch, and looks on from the side.
func (in *installation) runDrill(t *testing.T, name string, actions []string) {
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
	defer cancel()
	seen := make(chan bool, 1)
	go func() { seen <- in.waitForPolicy(ctx) }()
	raw, err := in.tryStanch(ctx, "drill", name, "--data", in.data, "--kubeconfig", in.Kubeconfig, "--image",
		kube.AttackImage, "-o", "json")
	cancel()
	var got drillOutput
	if jsonErr := json.Unmarshal(raw, &got); jsonErr != nil {
		t.Fatalf("%v; %v: %s", err, jsonErr, raw)
	}
	if err != nil || !got.OK {
		t.Errorf("the drill did not hold: %v\n%s", err, raw)
	}
	if !<-seen {
		t.Error("no NetworkPolicy of Stanch's was seen while the pod was held")
	}
	held := map[string]bool{}
	for _, l := range got.Leases {
		held[l.Action] = true
		if !l.Verified || !l.Undone {
			t.Errorf("%s: %s, verified %t, undone %t", l.Action, l.Outcome, l.Verified, l.Undone)
		}
	}
	for _, action := range actions {
		if !held[action] {
			t.Errorf("%s was not among the leases %v", action, got.Leases)
		}
	}
	if len(got.Leases) != len(actions) || got.Evidence == 0 {
		t.Errorf("%d leases, %d pieces of evidence", len(got.Leases), got.Evidence)
	}
	t.Logf("%s: %v ms", name, got.Latency)
	kube.Eventually(t, 30*time.Second, "the drill's namespace to be gone", func() error {
		_, err := in.Client().CoreV1().Namespaces().Get(t.Context(), config.DrillNamespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return context.DeadlineExceeded
	})
}

// waitForPolicy watches for a policy of Stanch's in the drill's namespace until ctx ends.
func (in *installation) waitForPolicy(ctx context.Context) bool {
	for ctx.Err() == nil {
		found, err := in.Client().NetworkingV1().NetworkPolicies(config.DrillNamespace).List(ctx,
			metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=stanch"})
		if err == nil && len(found.Items) > 0 {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return false
}
