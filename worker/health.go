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

// watchHealth makes detections of missing telemetry, and lets nodes renew their certificates.
func (w *Worker) watchHealth(ctx context.Context) {
	host, _ := os.Hostname()
	w.name = fmt.Sprintf("%s@%s", rand.Text()[:8], host)
	o := health.Options{
		Intake: w.Intake, Elsewhere: health.Pollers{Temporal: w.Client, Self: w.name}, File: filepath.Join(w.Dir, "nodes.json"), Timing: w.Watch, Log: w.Log,
	}
	if w.PKI != nil {
		o.Authority = w.PKI
		w.Hub.Sign = func(_ context.Context, node string, csr []byte) ([]byte, error) {
			if w.Config.Nodes.Refuses(node) {
				return nil, fmt.Errorf("the configuration refuses the node %q", node)
			}
			return w.PKI.Sign(authority.RoleNode, node, csr)
		}
	}
	if w.Kube != nil && w.Namespace != "" {
		o.Cluster = &health.Kubernetes{Client: w.Kube, Namespace: w.Namespace, Selector: sensorSelector}
		o.Memory = health.ConfigMap{Client: w.Kube, Namespace: w.Namespace}
	}
	w.Monitor = health.New(o)
	w.Hub.Monitor = w.Monitor
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) //nolint:gosec // a closer calls it
	w.closers = append(w.closers, cancel)
	go w.Monitor.Run(ctx)
}
