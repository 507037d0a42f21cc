package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"

	"stanch/deploy/image"
	"stanch/sensors/probe"
	"stanch/testenv/kube"
	"stanch/testenv/prereq"
	"stanch/worker/authority"
	"stanch/worker/embeddedtemporal"
	"stanch/worker/manifests"
)

// installation is Stanch as pods in the lab, and the user's own Temporal beside it.
type installation struct {
	*kube.Cluster

	binary    string // the command line, on the host
	namespace string
	data      string // the worker's data, a folder of the node
	lockDir   string
	dir       string
	inCluster bool // reached through the worker's pod, not through data
}

// reach returns the arguments of a command with those that say where Stanch is.
func (in *installation) reach(args ...string) []string {
	if in.inCluster {
		return append(args, "--cluster", in.namespace)
	}
	return append(args, "--data", in.data)
}

// install does what a user does: keys, secrets, certificates, manifests. Everything is gone when the test ends.
func install(t *testing.T, lab *kube.Cluster, phase int, config string) *installation {
	t.Helper()
	prereq.RequireRoot(t)
	in := &installation{Cluster: lab, dir: shortDir(t)}
	in.namespace = "stanch-" + filepath.Base(in.dir)
	in.data, in.lockDir = filepath.Join(in.dir, "data"), "/sys/fs/bpf/"+in.namespace
	mountSharedBPF(t)
	in.binary = filepath.Join(programDir, "stanch")
	workerImage, sensorImage := in.importProgramImages(t)
	if _, err := in.ImportAttack(t.Context()); err != nil {
		t.Fatal(err)
	}

	secrets, node := filepath.Join(in.dir, "secrets"), filepath.Join(in.dir, "node")
	in.runStanch(t, "cert", "authority", "--out", secrets)
	in.runStanch(t, "cert", "node", in.NodeName, "--pki", filepath.Join(secrets, "pki"), "--out", node)
	temporal := in.startTemporal(t)

	args := []string{
		"manifests", "--phase", fmt.Sprint(phase), "--namespace", in.namespace, "--image", workerImage,
		"--sensor-image", sensorImage,
		"--temporal", temporal, "--temporal-namespace", embeddedtemporal.Namespace, "--temporal-tls", "--host-network",
		"--data-path", in.data,
		"--gateway", fmt.Sprintf("%s:%d", in.NodeIP, manifests.GatewayPort), "--cri", in.CRISocket, "--node-cert", node,
		"--lock-dir", in.lockDir,
	}
	if config != "" {
		file := filepath.Join(in.dir, "stanch.yaml")
		writeFile(t, file, strings.ReplaceAll(config, "NAMESPACE", in.namespace))
		args = append(args, "--config", file)
	}
	t.Cleanup(func() { in.uninstall(t) })
	in.applyManifests(t, in.runStanch(t, args...), map[string]string{
		manifests.KeysSecret: filepath.Join(secrets, "keys"), manifests.PKISecret: filepath.Join(secrets, "pki"),
		manifests.TemporalSecret: filepath.Join(in.dir, "tls"),
	})
	in.waitReady(t)
	return in
}

// startTemporal is the user's Temporal: of Stanch it knows nothing yet, not even the search attribute.
func (in *installation) startTemporal(t *testing.T) string {
	t.Helper()
	pki, err := authority.OpenOrCreatePKI(filepath.Join(in.dir, "temporal-pki"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := embeddedtemporal.Start(t.Context(), embeddedtemporal.Options{
		DataDir: filepath.Join(in.dir, "temporal"),
		PKI:     pki, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	if _, _, err := pki.WriteCertificateFiles(filepath.Join(in.dir, "tls"), "tls", authority.RoleTemporal,
		"stanch"); err != nil {
		t.Fatal(err)
	}
	return server.Address
}

// runStanch runs the command line on the host; it must succeed.
func (in *installation) runStanch(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := in.tryStanch(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (in *installation) tryStanch(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, in.binary, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+in.Kubeconfig)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("stanch %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

// resourcePlurals are the plurals of what manifests may hold.
var resourcePlurals = map[string]string{
	"Namespace": "namespaces", "ServiceAccount": "serviceaccounts", "ClusterRole": "clusterroles",
	"ClusterRoleBinding": "clusterrolebindings",
	"Role":               "roles", "RoleBinding": "rolebindings", "ConfigMap": "configmaps", "Service": "services",
	"Deployment": "deployments", "DaemonSet": "daemonsets",
	"ValidatingAdmissionPolicy":        "validatingadmissionpolicies",
	"ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}

// applyManifests makes what the manifests say, as kubectl would; the secrets as soon as there is a namespace for them.
func (in *installation) applyManifests(t *testing.T, stream []byte, secrets map[string]string) {
	t.Helper()
	client, err := dynamic.NewForConfig(in.Config())
	if err != nil {
		t.Fatal(err)
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096); ; {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) == 0 {
			continue // the comments at the head
		}
		resource, ok := resourcePlurals[o.GetKind()]
		if !ok {
			t.Fatalf("manifests hold a %s, which this test does not know", o.GetKind())
		}
		if o.GetKind() == "Deployment" {
			shortenObserveInterval(t, o)
		}
		gvk := o.GroupVersionKind()
		where := client.Resource(schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: resource})
		strict := metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
		if o.GetNamespace() == "" {
			_, err = where.Create(t.Context(), o, strict)
		} else {
			_, err = where.Namespace(o.GetNamespace()).Create(t.Context(), o, strict)
		}
		if err != nil {
			t.Fatalf("create %s %s: %v", o.GetKind(), o.GetName(), err)
		}
		if o.GetKind() == "Namespace" {
			for name, dir := range secrets {
				in.createSecret(t, name, dir)
			}
		}
	}
}

// shortenObserveInterval lets leases observe every second what they do every half minute by default.
func shortenObserveInterval(t *testing.T, deployment *unstructured.Unstructured) {
	t.Helper()
	containers, _, err := unstructured.NestedSlice(deployment.Object, "spec", "template", "spec", "containers")
	if err != nil || len(containers) != 1 {
		t.Fatalf("the worker has %d containers (%v)", len(containers), err)
	}
	worker, _ := containers[0].(map[string]any)
	args, _ := worker["args"].([]any)
	worker["args"] = append(args, "--verify-every", "1s")
	if err := unstructured.SetNestedSlice(deployment.Object, containers, "spec", "template", "spec",
		"containers"); err != nil {
		t.Fatal(err)
	}
}

// createSecret is `kubectl create secret generic NAME --from-file=DIR`.
func (in *installation) createSecret(t *testing.T, name, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{}}
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		s.Data[f.Name()] = raw
	}
	if _, err := in.Client().CoreV1().Secrets(in.namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (in *installation) waitReady(t *testing.T) {
	t.Helper()
	kube.Eventually(t, 60*time.Second, "worker and sensor to be ready", func() error {
		pods, err := in.Client().CoreV1().Pods(in.namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		if len(pods.Items) != 2 {
			return fmt.Errorf("there are %d pods, want worker and sensor", len(pods.Items))
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if !kube.IsPodReady(p) {
				logs, _ := in.Logs(t.Context(), in.namespace, p.Name, p.Spec.Containers[0].Name)
				return fmt.Errorf("pod %s is not ready: %+v\n%s", p.Name, p.Status.ContainerStatuses, logs)
			}
		}
		return nil
	})
}

// podLogs is what worker and sensor said, for a failed test.
func (in *installation) podLogs(ctx context.Context) string {
	pods, err := in.Client().CoreV1().Pods(in.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var out strings.Builder
	for _, p := range pods.Items {
		logs, err := in.Logs(ctx, in.namespace, p.Name, p.Spec.Containers[0].Name)
		fmt.Fprintf(&out, "--- %s (%v)\n%s", p.Name, err, logs[max(0, len(logs)-6000):])
	}
	return out.String()
}

func (in *installation) uninstall(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if t.Failed() {
		t.Log(in.podLogs(ctx))
	}
	name := in.namespace + "-" + manifests.WorkerName
	_ = in.Client().RbacV1().ClusterRoleBindings().Delete(ctx, name, metav1.DeleteOptions{})
	_ = in.Client().RbacV1().ClusterRoles().Delete(ctx, name, metav1.DeleteOptions{})
	for _, policy := range []string{name + "-metadata", name + "-networkpolicies"} {
		admission := in.Client().AdmissionregistrationV1()
		_ = admission.ValidatingAdmissionPolicyBindings().Delete(ctx, policy, metav1.DeleteOptions{})
		_ = admission.ValidatingAdmissionPolicies().Delete(ctx, policy, metav1.DeleteOptions{})
	}
	now := int64(0)
	_ = in.Client().AppsV1().DaemonSets(in.namespace).Delete(ctx, manifests.SensorName, metav1.DeleteOptions{})
	_ = in.Client().AppsV1().Deployments(in.namespace).Delete(ctx, manifests.WorkerName, metav1.DeleteOptions{})
	_ = in.Client().CoreV1().Pods(in.namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now},
		metav1.ListOptions{})
	_ = in.Client().CoreV1().Namespaces().Delete(ctx, in.namespace, metav1.DeleteOptions{})
	kube.Eventually(t, 30*time.Second, "the pods to be gone", func() error {
		pods, err := in.Client().CoreV1().Pods(in.namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d are left", len(pods.Items))
		}
		return err
	})
	if err := probe.Cleanup(in.lockDir); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	_ = os.RemoveAll(in.lockDir)
}

// importProgramImages imports the images that `make images` makes of this checkout, and returns their names.
func (in *installation) importProgramImages(t *testing.T) (worker, sensor string) {
	t.Helper()
	var names []string
	for _, program := range []string{"stanch", "stanch-sensor"} {
		archive, err := os.Open(filepath.Join(imageDir, program+".oci.tar"))
		if err != nil {
			t.Fatal(err)
		}
		defer archive.Close()
		if err := in.ImportArchive(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
		name, err := image.ArchiveName(archive.Name())
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names[0], names[1]
}

// buildPrograms returns the directories of the programs and of the images under test. `make test` has built both;
// without it, a cold build embeds Temporal and takes minutes.
func buildPrograms(dir string) (programs, images string, err error) {
	programs, images = os.Getenv("STANCH_BIN"), os.Getenv("STANCH_IMAGES")
	build := func(args ...string) {
		if err != nil {
			return
		}
		if said, failed := exec.Command("go", args...).CombinedOutput(); failed != nil {
			err = fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), failed, said)
		}
	}
	if programs == "" {
		programs = dir
		build("build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir+"/", "stanch/cmd/stanch",
			"stanch/cmd/stanch-sensor")
	}
	if images == "" {
		images = dir
		build("run", "stanch/deploy/images", "-out", dir, "-platforms", "linux/"+runtime.GOARCH)
	}
	return programs, images, err
}

// shortDir is a folder whose path leaves room for the name of a unix socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// mountSharedBPF makes /sys/fs/bpf what systemd makes it on every usual machine: mounted and shared, so that what a pod
// pins there stays when the pod is gone.
func mountSharedBPF(t *testing.T) {
	t.Helper()
	const path = "/sys/fs/bpf"
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		prereq.SkipOrFail(t, "%s: %v", path, err)
	}
	if uint32(st.Type) != unix.BPF_FS_MAGIC {
		if err := unix.Mount("bpf", path, "bpf", 0, "mode=0700"); err != nil {
			prereq.SkipOrFail(t, "a BPF file system at %s: %v", path, err)
		}
	}
	if err := unix.Mount("", path, "", unix.MS_SHARED, ""); err != nil {
		prereq.SkipOrFail(t, "a shared %s: %v", path, err)
	}
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
