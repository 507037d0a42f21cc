package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"stanch/worker/freeport"
)

// ClusterDomain is the domain of the lab's Services: NAME.NAMESPACE.svc.cluster.local.
const ClusterDomain = "cluster.local"

// dnsIP is the address of the lab's DNS server, beside that of the API server.
func (c *State) dnsIP() string { return c.serviceIP("10") }

// serviceIP returns an address of the lab's Services.
func (c *State) serviceIP(last string) string { return strings.TrimSuffix(c.apiServerIP(), "1") + last }

// claimServices gives this lab the machine's Services unless another lab has them: kube-proxy removes from the
// machine's packet filter whatever it does not know, so two of them would undo each other's rules.
func (c *Cluster) claimServices() error {
	unlock, err := lockFile(labRegistryDir + "/lock")
	if err != nil {
		return err
	}
	defer unlock()
	others, err := otherLabs(c.ID)
	if err != nil {
		return err
	}
	c.Services = !slices.ContainsFunc(others, func(s State) bool { return s.Services }) && !hasKubeProxy() &&
		hasAddressTranslation()
	return c.save()
}

// hasKubeProxy reports whether the machine's packet filter has rules of a kube-proxy that no lab owns: this machine is
// the node of a real cluster.
func hasKubeProxy() bool {
	path, err := lookPath("iptables-save")
	if err != nil {
		return false
	}
	rules, err := exec.Command(path).Output()
	return err == nil && bytes.Contains(rules, []byte("KUBE-SERVICES"))
}

// hasAddressTranslation reports whether this kernel can translate addresses, as kube-proxy needs it to. Tests that need
// Services say that they lack them.
func hasAddressTranslation() bool {
	path, err := lookPath("iptables")
	return err == nil && exec.Command(path, "-w", "-t", "nat", "-S").Run() == nil
}

// startServices starts kube-proxy and CoreDNS, so that pods and the host reach Services by address and name. Both run
// beside the other components and not as pods.
func (c *Cluster) startServices(ctx context.Context, binary string) error {
	if !c.Services {
		return nil
	}
	// The API server listens at the address of its Service. A rule for that would break the connections that exist.
	if err := c.pollUntil(ctx, "the API server's Service", func() error {
		_, err := c.client.CoreV1().Services("default").Patch(ctx, "kubernetes", types.MergePatchType,
			[]byte(`{"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "none"}}}`), metav1.PatchOptions{})
		return err
	}); err != nil {
		return err
	}
	if err := c.writeFile("Corefile", fmt.Sprintf(`.:53 {
  bind %[1]s
  errors
  ready %[1]s:8181
  kubernetes %[2]s in-addr.arpa {
    kubeconfig %[3]s lab
    ttl 1
  }
}
`, c.dnsIP(), ClusterDomain, c.filePath("dns.kubeconfig"))); err != nil {
		return err
	}
	metrics, err := freeport.Find("127.0.0.1", 1)
	if err != nil {
		return err
	}
	return errors.Join(
		c.startProcess("coredns", binary, "coredns", "-conf", c.filePath("Corefile")),
		// The bridge would deliver an answer past the packet filter: the masquerade makes it go through.
		c.startProcess("kube-proxy", binary, "kube-proxy", "--kubeconfig="+c.filePath("proxy.kubeconfig"),
			"--proxy-mode=iptables", "--masquerade-all", "--cluster-cidr="+c.PodCIDR, "--hostname-override="+c.NodeName,
			"--healthz-bind-address=", fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", metrics[0]),
			"--conntrack-max-per-core=0",
			"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--iptables-min-sync-period=50ms",
			"--iptables-localhost-nodeports=false"),
	)
}

// waitForServices waits until the DNS server has read the Services.
func (c *Cluster) waitForServices(ctx context.Context) error {
	if !c.Services {
		return nil
	}
	client := &http.Client{Timeout: time.Second}
	return c.pollUntil(ctx, "the DNS server", func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.dnsIP()+":8181/ready", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", answer.Status)
		}
		return nil
	})
}

// removeServices removes what kube-proxy wrote into the machine's packet filter.
func (c *Cluster) removeServices() error {
	if !c.Services {
		return nil
	}
	binary, err := Binary()
	if err != nil {
		return err
	}
	out, err := exec.Command(binary, "kube-proxy", "--cleanup").CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove the rules of kube-proxy: %w: %s", err, out)
	}
	// Its cleanup forgets these chains.
	for _, program := range []string{"iptables", "ip6tables"} {
		path, err := lookPath(program)
		if err != nil {
			return fmt.Errorf("remove the rules of kube-proxy: %w", err)
		}
		for _, args := range [][]string{
			{"-D", "INPUT", "-j", "KUBE-FIREWALL"},
			{"-D", "OUTPUT", "-j", "KUBE-FIREWALL"},
			{"-F", "KUBE-FIREWALL"},
			{"-X", "KUBE-FIREWALL"},
		} {
			_ = exec.Command(path, append([]string{"-w"}, args...)...).Run() // removing a missing rule fails
		}
	}
	return nil
}
