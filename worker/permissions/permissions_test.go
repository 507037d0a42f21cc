// The comparison is tested against a real API server: whether a review means what RBAC does is not ours to assume.
package permissions_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"

	lab "stanch/testenv/kube"
	"stanch/worker/actions"
	"stanch/worker/guards"
	"stanch/worker/health"
	"stanch/worker/manifests"
	"stanch/worker/permissions"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTestMain(m)) }

// namespace is Stanch's own in these tests.
const namespace = "stanch-permissions"

func TestComparisonWithInstalledChart(t *testing.T) {
	cluster := lab.Shared(t)
	inUse := []string{"pod.isolate", "pod.restart", "process.snapshot"}
	installPermissions(t, cluster, 2, inUse)
	config, err := cluster.TokenConfig(t.Context(), namespace, manifests.WorkerName)
	require.NoError(t, err)
	worker, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	scope := permissions.Scope{
		Catalog: actions.Catalog(), Phase: 2, InUse: inUse, Namespace: namespace,
		StateConfigMaps: []string{guards.KillSwitchConfigMap, guards.UsedGrantsConfigMap, health.NodeRegistryConfigMap},
	}
	// The authorizer learns of the bindings through a watch.
	lab.Eventually(t, 15*time.Second, "the permissions to be in force", func() error {
		report, err := permissions.Compare(t.Context(), worker, scope)
		if err != nil {
			return fmt.Errorf("compare: %w", err)
		}
		if len(report.Missing) > 0 || len(report.Unneeded) > 0 {
			return fmt.Errorf("missing %v, unneeded %v", report.Missing, report.Unneeded)
		}
		return nil
	})

	scope.InUse = []string{"pod.isolate", "process.snapshot", "node.cordon"}
	scope.Phase = 3
	report, err := permissions.Compare(t.Context(), worker, scope)
	require.NoError(t, err)
	require.Contains(t, report.Missing, permissions.Finding{
		Permission: "patch nodes", Actions: []string{"node.cordon"},
	})
	require.Contains(t, report.Unneeded, permissions.Finding{
		Permission: "create pods/eviction", Actions: []string{"pod.restart"},
	})

	scope.Namespace = "default"
	report, err = permissions.Compare(t.Context(), worker, scope)
	require.NoError(t, err)
	require.Contains(t, report.Missing, permissions.Finding{
		Permission: "patch configmaps default/" + guards.KillSwitchConfigMap, Actions: []string{"shared state"},
	})
}

// installPermissions creates the namespace, the service account and the roles of the chart.
func installPermissions(t *testing.T, cluster *lab.Cluster, phase int, inUse []string) {
	t.Helper()
	documents, _, err := manifests.RenderValues("dev", namespace, map[string]any{
		"phase": phase, "actions": []any{inUse[0], inUse[1], inUse[2]},
		"temporal": map[string]any{"address": "temporal:7233"},
	})
	require.NoError(t, err)
	client, ctx, create := cluster.Client(), t.Context(), metav1.CreateOptions{}
	_, err = client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, create)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
		name := namespace + "-" + manifests.WorkerName
		_ = client.RbacV1().ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{})
		_ = client.RbacV1().ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{})
	})
	decoder := serializer.NewCodecFactory(scheme.Scheme).UniversalDeserializer()
	for _, document := range documents {
		object, _, err := decoder.Decode([]byte(document), nil, nil)
		require.NoError(t, err)
		switch o := object.(type) {
		case *corev1.ServiceAccount:
			_, err = client.CoreV1().ServiceAccounts(namespace).Create(ctx, o, create)
		case *rbacv1.ClusterRole:
			_, err = client.RbacV1().ClusterRoles().Create(ctx, o, create)
		case *rbacv1.ClusterRoleBinding:
			_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, o, create)
		case *rbacv1.Role:
			_, err = client.RbacV1().Roles(namespace).Create(ctx, o, create)
		case *rbacv1.RoleBinding:
			_, err = client.RbacV1().RoleBindings(namespace).Create(ctx, o, create)
		}
		require.NoError(t, err)
	}
}
