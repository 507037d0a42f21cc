package worker_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"stanch/worker"
	"stanch/worker/config"
	"stanch/worker/metrics"
	"stanch/worker/permissions"
)

func TestRunningWorkerReportsItsMissingPermissions(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "selfsubjectaccessreviews",
		func(a clienttesting.Action) (bool, runtime.Object, error) {
			review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
			asked := review.Spec.ResourceAttributes
			review.Status.Allowed = asked.Subresource != "eviction" && asked.Resource != "nodes"
			return true, review, nil
		})
	cfg := config.Default()
	cfg.Phase, cfg.Library.Only = 2, []string{"shell-in-production"}
	socket := filepath.Join(t.TempDir(), "stanch.sock")
	startInstallation(t, cfg, metrics.NewTemporalMetrics(), nil, func(o *worker.Options) {
		o.KubeClient, o.SocketPath, o.Namespace = client, socket, "stanch-system"
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	local := http.Client{Transport: &http.Transport{DialContext: dial}}
	response, err := local.Get("http://stanch/v1/permissions") //nolint:noctx // the test's own server
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	require.Equal(t, http.StatusOK, response.StatusCode)
	var report permissions.Report
	require.NoError(t, json.NewDecoder(response.Body).Decode(&report))
	require.True(t, report.Cluster)
	require.Equal(t, 2, report.Phase)
	require.Contains(t, report.Actions, "pod.isolate")
	require.Contains(t, report.Missing, permissions.Finding{
		Permission: "list nodes",
		Actions:    []string{"gateway", "orphan sweep"},
	})
	require.Contains(t, report.Unneeded, permissions.Finding{
		Permission: "update deployments.apps/scale",
		Actions:    []string{"workload.scale"},
	})
}
