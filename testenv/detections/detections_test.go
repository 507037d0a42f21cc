// Package detections_test does what every shipped rule is about, for real, in containers of a real node, and sees the
// rule fire there: with the probe in this kernel, the production agent and the runtime's own words.
package detections_test

import (
	"context"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"stanch/deploy/image"
	"stanch/sensors"
	"stanch/sensors/agent"
	"stanch/sensors/rules"
	lab "stanch/testenv/kube"
	lacking "stanch/testenv/prereq"
)

func TestMain(m *testing.M) { os.Exit(lab.RunTestMain(m)) }

const attackImage = "stanch.lab/detections:1"

// attackProgramPaths are what the attack's program is called in the image: for rules, what a program is called is what
// it is.
var attackProgramPaths = []string{
	"/usr/sbin/nginx", "/usr/bin/python3.11", "/usr/bin/nmap", "/usr/bin/kubectl", "/usr/bin/scp", "/usr/bin/apt-get",
	"/usr/bin/make", "/usr/bin/curl",
	"/usr/bin/ssh", "/usr/sbin/debugfs", "/sbin/mkfs.ext4", "/bin/bash", "/bin/zsh", "/usr/bin/gcc", "/usr/bin/psql",
}

// nodeFixture is a node with an agent that watches it, and pods to attack from.
type nodeFixture struct {
	*lab.Cluster
	namespace   string
	agent       *agent.Agent
	peerAddress string // an address of the host that pods reach, where someone accepts

	mu         sync.Mutex
	detections []sensors.Detection
	events     []sensors.Event
}

func newNodeFixture(t *testing.T, change ...func(*agent.Config)) *nodeFixture {
	t.Helper()
	lacking.RequireRoot(t)
	c := lab.Shared(t)
	w := &nodeFixture{Cluster: c}
	importAttackImage(t, c)
	w.namespace = c.NewNamespace(t)
	api, err := url.Parse(c.APIServer)
	require.NoError(t, err)
	setup := agent.Config{
		Node: "node", CRISocket: c.CRISocket, DisableLock: true, APIServers: []string{api.Host},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	}
	for _, f := range change {
		f(&setup)
	}
	a, closeAll, err := agent.NewFromConfig(setup)
	require.NoError(t, err)
	w.agent = a
	for _, h := range a.Probe.Status().Hooks {
		require.True(t, h.Enabled, "hook %s: %s", h.Hook, h.Reason)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- a.Watch(ctx, func(e sensors.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if e.Container.Pod.Namespace == w.namespace {
				w.events = append(w.events, e)
			}
		}, func(d sensors.Detection) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if d.Event.Container.Pod.Namespace == w.namespace {
				w.detections = append(w.detections, d)
			}
		})
	}()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done); closeAll() })
	w.peerAddress = acceptConnections(t, c.NodeIP)
	return w
}

func importAttackImage(t *testing.T, c *lab.Cluster) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "attack")
	require.NoError(t, lab.BuildStatic(t.Context(), "stanch/testenv/attack", program))
	files := map[string]image.File{
		"/attack":       {HostPath: program},
		"/usr/bin/sudo": {HostPath: program, Mode: 0o755 | os.ModeSetuid},
		// May become any user, once it says so: the right is permitted and not effective.
		"/usr/bin/permitted": {HostPath: program, CapabilityXattr: "\x00\x00\x00\x02\x80\x00\x00\x00" + strings.Repeat("\x00",
			12)},
		"/root/.ssh/id_rsa":  {Data: []byte("no key\n"), Mode: 0o600},
		"/root/.ash_history": {Data: []byte("ls\n"), Mode: 0o600},
		"/var/log/auth.log":  {Data: []byte("nothing\n"), Mode: 0o600},
		"/var/log/secure":    {Data: []byte("nothing\n"), Mode: 0o600},
		"/root/.aws/readme":  {Data: []byte("aws_secret_access_key\n"), Mode: 0o600},
		"/etc/ld.so.preload": {Data: []byte("\n"), Mode: 0o644},
		"/srv/keep/.keep":    {Data: []byte("\n"), Mode: 0o644},
		"/etc/motd":          {Data: []byte("attacks\n"), Mode: 0o644},
		"/var/tmp/.keep":     {Data: []byte("\n"), Mode: 0o644},
	}
	for _, name := range attackProgramPaths {
		files[name] = image.File{HardlinkTo: "/attack"}
	}
	files["/usr/bin/python3"] = image.File{SymlinkTarget: "python3.11"} // as distributions have it
	files["/runc"] = image.File{HardlinkTo: "/attack"}
	_, err := c.ImportImage(t.Context(), lab.ImageSpec{
		Name: attackImage, WithBusybox: true, Files: files,
		Entrypoint: []string{"/attack", "wait"},
	})
	require.NoError(t, err)
}

// acceptConnections accepts connections and says nothing.
func acceptConnections(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { time.Sleep(200 * time.Millisecond); _ = c.Close() }()
		}
	}()
	return l.Addr().String()
}

// startPod starts a pod that waits, and returns its name.
func (w *nodeFixture) startPod(t *testing.T, name string, change func(*corev1.Pod)) string {
	t.Helper()
	p := lab.NewPod(name, attackImage, "/attack", "wait")
	p.Spec.Volumes = []corev1.Volume{{
		Name:         "tmp",
		VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
	}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "tmp", MountPath: "/var/tmp"}}
	if change != nil {
		change(p)
	}
	w.RunPod(t, w.namespace, p)
	return name
}

func makePrivileged(p *corev1.Pod) {
	yes := true
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
}

// waitForRule waits until a rule fired in a pod after a moment.
func (w *nodeFixture) waitForRule(t *testing.T, rule, pod string, since time.Time) sensors.Detection {
	t.Helper()
	deadline := time.Now().Add(25 * time.Second)
	for {
		w.mu.Lock()
		i := slices.IndexFunc(w.detections, func(d sensors.Detection) bool {
			return d.Rule == rule && d.Event.Container.Pod.Name == pod && !d.Detected.Before(since)
		})
		if i >= 0 {
			d := w.detections[i]
			w.mu.Unlock()
			return d
		}
		if time.Now().After(deadline) {
			var names []string
			for _, d := range w.detections {
				if d.Event.Container.Pod.Name == pod && !d.Detected.Before(since) {
					names = append(names, d.Rule)
				}
			}
			var events []sensors.Event
			for _, e := range w.events {
				if e.Container.Pod.Name == pod && e.Time.After(since) && e.Kind != sensors.KindExit {
					events = append(events, e)
				}
			}
			w.mu.Unlock()
			t.Errorf("rule %s did not fire in %s; these did: %v", rule, pod, names)
			for _, e := range events {
				t.Logf("%s %s %q %+v %+v %+v", e.Kind, e.Process.Exe, e.Process.Args, e.File, e.Network, e.Syscall)
			}
			return sensors.Detection{}
		}
		w.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

// ruleAttack is one rule's: where and what.
type ruleAttack struct {
	rule    string
	pod     string
	command []string
	// needsTerminal: the command gets one.
	needsTerminal bool
}

func shellCommand(line string) []string { return []string{"/bin/sh", "-c", line} }

// TestEveryRuleDetectsItsAttack runs a real attack for each shipped rule.
func TestEveryRuleDetectsItsAttack(t *testing.T) {
	w := newNodeFixture(t)
	dir := t.TempDir()
	socket, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = socket.Close() })
	require.NoError(t, os.Chmod(dir, 0o755))

	plain, strong := w.startPod(t, "plain", nil), w.startPod(t, "strong", makePrivileged)
	declared := w.startPod(t, "declared", func(p *corev1.Pod) {
		p.Annotations = map[string]string{rules.EgressAnnotation: "10.0.0.0/8:443"}
	})
	sock := w.startPod(t, "sock", func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes,
			corev1.Volume{Name: "run", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}})
		p.Spec.Volumes = append(
			p.Spec.Volumes,
			corev1.Volume{
				Name:         "shm",
				VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}},
			},
		)
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{
			Name:      "run",
			MountPath: "/host",
		}, corev1.VolumeMount{Name: "shm", MountPath: "/dev/shm"})
	})
	host, _, err := net.SplitHostPort(w.peerAddress)
	require.NoError(t, err)
	pool := net.JoinHostPort(host, "3333")
	api, err := url.Parse(w.APIServer)
	require.NoError(t, err)

	attacks := []ruleAttack{
		{"terminal-shell", plain, []string{"/attack", "shell", "exit"}, false},
		{"exec-into-container", plain, []string{"/bin/true"}, true},
		{"server-shell", plain, []string{"/usr/sbin/nginx", "spawn", "/bin/sh", "-c", "id"}, false},
		{"interpreter-shell", plain, []string{"/usr/bin/python3", "spawn-open", "/bin/sh", "-i"}, false},
		{"reverse-shell", plain, []string{"/attack", "revshell", w.peerAddress}, false},
		{"shell-connection", plain, shellCommand("timeout 1 /bin/bash connect " + w.peerAddress + "; true"), false},
		{"drift", plain, []string{"/attack", "drop-to", "/srv/x", "open", "/etc/hosts"}, false},
		{"drift-in-build", plain, []string{"/usr/bin/make", "drop-to", "/srv/y", "open", "/etc/hosts"}, false},
		{"drift-in-install", plain, []string{"/usr/bin/apt-get", "drop-to", "/srv/z", "open", "/etc/hosts"}, false},
		{"fileless", plain, []string{"/attack", "memfd", "open", "/etc/hosts"}, false},
		{"shm-execution", sock, []string{"/attack", "drop-to", "/dev/shm/x", "open", "/etc/hosts"}, false},
		{"tmp-execution", plain, []string{"/attack", "drop-to", "/var/tmp/x", "open", "/etc/hosts"}, false},
		{"package-manager", plain, []string{"/usr/bin/apt-get", "install", "curl"}, false},
		{"network-tool", plain, []string{"/usr/bin/nmap", "10.0.0.0/8"}, false},
		{"cluster-tool", plain, []string{"/usr/bin/kubectl", "get", "pods"}, false},
		{"copy-tool", plain, []string{"/usr/bin/scp", "a", "b:"}, false},
		{"network-tool-listener", plain, shellCommand("timeout 1 nc -l -p 4444 </dev/null; true"), false},
		{"new-listener", plain, []string{"/attack", "drop-to", "/srv/l", "listen", "0.0.0.0:4445"}, false},
		{"shell-listener", plain, []string{"/bin/zsh", "listen", "0.0.0.0:4446"}, false},
		{"process-burst", plain, []string{"/attack", "storm", "450", "/bin/true"}, false},
		{"data-destruction", plain, []string{"/sbin/mkfs.ext4", "/srv/disk"}, false},
		{"miner-process", plain, shellCommand("timeout 1 /attack mine 127.0.0.1:9; true"), false},
		{"miner-pool", plain, shellCommand("/attack connect " + pool + " || true"), false},
		{"miner-pool-name", plain, []string{"/attack", "ask", "xmr-eu1.nanopool.org", host + ":53"}, false},
		{"metadata-access", plain, shellCommand("timeout 1 /attack metadata; true"), false},
		{"token-read", plain, []string{"/bin/cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"}, false},
		{"sensitive-file", plain, []string{"/bin/cat", "/etc/shadow"}, false},
		{"undeclared-egress", declared, shellCommand("timeout 1 /attack connect " + w.peerAddress + "; true"), false},
		{"kubernetes-api", plain, shellCommand("timeout 1 /usr/bin/curl connect " + api.Host + "; true"), false},
		{
			"ssh-unusual-port", plain, shellCommand("/usr/bin/ssh connect " + net.JoinHostPort(host, "2222") + " || true"),
			false,
		},
		{"key-search", plain, shellCommand("find / -xdev -name id_rsa"), false},
		{"cloud-key-search", plain, shellCommand("grep -r aws_secret_access_key /root"), false},
		{"private-key-read", plain, []string{"/bin/cat", "/root/.ssh/id_rsa"}, false},
		{"process-environment", plain, shellCommand("cat /proc/1/environ"), false},
		{"process-memory", plain, []string{"/attack", "open", "/proc/1/mem"}, false},
		{"debugger-attached", plain, []string{"/attack", "attach"}, false},
		{"memory-read", plain, []string{"/attack", "peek"}, false},
		{"memory-injection", plain, []string{"/attack", "poke"}, false},
		{"packet-socket", plain, []string{"/attack", "packet"}, false},
		{"raw-socket", plain, []string{"/attack", "raw-ip"}, false},
		{"kernel-escape", strong, []string{"/attack", "write", "/proc/sys/kernel/core_pattern"}, false},
		{"runtime-socket", sock, []string{"/attack", "unix", "/host/docker.sock"}, false},
		{"namespace-entered", strong, shellCommand("nsenter -t 1 -n /bin/true"), false},
		{"namespace-attempt", plain, shellCommand("nsenter -t 1 -n /bin/true || true"), false},
		{"namespace-created", plain, shellCommand("unshare -U /bin/true"), false},
		{"mount", strong, shellCommand("mount -t tmpfs none /srv/keep"), false},
		{"mount-attempt", plain, shellCommand("mount -t tmpfs none /srv/keep || true"), false},
		{"handle-escape", plain, []string{"/attack", "handle"}, false},
		{"debugfs", plain, []string{"/usr/sbin/debugfs", "/dev/sda1"}, false},
		{"module-tool", plain, []string{"/bin/insmod", "/srv/none.ko"}, false},
		{"bpf-call", strong, []string{"/attack", "bpf"}, false},
		{"bpf-attempt", plain, []string{"/attack", "bpf"}, false},
		{"io-uring", plain, []string{"/attack", "uring"}, false},
		{"privileges-gained", plain, []string{"/attack", "as", "65534", "/usr/bin/permitted", "regain"}, false},
		{"setuid-used", plain, []string{"/attack", "as", "65534", "/usr/bin/sudo", "open", "/etc/hosts"}, false},
		{"setuid-bit", plain, shellCommand("cp /bin/busybox /srv/su && chmod u+s /srv/su"), false},
		{"log-cleared", plain, shellCommand("> /var/log/auth.log"), false},
		{"log-cleared", plain, shellCommand("cd /var/log && rm secure"), false},
		{"history-cleared", plain, shellCommand("rm /root/.ash_history"), false},
		{"accounts-changed", plain, shellCommand("echo >> /etc/passwd"), false},
		{"accounts-changed", plain, shellCommand("cp /etc/passwd /tmp/p && mv /tmp/p /etc/passwd"), false},
		{"startup-changed", plain, shellCommand("echo > /etc/ld.so.preload"), false},
		{"sensitive-link", plain, shellCommand("ln -s /etc/shadow /srv/harmless"), false},
	}
	tried := map[string]bool{}
	for _, a := range attacks {
		tried[a.rule] = true
		t.Run(a.rule, func(t *testing.T) {
			since := time.Now()
			_, err := w.runAttack(t, a)
			if err != nil {
				t.Log(err) // some attacks fail, as they should: that they were tried is what counts
			}
			d := w.waitForRule(t, a.rule, a.pod, since)
			if !t.Failed() {
				c := d.Event.Container
				require.NotEmpty(t, c.ImageDigest, "the image's digest")
				require.Equal(t, "Pod", c.Workload.Kind)
				require.NotEmpty(t, d.Reasons)
				require.NotEmpty(t, d.Technique)
			}
		})
	}
	set, err := rules.LoadShipped()
	require.NoError(t, err)
	for _, r := range set.Rules() {
		if !tried[r.Name] && !slices.Contains(rulesTestedElsewhere, r.Name) && slices.Contains(sensors.NodeKinds, r.Kind) {
			t.Errorf("no attack tries the rule %s", r.Name)
		}
	}
}

// rulesTestedElsewhere are rules that fire in tests of their own, or cannot here.
var rulesTestedElsewhere = []string{
	"unusual-egress", "unusual-program", // see TestBaselineDetectsNewBehaviorOfImage
	"module", // this kernel has no modules, and so no such call; the decoder's test has the record
}

// TestBaselineDetectsNewBehaviorOfImage learns an image for seconds. Then one of its containers does something
// new.
func TestBaselineDetectsNewBehaviorOfImage(t *testing.T) {
	state := t.TempDir()
	const learn = 6 * time.Second
	w := newNodeFixture(t, func(s *agent.Config) { s.StateDir, s.LearningPeriod = state, learn })
	since := time.Now()
	w.startPod(t, "learnt", func(p *corev1.Pod) {
		p.Spec.Containers[0].Command = shellCommand(
			"i=0; while [ $i -lt 12 ]; do /bin/sleep 1; i=$((i+1)); /attack connect " + w.peerAddress +
				" & done; /usr/bin/psql; /attack connect 192.0.2.1:443",
		)
	})
	d := w.waitForRule(t, "unusual-program", "learnt", since)
	require.Equal(t, "/usr/bin/psql", d.Event.Process.Exe)
	require.Contains(t, d.Reasons[len(d.Reasons)-1],
		"Never executed in one container of this image that this node watched for ")
	d = w.waitForRule(t, "unusual-egress", "learnt", since)
	require.Equal(t, "192.0.2.1", d.Event.Network.Address, "where it went all the time is usual")
	require.Greater(t, d.Confidence, 0.5)
	require.GreaterOrEqual(t, d.Event.Time.Sub(since), learn)
}

func (w *nodeFixture) runAttack(t *testing.T, a ruleAttack) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if a.needsTerminal {
		return w.ExecTerminal(ctx, w.namespace, a.pod, "main", a.command...)
	}
	return w.Exec(ctx, w.namespace, a.pod, "main", a.command...)
}
