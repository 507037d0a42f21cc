package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"stanch/testenv/kube"
	"stanch/testenv/prereq"
	"stanch/worker/manifests"
)

// helmTimeout bounds each step of Helm.
const helmTimeout = 2 * time.Minute

// helmRelease is an installation with Helm.
type helmRelease struct {
	*installation

	config *action.Configuration
	values map[string]any
	hooks  lockedBuffer // what failed hooks said
}

// lockedBuffer is a buffer that several goroutines write.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// take returns what was written, and forgets it.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.text.Reset()
	return b.text.String()
}

// newHelmRelease prepares what a user has before `helm install`: images that nodes can pull, volumes, and a namespace.
func newHelmRelease(t *testing.T, lab *kube.Cluster) *helmRelease {
	t.Helper()
	prereq.RequireRoot(t)
	if !lab.Services {
		prereq.SkipOrFail(t, "Services in the lab: another lab or a kube-proxy of this machine has them, or the kernel "+
			"cannot translate addresses")
	}
	r := &helmRelease{installation: &installation{Cluster: lab, dir: shortDir(t), inCluster: true}}
	r.namespace = "stanch-" + filepath.Base(r.dir)
	r.binary = filepath.Join(programDir, "stanch")
	mountSharedBPF(t)
	r.lockDir = "/sys/fs/bpf/" + r.namespace
	worker, sensor := r.importProgramImages(t)
	if _, err := r.ImportAttack(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.values = map[string]any{
		"phase": 2,
		"config": map[string]any{
			"budget": map[string]any{"per_hour": 1000},
			"scopes": []any{map[string]any{"name": "hosts", "namespaces": []any{""}, "phase": 1}},
		},
		"image": map[string]any{
			"worker": map[string]any{"tag": worker[strings.LastIndex(worker, ":")+1:]},
			"sensor": map[string]any{"tag": sensor[strings.LastIndex(sensor, ":")+1:]},
		},
		"sensor": map[string]any{"criSocket": r.CRISocket, "lockDir": r.lockDir},
		"worker": map[string]any{"extraArgs": []any{"--verify-every=1s"}},
	}
	r.createNamespaceAndVolumes(t)
	flags := genericclioptions.NewConfigFlags(false)
	flags.KubeConfig, flags.Namespace = &r.Kubeconfig, &r.namespace
	r.config = action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := r.config.Init(flags, r.namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	r.config.SetHookOutputFunc(func(_, _, _ string) io.Writer { return &r.hooks })
	t.Cleanup(func() { r.removeRelease(t) })
	return r
}

// createNamespaceAndVolumes creates the namespace, and the volumes that a storage class would create.
func (r *helmRelease) createNamespaceAndVolumes(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if _, err := r.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: r.namespace},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kube.Eventually(t, 20*time.Second, "what Kubernetes itself creates in a namespace", func() error {
		if _, err := r.Client().CoreV1().ServiceAccounts(r.namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := r.Client().CoreV1().ConfigMaps(r.namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	for _, name := range []string{"evidence", "temporal"} {
		dir := filepath.Join(r.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, 65532, 65532); err != nil { // as a volume with the pod's fsGroup is
			t.Fatal(err)
		}
		if _, err := r.Client().CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: r.namespace + "-" + name},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")},
				AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				ClaimRef:               &corev1.ObjectReference{Namespace: r.namespace, Name: "stanch-" + name},
				PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}},
			},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// removeRelease removes everything after a test, also after a failed one.
func (r *helmRelease) removeRelease(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), helmTimeout)
	defer cancel()
	if t.Failed() {
		t.Log(r.podLogs(ctx))
		t.Log(r.hooks.take())
	}
	u := action.NewUninstall(r.config)
	u.DisableHooks, u.IgnoreNotFound, u.Timeout, u.WaitStrategy = true, true, helmTimeout, helmkube.StatusWatcherStrategy
	if _, err := u.Run("stanch"); err != nil && t.Failed() {
		t.Log(err)
	}
	_ = r.Client().AppsV1().DaemonSets(r.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	for _, name := range []string{"evidence", "temporal"} {
		_ = r.Client().CoreV1().PersistentVolumes().Delete(ctx, r.namespace+"-"+name, metav1.DeleteOptions{})
	}
	r.uninstall(t)
}

// currentChart is the chart of this checkout.
func currentChart(t *testing.T) *chartv2.Chart {
	t.Helper()
	c, err := manifests.LoadChart("test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// previousChart is the chart of the commit before, which people upgrade from.
func previousChart(t *testing.T) *chartv2.Chart {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "sh", "-c",
		`cd ../.. && git archive HEAD^ deploy/chart | tar -x -C "$0"`, dir).CombinedOutput()
	if _, statErr := os.Stat(filepath.Join(dir, "deploy", "chart", "Chart.yaml")); err != nil || statErr != nil {
		t.Logf("the commit before has no chart; upgrading from this one: %v %s", err, out)
		return currentChart(t)
	}
	c, err := loader.LoadDir(filepath.Join(dir, "deploy", "chart"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// with returns the values with others set: a path of keys, and the value.
func (r *helmRelease) with(changes map[string]any) map[string]any {
	all := maps.Clone(r.values)
	for path, value := range changes {
		at := all
		keys := strings.Split(path, ".")
		for _, key := range keys[:len(keys)-1] {
			inner, _ := at[key].(map[string]any)
			inner = maps.Clone(inner)
			if inner == nil {
				inner = map[string]any{}
			}
			at[key], at = inner, inner
		}
		at[keys[len(keys)-1]] = value
	}
	return all
}

func (r *helmRelease) install(ctx context.Context, c *chartv2.Chart, values map[string]any) error {
	i := action.NewInstall(r.config)
	i.ReleaseName, i.Namespace, i.Timeout, i.WaitStrategy = "stanch", r.namespace, helmTimeout,
		helmkube.StatusWatcherStrategy
	_, err := i.RunWithContext(ctx, c, values)
	return r.explain(err)
}

// dryRun lets the API server check the objects without creating them.
func (r *helmRelease) dryRun(ctx context.Context, c *chartv2.Chart, values map[string]any) error {
	i := action.NewInstall(r.config)
	i.ReleaseName, i.Namespace, i.DryRunStrategy = "dry-run", r.namespace, action.DryRunServer
	_, err := i.RunWithContext(ctx, c, values)
	return r.explain(err)
}

func (r *helmRelease) upgrade(ctx context.Context, c *chartv2.Chart, values map[string]any) error {
	u := action.NewUpgrade(r.config)
	u.Namespace, u.Timeout, u.WaitStrategy = r.namespace, helmTimeout, helmkube.StatusWatcherStrategy
	_, err := u.RunWithContext(ctx, "stanch", c, values)
	return r.explain(err)
}

// revision returns the revision that is deployed.
func (r *helmRelease) revision(t *testing.T) int {
	t.Helper()
	last, err := r.config.Releases.Deployed("stanch")
	if err != nil {
		t.Fatal(err)
	}
	accessor, err := release.NewAccessor(last)
	if err != nil {
		t.Fatal(err)
	}
	return accessor.Version()
}

func (r *helmRelease) rollback(version int) error {
	b := action.NewRollback(r.config)
	b.Version, b.Timeout, b.WaitStrategy = version, helmTimeout, helmkube.StatusWatcherStrategy
	return r.explain(b.Run("stanch"))
}

func (r *helmRelease) uninstallRelease() error {
	u := action.NewUninstall(r.config)
	u.Timeout, u.WaitStrategy = helmTimeout, helmkube.StatusWatcherStrategy
	_, err := u.Run("stanch")
	return r.explain(err)
}

// explain adds to an error what the failed hooks said.
func (r *helmRelease) explain(err error) error {
	if said := r.hooks.take(); err != nil && said != "" {
		return errors.Join(err, errors.New(said))
	}
	return err
}

// waitPodsGone waits until no pod of the installation is left.
func (r *helmRelease) waitPodsGone(t *testing.T) {
	t.Helper()
	kube.Eventually(t, time.Minute, "the pods to be gone", func() error {
		pods, err := r.Client().CoreV1().Pods(r.namespace).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d are left, such as %s", len(pods.Items), pods.Items[0].Name)
		}
		return err
	})
}

// canWorker reports whether the worker's account has a permission in a namespace.
func (r *helmRelease) canWorkerPatchPods(t *testing.T) bool {
	t.Helper()
	role, err := r.Client().RbacV1().ClusterRoles().Get(t.Context(), r.namespace+"-"+manifests.WorkerName,
		metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range role.Rules {
		if strings.Contains(fmt.Sprint(rule.Resources), "pods") && strings.Contains(fmt.Sprint(rule.Verbs), "patch") {
			return true
		}
	}
	return false
}
