package probe

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	nodeIP, podIP, siblingIP, peerIP = "10.231.7.1", "10.231.7.2", "10.231.7.3", "10.231.7.4"
	nodeIPv6, podIPv6, peerIPv6      = "fd31:7::1", "fd31:7::2", "fd31:7::4"
)

// egressAttempts lists ways to send from the pod, each of which succeeds without a lock.
var egressAttempts = [][]string{
	{"tcp", peerIP, "7000"},
	{"tcp", peerIPv6, "7000"},
	{"udp", peerIP, "7001"},
	{"udp", peerIPv6, "7001"},
	{"raw", peerIP},
	{"icmp", peerIP},
	{"packet", "eth0"},
	{"tcp", nodeIP, "1"},
	{"udp", nodeIP, "7001"},
}

func TestLockBlocksEgressAndExpires(t *testing.T) {
	n := newNetworkLab(t)
	for _, way := range egressAttempts[:7] {
		before := n.peerFrameCount(t)
		n.pod.run(t, way...)
		waitUntil(t, "arrives without a lock: "+strings.Join(way, " "), func() bool { return n.peerFrameCount(t) > before })
	}
	if got := n.pod.run(t, "open", peerIP, "7000"); got != "open" {
		t.Fatal(got)
	}
	if got := n.pod.run(t, "say", "before"); got != "said" {
		t.Fatal(got)
	}
	waitUntil(t, "the open connection works", func() bool { return strings.Contains(n.peer.run(t, "text"), "before") })
	n.pod.run(t, "serve", "8080")

	dir := newLockDir(t)
	l := openTestLock(t, dir)
	registerAsKubelet(t, l)
	until := time.Now().Add(6 * time.Second)
	start := time.Now()
	st, err := l.Apply(EgressLockRequest{LeaseID: "lease-1", Cgroups: []uint64{n.podID}, Veths: n.veths, ExpiresAt: until})
	if err != nil || !st.Active || !st.VethLocked || st.VethError != "" {
		t.Fatalf("Apply: %+v, %v", st, err)
	}
	t.Logf("applied in %v", time.Since(start))

	before := n.peerFrameCount(t)
	n.pod.run(t, "say", "held")
	for _, way := range egressAttempts {
		n.pod.run(t, way...)
	}
	if n.peerFrameCount(t) != before || strings.Contains(n.peer.run(t, "text"), "held") {
		t.Errorf("%d frames passed a lock", n.peerFrameCount(t)-before)
	}
	// Loopback, the sibling and the node's own connections still work.
	if got := n.pod.run(t, "ask", "127.0.0.1", "8080"); got != "answer" {
		t.Errorf("loopback in the pod: %s", got)
	}
	if got := n.pod.run(t, "ask", podIP, "8080"); got != "answer" {
		t.Errorf("the pod's own address: %s", got)
	}
	if got := n.sibling.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("the sibling: %s", got)
	}
	for _, host := range []string{podIP, podIPv6} {
		if got, err := dialAndAsk(host, "8080"); got != "answer" {
			t.Errorf("the node's probe of %s: %q, %v", host, got, err)
		}
	}
	// This does not let the pod reach the node: neither a listener nor the port that it replied to.
	local, err := net.Listen("tcp", nodeIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	_, port, _ := net.SplitHostPort(local.Addr().String())
	if got := n.pod.run(t, "tcp", nodeIP, port); got == "sent" {
		t.Error("the pod opened a connection to the node")
	}
	if got := n.sibling.run(t, "ask", podIP, "8080"); got == "answer" {
		t.Error("another pod got a reply")
	}
	st, err = l.StateOfCgroup(n.podID)
	if err != nil || !st.Active || st.DeniedPackets == 0 || st.AnsweredPackets == 0 || st.LeaseID != "lease-1" {
		t.Errorf("State: %+v, %v", st, err)
	}
	for _, kind := range []string{"tcp", "udp", "icmp"} {
		if st.DeniedByProtocol[kind] == 0 {
			t.Errorf("nothing denied as %s: %+v", kind, st.DeniedByProtocol)
		}
	}
	if d := st.ExpiresAt.Sub(until); d < -time.Second || d > time.Second {
		t.Errorf("Until is off by %v", d)
	}
	if _, err := l.Apply(EgressLockRequest{
		LeaseID: "lease-2", Cgroups: []uint64{n.podID},
		ExpiresAt: until,
	}); !errors.Is(err, ErrLockedByOtherLease) {
		t.Errorf("another lease: %v", err)
	}

	// The lock expires on its own, and the open connection delivers what was sent in the meantime.
	waitUntil(t, "the open connection continues", func() bool { return strings.Contains(n.peer.run(t, "text"), "held") })
	if time.Now().Before(until.Add(-50 * time.Millisecond)) {
		t.Errorf("the lock expired %v early", time.Until(until))
	}
	if st, err := l.StateOfCgroup(n.podID); err != nil || st.Active {
		t.Errorf("after its expiry: %+v, %v", st, err)
	}
	before = n.peerFrameCount(t)
	n.pod.run(t, "packet", "eth0")
	waitUntil(t, "packet sockets again", func() bool { return n.peerFrameCount(t) > before })
	if all, err := l.List(); err != nil || len(all) != 0 {
		t.Errorf("List: %+v, %v", all, err)
	}
	if st, err := l.Apply(EgressLockRequest{
		LeaseID: "lease-2", Cgroups: []uint64{n.podID}, Veths: n.veths,
		ExpiresAt: time.Now().Add(time.Minute),
	}); err != nil || !st.VethLocked {
		t.Errorf("another lease afterwards: %+v, %v", st, err)
	}
	if err := l.Release("lease-2"); err != nil {
		t.Error(err)
	}
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("after release: %s", got)
	}
}

func TestLockOutlivesItsOwnerAndExpires(t *testing.T) {
	n := newNetworkLab(t)
	dir := newLockDir(t)
	openTestLock(t, dir).Close()
	// Another process applies the lock and is killed.
	w := n.veths[0]
	owner := selfCommand("lock", dir, fmt.Sprint(n.podID), fmt.Sprint(w.Index), formatMAC(w.MAC), "3s")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	owner.Stderr = os.Stderr
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if !strings.HasPrefix(line, "locked") {
		t.Fatalf("owner says %q", line)
	}
	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	before := n.peerFrameCount(t)
	for _, way := range egressAttempts {
		n.pod.run(t, way...)
	}
	if got := n.peerFrameCount(t); got != before {
		t.Errorf("%d frames passed after the owner was killed", got-before)
	}
	// A process in a later container of the pod is locked too.
	later, _ := newCgroup(t, n.podDir)
	child := newHelperProcess(t, filepath.Base(netNamespaceOf(t, n.pod)), later)
	child.run(t, "packet", "eth0")
	if got := child.run(t, "tcp", peerIP, "7000"); got == "sent" || n.peerFrameCount(t) != before {
		t.Errorf("a later container: %s", got)
	}
	waitUntil(t, "it expires", func() bool { return n.pod.run(t, "tcp", peerIP, "7000") == "sent" })

	// The next process adopts the pins and extends nothing. The expired lock is gone, and an active lock stays in
	// force.
	l := openTestLock(t, dir)
	if _, err := l.Apply(EgressLockRequest{
		LeaseID: "x", Cgroups: []uint64{n.podID}, Veths: n.veths,
		ExpiresAt: time.Now().Add(time.Minute),
	}); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	l = openTestLock(t, dir)
	all, err := l.List()
	if err != nil || len(all) != 1 || all[0].LeaseID != "x" || !all[0].VethLocked || len(all[0].Cgroups) != 1 {
		t.Fatalf("adopted: %+v, %v", all, err)
	}
	if got := n.pod.run(t, "udp", peerIP, "7001"); got == "sent" {
		t.Error("an adopted lock is not in force")
	}
	if err := Cleanup(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("Cleanup while another process uses it: %v", err)
	}
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got == "sent" {
		t.Error("a refused Cleanup released the lock")
	}
	_ = l.Close()
	if err := Cleanup(dir); err != nil {
		t.Fatal(err)
	}
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("after Cleanup: %s", got)
	}
}

func TestLockAllowsOnlyTheAllowList(t *testing.T) {
	n := newNetworkLab(t)
	l := openTestLock(t, newLockDir(t))
	st, err := l.Apply(EgressLockRequest{
		LeaseID: "a", Cgroups: []uint64{n.podID}, Veths: n.veths, ExpiresAt: time.Now().Add(time.Minute),
		AllowList: []AllowedDestination{
			{Prefix: mustPrefix(peerIP + "/32"), Port: 7000, Protocol: "tcp"},
			{Prefix: mustPrefix("10.231.7.0/28"), Port: 9, Protocol: "udp"},
		},
	})
	if err != nil || !st.VethLocked {
		t.Fatalf("%+v, %v", st, err)
	}
	n.sibling.run(t, "serve", "7000")
	n.peer.run(t, "serve", "7002")
	if got := n.pod.run(t, "tcp", peerIP, "7000"); got != "sent" {
		t.Errorf("allowed: %s", got)
	}
	if got := n.pod.run(t, "udp", peerIP, "9"); got != "sent" {
		t.Errorf("allowed by the wider prefix: %s", got)
	}
	for to, want := range map[string]bool{
		peerIP + ":7000": false, peerIP + ":7002": true, siblingIP + ":7000": true,
		"127.0.0.1:1": false,
	} {
		if got := l.WouldDeny(n.podID, netip.MustParseAddrPort(to)); got != want {
			t.Errorf("Denies %s: %v, want %v", to, got, want)
		}
	}
	for _, way := range [][]string{{"tcp", peerIP, "7002"}, {"udp", peerIP, "7000"}, {"tcp", siblingIP, "7000"}} {
		if got := n.pod.run(t, way...); got == "sent" {
			t.Errorf("%v passed", way)
		}
	}
}

func TestApplyRejectsInvalidRequests(t *testing.T) {
	requireKernel(t)
	l := openTestLock(t, newLockDir(t))
	for name, r := range map[string]EgressLockRequest{
		"no lease":  {Cgroups: []uint64{2}, ExpiresAt: time.Now().Add(time.Minute)},
		"no cgroup": {LeaseID: "x", ExpiresAt: time.Now().Add(time.Minute)},
		"past":      {LeaseID: "x", Cgroups: []uint64{2}, ExpiresAt: time.Now().Add(-time.Minute)},
		"the root":  {LeaseID: "x", Cgroups: []uint64{1}, ExpiresAt: time.Now().Add(time.Minute)},
	} {
		if st, err := l.Apply(r); err == nil {
			t.Errorf("%s: %+v", name, st)
		}
	}
	if err := l.Release("never held"); err != nil {
		t.Error(err)
	}
	if _, err := FindVeths(os.Getpid()); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("own veths: %v", err)
	}
	if err := Cleanup("/sys/fs/bpf/stanch-test-nothing-here"); err != nil {
		t.Error(err)
	}
}
