// Package bench measures the way of a detection, from event times, with the real parts. `make bench` runs it; each
// benchmark reports medians and 99th percentiles, and where there is a baseline the ratio to it in the same run.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"stanch/playbooks"
	"stanch/testenv/harness"
	lab "stanch/testenv/kube"
)

var stanchBinary string

func TestMain(m *testing.M) {
	harness.RunBeaconIfRequested()
	connectStorm()
	os.Exit(runBenchmarks(m))
}

func runBenchmarks(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if stanchBinary, err = harness.BuildBinary(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// measurementsMS are measurements of one thing, in milliseconds.
type measurementsMS []float64

func (s measurementsMS) percentile(p float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func toMilliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// reportPercentiles reports p50 and p99 on the benchmark and as a JSON line in $STANCH_BENCH_OUT.
func reportPercentiles(b *testing.B, name string, s measurementsMS, more ...any) {
	b.Helper()
	b.ReportMetric(s.percentile(0.5), name+"_p50_ms")
	b.ReportMetric(s.percentile(0.99), name+"_p99_ms")
	line := map[string]any{
		"name": name, "n": len(s), "p50_ms": s.percentile(0.5), "p99_ms": s.percentile(0.99),
		"min_ms": s.percentile(0),
	}
	for i := 0; i+1 < len(more); i += 2 {
		line[more[i].(string)] = more[i+1]
	}
	harness.AppendBenchRecord(b, line)
}

const benchConfig = "phase: 2\nlibrary: {enabled: false}\nplaybooks: [DIR/playbooks]\nbudget: {per_hour: 10000, max_fraction: 1}\nsources: [{name: falco, token_file: DIR/token}]\n"

// minimalContainPlaybook is the shortest playbook that contains: snapshot, then isolate.
func minimalContainPlaybook(match string) map[string]string {
	return map[string]string{"shortest.yaml": fmt.Sprintf(`playbook: shortest
match: { when: 'incident.objective == "crypto-mining" && %s' }
steps:
  - evidence: process.snapshot
  - contain: pod.isolate
    for: 10m
`, match)}
}

// From the kernel event to the egress lock in force, on the durable path.
func BenchmarkEventToLocked(b *testing.B) {
	s := harness.Start(b, stanchBinary, harness.Options{
		Config: benchConfig, Playbooks: minimalContainPlaybook(`incident.workload.name startsWith "` +
			harness.ContainerIDPrefix + `"`),
		Args: []string{},
	})
	require.NoError(b, os.WriteFile(filepath.Join(s.ConfigDir, "token"), []byte("0123456789abcdef"), 0o600))
	var detection, incident, locked measurementsMS
	for b.Loop() {
		c := harness.NewContainer(b)
		before := len(s.ActiveLocks(b))
		attack := c.StartAttack(b)
		// Asking for incidents would load what is measured: the kernel's map says when to ask.
		require.Eventually(b, func() bool { return len(s.ActiveLocks(b)) > before }, time.Minute, 10*time.Millisecond)
		in := s.WaitForIncident(b, c.ID, time.Minute, "held", func(in playbooks.Incident) bool {
			return len(in.Leases) > 0 && in.Leases[0].State == "held"
		})
		first := in.Trigger
		detection = append(detection, toMilliseconds(first.Detected.Sub(first.Time)))
		incident = append(incident, toMilliseconds(in.Opened.Sub(first.Time)))
		locked = append(locked, toMilliseconds(in.Leases[0].AppliedAt.Sub(first.Time)))
		_, stderr, code := s.Run(b, "release", in.Leases[0].ID)
		require.Zero(b, code, stderr)
		_ = attack.Process.Kill()
		// The next one begins when nothing of this one is under way.
		require.Eventually(b, func() bool { return len(s.ActiveLocks(b)) == before }, time.Minute, 50*time.Millisecond)
	}
	reportPercentiles(b, "event_to_detection", detection)
	reportPercentiles(b, "event_to_incident", incident)
	reportPercentiles(b, "event_to_locked", locked)
	harness.AppendBenchRecord(b, map[string]any{"name": "memory_all_in_one", "bytes": s.ResidentBytes(b)})
}

// A playbook step compared with a bare Temporal activity on the same server.
func BenchmarkStepVersusBareActivity(b *testing.B) {
	const steps = 10
	text := "playbook: ten\nmatch: { when: 'incident.workload.name startsWith \"" + harness.ContainerIDPrefix +
		"\"' }\nsteps:\n" + strings.Repeat("  - notify: log\n", steps)
	s := harness.Start(b, stanchBinary, harness.Options{
		Config:    strings.Split(benchConfig, "sources")[0],
		Playbooks: map[string]string{"ten.yaml": text},
	})
	c := s.TemporalClient(b, true)
	w := sdkworker.New(c, "bench", sdkworker.Options{})
	w.RegisterWorkflow(bareWorkflow)
	w.RegisterActivity(noopActivity)
	require.NoError(b, w.Start())
	defer w.Stop()
	var ours, theirs measurementsMS
	for i := 0; b.Loop(); i++ {
		container := harness.NewContainer(b)
		attack := container.StartAttack(b)
		in := s.WaitForIncident(b, container.ID, time.Minute, "ended",
			func(in playbooks.Incident) bool { return len(in.Playbooks) > 0 && !in.Playbooks[0].Ended.IsZero() })
		ours = append(ours, msPerActivity(b, c, in.Playbooks[0].WorkflowID))
		_ = attack.Process.Kill()
		id := fmt.Sprintf("bench-%d", i)
		_, err := c.ExecuteWorkflow(context.Background(), client.StartWorkflowOptions{ID: id, TaskQueue: "bench"},
			bareWorkflow, steps)
		require.NoError(b, err)
		require.Eventually(b, func() bool {
			d, err := c.DescribeWorkflowExecution(context.Background(), id, "")
			return err == nil && d.GetWorkflowExecutionInfo().GetStatus() == enumspb.WORKFLOW_EXECUTION_STATUS_COMPLETED
		}, time.Minute, 5*time.Millisecond)
		theirs = append(theirs, msPerActivity(b, c, id))
	}
	reportPercentiles(b, "bare_activity", theirs)
	reportPercentiles(b, "step", ours, "baseline", "bare_activity", "ratio_p50",
		ours.percentile(0.5)/theirs.percentile(0.5))
	b.ReportMetric(ours.percentile(0.5)/theirs.percentile(0.5), "ratio_p50")
}

func bareWorkflow(ctx workflow.Context, n int) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
	for range n {
		if err := workflow.ExecuteActivity(ctx, noopActivity).Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

func noopActivity(context.Context) error { return nil }

// msPerActivity is the time from the first scheduled activity to the last completed one, by activity, in ms.
func msPerActivity(b *testing.B, c client.Client, id string) float64 {
	b.Helper()
	var first, last time.Time
	n := 0
	for it := c.GetWorkflowHistory(context.Background(), id, "", false,
		enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); it.HasNext(); {
		event, err := it.Next()
		require.NoError(b, err)
		if event.GetEventType() == enumspb.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED && first.IsZero() {
			first = event.GetEventTime().AsTime()
		}
		if event.GetEventType() == enumspb.EVENT_TYPE_ACTIVITY_TASK_COMPLETED {
			last, n = event.GetEventTime().AsTime(), n+1
		}
	}
	require.NotZero(b, n)
	return toMilliseconds(last.Sub(first)) / float64(n)
}

// From a posted Falco event to the NetworkPolicy at the API server, compared with the bare creation of a policy.
func BenchmarkPostedToPolicyVisible(b *testing.B) {
	cluster := lab.Shared(b)
	api := cluster.Client()
	namespace := cluster.NewNamespace(b)
	address := harness.FreePort(b)
	s := harness.New(b, stanchBinary, harness.Options{
		Config: benchConfig, Playbooks: minimalContainPlaybook(fmt.Sprintf("incident.workload.namespace == %q", namespace)),
		Args: []string{
			"--kubeconfig", cluster.Kubeconfig, "--cri", cluster.CRISocket, "--node", cluster.NodeName, "--listen",
			address,
		},
	})
	require.NoError(b, os.WriteFile(filepath.Join(s.ConfigDir, "token"), []byte("0123456789abcdef"), 0o600))
	s.StartAndWait(b)
	var posted, created measurementsMS
	for i := 0; b.Loop(); i++ {
		pod := lab.NewPod(fmt.Sprintf("victim-%d", i), lab.BusyboxImage, "sleep", "3600")
		cluster.RunPod(b, namespace, pod)
		event := map[string]any{
			"rule": "Detect crypto miners using the Stratum protocol", "priority": "Critical", "time": time.Now(),
			"tags": []string{"mitre_impact"},
			"output_fields": map[string]any{
				"k8s.ns.name": namespace, "k8s.pod.name": pod.Name, "proc.name": "xmrig",
				"proc.cmdline": "xmrig -o stratum+tcp://pool:3333",
			},
		}
		body, err := json.Marshal(event)
		require.NoError(b, err)
		posted = append(posted, timeUntilPolicyVisible(b, api, namespace, func() {
			r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+address+"/v1/falco",
				bytes.NewReader(body))
			require.NoError(b, err)
			r.Header.Set("Authorization", "Bearer 0123456789abcdef")
			resp, err := http.DefaultClient.Do(r)
			require.NoError(b, err)
			require.Equal(b, http.StatusAccepted, resp.StatusCode)
			require.NoError(b, resp.Body.Close())
		}))
		created = append(created, timeUntilPolicyVisible(b, api, namespace, func() {
			_, err := api.NetworkingV1().NetworkPolicies(namespace).Create(context.Background(), &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "bare-"},
				Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"bare": "x"}},
				},
			}, metav1.CreateOptions{})
			require.NoError(b, err)
		}))
		zero := int64(0)
		require.NoError(b, api.CoreV1().Pods(namespace).Delete(context.Background(), pod.Name,
			metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	}
	reportPercentiles(b, "bare_create_to_visible", created)
	reportPercentiles(b, "posted_to_policy_visible", posted, "baseline", "bare_create_to_visible", "ratio_p50",
		posted.percentile(0.5)/created.percentile(0.5))
}

// timeUntilPolicyVisible measures from just before do to the moment at which a watch shows a new policy.
func timeUntilPolicyVisible(b *testing.B, api kubernetes.Interface, namespace string, do func()) float64 {
	b.Helper()
	list, err := api.NetworkingV1().NetworkPolicies(namespace).List(context.Background(), metav1.ListOptions{})
	require.NoError(b, err)
	watch, err := api.NetworkingV1().NetworkPolicies(namespace).Watch(context.Background(),
		metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	require.NoError(b, err)
	defer watch.Stop()
	begin := time.Now()
	go do()
	select {
	case <-watch.ResultChan():
		return toMilliseconds(time.Since(begin))
	case <-time.After(time.Minute):
		b.Fatal("no policy appeared within a minute")
		return 0
	}
}
