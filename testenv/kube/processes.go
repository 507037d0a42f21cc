package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/worker/freeport"
)

// labProcess is a process of the lab that this process started.
type labProcess struct {
	processID
	logPath string
	exited  chan struct{} // closed when it was reaped
}

// startProcess runs a component with its output in a log file of the lab's directory. It records the component in the
// state first, so that a later cleanup finds it in any case.
func (c *Cluster) startProcess(name, program string, args ...string) error {
	p := &labProcess{logPath: c.filePath(name + ".log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open %s's log: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, log, log
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C for the tests must not stop the lab
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait(); close(p.exited) }()
	if p.processID, err = identifyProcess(cmd.Process.Pid); err != nil {
		return fmt.Errorf("start %s: it ended at once: %s", name, lastLogLines(p.logPath, 5))
	}
	p.Name = name
	c.processes = append(c.processes, p)
	c.Processes = append(c.Processes, p.processID)
	return c.save()
}

// startContainerdAndEtcd starts the components without dependencies: the container runtime and the store.
func (c *Cluster) startContainerdAndEtcd(ctx context.Context, binary string) error {
	if err := c.writeContainerdConfig(); err != nil {
		return err
	}
	containerd, err := lookPath("containerd")
	if err != nil {
		return err
	}
	if err := c.startProcess("containerd", containerd, "--config", c.filePath("containerd.toml")); err != nil {
		return err
	}
	peers, err := freeport.Find("127.0.0.1", 1)
	if err != nil {
		return err
	}
	if err := c.startProcess("etcd", binary, "etcd", "--data-dir", c.filePath("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", "unix://"+c.filePath("etcd.sock"),
		"--advertise-client-urls", fmt.Sprintf("http://127.0.0.1:%d", peers[0]), // unused; a socket is not accepted
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peers[0]),
		"--initial-advertise-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peers[0]),
		"--initial-cluster", fmt.Sprintf("default=http://127.0.0.1:%d", peers[0]), "--log-level", "warn"); err != nil {
		return err
	}
	return c.pollUntil(ctx, "containerd and etcd to listen", func() error {
		return errors.Join(checkReachable("unix", c.CRISocket), checkReachable("unix", c.filePath("etcd.sock")))
	})
}

func (c *Cluster) startAPIServer(binary string, audit *AuditConfig) error {
	var more []string
	if audit != nil {
		if err := errors.Join(c.writeFile("audit-policy.yaml", audit.Policy), c.writeFile("audit-webhook.yaml",
			audit.Webhook)); err != nil {
			return err
		}
		more = []string{
			"--audit-policy-file=" + c.filePath("audit-policy.yaml"), "--audit-webhook-config-file=" +
				c.filePath("audit-webhook.yaml"),
			"--audit-webhook-batch-max-wait=200ms", "--audit-webhook-initial-backoff=500ms",
		}
		more = append(more, audit.Flags...)
	}
	services := strings.TrimSuffix(c.apiServerIP(), "1") + "0/24"
	return c.startProcess("kube-apiserver", binary, append([]string{
		"kube-apiserver",
		"--etcd-servers=unix://" + c.filePath("etcd.sock"), "--bind-address=" + c.apiServerIP(), "--secure-port=443",
		"--advertise-address=" + c.apiServerIP(), "--service-cluster-ip-range=" + services,
		"--tls-cert-file=" + c.filePath("server.crt"), "--tls-private-key-file=" + c.filePath("server.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + c.filePath("sa.key"),
		"--service-account-signing-key-file=" + c.filePath("sa.key"), "--token-auth-file=" + c.filePath("tokens.csv"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-preferred-address-types=InternalIP", "--profiling=false",
	}, more...)...)
}

func (c *Cluster) waitForAPIServer(ctx context.Context) error {
	return c.pollUntil(ctx, "the API server", func() error {
		_, err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
}

func (c *Cluster) startNodeComponents(binary string) error {
	if err := c.writeKubeletConfig(); err != nil {
		return err
	}
	return errors.Join(
		c.startProcess("kube-controller-manager", binary, "kube-controller-manager",
			"--kubeconfig="+c.filePath("controllers.kubeconfig"),
			"--leader-elect=false", "--secure-port=0", "--root-ca-file="+c.filePath("ca.crt"),
			"--service-account-private-key-file="+c.filePath("sa.key")),
		c.startProcess("kube-scheduler", binary, "kube-scheduler", "--kubeconfig="+c.filePath("scheduler.kubeconfig"),
			"--leader-elect=false", "--secure-port=0"),
		c.startProcess("kubelet", binary, "kubelet", "--config="+c.filePath("kubelet.yaml"),
			"--kubeconfig="+c.filePath("kubelet.kubeconfig"),
			"--root-dir="+c.filePath("kubelet"), "--cert-dir="+c.filePath("kubelet-pki"), "--hostname-override="+c.NodeName,
			"--node-ip="+c.NodeIP),
	)
}

// waitForNodeReady waits until the node accepts pods and the default service account exists, which pods require.
func (c *Cluster) waitForNodeReady(ctx context.Context) error {
	return c.pollUntil(ctx, "the node to be ready", func() error {
		if _, err := c.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		node, err := c.client.CoreV1().Nodes().Get(ctx, c.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, t := range node.Spec.Taints {
			return fmt.Errorf("the node has the taint %s", t.Key)
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errors.New("the node is not ready")
	})
}

// pollUntil calls f until it succeeds, the time is up, or a component has exited.
func (c *Cluster) pollUntil(ctx context.Context, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, p := range c.processes {
			select {
			case <-p.exited:
				return fmt.Errorf("wait for %s: %s ended by itself", what, p.Name)
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last: %w", what, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// collectLogTails returns the last lines of every component's log, for a failed start.
func (c *Cluster) collectLogTails() error {
	var all []error
	for _, p := range c.processes {
		all = append(all, fmt.Errorf("--- the last of %s:\n%s", p.Name, lastLogLines(p.logPath, 8)))
	}
	return errors.Join(all...)
}

func lastLogLines(path string, lines int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
