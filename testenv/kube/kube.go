// Package kube is the lab: a real Kubernetes node on this machine that starts within seconds, for tests that need real
// behavior. etcd, API server (with RBAC), controller manager, scheduler, kubelet, containerd and runc are the real
// programs; pods, probes, logs, exec, tokens and events are real.
//
// It refuses three things: to reach a registry (images are built from files and imported), to serve anything but tests
// (its keys are in a temporary directory and its kubelet authorizes everyone), and to leave anything behind.
//
// Services and their names work in one lab of a machine at a time, the first one, since kube-proxy owns the machine's
// packet filter; in others, the only reachable Service is `kubernetes`, whose address is the one at which the API server
// listens. The network is a plain bridge, which does not enforce NetworkPolicies, as on many small clusters. Several
// labs can run at once; each has its own directory, bridge, subnets and cgroup.
package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Options configure a lab. The zero value works.
type Options struct {
	// Detached keeps the lab running after the process that started it. Without it, the next lab to start removes a lab
	// whose starter was killed.
	Detached bool
	// Logf receives the progress, one line per call; nil discards it.
	Logf func(format string, args ...any)
	// StartTimeout bounds the start; 0 means 90 s. On an idle machine a start takes 8 s.
	StartTimeout time.Duration
	// AuditLog enables the API server's audit log; nil disables it.
	AuditLog *AuditConfig
}

// AuditConfig is the API server's audit policy and webhook configuration, in the formats of its files.
type AuditConfig struct {
	Policy, Webhook string
	Flags           []string // additional audit flags of the API server
}

// Cluster is a running lab.
type Cluster struct {
	State

	config    *rest.Config
	client    *kubernetes.Clientset
	processes []*labProcess
}

// State identifies a running lab, or one that must be cleaned up. It is stored as a JSON file.
type State struct {
	ID        string `json:"id"`
	Dir       string `json:"dir"`
	NodeName  string `json:"node_name"`
	NodeIP    string `json:"node_ip"`    // the host's address on the pods' bridge; pods can reach it
	APIServer string `json:"api_server"` // https URL, the same from the host, host-network pods and pods
	// Kubeconfig is the path of an administrator's kubeconfig (group system:masters).
	Kubeconfig string `json:"kubeconfig"`
	// CRISocket is the path of containerd's CRI socket. Containers are in the namespace k8s.io.
	CRISocket string `json:"cri_socket"`
	PodCIDR   string `json:"pod_cidr"`
	Bridge    string `json:"bridge"`
	// CgroupRoot is the parent of kubepods in each hierarchy, with a leading slash.
	CgroupRoot  string `json:"cgroup_root"`
	KubeletPort int    `json:"kubelet_port"` // on NodeIP, https, authorizes everyone
	// Services reports whether kube-proxy and DNS run in this lab.
	Services bool `json:"services"`

	Owner     processID         `json:"owner"`
	Detached  bool              `json:"detached"`
	Processes []processID       `json:"parts"`
	Sysctls   map[string]string `json:"sysctls,omitempty"` // their values before the kubelet started
}

// Start removes the remains of killed labs, then starts a lab and waits until pods can run. It requires root, the
// programs that MissingPrograms lists, and the node's binary (see Build). It returns ErrNotBuilt if the binary is
// missing.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 90 * time.Second
	}
	if lacking := MissingPrograms(); len(lacking) > 0 {
		return nil, fmt.Errorf("start the lab: lacking %v", lacking)
	}
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	if err := StopOrphanedLabs(); err != nil {
		o.Logf("labnode: sweep of earlier labs: %v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()

	c := &Cluster{}
	c.Detached = o.Detached
	defer func() {
		if err != nil && c.ID != "" {
			err = errors.Join(fmt.Errorf("start the lab: %w", err), c.collectLogTails(), c.Stop())
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"claim a place", func(context.Context) error { return c.claimNumber() }},
		{"claim the services", func(context.Context) error { return c.claimServices() }},
		{"network", func(context.Context) error { return c.makeNetwork() }},
		{"keys", func(context.Context) error { return c.writeCertificates() }},
		{"cgroups", func(context.Context) error { return makeCgroups(c.CgroupRoot) }},
		{"containerd and etcd", func(ctx context.Context) error { return c.startContainerdAndEtcd(ctx, binary) }},
		{"api server", func(context.Context) error { return c.startAPIServer(binary, o.AuditLog) }},
		{"images", c.importBaseImages},
		{"api server answers", c.waitForAPIServer},
		{"controllers, scheduler, kubelet", func(context.Context) error { return c.startNodeComponents(binary) }},
		{"services", func(ctx context.Context) error { return c.startServices(ctx, binary) }},
		{"ready", c.waitForNodeReady},
		{"services answer", c.waitForServices},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		o.Logf("labnode: %-32s %5d ms", step.name, time.Since(began).Milliseconds())
	}
	return c, nil
}

// Attach opens a running lab from its state file. If parts of the lab are missing, only Stop works.
func Attach(path string) (*Cluster, error) {
	c := &Cluster{}
	if err := c.load(path); err != nil {
		return nil, fmt.Errorf("attach to the lab %s: %w", path, err)
	}
	if _, err := os.Stat(c.Kubeconfig); err != nil {
		return c, nil // an incomplete lab: sufficient for Stop
	}
	if err := c.connect(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Cluster) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read the lab's kubeconfig: %w", err)
	}
	config.QPS, config.Burst = -1, -1 // no client-side throttling
	c.config = config
	c.client, err = kubernetes.NewForConfig(config)
	return err
}

// Config returns a copy of an administrator's client configuration, without client-side throttling.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns an administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// filePath returns the path of a file in the lab's directory.
func (c *State) filePath(name string) string { return c.Dir + "/" + name }

func (c *Cluster) writeFile(name, content string) error {
	if err := os.WriteFile(c.filePath(name), []byte(content), 0o600); err != nil {
		return fmt.Errorf("write the lab's %s: %w", name, err)
	}
	return nil
}
