package worker

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"stanch/worker/authority"
	"stanch/worker/health"
)

// sensorSelector finds the pods of the sensor's DaemonSet, as `stanch manifests` writes it.
const sensorSelector = "app.kubernetes.io/name=" + sensorAccount

// sensorAccount is the sensor's service account, as `stanch manifests` writes it.
const sensorAccount = "stanch-sensor"

// watchHealth starts the health monitor and the renewal of nodes' certificates.
func (w *Worker) watchHealth(ctx context.Context) {
	host, _ := os.Hostname()
	w.replicaName = fmt.Sprintf("%s@%s", rand.Text()[:8], host)
	o := health.Options{
		Ingester: w.Ingester, ReplicaChecker: health.TaskQueuePollers{Temporal: w.TemporalClient, OwnIdentity: w.replicaName},
		StateFile: filepath.Join(w.DataDir, "nodes.json"), Timing: w.HealthTiming, Log: w.Log,
	}
	if w.PKI != nil {
		o.CertificateAuthority = w.PKI
		w.NodeServer.SignCSR = func(_ context.Context, node string, csr []byte) ([]byte, error) {
			if w.Config.NodeLimits.IsRefused(node) {
				return nil, fmt.Errorf("node %q is not allowed: it is in `nodes: refused`", node)
			}
			return w.PKI.SignCSR(authority.RoleNode, node, csr)
		}
	}
	if w.KubeClient != nil && w.Namespace != "" {
		o.ClusterNodes = &health.KubernetesCluster{KubeClient: w.KubeClient, Namespace: w.Namespace, Selector: sensorSelector}
		o.NodeRegistry = health.ConfigMapNodeRegistry{KubeClient: w.KubeClient, Namespace: w.Namespace}
	}
	w.HealthMonitor = health.NewMonitor(o)
	w.NodeServer.Monitor = w.HealthMonitor
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) //nolint:gosec // called by Close
	w.closers = append(w.closers, cancel)
	go w.HealthMonitor.Run(ctx)
}
