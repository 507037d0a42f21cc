package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"stanch/sensors/containermeta"
	"stanch/sensors/probe"
	"stanch/worker"
	"stanch/worker/config"
)

// checkResult is the result of one check of `stanch doctor`.
type checkResult struct {
	Name string `json:"name"`
	// OK is true if the check passed. Required is false for what Stanch can run without.
	OK       bool   `json:"ok"`
	Required bool   `json:"required"`
	Detail   string `json:"detail"`
	Remedy   string `json:"remedy,omitempty"`
}

func doctorCommand(g *globalFlags) *cobra.Command {
	var output, kubeconfig, cri string
	c := &cobra.Command{
		Use: "doctor", Short: "Check this machine's prerequisites and suggest fixes",
		Args: validateArgs(cobra.NoArgs),
		Long: `Check the kernel, permissions, container runtime, cluster, cloud, chat, disk and connected
nodes, before the first start or when something does not work. Each failed check suggests a
fix. Exit code 1 means that a required check failed.

With --server or --cluster check a worker in a cluster too: whether it has the permissions that
its playbooks need in its phase, and which of its permissions no playbook needs.`,
		Example: "  stanch doctor\n  stanch doctor -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			results := runChecks(cmd.Context(), g, kubeconfig, cri)
			bad := false
			for _, f := range results {
				bad = bad || f.Required && !f.OK
			}
			if output == "json" {
				if err := printJSON(cmd.OutOrStdout(), results); err != nil {
					return err
				}
			} else {
				for _, f := range results {
					mark := "ok     "
					switch {
					case !f.OK && f.Required:
						mark = "FAILED "
					case !f.OK:
						mark = "warning"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s  %-16s %s\n", mark, f.Name, escapeForTerminal(f.Detail))
					if !f.OK && f.Remedy != "" {
						fmt.Fprintf(cmd.OutOrStdout(), "         %-16s -> %s\n", "", f.Remedy)
					}
				}
			}
			if bad {
				return errReported
			}
			return nil
		},
	}
	c.Flags().StringVar(&kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"),
		"the kubeconfig `FILE` of the cluster; \"none\" for no cluster")
	c.Flags().StringVar(&cri, "cri", "", "the CRI `SOCKET` of the container runtime (default: the common paths)")
	addOutputFlag(c, &output)
	return c
}

// runChecks runs every check. Checks of the configuration and of nodes are left out where there is none to check.
func runChecks(ctx context.Context, g *globalFlags, kubeconfig, cri string) []checkResult {
	var out []checkResult
	add := func(name string, required, ok bool, detail, remedy string) {
		out = append(out, checkResult{Name: name, OK: ok, Required: required, Detail: detail, Remedy: remedy})
	}
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	add("kernel", true, true, unix.ByteSliceToString(uts.Release[:]), "")
	_, err := os.Stat("/sys/kernel/btf/vmlinux")
	add("BTF", true, err == nil, "/sys/kernel/btf/vmlinux",
		"run a kernel with CONFIG_DEBUG_INFO_BTF, as current distributions do")
	add("root", true, os.Geteuid() == 0, fmt.Sprintf("user id %d", os.Geteuid()),
		"run as root, or grant CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN")
	root, err := containermeta.FindCgroupRoot()
	add("cgroup v2", true, err == nil, detailOrError(root, err),
		"mount cgroup v2: mount -t cgroup2 none /sys/fs/cgroup/unified")
	out = append(out, checkProbeHooks()...)
	out = append(out, checkEgressLock())
	if resolver, err := containermeta.Open(containermeta.Options{CRISocket: cri}); err == nil {
		runtime := resolver.DescribeRuntime()
		add("runtime", false, strings.Contains(runtime, " at "), runtime,
			"containers are identified by their cgroup alone, without names and images; set --cri")
		_ = resolver.Close()
	}
	out = append(out, checkCluster(ctx, kubeconfig))
	if cfg, err := g.loadConfig(); err == nil && cfg.AWS != nil {
		out = append(out, checkAWS(ctx, cfg))
	}
	if cfg, err := g.loadConfig(); err == nil && cfg.Slack != nil {
		out = append(out, checkSlack(ctx, cfg.Slack))
	}
	out = append(out, checkDisk(g.dataDir))
	if paused := formatPause(g.pauseState(ctx)); paused != "" {
		add("kill switch", false, false, paused, "stanch resume")
	}
	var nodes map[string]nodeHealth
	if err := g.newAPIClient().get(ctx, "/v1/nodes", &nodes); err != nil {
		add("stanch", false, false, err.Error(), "")
	} else {
		names := make([]string, 0, len(nodes))
		for n := range nodes {
			names = append(names, n)
		}
		add("stanch", false, true, "running; "+formatConnectedNodes(names), "")
		out = append(out, checkNodes(nodes)...)
		out = append(out, g.checkPermissions(ctx)...)
	}
	return out
}

// checkAWS checks the identity of Stanch in AWS. Without one, AWS steps are refused and other steps still run.
func checkAWS(ctx context.Context, cfg *config.Config) checkResult {
	f := checkResult{Name: "AWS", Remedy: "provide credentials where the AWS SDK looks for them; `stanch manifests " +
		"--iam` prints the policy that they need"}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	account, err := worker.OpenAccount(ctx, cfg)
	if err == nil {
		f.Detail, err = account.CheckIdentity(ctx)
	}
	if f.OK = err == nil; err != nil {
		f.Detail = err.Error()
	}
	return f
}

// checkSlack checks the identity of Stanch in Slack, and its access to the channel.
func checkSlack(ctx context.Context, c *config.Slack) checkResult {
	f := checkResult{
		Name: "Slack",
		Remedy: "check the files that `slack:` names, invite the app to the channel, and grant its bot chat:write, " +
			"users:read, " +
			"usergroups:read and channels:history",
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	detail, err := worker.CheckSlack(ctx, c)
	f.Detail, f.OK = detailOrError(detail, err), err == nil
	return f
}

func detailOrError(detail string, err error) string {
	if err != nil {
		return err.Error()
	}
	return detail
}

// checkProbeHooks loads every hook into the kernel: feature detection alone does not show that a hook attaches.
func checkProbeHooks() []checkResult {
	p, err := probe.Load(probe.Options{})
	if err != nil {
		return []checkResult{{
			Name: "probes", Required: true, Detail: err.Error(),
			Remedy: "without probes, only detections from other sensors are processed",
		}}
	}
	defer func() { _ = p.Close() }()
	var out []checkResult
	for _, h := range p.Status().Hooks {
		detail := "on"
		if !h.Enabled {
			detail = h.Reason
		}
		out = append(out, checkResult{
			Name: "probe " + string(h.Hook), OK: h.Enabled, Detail: detail,
			Remedy: "other probes are not affected",
		})
	}
	return out
}

func checkEgressLock() checkResult {
	dir := filepath.Join("/sys/fs/bpf", "stanch-doctor")
	l, err := probe.OpenEgressLock(dir)
	if err != nil {
		return checkResult{
			Name: "egress lock", Required: false, Detail: err.Error(),
			Remedy: "without it, isolation uses only NetworkPolicies, whose effect cannot be verified",
		}
	}
	_ = l.Close()
	err = probe.Cleanup(dir)
	return checkResult{Name: "egress lock", OK: err == nil, Detail: detailOrError("loads and attaches", err)}
}

func checkCluster(ctx context.Context, kubeconfig string) checkResult {
	f := checkResult{
		Name:   "cluster",
		Remedy: "fix the kubeconfig, or use --kubeconfig none to protect the containers of this host",
	}
	client, name, err := connectCluster(kubeconfig)
	if err != nil || client == nil {
		f.Detail, f.OK = detailOrError(name, err), err == nil
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{Limit: 500})
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	f.OK, f.Detail = true, fmt.Sprintf("%s, %d nodes", name, len(nodes.Items))
	return f
}

// minFreeDiskBytes is the free space, in bytes, for Temporal's database and some evidence.
const minFreeDiskBytes = 2 << 30

func checkDisk(dir string) checkResult {
	f := checkResult{Name: "disk", Required: true, Remedy: "free some space, or set a different --data directory"}
	at := dir
	for {
		if _, err := os.Stat(at); err == nil || at == "/" {
			break
		}
		at = filepath.Dir(at)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		f.Detail = fmt.Sprintf("%s: %v", at, err)
		return f
	}
	free := fs.Bavail * uint64(fs.Bsize)
	f.OK, f.Detail = free >= minFreeDiskBytes, fmt.Sprintf("%s: %.1f GiB free", dir, float64(free)/(1<<30))
	return f
}

// formatConnectedNodes lists the nodes whose sensor is connected.
func formatConnectedNodes(names []string) string {
	if len(names) == 0 {
		return "no sensor is connected"
	}
	return formatCount(len(names), "node is", "nodes are") + " connected: " + strings.Join(names, ", ")
}
