package sourceserver_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/workflow"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"stanch/sensors"
	"stanch/sensors/integrations"
	"stanch/testenv/podapi"
	"stanch/testenv/temporal"
	"stanch/worker/auditevents"
	"stanch/worker/authority"
	"stanch/worker/config"
	"stanch/worker/ingest"
	"stanch/worker/sourceserver"
	"stanch/workflows"
	"stanch/workflows/incident"
)

// incidentWorkflow is an incident that only stores what it receives.
func incidentWorkflow(ctx workflow.Context, _ incident.Input) error {
	var all []sensors.Detection
	if err := workflow.SetQueryHandler(ctx, "all", func() ([]sensors.Detection, error) { return all, nil }); err != nil {
		return err
	}
	for {
		var batch []incident.AttestedDetection
		workflow.GetSignalChannel(ctx, workflows.SignalDetections).Receive(ctx, &batch)
		for _, a := range batch {
			all = append(all, a.Detection)
		}
	}
}

// sourceServerFixture is a gateway with its sources, on a real Temporal.
type sourceServerFixture struct {
	*sourceserver.Server
	server         *temporal.Server
	ingester       *ingest.Ingester
	url            string
	receivedHealth *receivedHealth
	failKube       error
}

type receivedHealth struct {
	mu               sync.Mutex
	reports          []integrations.SensorHealth
	messagesBySource map[string]int
}

func (h *receivedHealth) OnSourceHealth(_ context.Context, one integrations.SensorHealth) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reports = append(h.reports, one)
}

func (h *receivedHealth) OnSourceMessage(source string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.messagesBySource == nil {
		h.messagesBySource = map[string]int{}
	}
	h.messagesBySource[source]++
}

func tokenForSource(name string) string { return "a-token-of-tests-for-" + name }

func newSourceServerFixture(t *testing.T, server *temporal.Server, sources ...config.Source) *sourceServerFixture {
	t.Helper()
	dir := t.TempDir()
	for i := range sources {
		sources[i].TokenFile = filepath.Join(dir, sources[i].Name)
		require.NoError(t, os.WriteFile(sources[i].TokenFile, []byte(tokenForSource(sources[i].Name)+"\n"), 0o600))
	}
	auth, err := authority.OpenOrCreate(t.TempDir())
	require.NoError(t, err)
	d := &sourceServerFixture{server: server, receivedHealth: &receivedHealth{}}
	kube := fake.NewClientset(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-7d9c4-bcdfg", UID: "uid-1",
			Labels:          map[string]string{"pod-template-hash": "7d9c4"},
			OwnerReferences: []metav1.OwnerReference{podapi.OwnerReference("apps/v1", "ReplicaSet", "web-7d9c4")},
		},
		Spec: corev1.PodSpec{NodeName: "node-1", ServiceAccountName: "web"},
		Status: corev1.PodStatus{PodIP: "10.1.0.4", ContainerStatuses: []corev1.ContainerStatus{
			{Name: "sidecar", ContainerID: "containerd://ffff0000ffff0000"},
			{Name: "web", ContainerID: "containerd://abcdef0123456789", Image: "shop/web:7", ImageID: "shop/web@sha256:0b3f"},
		}},
	}, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "web-7d9c4", UID: "uid-web-7d9c4",
		OwnerReferences: []metav1.OwnerReference{podapi.OwnerReference("apps/v1", "Deployment", "web")},
	}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid-web"}})
	kube.PrependReactor("get", "pods", func(k8stesting.Action) (bool, runtime.Object, error) {
		return d.failKube != nil,
			nil, d.failKube
	})
	d.ingester = &ingest.Ingester{
		Temporal: server, Authority: auth, Config: config.Default(), Kube: kube,
		Log: slog.New(slog.DiscardHandler), IncidentWorkflow: "Story",
	}
	d.Server, err = sourceserver.New(d.ingester, sources, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	d.HealthSink = d.receivedHealth
	d.serveHTTP(t, nil)
	return d
}

func (d *sourceServerFixture) serveHTTP(t *testing.T, judge *auditevents.RuleEvaluator) {
	t.Helper()
	if judge != nil {
		d.AuditEvents = &auditevents.ClusterEvents{RuleEvaluator: judge, Ingester: d.Ingester, Log: d.Log}
	}
	web := httptest.NewServer(d.HTTPServer().Handler)
	t.Cleanup(web.Close)
	d.url = web.URL
}

type ingestResponse struct {
	Status                      string
	Accepted, Telemetry, Health int
	Refused                     []struct {
		Line   int
		Reason string
	}
	retryAfter string
}

func (d *sourceServerFixture) post(t *testing.T, path, source, body string) (int, ingestResponse) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+path, bytes.NewReader([]byte(body)))
	require.NoError(t, err)
	if source != "" {
		r.Header.Set("Authorization", "Bearer "+tokenForSource(source))
	}
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var s ingestResponse
	require.NoError(t, json.Unmarshal(raw, &s), "%s", raw)
	s.retryAfter = resp.Header.Get("Retry-After")
	return resp.StatusCode, s
}

// incidentDetections returns the detections that the incident of a workload has received.
func (d *sourceServerFixture) incidentDetections(t *testing.T, workload string) []sensors.Detection {
	t.Helper()
	v, err := d.server.QueryWorkflow(t.Context(), workflows.IncidentWorkflowID(workload), "", "all")
	require.NoError(t, err)
	var all []sensors.Detection
	require.NoError(t, v.Get(&all))
	return all
}

var nowRFC3339 = time.Now().UTC().Format(time.RFC3339)

func newFalcoAlert(id, container string) string {
	return fmt.Sprintf(
		`{"uuid":%q,"priority":"Warning","rule":"Run shell untrusted","time":%q,"output_fields":{"container.id":%q,"proc.exepath":"/bin/%s","proc.cmdline":"curl --token %s-hunter2","evt.type":"execve"}}`,
		id,
		nowRFC3339,
		container,
		id,
		id,
	)
}

func gzipped(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := io.WriteString(w, s)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.String()
}
