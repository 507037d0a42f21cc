package detections_test

import (
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/deploy/image"
	"stanch/sensors"
	lab "stanch/testenv/kube"
	lacking "stanch/testenv/prereq"
)

// toolsImage has no programs of its own: it uses the node's /usr, as a toolbox does, read-only.
const toolsImage = "stanch.lab/tools:1"

// benignWorkloads are the honest loads of a small cluster. Each is a shell's line that ends soon and is done again and
// again.
var benignWorkloads = map[string]string{
	// A package is built: a compiler, an archiver, a program that is run after it was made, a Debian package.
	"build": `set -e; rm -rf /work/b; mkdir -p /work/b/pkg/DEBIAN /work/b/pkg/usr/bin; cd /work/b
printf '#include <stdio.h>\nint main(void){puts("made");return 0;}\n' > a.c
printf 'all: a\n\t./a\na: a.o\n\tgcc -o a a.o\na.o: a.c\n\tgcc -c a.c\n' > Makefile
make -s; cp a pkg/usr/bin; printf 'Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a\n' > pkg/DEBIAN/control
dpkg-deb -b pkg a.deb; tar czf a.tgz a.c Makefile; chmod 755 a; rm a.o`,
	// A job of a CI: a repository, its tests, its log.
	"ci": `set -e; rm -rf /work/c; mkdir -p /work/c; cd /work/c; export HOME=/work GOCACHE=/work/gocache GOPATH=/work/go GOFLAGS=-mod=mod GOTOOLCHAIN=local PATH=$PATH:/go/bin
git init -q .; git config user.email a@example.org; git config user.name a
printf 'module a\n\ngo 1.20\n' > go.mod; printf 'package a\n\nimport "testing"\n\nfunc TestA(t *testing.T) {}\n' > a_test.go
git add .; git commit -qm one; go vet ./...; go test ./...; git log --oneline > log; git status; python3 -c 'print("report")' > report.txt; find . -name '*.go' | xargs grep -l package | sort | head -3`,
	// A web server that serves, is reloaded, and rotates its log.
	"web": `set -e; mkdir -p /work/n/logs /work/www; cd /work/n; echo hello > /work/www/index.html
[ -f nginx.conf ] || printf 'worker_processes 2; daemon on; pid /work/n/pid; error_log /work/n/logs/error.log; events {} http { access_log /work/n/logs/access.log; client_body_temp_path /work/n/t1; proxy_temp_path /work/n/t2; fastcgi_temp_path /work/n/t3; uwsgi_temp_path /work/n/t4; scgi_temp_path /work/n/t5; server { listen 8080; root /work/www; } }' > nginx.conf
[ -f pid ] || /usr/sbin/nginx -c /work/n/nginx.conf -p /work/n
ab -q -n 2000 -c 8 http://127.0.0.1:8080/ >/dev/null; mv logs/access.log logs/access.log.1; kill -USR1 $(cat pid); kill -HUP $(cat pid)`,
	// A database with its client.
	"database": `set -e; mkdir -p /work/r; cd /work/r; [ -f up ] || { redis-server --port 6379 --dir /work/r --save 1 1 --daemonize yes >/dev/null; touch up; sleep 1; }
redis-benchmark -q -n 5000 -c 10 -t set,get,incr >/dev/null; redis-cli set a 1; redis-cli save`,
	// A pod as people look at it: a probe, a shell without a terminal, files of its own.
	"service": `set -e; cat /etc/hosts /etc/resolv.conf /proc/self/status >/dev/null; ls -la / /tmp; id; date; env | sort >/dev/null; ps aux >/dev/null; df -h >/dev/null; cp /etc/hosts /tmp/h; sed -i s/a/b/ /tmp/h; rm /tmp/h; getent hosts localhost; curl -s -o /dev/null http://127.0.0.1:1/ || true`,
}

// TestBenignLoadHasNoHighSeverityDetection runs benign loads in pods (for STANCH_BENIGN, by default 25 s), with exec
// probes and people who debug, until each load has run at least once. It expects no detection of high severity. `make
// soak` runs it for ten minutes.
func TestBenignLoadHasNoHighSeverityDetection(t *testing.T) {
	said, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	require.NoError(t, err)
	goroot := strings.TrimSpace(string(said))
	for _, program := range []string{
		"/usr/bin/gcc", "/usr/bin/git", "/usr/sbin/nginx", "/usr/bin/redis-server",
		"/usr/bin/ab",
	} {
		if _, err := os.Stat(program); err != nil {
			lacking.SkipOrFail(t, "%s (see `make setup`)", program)
		}
	}
	during := 25 * time.Second
	if said := os.Getenv("STANCH_BENIGN"); said != "" {
		during, err = time.ParseDuration(said)
		require.NoError(t, err)
	}
	w := newNodeFixture(t)
	files := map[string]image.File{
		"/bin": {SymlinkTarget: "usr/bin"}, "/sbin": {SymlinkTarget: "usr/sbin"}, "/lib": {SymlinkTarget: "usr/lib"},
		"/lib64":     {SymlinkTarget: "usr/lib64"},
		"/usr/.keep": {Data: []byte("\n"), Mode: 0o644}, "/work/.keep": {Data: []byte("\n"), Mode: 0o644},
		"/go/.keep": {Data: []byte("\n"), Mode: 0o644},
		"/etc/passwd": {
			Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
			Mode: 0o644,
		},
		"/etc/group":           {Data: []byte("root:x:0:\nnogroup:x:65534:\n"), Mode: 0o644},
		"/tmp":                 {Mode: os.ModeDir | os.ModeSticky | 0o777},
		"/var/lib/nginx/.keep": {Data: []byte("\n"), Mode: 0o644}, "/var/log/nginx/.keep": {Data: []byte("\n"), Mode: 0o644},
	}
	_, err = w.ImportImage(t.Context(), lab.ImageSpec{
		Name: toolsImage, Files: files,
		Env: []string{"PATH=/usr/sbin:/usr/bin"},
	})
	require.NoError(t, err)
	end := time.Now().Add(during)
	for name, line := range benignWorkloads {
		pod := lab.NewPod(name, toolsImage, "/usr/bin/bash", "-c", "while true; do ( "+line+
			"\n) > /tmp/said 2>&1 && echo DONE || { echo FAILED; cat /tmp/said; }; sleep 1; done")
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "usr", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/usr"}}},
			{Name: "go", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: goroot}}},
			{
				Name:         "alternatives",
				VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc/alternatives"}},
			},
		}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
			{Name: "usr", MountPath: "/usr", ReadOnly: true},
			{Name: "go", MountPath: "/go", ReadOnly: true},
			{Name: "alternatives", MountPath: "/etc/alternatives", ReadOnly: true},
		}
		// The machine has other things to do.
		share := "150m"
		if name == "ci" {
			share = "1" // it compiles
		}
		pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(share)}
		pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
			PeriodSeconds: 5, TimeoutSeconds: 5,
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "test -d /work"}}},
		}
		w.RunPod(t, w.namespace, pod)
	}
	done := map[string]bool{}
	for time.Now().Before(end) || len(done) < len(benignWorkloads) {
		require.Less(t, time.Since(end), 3*time.Minute, "these loads alone were done once: %v", done)
		for name := range benignWorkloads {
			// Someone looks: what `kubectl exec`, `kubectl logs` and `kubectl get` do.
			_, err := w.Exec(t.Context(), w.namespace, name, "main", "ls", "/work")
			require.NoError(t, err)
			said, err := w.Logs(t.Context(), w.namespace, name, "main")
			require.NoError(t, err)
			require.NotContains(t, said, "FAILED", "the load %s does not work, so it proves nothing", name)
			if strings.Contains(said, "DONE") {
				done[name] = true
			}
		}
		_, err := w.Client().CoreV1().Pods(w.namespace).List(t.Context(), metav1.ListOptions{})
		require.NoError(t, err)
		time.Sleep(time.Second)
	}
	status := w.agent.Probe.Status()
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := map[string]int{}
	for _, d := range w.detections {
		counts[fmt.Sprintf("%s %s in %s", d.Severity, d.Rule, d.Event.Container.Pod.Name)] += max(d.Count, 1)
		if d.Severity.Rank() >= sensors.SeverityHigh.Rank() {
			t.Errorf("%s (%s) fired on an honest load: %s %q under %v", d.Rule, d.Severity, d.Event.Process.Exe,
				d.Event.Process.Args, d.Event.Process.Ancestors)
		}
	}
	var lines []string
	for what, n := range counts {
		lines = append(lines, fmt.Sprintf("%5d %s", n, what))
	}
	sort.Strings(lines)
	t.Logf("%d events in %s; detections:\n%s", len(w.events), during, strings.Join(lines, "\n"))
	require.Greater(t, len(w.events), 100, "the loads ran")
	for reason, n := range status.Drops {
		require.Zero(t, n, "%s", reason)
	}
}
