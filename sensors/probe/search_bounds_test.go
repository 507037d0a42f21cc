package probe

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// runIPBatch runs many ip commands in the network namespace that a helper created as an unprivileged user.
func runIPBatch(t *testing.T, in *helperProcess, commands string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--preserve-credentials", "--user", "--net", "--target", pidOf(in), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// An unprivileged container creates namespaces and opens files at will, and its first process need not be in the pod's
// network.
func TestVethSearchIsBoundedAndFindsThePodInterface(t *testing.T) {
	n := newNetworkLab(t)
	found := func(t *testing.T, others ...*helperProcess) {
		t.Helper()
		veths, err := FindVeths(pidsOf(append(others, n.pod)...)...)
		if len(veths) != 1 || veths[0].Index != n.veths[0].Index || veths[0].MAC != n.veths[0].MAC {
			t.Errorf("found %+v", veths)
		}
		if err == nil || len(err.Error()) > 4096 {
			t.Errorf("the error must list what was not inspected, in bounded length: %v", err)
		}
	}
	t.Run("many network namespaces", func(t *testing.T) {
		var others []*helperProcess
		for range maxNamespaces + 1 {
			others = append(others, newHiddenHelper(t, n.podDir))
		}
		found(t, others...)
	})
	t.Run("many open files", func(t *testing.T) {
		hidden := newHiddenHelper(t, n.podDir)
		for range maxSearchedHandles {
			if got := hidden.run(t, "hold", "/dev/null"); got != "sent" {
				t.Fatal(got)
			}
		}
		found(t, hidden)
	})
	t.Run("many interfaces", func(t *testing.T) {
		hidden := newHiddenHelper(t, n.podDir)
		var commands strings.Builder
		for i := range maxInterfaces + 100 {
			fmt.Fprintf(&commands, "link add d%d type bridge\n", i)
		}
		runIPBatch(t, hidden, commands.String())
		began := time.Now()
		found(t, hidden)
		if took := time.Since(began); took > namespaceSearchTimeout+time.Second {
			t.Errorf("the search took %s", took)
		}
	})
}

func TestVethAddressesAreLimited(t *testing.T) {
	n := newNetworkLab(t)
	var commands strings.Builder
	for i := range 500 {
		fmt.Fprintf(&commands, "addr add fd77::%x/128 dev eth0 nodad\n", i)
	}
	cmd := exec.Command("nsenter", "--net="+netNamespaceOf(t, n.pod), "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	veths, err := FindVeths(pidsOf(n.pod)...)
	if err != nil || len(veths) != 1 || len(veths[0].Addrs) != maxVethAddrs {
		t.Fatalf("%+v, %v", veths, err)
	}
	if veths[0].Addrs[0].String() != podIP {
		t.Errorf("the pod's own address is missing: %v", veths[0].Addrs)
	}
}
