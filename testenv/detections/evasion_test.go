package detections_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/sensors"
	lab "stanch/testenv/kube"
)

// TestEvasionsAreDetected tries known techniques to evade a sensor.
func TestEvasionsAreDetected(t *testing.T) {
	w := newNodeFixture(t)
	plain, strong := w.startPod(t, "plain", nil), w.startPod(t, "strong", makePrivileged)
	do := func(t *testing.T, pod, rule string, command ...string) sensors.Detection {
		t.Helper()
		since := time.Now()
		_, err := w.runAttack(t, ruleAttack{pod: pod, command: command})
		if err != nil {
			t.Log(err)
		}
		d := w.waitForRule(t, rule, pod, since)
		if t.Failed() {
			t.FailNow()
		}
		return d
	}

	t.Run("a command line that was overwritten is told as it was", func(t *testing.T) {
		d := do(t, plain, "new-listener", "/attack", "drop-to", "/srv/rewritten", "rewrite", "listen", "0.0.0.0:4447")
		require.Equal(t, []string{"/srv/rewritten", "rewrite", "listen", "0.0.0.0:4447"}, d.Event.Process.Args)
	})
	t.Run("links and relative paths lead to the same file", func(t *testing.T) {
		d := do(t, plain, "sensitive-file", "/bin/sh", "-c", "ln -s /etc /srv/e; cd /srv/e/../tmp; cat ../srv/e/./shadow")
		require.Equal(t, "/etc/shadow", d.Event.File.Path)
		d = do(t, plain, "sensitive-file", "/bin/sh", "-c",
			"ln /etc/shadow /srv/hard 2>/dev/null; ln -s /etc/shadow /srv/soft; head -1 /srv/soft")
		require.Equal(t, "/etc/shadow", d.Event.File.Path)
	})
	t.Run("an open by io_uring makes no call and is seen", func(t *testing.T) {
		since := time.Now()
		d := do(t, plain, "sensitive-file", "/attack", "uring", "/etc/shadow")
		require.Equal(t, "io_uring", d.Event.Syscall.Name)
		require.Equal(t, "/etc/shadow", d.Event.File.Path)
		w.waitForRule(t, "io-uring", plain, since)
	})
	t.Run("an open for writing by io_uring is one", func(t *testing.T) {
		d := do(t, plain, "startup-changed", "/attack", "uring", "/etc/ld.so.preload", "write")
		require.True(t, d.Event.File.OpenedForWrite)
	})
	t.Run("a file that is put in another's place changes it", func(t *testing.T) {
		d := do(t, plain, "startup-changed", "/bin/sh", "-c", "echo > /tmp/p; cd /etc; mv /tmp/p ld.so.preload")
		require.Equal(t, "/etc/ld.so.preload", d.Event.File.Path)
		require.Contains(t, d.Event.Syscall.Name, "rename")
	})
	t.Run("a second name for a file is told, for by it the file is read unseen", func(t *testing.T) {
		d := do(t, plain, "sensitive-file", "/bin/ln", "/etc/shadow", "/srv/harder")
		require.Equal(t, "/etc/shadow", d.Event.File.Path)
		require.Contains(t, d.Event.Syscall.Name, "link")
	})
	t.Run("a program that is called as the runtime is is none", func(t *testing.T) {
		d := do(t, plain, "sensitive-file", "/runc", "open", "/etc/shadow")
		require.Equal(t, "/runc", d.Event.Process.Exe)
		since := time.Now()
		w.startPod(t, "runc", func(p *corev1.Pod) {
			p.Spec.Containers[0].Command = []string{
				"/runc", "drop-to", "/srv/x",
				"wait",
			}
		})
		w.waitForRule(t, "drift", "runc", since)
	})
	t.Run("busybox is the applet that it finds", func(t *testing.T) {
		d := do(t, plain, "token-read", "/bin/busybox", "busybox", "cat",
			"/var/run/secrets/kubernetes.io/serviceaccount/token")
		require.Equal(t, "cat", d.Event.Process.ExeName())
	})
	t.Run("a link to an interpreter is the interpreter", func(t *testing.T) {
		d := do(t, plain, "token-read", "/usr/bin/python3", "open", "/var/run/secrets/kubernetes.io/serviceaccount/token")
		require.Equal(t, "/usr/bin/python3.11", d.Event.Process.Exe)
	})
	t.Run("a new program with the name of an excepted one is not excepted", func(t *testing.T) {
		do(t, plain, "process-memory", "/attack", "drop-to", "/srv/gdb", "open", "/proc/1/mem")
	})
	t.Run("a script called configure builds nothing", func(t *testing.T) {
		do(t, plain, "drift", "/bin/sh", "-c",
			"cp /bin/busybox /srv/ls; echo '/srv/ls; true' > /tmp/configure; sh /tmp/configure")
	})
	t.Run("a program under another name is a new program", func(t *testing.T) {
		do(t, plain, "drift", "/bin/sh", "-c", "cp /bin/busybox /srv/nginx; /srv/nginx true")
	})
	t.Run("a pool is a pool whatever connects to it", func(t *testing.T) {
		d := do(t, plain, "miner-pool-name", "/usr/bin/psql", "ask", "pool.supportxmr.com", "127.0.0.1:53")
		require.Equal(t, "pool.supportxmr.com", d.Event.Network.Domain)
		require.Equal(t, "/usr/bin/psql", d.Event.Process.Exe)
	})
	t.Run("a thread is its process", func(t *testing.T) {
		d := do(t, plain, "sensitive-file", "/attack", "thread", "open", "/etc/shadow")
		require.Equal(t, []string{"/attack", "thread", "open", "/etc/shadow"}, d.Event.Process.Args)
	})
	t.Run("a cgroup made inside of a container is still the container", func(t *testing.T) {
		d := do(
			t,
			strong,
			"private-key-read",
			"/bin/sh",
			"-c",
			`mkdir -p /srv/cg && mount -t cgroup2 none /srv/cg && d="/srv/cg$(sed -n s/^0:://p /proc/self/cgroup)/nested/deeper" && mkdir -p "$d" && echo $$ > "$d/cgroup.procs" && /bin/cat /root/.ssh/id_rsa`,
		)
		require.Equal(t, strong, d.Event.Container.Pod.Name)
		require.NotEmpty(t, d.Event.Container.ImageDigest)
	})
	t.Run("a container that lives for a moment is seen", func(t *testing.T) {
		since := time.Now()
		pod := lab.NewPod("short", attackImage, "/bin/cat", "/etc/shadow")
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		_, err := w.Client().CoreV1().Pods(w.namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		require.NoError(t, err)
		d := w.waitForRule(t, "sensitive-file", "short", since)
		require.True(t, strings.HasPrefix(d.Event.Container.ImageDigest, "sha256:"), "%+v", d.Event.Container)
		require.False(t, d.Event.Process.ExecedInto, "a container's own first program was not put into it from outside")
	})
	t.Run("what the runtime does to start a container is not the container's", func(t *testing.T) {
		w.startPod(t, "started", nil)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, d := range w.detections {
			if d.Event.Container.Pod.Name == "started" {
				t.Errorf("%s: %s %q", d.Rule, d.Event.Process.Exe, d.Event.Process.Args)
			}
		}
	})
}
